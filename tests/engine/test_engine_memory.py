"""Bytes that an engine takes, against the cost model; plans; stores; and random decoders through the whole engine."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_engines import CHUNK, FULL, LATENT, MAMBA2, WINDOW, Oracle, assert_plain, greedy, model_of, run

from isoflop.architecture import S4D, Attention, Decoder, Dynamic, Hyena, LongRope, Rope
from isoflop.cost import cache
from isoflop.cost.cache import vector_bytes
from isoflop.engine.engine import Engine, Options
from isoflop.engine.plan import Group, Reach, plan_memory
from isoflop.engine.request import Request
from isoflop.engine.store import build_store
from isoflop.model import DecoderModel
from isoflop.train.init import initialize
from isoflop.train.recipe import Recipe
from strategies import decoders

TYPES = ("fp32", "bf16", "fp16", "fp8", "int8", "int4")


@settings(max_examples=40, deadline=None)
@given(decoders(), st.sampled_from(TYPES), st.integers(1, 5), st.integers(1, 3))
def test_bytes_equal_the_cost_model(decoder: Decoder, dtype: str, page_tokens: int, most_running: int) -> None:
    """All tensors together; and a page and a slot are what the cost model says of that many tokens of a sequence."""
    engine = Engine(
        DecoderModel(decoder),
        Options(memory=1 << 17, page_tokens=page_tokens, most_running=most_running, dtype=dtype, tokens_per_step=4),
    )
    plan = engine.plan
    assert engine.memory.nbytes == plan.nbytes <= 1 << 17
    found = cache(decoder, page_tokens, dtype, "fp32")
    assert sum(group.page_bytes for group in plan.groups) == page_tokens * found.bytes_per_token
    assert plan.slot_bytes == found.state_bytes_per_sequence


@settings(max_examples=15, deadline=None)
@given(decoders(), st.data())
def test_random_decoders_say_what_they_say_alone(decoder: Decoder, data: st.DataObject) -> None:
    """Two requests side by side, in small chunks, one of them with drafts: likeliest tokens of the plain model, where
    no other token is about as likely."""
    ropes = [decoder.rope_of(layer.mixer) for layer in decoder.layers]
    if any(rope is not None and isinstance(rope.scaling, Dynamic | LongRope) for rope in ropes):
        return  # their turns are those of prompt + max_tokens: a test of their own
    model = DecoderModel(decoder)
    initialize(model, 1, Recipe(lr=1e-3, batch=1))
    lengths = data.draw(st.lists(st.integers(1, 4), min_size=2, max_size=3), label="prompts")
    token = st.integers(0, decoder.vocab_size - 1)
    prompts = {str(i): tuple(data.draw(token) for _ in range(n)) for i, n in enumerate(lengths)}
    settings = Options(memory=1 << 18, page_tokens=2, most_running=2, tokens_per_step=data.draw(st.integers(1, 6)))
    drafter = Oracle({id: [0, 1, 0, 1, 0] for id in prompts}, 2) if data.draw(st.booleans()) else None
    engine = Engine(model, settings, drafter)
    for id, prompt in prompts.items():
        engine.submit(Request(id, prompt, greedy(5)))
    for id, output in run(engine).items():
        with torch.no_grad():
            logits_TV = model(torch.tensor([[*prompts[id], *output]]))[0, len(prompts[id]) - 1 : -1]
        chosen_T = logits_TV.gather(1, torch.tensor(output)[:, None])[:, 0]
        near = 1e-4 * (1 + float(logits_TV.abs().max()))
        assert bool((logits_TV.amax(-1) - chosen_T <= near).all())


@pytest.mark.parametrize("scaling", ["dynamic", "longrope"])
def test_turns_that_follow_the_length(scaling: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are those of prompt + max_tokens from the start on, whatever shorter or longer requests are beside."""
    pairs = tuple(1.0 + i for i in range(4))
    chosen = (
        Dynamic(factor=4.0, original_max_context=16)
        if scaling == "dynamic"
        else LongRope(short_factors=(1.0,) * 4, long_factors=pairs, original_max_context=16, attention_factor=1.2)
    )
    turned = Attention(n_heads=2, n_kv_heads=1, d_head=8, position=Rope(scaling=chosen))
    model = model_of(turned, turned)
    prompts = {"short": (1, 2, 3), "long": tuple(range(20)), "longer": tuple(range(30)), "again": tuple(range(30))}
    engine = Engine(model, Options(memory=1 << 18, page_tokens=4, tokens_per_step=16, most_running=1))
    for id, prompt in prompts.items():
        engine.submit(Request(id, prompt, greedy(9)))
    outputs = run(engine)
    assert engine.stats.found == 28  # of the last; those of other turns share nothing
    assert any("prompt + max_tokens" in line for line in engine.notices)
    (rope,) = model.ropes
    for id, prompt in prompts.items():
        limit = rope.limited(len(prompt) + 9)
        with monkeypatch.context() as patch:
            if limit is not None:
                cos, sin = rope._of_length(limit)
                patch.setattr(type(rope), "forward", lambda self, start, n, c=cos, s=sin: (c[:n], s[:n]))
            assert_plain(model, {id: prompt}, {id: outputs[id]})


@given(st.integers(1, 140), st.sampled_from(TYPES), st.integers(1, 3), st.integers(1, 6))
def test_stores(width: int, dtype: str, vectors: int, n_places: int) -> None:
    """Of the cost model's size; what is read back is near what was written, zeros and lone numbers included."""
    store = build_store(n_places, vectors, width, dtype, torch.device("cpu"))
    assert store.nbytes == n_places * vectors * vector_bytes(width, dtype)
    x = torch.randn(n_places, vectors, width, generator=torch.Generator().manual_seed(width))
    x[0] = 0
    at = torch.arange(n_places)
    store.write(at, x)
    error = (store.read(at, torch.float32) - x).abs().amax()
    share = {"fp32": 0.0, "bf16": 2**-8, "fp16": 2**-10, "fp8": 2**-4, "int8": 0.51 / 127 + 2**-10, "int4": 1.01 / 8}
    assert float(error) <= share[dtype] * float(x.abs().max()) + 1e-7
    assert not store.read(at[:1], torch.float32).any()


def test_pages_of_a_window() -> None:
    """No more than what is in reach of the new tokens, wherever pages begin."""
    group = Group(Reach(window=10), (0,), 1)
    for n_new in (1, 3, 8):
        for position in range(200):
            first, last = group.reach.first(position), position + n_new - 1
            assert last // 4 - first // 4 + 1 <= group.pages(1000, n_new, 4)
    assert Group(Reach(), (0,), 1).pages(9, 4, 4) == 3
    assert Group(Reach(chunk=8), (0,), 1).pages(9, 1, 4) == 3


def test_a_window_holds_no_more_than_its_reach() -> None:
    model = model_of(WINDOW, CHUNK)
    engine = Engine(model, Options(memory=1 << 18, page_tokens=2, tokens_per_step=8, most_running=1))
    engine.submit(Request("a", tuple(range(60)), greedy(60)))
    most = [0, 0]
    while engine.has_work:
        engine.step()
        most = [max(a, pool.n_held) for a, pool in zip(most, engine.holdings.pages, strict=True)]
    assert most[0] <= 4 and most[1] <= 4


def test_plans() -> None:
    decoder = model_of(FULL, WINDOW, MAMBA2, LATENT).decoder
    plan = plan_memory(decoder, 1 << 20, 4, 8, 16, "fp32", "fp32", typical=64)
    full, window = plan.groups
    assert full.layers == (0, 3) and window.layers == (1,)
    assert plan.slot_bytes == cache(decoder, 0, "fp32").state_bytes_per_sequence > 0
    assert plan.n_slots == 8 and plan.nbytes <= 1 << 20
    assert 16 * plan.n_pages[1] // plan.n_pages[0] in (6, 7)  # of 16 pages of 64 tokens, a window of 7 sees 7
    tight = plan_memory(decoder, 6 * plan.slot_bytes, 4, 8, 16, "fp32", "fp32")
    assert tight.n_slots == 3 and all(tight.n_pages)
    with pytest.raises(ValueError, match=r"memory of 100 bytes: the caches of this model take at least \d+"):
        plan_memory(decoder, 100, 4, 8, 16, "fp32", "fp32")


def test_notices() -> None:
    def said(*mixers: object, **options: object) -> str:
        return "\n".join(Engine(model_of(*mixers), Options(memory=1 << 18, **options)).notices)  # type: ignore[arg-type]

    assert said(FULL) == ""
    assert "pages are inert" in said(S4D(d_inner=4)) and "int8 is inert" in said(S4D(d_inner=4), dtype="int8")
    assert "states were kept" in said(MAMBA2, FULL)
    assert "prefix reuse is inert" in said(MAMBA2, most_running=1, snapshots=0)
    assert "Hyena" in said(Hyena())
