"""All that is told of a quantized model."""

from collections.abc import Mapping

import msgspec
import numpy as np
import torch

from isoflop.architecture import Decoder
from isoflop.cost import parameters
from isoflop.evaluate.windows import Windows
from isoflop.laws.presets import preset_named
from isoflop.model import DecoderModel
from isoflop.model.quantized import QuantizedWeight
from isoflop.quantize.measure import Interval, Reading, agreement, loss_change
from isoflop.quantize.memory import memory_bytes
from isoflop.quantize.mixed import Choice
from isoflop.quantize.sites import KEPT
from isoflop.weights.convert import our_form, our_shapes
from isoflop.weights.quantized import HEAD, described, forms_of

LAW = "kumar-2024-quantization"


class Figure(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One way to quantize. `bits` are of a code, in the mean over weights; `bits_per_weight` counts scales and all that
    lies beside codes; `bytes` are of the whole checkpoint's tensors, `memory_bytes` of the model while it decodes on a
    CPU (codes of 2 and 3 bits take 4, rows are filled up, latent attention keeps a dense copy of a matrix). Losses in
    nats a token, on held-out text, of the values that the codes stand for, in fp32."""

    method: str
    formats: dict[str, int]  # how many matrices are of which
    bits: float
    bits_per_weight: float
    bytes: int
    memory_bytes: int
    loss: float
    loss_change: Interval
    agreement: Interval  # share of places with the same likeliest token
    seconds: float


class Law(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a published law says of the first figure's loss change. `outside` says where it is out of its range."""

    name: str
    n_params_non_embedding: int
    tokens: int
    bits: float
    predicted: float
    measured: float
    outside: list[str]


class Report(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """quantization of a model: `figures` begins with what was written. `kept` are tensors of two and more dimensions
    that stay as they were, and why."""

    format: int = 1
    model: str
    command: list[str]
    original_loss: float
    original_bytes: int
    n_weights: int
    kept: dict[str, str]
    data: str
    data_digest: str
    n_windows: int
    n_documents: int
    context: int
    calibration_tokens: int
    figures: list[Figure]
    choices: list[Choice]
    law: Law | None
    environment: dict[str, str]


def figure(
    method: str,
    decoder: Decoder,
    weights: Mapping[str, QuantizedWeight],
    itemsize: int,
    original: Reading,
    quantized: Reading,
    windows: Windows,
    seconds: float,
) -> Figure:
    """The figures of one way; `itemsize` is of what is not quantized."""
    sizes = {name: weight.d_out * weight.d_in for name, weight in weights.items()}
    coded, total = coded_bytes(decoder, weights), sum(sizes.values())
    whole = whole_bytes(decoder, itemsize, weights)
    named: dict[str, int] = {}
    for weight in weights.values():
        label = format_name(weight)
        named[label] = named.get(label, 0) + 1
    return Figure(
        method=method,
        formats=named,
        bits=sum(weight.format.bits * sizes[name] for name, weight in weights.items()) / total,
        bits_per_weight=8 * coded / total,
        bytes=coded + whole,
        memory_bytes=memory_bytes(decoder, itemsize, weights) + whole,
        loss=float(quantized.nats_WT.mean()),
        loss_change=loss_change(original, quantized, windows),
        agreement=agreement(original, quantized, windows),
        seconds=seconds,
    )


def format_name(weight: QuantizedWeight) -> str:
    """A format in a few words: "integer 4, groups of 32"."""
    f = weight.format
    kind = str(msgspec.to_builtins(f)["type"])
    sign = ", asymmetric" if weight.zeros is not None else ""
    return f"{kind} {f.bits}{sign}, {f'groups of {f.group}' if f.group else 'whole rows'}"


def coded_bytes(decoder: Decoder, weights: Mapping[str, QuantizedWeight]) -> int:
    """Bytes of codes and what lies beside them, in the files."""
    shapes, table = our_shapes(decoder), (decoder.vocab_size, decoder.d_model)
    matrices = described("", weights).weights
    return sum(
        form.nbytes for name in weights for form in forms_of(name, matrices[name], shapes.get(name, table)).values()
    )


def whole_bytes(decoder: Decoder, itemsize: int, weights: Mapping[str, QuantizedWeight] | None = None) -> int:
    """Bytes of the tensors that are no codes, vectors in fp32."""
    dtype = {2: torch.bfloat16, 4: torch.float32, 8: torch.float64}[itemsize]
    return sum(
        our_form(name, shape, dtype).nbytes
        for name, shape in our_shapes(decoder).items()
        if name not in (weights or {})
    )


def kept(model: DecoderModel, weights: Mapping[str, QuantizedWeight]) -> dict[str, str]:
    """The tensors of two and more dimensions that are no codes, and why."""
    found = {}
    for name, shape in our_shapes(model.decoder).items():
        if len(shape) < 2 or name in weights:
            continue
        other = "offsets" if name.endswith("_bias") else "constants of a recurrence"
        reason = next((why for part, why in KEPT.items() if part in name.split(".")), other)
        tied = name == "embedding" and HEAD in weights and model.decoder.tie_embeddings
        found[name] = "its copy in codes multiplies; this one is looked up" if tied else reason
    return found


def law_of(decoder: Decoder, tokens: int | None, measured: Figure) -> Law | None:
    """The published law beside a measurement; None where nobody knows how long the model was trained."""
    if tokens is None:
        return None
    law, n = preset_named(LAW), parameters(decoder).non_embedding
    columns = {"N": float(n), "D": float(tokens), "P": measured.bits}
    return Law(
        name=LAW,
        n_params_non_embedding=n,
        tokens=tokens,
        bits=measured.bits,
        predicted=float(np.asarray(law.value(**columns))),
        measured=measured.loss_change.mean,
        outside=law.outside(**columns),
    )


def documents_in(windows: Windows) -> int:
    """How many documents windows are cut from."""
    return len(set(windows.documents.tolist()))
