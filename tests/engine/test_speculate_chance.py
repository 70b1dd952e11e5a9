"""What is said with drafts is distributed as what the model itself would say."""

import math
from collections import Counter

import msgspec
import pytest
import torch
from scipy.stats import binomtest, chisquare
from small_engines import FULL, MAMBA2, run

from isoflop.architecture import Decoder, Layer, Mlp
from isoflop.engine.draft_exit import early_exit
from isoflop.engine.draft_model import ModelDrafter
from isoflop.engine.draw import Row, probabilities
from isoflop.engine.engine import Engine, Options
from isoflop.engine.ngram import NgramDrafter
from isoflop.engine.request import Request
from isoflop.engine.sampling import Sampling
from isoflop.engine.speculate import Guess, guess, say
from isoflop.model import DecoderModel
from isoflop.train.init import initialize
from isoflop.train.recipe import Recipe

V, N = 5, 4  # tokens there are, tokens said: one by itself, two guessed, one after them
PROMPT = (0, 1, 0, 1, 2, 0)
CHOICES = {
    "plain": Sampling(max_tokens=N),
    "filtered": Sampling(temperature=1.4, top_k=4, top_p=0.95, min_p=0.05, max_tokens=N),
    "penalized": Sampling(temperature=0.8, repetition_penalty=1.3, frequency_penalty=0.4, max_tokens=N),
}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def tiny(seed: int, *mixers: object) -> DecoderModel:
    layers = tuple(Layer(mixer, Mlp(d_ff=16)) for mixer in mixers)  # type: ignore[arg-type]
    model = DecoderModel(Decoder(vocab_size=V, d_model=16, layers=layers, max_context=32))
    initialize(model, seed, Recipe(lr=1e-3, batch=1))
    with torch.no_grad():
        model.embedding *= 3.0 / model.embedding.norm(dim=-1).mean()
    return model


TARGET = tiny(1, FULL, FULL)
DRAFT = tiny(2, MAMBA2)


@torch.no_grad()
def odds(model: DecoderModel, sampling: Sampling, outputs: list[tuple[int, ...]]) -> torch.Tensor:
    """[outputs, V]: of the token after each output, all of one length."""
    logits = model(torch.tensor([[*PROMPT, *output] for output in outputs]))[:, -1]
    return probabilities(logits, [Row(sampling, 0, len(PROMPT), [*PROMPT, *output]) for output in outputs])


def expected(sampling: Sampling) -> dict[tuple[int, ...], float]:
    """The probability of every output."""
    known: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(N):
        rows = odds(TARGET, sampling, list(known)).double().tolist()
        known = {(*o, t): p * row[t] for (o, p), row in zip(known.items(), rows, strict=True) for t in range(V)}
    return known


def drafting(drafter: str, drafts: int) -> Engine:
    options = Options(memory=1 << 21, page_tokens=4, most_running=100, drafts=drafts, typical=16)
    engine = Engine(TARGET, options)
    if drafter == "n-gram":
        engine.draft_with(NgramDrafter(2, 1))
    elif drafter == "exit":
        engine.draft_with(early_exit(engine, 1))
    else:
        own = Options(memory=1 << 21, drafts=drafts, most_running=100, typical=16)
        engine.draft_with(ModelDrafter(DRAFT, TARGET.decoder, own))
    return engine


def said(engine: Engine, sampling: Sampling, n: int) -> list[tuple[int, ...]]:
    for i in range(n):
        engine.submit(Request(str(i), PROMPT, msgspec.structs.replace(sampling, seed=i)))
    return [tuple(output) for output in run(engine).values()]


@pytest.mark.parametrize(
    ("drafter", "choice"),
    [("model", "plain"), ("model", "penalized"), ("exit", "filtered"), ("n-gram", "penalized")],
)
def test_joint_distribution(drafter: str, choice: str) -> None:
    """Of all the tokens of an output together, by chi-square."""
    sampling, n = CHOICES[choice], 1400
    engine = drafting(drafter, 2)
    outputs, wanted = said(engine, sampling, n), expected(sampling)
    assert 0.05 < engine.stats.accepted / engine.stats.judged < 0.95
    assert math.fsum(wanted.values()) == pytest.approx(1, abs=1e-5)
    assert all(wanted[output] > 0 for output in outputs)
    often = [o for o, p in wanted.items() if p * n >= 5]
    counts = Counter(outputs)
    counted = [counts[o] for o in often]
    assert probable([*counted, n - sum(counted)], [*(wanted[o] for o in often), 1 - sum(wanted[o] for o in often)])


def probable(counts: list[int], odds: list[float]) -> bool:
    """By chi-square."""
    scale = sum(counts) / math.fsum(odds)
    return bool(chisquare(counts, [p * scale for p in odds]).pvalue > 1e-3)


def test_acceptance_is_the_overlap() -> None:
    """Of one guess a request, made after its first token: sum over tokens of min(p, q)."""
    sampling, n = msgspec.structs.replace(CHOICES["filtered"], max_tokens=3), 1500
    engine = drafting("model", 1)
    said(engine, sampling, n)
    first_V = odds(TARGET, sampling, [()])[0]
    after = [(t,) for t in range(V)]
    overlap_V = torch.minimum(odds(TARGET, sampling, after), odds(DRAFT, sampling, after)).sum(-1)
    interval = binomtest(engine.stats.accepted, engine.stats.judged).proportion_ci(0.999)
    assert engine.stats.judged == n and interval.low < float(first_V @ overlap_V) < interval.high
    assert interval.high < 0.99


def test_any_odds() -> None:
    """Random p and q, nearly equal, far apart, with tokens that one of them never says: one row after the other."""
    n = 3000
    generator = torch.Generator().manual_seed(1)
    for scale, cut in ((0.0, 0), (0.3, 0), (4.0, 3), (1.0, 4)):
        p_V = torch.randn(6, generator=generator)
        q_V = p_V + scale * torch.randn(6, generator=generator)
        rows = [Row(Sampling(top_k=cut), seed, 1, [0]) for seed in range(n)]
        tokens, drawn_from = guess(q_V.expand(n, -1), rows)
        guesses = [Guess(t, o) for t, o in zip(tokens, drawn_from, strict=True) if o is not None]
        drawn = [d.token for d in say(p_V.expand(n, -1), rows, guesses)]
        p, q = probabilities(torch.stack((p_V, q_V)), rows[:2])
        possible = [t for t in range(6) if p[t] > 0]
        assert set(drawn) <= set(possible)
        assert probable([drawn.count(t) for t in possible], p[possible].double().tolist())
        right = sum(a == b for a, b in zip(drawn, tokens, strict=True))
        overlap = min(1.0, float(torch.minimum(p, q).sum()))
        assert binomtest(right, n, overlap).pvalue > 1e-3
