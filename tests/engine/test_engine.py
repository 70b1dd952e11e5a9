"""How requests are treated: refusals, ends, cancellation, turns, and what is left when all have gone."""

import random

import pytest
from small_engines import (
    CAPPED,
    FULL,
    KINDS,
    LATENT,
    MAMBA1,
    MAMBA2,
    VOCABULARY,
    WINDOW,
    Oracle,
    assert_plain,
    engine_of,
    greedy,
    model_of,
    prompts_of,
    run,
    served,
)

from isoflop.engine.engine import Engine, Options
from isoflop.engine.request import Event, Request
from isoflop.engine.sampling import Regex, Sampling


def test_refusals() -> None:
    engine = engine_of(model_of(FULL), memory=16_384)
    engine.submit(Request("a", (1, 2), greedy(3)))
    for request, why in (
        (Request("a", (1,)), "request 'a' is already under way"),
        (Request("b", ()), "prompt is empty"),
        (Request("b", (VOCABULARY,)), "prompt has tokens outside the vocabulary, 0 to 60"),
        (Request("b", (-1,)), "outside the vocabulary"),
        (Request("b", (1,) * 100, greedy(29)), "prompt of 100 tokens and max_tokens = 29 exceed max_context = 128"),
        (Request("b", (1,) * 100, greedy(28)), "need 32 pages of 512 bytes at once; the cache has 31"),
        (Request("b", (1,), Sampling(grammar=Regex("a"), max_tokens=3)), "no tokenizer"),
    ):
        if "31" in why:
            engine = engine_of(model_of(FULL), memory=31 * 512)
        with pytest.raises(ValueError, match=why):
            engine.submit(request)
    with pytest.raises(ValueError, match="request 'x' is not under way"):
        engine.fork("x", "y", greedy(1))


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"page_tokens": 0}, "page_tokens = 0 must be at least 1"),
        ({"snapshots": -1}, "snapshots = -1 must not be negative"),
        ({"dtype": "int3"}, "cache dtype 'int3' is unknown; valid: fp32, bf16, fp16, fp8, int8, int4"),
    ],
)
def test_options(options: dict[str, object], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        Options(**options)  # type: ignore[arg-type]


def test_ends() -> None:
    model, prompt = model_of(FULL, MAMBA2), (3, 1, 4)
    said = served(engine_of(model), {"a": prompt}, 12)["a"]
    stop = said[5]
    first = said.index(stop) + 1
    engine = engine_of(model, Oracle({"a": said, "b": said, "c": said}, 100), end_tokens=(stop,))
    engine.submit(Request("a", prompt, greedy(12)))
    engine.submit(Request("b", prompt, Sampling(temperature=0, max_tokens=12, ignore_eos=True)))
    engine.submit(Request("c", prompt, Sampling(temperature=0, max_tokens=12, ignore_eos=True, stop_tokens=(stop,))))
    events: list[Event] = []
    while engine.has_work:
        events += engine.step()
    for id, n, finish in (("a", first, "stop"), ("b", 12, "length"), ("c", first, "stop")):
        of_it = [event for event in events if event.id == id]
        assert [event.token for event in of_it] == said[:n]
        assert [event.finish for event in of_it] == [None] * (n - 1) + [finish]


def test_cancellation_frees_at_once() -> None:
    engine = engine_of(model_of(FULL, MAMBA1), most_running=2)
    for id in "abc":
        engine.submit(Request(id, (1, 2, 3, 4, 5), greedy(20)))
    engine.step()
    held = engine.stats.pages_held
    assert engine.cancel("a") and engine.stats.pages_held < held
    assert engine.cancel("c") and not engine.cancel("c") and not engine.cancel("nobody")
    events = engine.step()
    assert [event.id for event in events if event.finish == "cancelled"] == ["a", "c"]
    assert engine.cancel("b") and engine.has_work
    assert [(event.id, event.finish) for event in engine.step()] == [("b", "cancelled")]
    assert not engine.has_work and engine.stats.pages_held == engine.stats.slots_held == 0


def test_first_come_first_served() -> None:
    """One that needs nearly all of the memory is not overtaken by small ones that come later."""
    model = model_of(FULL)
    engine = Engine(model, Options(memory=20 * 512, page_tokens=4, most_running=8, tokens_per_step=16))
    small = [Request(f"early {i}", (i, 1), greedy(20)) for i in range(3)]
    large = Request("large", tuple(range(60)), greedy(15))
    late = [Request(f"late {i}", (i, 2), greedy(20)) for i in range(6)]
    for request in (*small, large, *late):
        engine.submit(request)
    first: dict[str, int] = {}
    step = 0
    while engine.has_work:
        step += 1
        for event in engine.step():
            first.setdefault(event.id, step)
    assert all(first[request.id] >= first["large"] for request in late), first


@pytest.mark.parametrize("kind", ["attention", "hybrid"])
def test_a_long_prompt_starves_nobody(kind: str) -> None:
    """Who is being decoded gains a token each step, also one that came after the long prompt."""
    engine = engine_of(model_of(*KINDS[kind]), tokens_per_step=16)
    engine.submit(Request("a", (1, 2, 3), greedy(100)))
    engine.step()
    engine.submit(Request("long", tuple(range(20, 60)) + tuple(range(60)), greedy(1)))
    engine.step()
    engine.fork("a", "b", greedy(100))
    engine.step()
    while "long" not in (said := {event.id for event in engine.step()}):
        assert said == {"a", "b"}


@pytest.mark.parametrize("kind", ["attention", "window", "latent", "hybrid", "mamba-2"])
def test_a_beginning_in_common_is_computed_once(kind: str) -> None:
    """Of requests that come together, whoever begins as another does waits for that one; nobody else does."""
    model = model_of(*KINDS[kind], max_context=256)
    beginning = tuple(i * i % VOCABULARY for i in range(150))
    prompts = {str(i): (*beginning, i, i + 1, 7) for i in range(4)} | {"other": (5, 4, 3)}
    engine = engine_of(model, page_tokens=4, tokens_per_step=48, most_running=8)
    outputs = served(engine, prompts, 3)
    assert_plain(model, prompts, outputs)
    assert engine.stats.computed < len(beginning) + 100, engine.stats


def test_company_does_not_matter() -> None:
    """Drawn tokens, too, are those of a request alone: they depend on its seed and its own past."""
    model, prompts = model_of(WINDOW, FULL), prompts_of(21, 5)
    chosen = {id: Sampling(temperature=0.8, top_p=0.9, seed=int(id), max_tokens=8) for id in prompts}

    def said(ids: list[str], **options: object) -> dict[str, list[int]]:
        engine = engine_of(model, **options)
        for id in ids:
            engine.submit(Request(id, prompts[id], chosen[id]))
        return run(engine)

    alone = {id: said([id])[id] for id in prompts}
    assert said(list(prompts), tokens_per_step=7) == alone
    assert said(list(prompts), drafter=Oracle(alone, 3)) == alone


def test_a_fork_goes_on_with_its_own_seed() -> None:
    model, prompt = model_of(LATENT, MAMBA2), (7, 8, 9)
    engine = engine_of(model)
    engine.submit(Request("a", prompt, Sampling(temperature=1.0, seed=1, max_tokens=16)))
    said = [event.token for _ in range(6) for event in engine.step()]
    engine.fork("a", "b", Sampling(temperature=1.0, seed=2, max_tokens=16))
    with pytest.raises(ValueError, match="max_tokens = 3: request 'a' already has that many"):
        engine.fork("a", "c", greedy(3))
    outputs = run(engine)
    assert len(outputs["a"]) == len(outputs["b"]) == 16 - len(said) and outputs["a"] != outputs["b"]


def test_events_tell_what_was_cached() -> None:
    engine = engine_of(model_of(FULL))
    for id in "ab":
        engine.submit(Request(id, tuple(range(10)), greedy(2)))
        first, second = (event for _ in range(2) for event in engine.step())
        assert (first.cached, second.cached) == (8 if id == "b" else 0, 0)


@pytest.mark.parametrize("mixers", [(FULL, CAPPED), (WINDOW, FULL), (LATENT,), (MAMBA1,), (MAMBA2, WINDOW, FULL)])
def test_soak(mixers: tuple[object, ...]) -> None:
    """Random requests at the limit of memory: all lengths, cancellations and refusals; nothing is left behind, and
    those that ran to their end said what the model says."""
    model, draw = model_of(*mixers), random.Random(5)  # type: ignore[arg-type]
    roomy = engine_of(model)
    memory = sum(group.page_bytes * 20 for group in roomy.plan.groups) + roomy.plan.slot_bytes * 6
    engine = engine_of(model, memory=memory, most_running=5, snapshots=3, tokens_per_step=12, typical=60)
    beginning = tuple(draw.randrange(VOCABULARY) for _ in range(17))
    prompts: dict[str, tuple[int, ...]] = {}
    outputs: dict[str, list[int]] = {}
    ended: dict[str, str] = {}
    refused = 0
    for i in range(60):
        body = tuple(draw.randrange(VOCABULARY) for _ in range(draw.choice((1, 5, 20, 50, 200))))
        prompt = beginning + body if draw.random() < 0.5 else body
        try:
            engine.submit(Request(str(i), prompt, greedy(draw.choice((1, 4, 15)))))
            prompts[str(i)] = prompt
        except ValueError:
            refused += 1
        for _ in range(draw.randrange(4)):
            for event in engine.step():
                outputs.setdefault(event.id, []).extend([] if event.token is None else [event.token])
                if event.finish is not None:
                    ended[event.id] = event.finish
        if draw.random() < 0.15 and prompts:
            engine.cancel(draw.choice(list(prompts)))
    while engine.has_work:
        for event in engine.step():
            outputs.setdefault(event.id, []).extend([] if event.token is None else [event.token])
            if event.finish is not None:
                ended[event.id] = event.finish
    assert refused > 0 and ended.keys() == prompts.keys() and set(ended.values()) == {"length", "cancelled"}
    whole = {id: prompt for id, prompt in prompts.items() if ended[id] == "length"}
    assert_plain(model, whole, {id: outputs[id] for id in whole})
    stats = engine.stats
    assert (stats.running, stats.waiting, stats.pages_held, stats.slots_held) == (0, 0, 0, 0)
