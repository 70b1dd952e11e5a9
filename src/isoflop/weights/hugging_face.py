"""Checkpoints of Hugging Face's families, in and out. What a family's config.json cannot say is refused by name."""

from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor

from isoflop.architecture import Decoder
from isoflop.architecture.hugging_face import from_hugging_face, nearest
from isoflop.data.plain_json import read_json
from isoflop.data.spec import N_BYTES
from isoflop.data.tokenizer import byte_tokenizer_json
from isoflop.model import DecoderModel
from isoflop.model.quantized import QuantizedWeight
from isoflop.weights.checkpoint import Checkpoint, Codes, write_checkpoint
from isoflop.weights.convert import (
    check_names,
    fill,
    inverted,
    kept_in_full,
    main_dtype,
    our_shapes,
    require_size,
    to_ours,
    to_theirs,
)
from isoflop.weights.families import ARCHITECTURES, Names, links_of, names_of
from isoflop.weights.folder import TensorFolder, inside
from isoflop.weights.folding import Folded
from isoflop.weights.link import Link
from isoflop.weights.packed import PackedFolder, layout_of, matrix_from
from isoflop.weights.quantized import described, install
from isoflop.weights.tokenizer_files import copy_tokenizer
from isoflop.weights.torchao import TorchaoFolder
from isoflop.weights.writer import MOST_SHARD, Form, Tell, new_folder, refuse_existing, silent, write_tensors

CONFIG = "config.json"


# Which tokens begin, end and fill a text: no part of the architecture, and wanted again by whoever generates.
SPECIAL_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
TORCH_NAMES = {torch.float64: "float64", torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}


class HuggingFaceFolder:
    """A folder of theirs that has been opened: its architecture and the names and shapes of its tensors are checked.
    `ignored` names tensors that are there and hold no weights. Raises ValueError."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.keys = read_config(folder)
        self.decoder = from_hugging_face(self.keys, str(folder / CONFIG))
        self.model_type = str(self.keys["model_type"])
        names = names_of(self.model_type, self.decoder)
        packed = self.keys.get("quantization_config")
        self.tensors = TensorFolder(folder) if packed is None else _packed_folder(packed, folder)
        require_size(self.decoder, self.tensors)
        self.shapes = our_shapes(self.decoder)
        links = links_of(names, self.decoder, self.shapes)
        if not any(name.startswith(names.base) for name in self.tensors.entries):  # saved without its head's module
            links = {ours: [_without(names.base, link) for link in made] for ours, made in links.items()}
        self.links = links
        self.dtype = main_dtype(self.tensors)
        self.ignored = self._check(names)

    def make(self, name: str, form: Form) -> Tensor:
        """One tensor of ours. Raises ValueError where what it is made of holds NaN or infinity."""
        return to_ours(form, self.links[name], self.tensors.read)

    def load(self, dtype: torch.dtype | None = None) -> DecoderModel:
        """The model; its matrices and activations are `dtype`, or as they are stored; packed codes stay codes."""
        matrices = self.matrices()
        whole = {name: shape for name, shape in self.shapes.items() if name not in matrices}
        model = fill(self.decoder, dtype or self.dtype, whole, self.make)
        for name in list(matrices):  # one after the other, so that no more than one is ever there twice
            install(model, {name: matrices.pop(name)})
        return model

    def matrices(self) -> dict[str, QuantizedWeight]:
        """Our matrices that are made of packed codes alone, by name. Raises ValueError where these are damaged."""
        if not isinstance(self.tensors, PackedFolder | TorchaoFolder):
            return {}
        found: dict[str, QuantizedWeight] = {}
        for name, links in self.links.items():
            matrix = matrix_from(self.shapes[name], links, self.tensors) if len(self.shapes[name]) > 1 else None
            found |= {} if matrix is None else {name: matrix}
        return found

    def _check(self, names: Names) -> list[str]:
        expected = {link.theirs: link.shape for made in self.links.values() for link in made}
        ignored = [*names.ignored, *_further_layers(names, self.decoder, self.keys)]
        head = names.head
        if self.decoder.tie_embeddings and head in self.tensors.entries:
            self._compare_tables(self.links["embedding"][0].theirs, head)
            ignored.append(head.replace(".", r"\."))
        return check_names(self.tensors, expected, ignored)

    def _compare_tables(self, embedding: str, head: str) -> None:
        """A head that is written beside the table it is tied to must be that table."""
        if embedding in self.tensors.entries and self.tensors.sha256(embedding) != self.tensors.sha256(head):
            raise ValueError(
                f"{self.folder}: tensors '{head}' and '{embedding}' differ, though tie_word_embeddings makes them one"
            )


def import_folder(
    source: Path, target: Path, dtype: torch.dtype | None = None, tell: Tell = silent
) -> HuggingFaceFolder:
    """A checkpoint of ours from a folder of theirs, tensor by tensor; `dtype` of matrices, as stored where None.
    The target appears whole or not at all. Raises ValueError, OSError."""
    refuse_existing(target)
    theirs = HuggingFaceFolder(source)
    special = {key: theirs.keys[key] for key in SPECIAL_TOKENS if key in theirs.keys}
    matrices = theirs.matrices()
    method = f"{theirs.keys['quantization_config']['quant_method']}, imported" if matrices else ""
    write_checkpoint(
        target,
        theirs.decoder,
        theirs.make,
        dtype or theirs.dtype,
        f"imported from a {theirs.model_type}",
        source,
        special,
        tell,
        Codes(described(method, matrices), matrices.__getitem__) if matrices else None,
    )
    return theirs


def export_folder(source: Path, target: Path, tell: Tell = silent, most_shard: int = MOST_SHARD) -> str:
    """A folder of theirs from a checkpoint of ours: the family that computes the same function; returns its model_type.
    The target appears whole or not at all. Raises ValueError where no family does, OSError."""
    refuse_existing(target)
    ours = Checkpoint(source)
    factors = Folded(ours.decoder)
    model_type, keys = nearest(factors.decoder)
    parts = inverted(links_of(names_of(model_type, factors.decoder), factors.decoder, ours.shapes))
    forms = {name: Form(_dtype_of(made, ours), made[0][1].shape) for name, made in parts.items()}
    keys |= {key: ours.record.special_tokens.get(key) for key in SPECIAL_TOKENS}
    keys |= {"architectures": [ARCHITECTURES[model_type]], "torch_dtype": TORCH_NAMES[ours.dtype]}
    with new_folder(target) as partial:
        if not copy_tokenizer(source, partial) and ours.decoder.vocab_size == N_BYTES:  # tokens are bytes
            (partial / "tokenizer.json").write_text(byte_tokenizer_json())
        (partial / CONFIG).write_bytes(msgspec.json.format(msgspec.json.encode(keys, order="sorted")))

        def make(name: str) -> Tensor:
            return to_theirs(forms[name], parts[name], ours.read, factors.factor)

        write_tensors(partial, forms, make, tell, most_shard)
    return model_type


def _packed_folder(keys: Any, folder: Path) -> PackedFolder | TorchaoFolder:
    if isinstance(keys, dict) and keys.get("quant_method") == "torchao":
        return TorchaoFolder(folder)
    return PackedFolder(folder, layout_of(keys, folder / CONFIG))


def read_config(folder: Path) -> dict[str, Any]:
    """The keys of a folder's config.json. Raises ValueError where it has none."""
    if not folder.is_dir():
        raise ValueError(f"{folder}: is not a folder")
    keys = read_json(inside(folder, CONFIG))
    if not isinstance(keys, dict):
        raise ValueError(f"{folder / CONFIG}: is not the configuration of a model")
    return keys


def _without(base: str, link: Link) -> Link:
    return link._replace(theirs=link.theirs.removeprefix(base))


def _further_layers(names: Names, decoder: Decoder, keys: dict[str, Any]) -> list[str]:
    """Patterns of the layers beyond the last: heads that predict later tokens (DeepSeek-V3), which only train."""
    further = keys.get("num_nextn_predict_layers")
    n_further = min(further, 100) if isinstance(further, int) else 0
    return [names.layer.format(i=decoder.n_layers + i).replace(".", r"\.") + ".*" for i in range(n_further)]


def _dtype_of(made: list[tuple[str, Link]], ours: Checkpoint) -> torch.dtype:
    """Theirs are all of one type, but for what both keep in full: biases of a router's choice, and decays."""
    name = made[0][0]
    in_full = kept_in_full(name, ours.shapes[name]) and name.endswith((".selection_bias", ".A_log"))
    return torch.float32 if in_full else ours.dtype
