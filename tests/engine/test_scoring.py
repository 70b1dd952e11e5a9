"""Log probabilities of a prompt's own tokens, over every kind of layer: those of one plain forward, however the prompt
comes into the caches, and whoever was there before or is beside it."""

import pytest
import torch
from small_engines import FULL, KINDS, MAMBA2, VOCABULARY, Oracle, engine_of, greedy, model_of, prompts_of, served

from isoflop.engine import scoring
from isoflop.engine.engine import Engine
from isoflop.engine.request import Event, Request
from isoflop.engine.sampling import Sampling
from isoflop.model import DecoderModel

ALL = pytest.mark.parametrize("kind", KINDS)
Prompts = dict[str, tuple[int, ...]]


def asking(n: int, k: int = 3) -> Sampling:
    return Sampling(temperature=0.0, max_tokens=n, prompt_logprobs=k)


def first_events(engine: Engine, prompts: Prompts, *choices: Sampling) -> dict[str, Event]:
    """The first event of each request; everything they held must be free."""
    for i, (id, prompt) in enumerate(prompts.items()):
        engine.submit(Request(id, prompt, choices[i % len(choices)]))
    firsts: dict[str, Event] = {}
    while engine.has_work:
        for event in engine.step():
            firsts.setdefault(event.id, event)
            assert event is firsts[event.id] or not event.scores
    assert engine.stats.pages_held == engine.stats.slots_held == 0
    return firsts


@torch.no_grad()
def assert_scored(model: DecoderModel, prompts: Prompts, events: dict[str, Event], k: int = 3) -> None:
    """As one plain forward has them."""
    assert events.keys() == prompts.keys()
    for id, prompt in prompts.items():
        scores = events[id].scores
        assert len(scores) == len(prompt) - 1
        wanted_TV = model(torch.tensor([prompt]))[0, :-1].log_softmax(-1)
        for row_V, token, told in zip(wanted_TV, prompt[1:], scores, strict=True):
            assert told.token == pytest.approx(float(row_V[token]), abs=1e-3)
            assert [value for _, value in told.top] == pytest.approx(row_V.topk(k).values.tolist(), abs=1e-3)
            assert [value for _, value in told.top] == pytest.approx([float(row_V[t]) for t, _ in told.top], abs=1e-3)


@ALL
@pytest.mark.parametrize("n", [0, 1, 5])
def test_scores(kind: str, n: int) -> None:
    """Some at once, in chunks smaller than a prompt."""
    model, prompts = model_of(*KINDS[kind]), prompts_of(1, 5, shared=9, most=30)
    engine = engine_of(model, tokens_per_step=7)
    events = first_events(engine, prompts, asking(n))
    assert_scored(model, prompts, events)
    assert {event.finish for event in events.values()} == {None if n == 5 else "length"}
    assert all((event.token is None) == (n == 0) for event in events.values())


@ALL
def test_a_prompt_in_the_cache_is_scored(kind: str) -> None:
    """It was all there; and what was scored is there for others, who say the same."""
    model, prompts = model_of(*KINDS[kind]), prompts_of(2, 4, shared=21)
    engine = engine_of(model, most_running=2, snapshots=24)
    wanted = served(engine, prompts, 4)
    before = engine.stats.found
    assert_scored(model, prompts, first_events(engine, prompts, asking(3)))
    assert engine.stats.found == before
    assert served(engine, prompts, 4) == wanted and engine.stats.found > before


@ALL
def test_beside_others(kind: str) -> None:
    """Every second one is scored, the same ones share a beginning; the others are helped by it and hear nothing."""
    model, prompts = model_of(*KINDS[kind]), prompts_of(3, 8, shared=20)
    alone = served(engine_of(model), prompts, 4)
    engine = engine_of(model, most_running=3, tokens_per_step=16)
    events = first_events(engine, prompts, greedy(4), asking(4))
    odd = {id: event for i, (id, event) in enumerate(sorted(events.items())) if i % 2}
    assert_scored(model, {id: prompts[id] for id in odd}, odd)
    assert all(event.token == alone[id][0] for id, event in events.items())
    assert not any(event.scores for id, event in events.items() if id not in odd)


@pytest.mark.parametrize("kind", ["attention", "latent", "hybrid"])
def test_preempted(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Turned out in the middle of it: what was scored before is not scored again, and nothing is passed over."""
    model, prompts = model_of(*KINDS[kind]), {str(i): tuple(range(i, i + 41)) for i in range(4)}
    roomy = engine_of(model)
    memory = roomy.plan.slot_bytes * 6 + sum(group.page_bytes * 22 for group in roomy.plan.groups)
    engine = engine_of(model, memory=memory, snapshots=2, tokens_per_step=6, typical=56)
    turned_out: list[int] = []
    preempt = engine.scheduler._preempt
    monkeypatch.setattr(engine.scheduler, "_preempt", lambda s: turned_out.append(len(s.scores or ())) or preempt(s))
    assert_scored(model, prompts, first_events(engine, prompts, asking(20)))
    assert any(0 < n < 40 for n in turned_out)


def test_with_guesses() -> None:
    model, prompts = model_of(MAMBA2, FULL), prompts_of(5, 3)
    outputs = served(engine_of(model), prompts, 9)
    engine = engine_of(model, Oracle(outputs, 3))
    assert_scored(model, prompts, first_events(engine, prompts, asking(9)))
    assert engine.stats.accepted


def test_logits_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Never more rows of them at once than said, however long the prompt."""
    model, rows = model_of(FULL, max_context=512), list[int]()
    read = model.read
    monkeypatch.setattr(model, "read", lambda x: rows.append(len(x)) or read(x))
    prompts = {"a": tuple(i * i % VOCABULARY for i in range(400))}
    events = first_events(engine_of(model, tokens_per_step=400), prompts, asking(0))
    monkeypatch.undo()
    assert_scored(model, prompts, events)
    assert max(rows) == scoring.ROWS and sum(rows) == 399


def test_refusals() -> None:
    with pytest.raises(ValueError, match="max_tokens 0: must be 1 or more"):
        Sampling(max_tokens=0)
    with pytest.raises(ValueError, match="prompt_logprobs -1: must be from 0"):
        Sampling(prompt_logprobs=-1)
    engine = engine_of(model_of(FULL))
    engine.submit(Request("a", (1, 2, 3), greedy(4)))
    engine.step()
    with pytest.raises(ValueError, match="prompt_logprobs: the prompt of 'a' is computed already"):
        engine.fork("a", "b", asking(4))
