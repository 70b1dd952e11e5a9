"""A folder of safetensors, read one tensor at a time. Nothing in it is executed, and nothing outside it is opened."""

import hashlib
import json
import math
import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from isoflop.data.plain_json import MOST_TOLD, no_key_twice, read_json

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
MOST_NAME = 255  # bytes of a file's name
CHUNK = 1 << 18  # elements looked at at once: what is made of them on the way is no larger than a cache

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
CODES = {
    "U8": torch.uint8,
    "I8": torch.int8,
    "I32": torch.int32,
    "I64": torch.int64,
}  # of quantized weights, read only where there are


class Entry(NamedTuple):
    """Where a tensor lies: file, type, shape, first byte."""

    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int

    @property
    def nbytes(self) -> int:
        itemsize: int = self.dtype.itemsize
        return itemsize * math.prod(self.shape)


class TensorFolder:
    """The tensors of a folder by name; `entries` tells of each without reading it. Raises ValueError naming the file
    where it is damaged, leads outside the folder, or is a format that holds code; `codes` lets tensors hold whole
    numbers."""

    def __init__(self, folder: Path, codes: bool = False) -> None:
        self.folder = folder
        self._kinds = DTYPES | CODES if codes else DTYPES
        self.entries: dict[str, Entry] = {}
        for file, promised in _files(folder).items():
            self._add(file, promised)
        largest = max((entry.nbytes for entry in self.entries.values()), default=0)
        self._buffer = torch.empty(largest, dtype=torch.uint8)
        self._held: str | None = None

    def read(self, name: str) -> Tensor:
        """The tensor, in a buffer that the next one overwrites. Raises ValueError where it holds NaN or infinity."""
        return self._read(name, self.entries[name])

    def _read(self, name: str, entry: Entry) -> Tensor:
        data = self._buffer[: entry.nbytes]
        tensor = data.view(entry.dtype).view(entry.shape)
        if self._held != name:
            self._held = None
            _read_into(entry, memoryview(data.numpy()))
            if not all(bool(chunk.isfinite().all()) for chunk in tensor.flatten().split(CHUNK)):
                raise ValueError(f"{entry.file}: tensor '{name}' holds NaN or infinity")
            self._held = name
        return tensor

    def sha256(self, name: str) -> str:
        """Digest of a tensor's bytes."""
        return sha256_of(self.read(name))

    def _add(self, file: Path, promised: set[str] | None) -> None:
        found = _header(file, self._kinds)
        twice = next((name for name in found if name in self.entries), None)
        if twice is not None:
            raise ValueError(
                f"{self.folder}: tensor '{twice}' is both in {self.entries[twice].file.name} and {file.name}"
            )
        for name in sorted((promised or set(found)) ^ set(found)):
            where = "in the index but not in the file" if name not in found else "in the file but not in the index"
            raise ValueError(f"{file}: tensor '{name}' is {where}")
        self.entries |= found


def sha256_of(tensor: Tensor) -> str:
    """Digest of a contiguous tensor's bytes."""
    return hashlib.sha256(memoryview(tensor.detach().reshape(-1).view(torch.uint8).numpy())).hexdigest()


def inside(folder: Path, name: str) -> Path:
    """The plain file of that name in a folder. Raises ValueError where the name or a link leads out of it."""
    path = folder / name
    if name in ("", ".", "..") or "/" in name or "\\" in name or "\0" in name or not _encodes(name):
        raise ValueError(f"{folder}: '{name[:80]}' is not the name of a file in this folder")
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise ValueError(f"{path}: there is no such file") from None
    if path.resolve().parent != folder.resolve():
        raise ValueError(f"{path}: is a link that leaves the folder; copy the folder with its links followed (cp -rL)")
    if not stat.S_ISREG(mode):
        raise ValueError(f"{path}: is not a plain file")
    return path


def _encodes(name: str) -> bool:
    """Whether a file can have the name: it is text, of at most 255 bytes."""
    try:
        return len(name.encode()) <= MOST_NAME
    except UnicodeEncodeError:
        return False


def _files(folder: Path) -> dict[Path, set[str] | None]:
    """The files to read, and the names that an index promises in each, where there is one."""
    if not folder.is_dir():
        raise ValueError(f"{folder}: is not a folder")
    if os.path.lexists(folder / SINGLE):
        return {inside(folder, SINGLE): None}
    if os.path.lexists(folder / INDEX):
        return dict(_indexed(folder, read_json(inside(folder, INDEX))))
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in (".bin", ".pt", ".pth", ".ckpt", ".pkl"))
    if pickles:
        why = "is a pickle, which may execute code when it is opened; only safetensors are read"
        raise ValueError(f"{folder / pickles[0]}: {why} (save the model with safe_serialization)")
    raise ValueError(f"{folder}: holds neither {SINGLE} nor {INDEX}")


def _indexed(folder: Path, index: Any) -> Iterable[tuple[Path, set[str] | None]]:
    names = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(names, dict) or not all(isinstance(file, str) for file in names.values()):
        raise ValueError(f"{folder / INDEX}: has no 'weight_map' from names of tensors to files")
    for file in sorted(set(names.values())):
        if not file.endswith(".safetensors"):
            raise ValueError(f"{folder / INDEX}: '{file[:80]}' is not a safetensors file; no other format is read")
        yield inside(folder, file), {name for name, at in names.items() if at == file}


def _header(file: Path, kinds: dict[str, torch.dtype]) -> dict[str, Entry]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt"):  # the library's checks: lengths, types, no gap and no overlap
            pass
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            header = json.loads(opened.read(length), object_pairs_hook=no_key_twice)
    except (SafetensorError, ValueError, RecursionError) as error:
        raise ValueError(f"{file}: is not a valid safetensors file: {str(error)[:MOST_TOLD]}") from None
    tensors = {name: spec for name, spec in header.items() if name != "__metadata__"}
    for name, spec in tensors.items():
        if spec["dtype"] not in kinds:
            raise ValueError(f"{file}: tensor '{name}' is of type {spec['dtype']}; weights are {', '.join(kinds)}")
    return {
        name: Entry(file, kinds[spec["dtype"]], tuple(spec["shape"]), 8 + length + spec["data_offsets"][0])
        for name, spec in tensors.items()
    }


def metadata_of(file: Path) -> dict[str, str]:
    """What a safetensors file, found valid before, says beside its tensors."""
    with file.open("rb") as opened:
        header = json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
    found: dict[str, str] = header.get("__metadata__", {})
    return found


def _read_into(entry: Entry, target: memoryview) -> None:
    with entry.file.open("rb", buffering=0) as file:
        file.seek(entry.start)
        while target:
            n = file.readinto(target)
            if not n:
                raise ValueError(f"{entry.file}: ended early")
            target = target[n:]
