"""Our own checkpoint: a folder that holds a whole model and nothing that has to be executed or fetched.

architecture.json    the decoder, as the architecture language has it
quantization.json    which matrices are codes, and of which formats, where any are (quantized.py)
model.safetensors    its tensors under our names; beyond 5 GB several files and model.safetensors.index.json
tokenizer.json ...   the tokenizer's files, where there are any
checkpoint.json      {format, origin, dtype, special_tokens: which end a text and so on,
                     exit_after: the layers whose early reading was trained too, where any was,
                     tensors: digest of each, files: digest of each other file}
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec
import torch
from torch import Tensor

from isoflop.architecture import Decoder
from isoflop.architecture.files import from_dict
from isoflop.data.plain_json import read_json
from isoflop.model import DecoderModel
from isoflop.model.quantized import QuantizedWeight
from isoflop.weights.convert import check_names, fill, main_dtype, our_form, our_shapes, require_size
from isoflop.weights.folder import DTYPES, TensorFolder, inside, sha256_of
from isoflop.weights.quantized import (
    QUANTIZATION,
    Matrix,
    Quantization,
    dense,
    forms_of,
    install,
    read_quantization,
    restored,
    stem_of,
    stored,
)
from isoflop.weights.tokenizer_files import copy_tokenizer
from isoflop.weights.writer import Form, Tell, new_folder, silent, write_tensors

RECORD = "checkpoint.json"
ARCHITECTURE = "architecture.json"


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """checkpoint.json. `origin` says in words where the weights come from; digests are SHA-256. `exit_after`: the
    layers after which the head was trained to read as well, so that they can draft."""

    format: Literal[1] = 1
    origin: str
    dtype: str
    special_tokens: dict[str, Any] = {}
    exit_after: int | msgspec.UnsetType = msgspec.UNSET
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
        has_codes = QUANTIZATION in self.record.files
        self.tensors = TensorFolder(folder, codes=has_codes)
        require_size(self.decoder, self.tensors)
        self.shapes = our_shapes(self.decoder)
        self.quantization = self._read_quantization() if has_codes else None
        self._check_forms()
        self.dtype = DTYPES.get(self.record.dtype, main_dtype(self.tensors))

    def read(self, name: str) -> Tensor:
        """A tensor of the model, in a buffer that the next one overwrites; of codes, what they stand for, in fp32.
        Raises ValueError where it is not what was written."""
        if name in self.matrices:
            return dense(self.read_matrix(name), self.shapes[name])
        return self._stored(name)

    def read_matrix(self, name: str) -> QuantizedWeight:
        """A matrix of codes. Raises ValueError as `read`."""
        shape = self.shapes.get(name, (self.decoder.vocab_size, self.decoder.d_model))
        try:
            return restored(name, self.matrices[name], shape, self._stored)
        except ValueError as error:
            raise ValueError(f"{self.folder}: {error}") from None

    def load(self, dtype: torch.dtype | None = None) -> DecoderModel:
        """The model; its matrices and activations are `dtype`, or as they are stored; those of codes stay codes."""

        def make(name: str, form: Form) -> Tensor:
            return torch.empty(form.shape, dtype=form.dtype).copy_(self._stored(name))

        whole = {name: shape for name, shape in self.shapes.items() if name not in self.matrices}
        model = fill(self.decoder, dtype or self.dtype, whole, make)
        for name in self.matrices:
            install(model, {name: self.read_matrix(name)})
        return model

    @property
    def matrices(self) -> dict[str, Matrix]:
        """Which tensors of the model are codes."""
        return {} if self.quantization is None else self.quantization.weights

    def _stored(self, name: str) -> Tensor:
        tensor = self.tensors.read(name)
        if name not in self._intact and sha256_of(tensor) != self.record.tensors.get(name):
            file = self.tensors.entries[name].file
            raise ValueError(f"{file}: tensor '{name}' is damaged: its digest is not the one that {RECORD} records")
        self._intact.add(name)
        return tensor

    def _read_quantization(self) -> Quantization:
        return read_quantization(self.folder / QUANTIZATION, self.shapes, self.decoder.tie_embeddings)

    def _check_forms(self) -> None:
        """Raises ValueError where the files' headers are not what architecture and quantization say."""
        coded: dict[str, Form] = {}
        for name, matrix in self.matrices.items():
            shape = self.shapes.get(name, (self.decoder.vocab_size, self.decoder.d_model))
            coded |= forms_of(name, matrix, shape)
        whole = {name: shape for name, shape in self.shapes.items() if name not in self.matrices}
        check_names(self.tensors, whole | {name: form.shape for name, form in coded.items()}, ())
        for name, entry in self.tensors.entries.items():
            if entry.dtype != coded[name].dtype if name in coded else not entry.dtype.is_floating_point:
                wanted = coded[name].dtype if name in coded else "a float"
                raise ValueError(f"{entry.file}: tensor '{name}' is {entry.dtype}, and should be {wanted}")


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
    codes: "Codes | None" = None,
    exit_after: int | None = None,
) -> None:
    """Write a checkpoint whose tensors are made one after the other; `tokenizer` is a folder that has its files, and
    `codes` are matrices that are written as such; `exit_after` as in Record. The folder appears whole or not at all.
    Raises ValueError where it exists, OSError."""
    shapes = our_shapes(decoder)
    forms = {name: our_form(name, shape, dtype) for name, shape in shapes.items()}
    forms = forms if codes is None else codes.forms(forms, (decoder.vocab_size, decoder.d_model))
    with new_folder(folder) as partial:
        named = [ARCHITECTURE] if tokenizer is None else [ARCHITECTURE, *copy_tokenizer(tokenizer, partial)]
        (partial / ARCHITECTURE).write_bytes(msgspec.json.format(msgspec.json.encode(decoder)))
        if codes is not None:
            (partial / QUANTIZATION).write_bytes(msgspec.json.format(msgspec.json.encode(codes.quantization)))
            named.append(QUANTIZATION)
        files = {name: hashlib.sha256((partial / name).read_bytes()).hexdigest() for name in named}
        made = make if codes is None else codes.make_or(make)
        digests = write_tensors(partial, forms, lambda name: made(name, forms[name]), tell)
        record = Record(
            origin=origin,
            dtype=_NAMES[dtype],
            special_tokens=special_tokens or {},
            exit_after=msgspec.UNSET if exit_after is None else exit_after,
            tensors=digests,
            files=files,
        )
        (partial / RECORD).write_bytes(msgspec.json.format(msgspec.json.encode(record)))


class Codes(NamedTuple):
    """Matrices to be written as codes: their description, and each, when its turn comes, by its tensor's name."""

    quantization: Quantization
    matrix: Callable[[str], QuantizedWeight]

    def forms(self, forms: dict[str, Form], table: tuple[int, int]) -> dict[str, Form]:
        """What the files hold, of what they held without codes and the shape of an output table."""
        kept = {name: form for name, form in forms.items() if name not in self.quantization.weights}
        for name, matrix in self.quantization.weights.items():
            kept |= forms_of(name, matrix, forms[name].shape if name in forms else table)
        return kept

    def make_or(self, make: Callable[[str, Form], Tensor]) -> Callable[[str, Form], Tensor]:
        """Makes parts of matrices, and everything else by `make`."""
        of_stem = {stem_of(name): name for name in self.quantization.weights}
        held: dict[str, QuantizedWeight] = {}

        def made(name: str, form: Form) -> Tensor:
            stem, _, part = name.rpartition(".")
            if stem not in of_stem or part in ("weight", "bias"):
                return make(name, form)
            if stem not in held:
                held.clear()
                held[stem] = self.matrix(of_stem[stem])
            return stored(part, held[stem])

        return made


def save_model(
    folder: Path,
    model: DecoderModel,
    origin: str,
    tokenizer: Path | None = None,
    special_tokens: dict[str, Any] | None = None,
    exit_after: int | None = None,
) -> None:
    """Write a model's tensors as a checkpoint, matrices in the type they have; `exit_after` as in Record. Raises
    ValueError, OSError."""
    state = model.state_dict()
    write_checkpoint(
        folder,
        model.decoder,
        lambda name, form: state[name].detach().to("cpu", form.dtype),
        model.embedding.dtype,
        origin,
        tokenizer,
        special_tokens,
        exit_after=exit_after,
    )


_NAMES = {dtype: name for name, dtype in DTYPES.items()}
