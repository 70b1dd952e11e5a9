"""A model extended to a longer context, and its loss by position before and after."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Protocol

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from isoflop.architecture import Attention, Decoder, Hyena, Learned
from isoflop.architecture.extend import Method, extended
from isoflop.data.dataset import Dataset
from isoflop.data.stream import BatchStream
from isoflop.evaluate.curve import Curve, Kind, LossByPosition, Sample, Tuning
from isoflop.evaluate.position import losses_by_position, losses_in_own_context
from isoflop.evaluate.windows import held_out
from isoflop.model import DecoderModel
from isoflop.train.extend import FineTuning, carried, fine_tune
from isoflop.weights.load import load

UNTOUCHED = "untouched"
OWN_CONTEXT = "untouched, in its own context"
WORDS: dict[Method, str] = {"linear": "linear", "ntk-aware": "NTK-aware", "yarn": "YaRN", "none": "no scaling"}


class Watch(Protocol):
    """Who is told how far the work is: `stage` opens a part of it, what it returns hears done and total."""

    def stage(self, text: str) -> Callable[[int, int], None]: ...


class Question(NamedTuple):
    """What is asked: the first of `methods` is written, fine-tuned where there are steps; `beside` are other models by
    the name they get in the figure; `eval_tokens` held-out tokens at most are read. `command` asked it."""

    model: str
    command: list[str]
    context: int
    methods: tuple[Method, ...]
    tuning: FineTuning | None
    beside: tuple[Path, ...]
    eval_tokens: int


class Extended(NamedTuple):
    """The model to write, and what was measured."""

    model: DecoderModel
    result: LossByPosition


def extend(
    model: DecoderModel, question: Question, dataset: Dataset, environment: dict[str, str], watch: Watch
) -> Extended:
    """Extend, fine-tune if asked, and measure everything on the same windows. Raises ValueError for what cannot be
    extended or compared, Diverged."""
    decoders = {method: extended(model.decoder, question.context, method) for method in question.methods}
    places = held_out(dataset, question.context, question.eval_tokens)
    windows = places.windows(dataset.valid)
    others = [_other(path, model.decoder, question.context) for path in question.beside]
    border, bytes_WT = model.decoder.max_context, dataset.valid_bytes[places.tokens[:, 1:]]
    measure = _Measure(Sample(windows.documents, bytes_WT, border), windows.tokens, model, watch)
    measure.add(UNTOUCHED, "untouched", model)
    for method, decoder in decoders.items():
        measure.add(WORDS[method], "scaled", carried(model, decoder))
    chosen = carried(model, decoders[question.methods[0]])
    tuning = None
    if question.tuning is not None:
        chosen, tuning = _tuned(chosen, question, question.tuning, dataset, watch)
        measure.add(f"{WORDS[question.methods[0]]}, {tuning.steps} steps of fine-tuning", "tuned", chosen)
    for path, other in zip(question.beside, others, strict=True):
        measure.add(f"{kind_of(other.decoder)} ({path.name})", "beside", other)
    result = LossByPosition(
        model=question.model,
        command=question.command,
        written=question.methods[0],
        border=border,
        context=question.context,
        data=dataset.manifest.source,
        data_digest=dataset.digest,
        n_windows=len(windows.tokens),
        n_documents=len(set(windows.documents.tolist())),
        reference=OWN_CONTEXT,
        curves=measure.curves,
        tuning=tuning,
        environment=environment,
    )
    return Extended(chosen, result)


def _tuned(
    model: DecoderModel, question: Question, how: FineTuning, dataset: Dataset, watch: Watch
) -> tuple[DecoderModel, Tuning]:
    stream = BatchStream(dataset.train, question.context, how.seed)
    stream.require(how.batch)
    tell = watch.stage(f"fine-tuning {question.methods[0]} at {question.context} tokens, {how.steps} steps")
    done = fine_tune(model, stream, how, tell)
    tuning = Tuning(
        method=question.methods[0],
        steps=how.steps,
        batch=how.batch,
        tokens=how.steps * how.batch * question.context,
        lr=how.lr,
        seed=how.seed,
        seconds=done.seconds,
        losses=done.losses,
    )
    return done.model, tuning


def _other(path: Path, decoder: Decoder, context: int) -> DecoderModel:
    """A model to be shown beside. Raises ValueError where it cannot read these windows."""
    other = load(path, torch.float32)
    d = other.decoder
    if d.vocab_size != decoder.vocab_size:
        raise ValueError(f"--beside {path}: has {d.vocab_size} kinds of tokens and the model {decoder.vocab_size}")
    ends = isinstance(d.position, Learned) or any(isinstance(layer.mixer, Hyena) for layer in d.layers)
    if ends and d.max_context < context:
        raise ValueError(f"--beside {path}: ends at {d.max_context} tokens (learned positions or hyena's filters)")
    return other


def kind_of(decoder: Decoder) -> str:
    """How a model knows positions and how far it sees, in a few words: "rope, window 32, sinks"."""
    mixers = dict.fromkeys(layer.mixer for layer in decoder.layers if layer.mixer is not None)
    attention = [mixer for mixer in mixers if isinstance(mixer, Attention)]
    words = [] if attention else [str(msgspec.to_builtins(mixer)["type"]) for mixer in mixers]
    words += [str(msgspec.to_builtins(decoder.position)["type"])] if attention else []
    words += dict.fromkeys(f"window {mixer.window}" for mixer in attention if mixer.window is not None)
    return ", ".join(words + (["sinks"] if any(mixer.sinks for mixer in attention) else []))


class _Measure:
    """Curves of models on the same windows, each also as differences from the model read in its own context."""

    def __init__(self, sample: Sample, tokens_WT: NDArray[np.int64], model: DecoderModel, watch: Watch) -> None:
        self.sample, self.tokens_WT, self.watch = sample, tokens_WT, watch
        own, digest = model.decoder.max_context, model.decoder.digest
        tell = watch.stage(f"loss by position: {OWN_CONTEXT}")
        self.reference_WT = losses_in_own_context(model, tokens_WT, own, tell)
        reference = sample.curve(OWN_CONTEXT, "own-context", digest, own, self.reference_WT, self.reference_WT)
        self.curves: list[Curve] = [reference]

    def add(self, name: str, kind: Kind, model: DecoderModel) -> None:
        """Measure a model. Its losses are numbers, or it is said whose are not."""
        nats_WT = losses_by_position(model, self.tokens_WT, self.watch.stage(f"loss by position: {name}"))
        if not np.isfinite(nats_WT).all():
            raise ValueError(f"{name}: its loss on held-out text is not finite")
        d = model.decoder
        self.curves.append(self.sample.curve(name, kind, d.digest, d.max_context, nats_WT, self.reference_WT))
