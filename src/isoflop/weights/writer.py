"""Folders of safetensors, written one tensor at a time: no more than one is ever held."""

import fcntl
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from isoflop.weights.folder import CODES, DTYPES, INDEX, SINGLE, sha256_of

MOST_SHARD = 5_000_000_000  # bytes of one file, unless a single tensor is larger

_NAMES = {dtype: name for name, dtype in (DTYPES | CODES).items()}


class Form(NamedTuple):
    """What a tensor will be."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        itemsize: int = self.dtype.itemsize
        return itemsize * math.prod(self.shape)


Tell = Callable[[int, int], None]  # bytes written so far, and of all


def silent(done: int, total: int) -> None:
    """Tell nobody."""


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to fill, which takes the place `path` when the block ends well and vanishes otherwise. Raises ValueError
    where something is there already, or where another process is writing it."""
    refuse_existing(path)
    partial = path.with_name(f".{path.name}.partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    with held(partial):
        try:
            yield partial
            _sync(partial)
            partial.rename(path)
            _sync(path.parent)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """An empty folder that is this process's alone until the block ends; what a killed writer left in it is removed."""
    folder.mkdir(exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            same = os.path.samestat(os.fstat(descriptor), folder.stat())
        except (BlockingIOError, FileNotFoundError):  # held by another, or renamed by another before we locked it
            same = False
        if not same:
            raise ValueError(f"{folder}: another isoflop is writing here; wait for it, or give another name")
        for left in folder.iterdir():
            shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()
        yield
    finally:
        os.close(descriptor)


def refuse_existing(path: Path) -> None:
    """Raises ValueError where anything but an empty folder is at `path`, or no folder can be made there."""
    if path.is_symlink() or (path.exists() and not (path.is_dir() and not any(path.iterdir()))):
        raise ValueError(f"{path}: is there already; give a name that is free")
    above = next(parent for parent in path.absolute().parents if os.path.lexists(parent))
    if not (above.is_dir() and os.access(above, os.W_OK)):
        raise ValueError(f"{path}: {above} is no folder that can be written to")


def write_tensors(
    folder: Path,
    forms: Mapping[str, Form],
    make: Callable[[str], Tensor],
    tell: Tell = silent,
    most_shard: int = MOST_SHARD,
) -> dict[str, str]:
    """Write every tensor, each made when its turn comes, into one file or several and an index. Returns the digest of
    each. Raises OSError."""
    shards = _shards(forms, most_shard)
    total, done, digests, index = sum(form.nbytes for form in forms.values()), 0, {}, {}
    for number, shard in enumerate(shards, start=1):
        file = SINGLE if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
        with (folder / file).open("wb") as opened:
            opened.write(_header({name: forms[name] for name in shard}))
            for name in shard:
                tensor = make(name).detach().contiguous()
                assert (tensor.dtype, tuple(tensor.shape)) == forms[name], name
                opened.write(memoryview(tensor.reshape(-1).view(torch.uint8).numpy()))
                digests[name], index[name] = sha256_of(tensor), file
                done += forms[name].nbytes
                tell(done, total)
            opened.flush()
            os.fsync(opened.fileno())
    if len(shards) > 1:
        content = {"metadata": {"total_size": total}, "weight_map": dict(sorted(index.items()))}
        (folder / INDEX).write_text(json.dumps(content, indent=2), encoding="utf-8")
    return digests


def _shards(forms: Mapping[str, Form], most: int) -> list[list[str]]:
    """Names by file; within a file the wider types first, so that every tensor lies aligned."""
    shards: list[list[str]] = [[]]
    size = 0
    for name, form in forms.items():
        if shards[-1] and size + form.nbytes > most:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += form.nbytes
    return [sorted(shard, key=lambda name: -forms[name].dtype.itemsize) for shard in shards]


def _header(forms: Mapping[str, Form]) -> bytes:
    """Eight bytes of length and a JSON of types, shapes and places, padded to a multiple of eight."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name, form in forms.items():
        end = start + form.nbytes
        header[name] = {"dtype": _NAMES[form.dtype], "shape": list(form.shape), "data_offsets": [start, end]}
        start = end
    data = json.dumps(header, separators=(",", ":")).encode()
    data += b" " * (-len(data) % 8)
    return len(data).to_bytes(8, "little") + data


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
