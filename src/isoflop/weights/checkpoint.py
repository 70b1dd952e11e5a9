"""Our own checkpoint: a folder that holds a whole model and nothing that has to be executed or fetched.

architecture.json    the decoder, as the architecture language has it
model.safetensors    its tensors under our names; beyond 5 GB several files and model.safetensors.index.json
tokenizer.json ...   the tokenizer's files, where there are any
checkpoint.json      {format, origin, dtype, special_tokens: which end a text and so on,
                     tensors: digest of each, files: digest of each other file}
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import msgspec
import torch
from torch import Tensor

from isoflop.architecture import Decoder
from isoflop.architecture.files import from_dict
from isoflop.model import DecoderModel
from isoflop.weights.convert import check_names, fill, main_dtype, our_form, our_shapes, require_size
from isoflop.weights.folder import DTYPES, TensorFolder, inside, read_json, sha256_of
from isoflop.weights.tokenizer_files import copy_tokenizer
from isoflop.weights.writer import Form, Tell, new_folder, silent, write_tensors

RECORD = "checkpoint.json"
ARCHITECTURE = "architecture.json"


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """checkpoint.json. `origin` says in words where the weights come from; digests are SHA-256."""

    format: Literal[1] = 1
    origin: str
    dtype: str
    special_tokens: dict[str, Any] = {}
    tensors: dict[str, str]
    files: dict[str, str]


class Checkpoint:
    """A checkpoint folder that has been opened: everything but the tensors themselves is checked. Raises ValueError."""

    def __init__(self, folder: Path) -> None:
        record = inside(folder, RECORD)
        try:
            self.record = msgspec.convert(read_json(record), Record)
        except msgspec.ValidationError as error:
            raise ValueError(f"{record}: is no checkpoint of this version: {error}") from None
        self.folder = folder
        self._intact: set[str] = set()
        for name, digest in self.record.files.items():
            if hashlib.sha256(inside(folder, name).read_bytes()).hexdigest() != digest:
                raise ValueError(f"{folder / name}: is damaged: its digest is not the one that {RECORD} records")
        if ARCHITECTURE not in self.record.files:
            raise ValueError(f"{record}: names no {ARCHITECTURE}")
        self.decoder = from_dict(read_json(folder / ARCHITECTURE), Decoder, str(folder / ARCHITECTURE))
        self.tensors = TensorFolder(folder)
        require_size(self.decoder, self.tensors)
        self.shapes = our_shapes(self.decoder)
        check_names(self.tensors, self.shapes, ())
        self.dtype = DTYPES.get(self.record.dtype, main_dtype(self.tensors))

    def read(self, name: str) -> Tensor:
        """A tensor, in a buffer that the next one overwrites. Raises ValueError where it is not what was written."""
        tensor = self.tensors.read(name)
        if name not in self._intact and sha256_of(tensor) != self.record.tensors.get(name):
            file = self.tensors.entries[name].file
            raise ValueError(f"{file}: tensor '{name}' is damaged: its digest is not the one that {RECORD} records")
        self._intact.add(name)
        return tensor

    def load(self, dtype: torch.dtype | None = None) -> DecoderModel:
        """The model; its matrices and activations are `dtype`, or as they are stored."""

        def make(name: str, form: Form) -> Tensor:
            return torch.empty(form.shape, dtype=form.dtype).copy_(self.read(name))

        return fill(self.decoder, dtype or self.dtype, self.shapes, make)


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder is one of our checkpoints."""
    return (folder / RECORD).exists()


def write_checkpoint(
    folder: Path,
    decoder: Decoder,
    make: Callable[[str, Form], Tensor],
    dtype: torch.dtype,
    origin: str,
    tokenizer: Path | None = None,
    special_tokens: dict[str, Any] | None = None,
    tell: Tell = silent,
) -> None:
    """Write a checkpoint whose tensors are made one after the other; `tokenizer` is a folder that has its files.
    The folder appears whole or not at all. Raises ValueError where it exists, OSError."""
    forms = {name: our_form(name, shape, dtype) for name, shape in our_shapes(decoder).items()}
    with new_folder(folder) as partial:
        copied = [] if tokenizer is None else copy_tokenizer(tokenizer, partial)
        (partial / ARCHITECTURE).write_bytes(msgspec.json.format(msgspec.json.encode(decoder)))
        files = {name: hashlib.sha256((partial / name).read_bytes()).hexdigest() for name in [ARCHITECTURE, *copied]}
        digests = write_tensors(partial, forms, lambda name: make(name, forms[name]), tell)
        record = Record(
            origin=origin,
            dtype=_NAMES[dtype],
            special_tokens=special_tokens or {},
            tensors=digests,
            files=files,
        )
        (partial / RECORD).write_bytes(msgspec.json.format(msgspec.json.encode(record)))


def save_model(
    folder: Path,
    model: DecoderModel,
    origin: str,
    tokenizer: Path | None = None,
    special_tokens: dict[str, Any] | None = None,
) -> None:
    """Write a model's tensors as a checkpoint, matrices in the type they have. Raises ValueError, OSError."""
    state = model.state_dict()
    write_checkpoint(
        folder,
        model.decoder,
        lambda name, form: state[name].detach().to("cpu", form.dtype),
        model.embedding.dtype,
        origin,
        tokenizer,
        special_tokens,
    )


_NAMES = {dtype: name for name, dtype in DTYPES.items()}
