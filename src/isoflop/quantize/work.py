"""A trained model quantized in one way or several, each measured on the same held-out text."""

import copy
import time
from collections.abc import Mapping
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from isoflop.data.dataset import Dataset
from isoflop.data.stream import BatchStream
from isoflop.evaluate.extension import Watch
from isoflop.evaluate.windows import Windows, held_out
from isoflop.model import DecoderModel
from isoflop.model.quantized import Format, QuantizedWeight
from isoflop.quantize.aware import train_aware
from isoflop.quantize.measure import Reading, read
from isoflop.quantize.mixed import Choice, cheapest, choices, mixed_formats, require_room, sensitivities
from isoflop.quantize.report import Figure, Report, documents_in, figure, kept, law_of, whole_bytes
from isoflop.quantize.run import DEFAULT, Formats, Options, quantize_model
from isoflop.quantize.sites import sites_of, untie
from isoflop.train.extend import FineTuning
from isoflop.weights.quantized import require_plain

Way = Literal["rtn", "gptq", "awq", "qat"]
WAYS: dict[Way, str] = {
    "rtn": "round to nearest",
    "gptq": "GPTQ",
    "awq": "AWQ",
    "qat": "quantization-aware training",
}
AT_ONCE = 4096  # tokens of calibration text in one forward
MOST_SENSITIVITY = 16384  # tokens read for each layer and format


class Question(NamedTuple):
    """What is asked: the first of `ways` is written. `bits_per_weight`: a budget for mixed integer formats, in place of
    `format`; `tuning` is of quantization-aware training; `trained_tokens`, where known, of the model's training."""

    model: str
    command: list[str]
    ways: tuple[Way, ...]
    format: Format
    bits_per_weight: float | None
    context: int
    calibration_tokens: int
    eval_tokens: int
    seed: int
    tuning: FineTuning | None
    trained_tokens: int | None
    itemsize: int  # bytes of what is stored in full precision
    options: Options = DEFAULT


class Quantized(NamedTuple):
    """The model to write, in full precision with the codes' values; its codes; and what was measured."""

    model: DecoderModel
    weights: Mapping[str, QuantizedWeight]
    report: Report


def quantize(
    model: DecoderModel, question: Question, dataset: Dataset, environment: dict[str, str], watch: Watch
) -> Quantized:
    """Quantize in every way asked for, and measure. Raises ValueError for what cannot be, Diverged."""
    require_plain(model, question.model)
    windows = held_out(dataset, question.context, question.eval_tokens).windows(dataset.valid)
    text = calibration_text(dataset, question)
    original = read(model, windows, watch.stage("loss of the original"))
    plain = copy.deepcopy(model)
    untie(plain)
    formats, chosen = _formats(plain, question, text, watch)
    made = [_made(way, plain, model, formats, question, dataset, text, watch) for way in question.ways]
    figures = [_measured(one, original, windows, question, watch) for one in made]
    report = Report(
        model=question.model,
        command=question.command,
        original_loss=float(original.nats_WT.mean()),
        original_bytes=whole_bytes(model.decoder, question.itemsize),
        n_weights=sum(weight.d_out * weight.d_in for weight in made[0].weights.values()),
        kept=kept(model, made[0].weights),
        data=dataset.manifest.source,
        data_digest=dataset.digest,
        n_windows=len(windows.tokens),
        n_documents=documents_in(windows),
        context=question.context,
        calibration_tokens=sum(batch.numel() for batch in text),
        figures=figures,
        choices=chosen,
        law=law_of(model.decoder, question.trained_tokens, figures[0]),
        environment=environment,
    )
    return Quantized(made[0].model, made[0].weights, report)


def calibration_text(dataset: Dataset, question: Question) -> list[Tensor]:
    """Windows of the training text, in the order that the seed gives, at most as many as there are. Raises ValueError
    where it does not fill one."""
    stream, batch = BatchStream(dataset.train, question.context, question.seed), max(1, AT_ONCE // question.context)
    n_windows = min(max(1, question.calibration_tokens // question.context), stream.windows_per_epoch)
    starts = range(0, n_windows, batch)
    return [torch.from_numpy(stream.batch(first, min(batch, n_windows - first))[0]) for first in starts]


class _Made(NamedTuple):
    way: Way
    model: DecoderModel
    weights: dict[str, QuantizedWeight]
    seconds: float


def _formats(plain: DecoderModel, question: Question, text: list[Tensor], watch: Watch) -> tuple[Formats, list[Choice]]:
    sites = list(sites_of(plain))
    widest = max(site.shape[-1] for site in sites)
    if (wanted := question.format.group) > widest:
        raise ValueError(f"groups of {wanted}: the widest row has {widest} weights; 0 makes a row a group")
    if question.bits_per_weight is None:
        return {site.name: question.format for site in sites}, []
    candidates = mixed_formats(question.format)
    require_room(sites, candidates, question.bits_per_weight)
    tokens = torch.cat(text)[: max(1, MOST_SENSITIVITY // question.context)].numpy()
    windows = Windows(tokens, torch.arange(len(tokens)).numpy())
    found = sensitivities(plain, candidates, windows, watch.stage("sensitivity of each layer"))
    formats = cheapest(found, question.bits_per_weight)
    return formats, choices(found, formats)


def _made(
    way: Way,
    plain: DecoderModel,
    model: DecoderModel,
    formats: Formats,
    question: Question,
    dataset: Dataset,
    text: list[Tensor],
    watch: Watch,
) -> _Made:
    started = time.perf_counter()
    if way == "qat":
        tried, how = _trained(model, formats, question, dataset, watch), "rtn"
    else:
        tried, how = copy.deepcopy(plain), way
    assert how in ("rtn", "gptq", "awq")
    weights = quantize_model(tried, formats, how, text, question.options, watch.stage(WAYS[way]))
    return _Made(way, tried, weights, time.perf_counter() - started)


def _trained(model: DecoderModel, formats: Formats, question: Question, dataset: Dataset, watch: Watch) -> DecoderModel:
    how = question.tuning
    assert how is not None
    stream = BatchStream(dataset.train, question.context, how.seed)
    stream.require(how.batch)
    tuned = train_aware(model, stream, how, formats, watch.stage(f"{WAYS['qat']}, {how.steps} steps")).model
    untie(tuned)
    return tuned


def _measured(made: _Made, original: Reading, windows: Windows, question: Question, watch: Watch) -> Figure:
    found = read(made.model, windows, watch.stage(f"loss by {WAYS[made.way]}"))
    decoder, weights = made.model.decoder, made.weights
    return figure(WAYS[made.way], decoder, weights, question.itemsize, original, found, windows, made.seconds)
