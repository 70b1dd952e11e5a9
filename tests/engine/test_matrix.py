"""Every feature of the caches, over every kind of layer: token for token what the plain model says without any."""

import copy

import pytest
import torch
from small_engines import (
    CAPPED,
    FULL,
    KINDS,
    MAMBA2,
    STATES,
    VOCABULARY,
    WINDOW,
    Oracle,
    assert_plain,
    engine_of,
    greedy,
    model_of,
    prompts_of,
    round_what_is_kept,
    run,
    served,
)

from isoflop.cost.cache import BYTES
from isoflop.engine import memory
from isoflop.engine.request import Request
from isoflop.model.kernels.layers import available

N = 8  # tokens of output
ALL = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(params=["in place", "gathered"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Decoded tokens meet their pages by our kernel, or by torch's products over copies."""
    if request.param == "gathered":
        monkeypatch.setattr(memory, "available", lambda: False)
    return str(request.param)


@ALL
def test_paged(kind: str, path: str) -> None:
    """Several requests of several lengths at once."""
    model, prompts = model_of(*KINDS[kind]), prompts_of(1, 5)
    assert_plain(model, prompts, served(engine_of(model), prompts, N))


@ALL
def test_prefix_hit(kind: str) -> None:
    """The second time, all but what follows the last whole block is found. So is what others share: of pages by the
    second that shares it, of states by the third."""
    model, prompts = model_of(*KINDS[kind]), prompts_of(2, 6, shared=21)
    engine = engine_of(model, most_running=1, snapshots=24)
    wanted = served(engine, prompts, N)
    assert_plain(model, prompts, wanted)
    before = engine.stats
    assert before.found == (20 if kind in STATES else 40)
    assert served(engine, prompts, N) == wanted
    found = engine.stats.found - before.found
    assert found == sum((len(prompt) - 1) // 4 * 4 for prompt in prompts.values())


@ALL
def test_an_answer_is_a_prefix_too(kind: str) -> None:
    """As in a chat: prompt and answer are the beginning of the next prompt."""
    model = model_of(*KINDS[kind])
    prompt = prompts_of(3, 1)["0"]
    engine = engine_of(model)
    said = served(engine, {"a": prompt}, N)["a"]
    longer = (*prompt, *said, 5, 6)
    assert_plain(model, {"b": longer}, served(engine, {"b": longer}, N))
    assert engine.stats.found == (len(prompt) + N - 1) // 4 * 4


@ALL
def test_chunked_prefill(kind: str) -> None:
    model, prompts = model_of(*KINDS[kind]), prompts_of(4, 4, most=40)
    for budget in (1, 5, 11):
        engine = engine_of(model, tokens_per_step=budget)
        assert_plain(model, prompts, served(engine, prompts, N))
        assert engine.stats.steps >= (engine.stats.computed + budget - 1) // budget


@ALL
def test_preemption(kind: str) -> None:
    """All are admitted, and then there are too few pages for all of them to go on. Models that keep nothing of each
    token are never short of pages; that they hold no more than their slots is what is left to see."""
    model, prompts = model_of(*KINDS[kind]), {str(i): p for i, p in enumerate(prompts_of(5, 4).values())}
    prompts = {id: (prompt * 8)[:8] for id, prompt in prompts.items()}
    roomy = engine_of(model)
    memory = roomy.plan.slot_bytes * 6 + sum(group.page_bytes * 14 for group in roomy.plan.groups)
    engine = engine_of(model, memory=memory, most_running=4, snapshots=2, tokens_per_step=8, typical=56)
    assert_plain(model, prompts, served(engine, prompts, 20))
    assert engine.stats.preempted > 0 or not any(group.reach.most(1) is None for group in engine.plan.groups)


@ALL
def test_speculation_and_roll_back(kind: str, path: str) -> None:
    """Right and wrong drafts, of sequences side by side; then the same again from the caches they left."""
    model, prompts = model_of(*KINDS[kind]), prompts_of(6, 4)
    wanted = served(engine_of(model), prompts, 11)
    assert_plain(model, prompts, wanted)
    for wrong_every in (1, 3, 100):
        engine = engine_of(model, Oracle(wanted, wrong_every), drafts=3)
        assert served(engine, prompts, 11) == wanted
        stats = engine.stats
        assert stats.drafted > 0
        assert (stats.accepted == 0) == (wrong_every == 1) and (stats.accepted == stats.drafted) == (wrong_every == 100)
        assert served(engine, prompts, 11) == wanted


@ALL
def test_copy_on_write(kind: str) -> None:
    """Three that go on from the middle of a page of the first, and say what it says; and one that says something else,
    which the first does not notice."""
    model = model_of(*KINDS[kind])
    prompt = prompts_of(7, 1)["0"]
    wanted = served(engine_of(model), {"first": prompt}, 15)["first"]
    assert_plain(model, {"first": prompt}, {"first": wanted})
    engine = engine_of(model, most_running=6)
    engine.submit(Request("first", prompt, greedy(15)))
    events = engine.step()
    while len(events) < 4:
        events += engine.step()
    for i in range(3):
        engine.fork("first", f"fork {i}", greedy(15))
    engine.scheduler.running[1].tokens[-1] = strange = (wanted[3] + 1) % VOCABULARY
    outputs = run(engine)
    assert outputs["first"] == wanted[4:] == outputs["fork 1"] == outputs["fork 2"]
    begun = (*prompt, *wanted[:3], strange)
    assert_plain(model, {"": begun}, {"": outputs["fork 0"]})
    if engine.plan.groups:
        assert engine.stats.copied > 0


@ALL
@pytest.mark.parametrize("dtype", ["int8", "int4", "bf16", "fp16", "fp8"])
def test_cache_types(kind: str, dtype: str, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal to a plain forward whose keys, values and latents are rounded in the same way."""
    model, prompts = model_of(*KINDS[kind]), prompts_of(8, 3)
    engine = engine_of(model, dtype=dtype)
    outputs = served(engine, prompts, N)
    if dtype in BYTES and kind in STATES:
        pytest.skip("the inputs of convolutions are rounded too, where the plain forward has them exactly")
    with monkeypatch.context() as patch:
        round_what_is_kept(patch, dtype)
        assert_plain(model, prompts, outputs)
    assert engine.memory.nbytes == engine.plan.nbytes


def test_all_at_once() -> None:
    """Drafts, chunks, too few pages, shared prefixes and quantized keys in one engine."""
    model, prompts = model_of(MAMBA2, FULL, WINDOW), prompts_of(9, 12, shared=13)
    wanted = served(engine_of(model), prompts, N)
    assert_plain(model, prompts, wanted)
    engine = engine_of(model, Oracle(wanted, 4), memory=90_000, tokens_per_step=13, drafts=2)
    assert served(engine, prompts, N) == wanted
    assert served(engine, prompts, N) == wanted


def test_bf16() -> None:
    """A model in bf16 runs, and mostly says what it says alone: its products round otherwise in other company."""
    model, prompts = model_of(FULL, CAPPED, dtype=torch.bfloat16), prompts_of(10, 6)
    alone = {id: served(engine_of(model), {id: prompt}, N)[id] for id, prompt in prompts.items()}
    assert sum(alone[id] == said for id, said in served(engine_of(model), prompts, N).items()) >= 4


@pytest.mark.skipif(not available(), reason="needs the compiled kernels")
def test_rows_between_matrices_of_bf16_are_fp32() -> None:
    model, prompts = copy.deepcopy(model_of(FULL, FULL, dtype=torch.bfloat16)), prompts_of(11, 6)
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16() if parameter.dim() > 1 else parameter.data
    outputs = served(engine_of(model, dtype="fp32"), prompts, N)
    model.dtype = torch.float32
    assert_plain(model, prompts, outputs)
