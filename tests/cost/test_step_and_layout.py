"""Layouts: what is refused, how time and memory must move, and the search."""

import itertools
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isoflop.architecture import Decoder
from isoflop.architecture.find import find_decoder
from isoflop.cost.belief import belief_about
from isoflop.cost.layout import Layout
from isoflop.cost.memory import training_memory
from isoflop.cost.search import WORTH, Question, cheapest_layout, cheapest_training, layouts, no_layout
from isoflop.cost.step_time import ideal_step, step_seconds
from isoflop.cost.training import estimate_step, novelty, training_estimate
from isoflop.cost.work import work_of
from isoflop.hardware import accelerators, find_accelerator
from strategies import decoders

H100 = find_accelerator("H100-SXM")
LLAMA = find_decoder("llama-3.1-8b")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tensor": 3}, "tensor = 3 does not divide the 32 attention heads; valid up to 128: 1, 2, 4, 8, 16, 32"),
        ({"pipeline": 64}, "pipeline = 64 with interleave = 1 needs as many layers; the architecture has 32"),
        ({"expert": 2, "data": 2}, "expert = 2 needs an architecture with experts"),
        ({"context": 3}, "context = 6 does not divide the 8192 tokens of a sequence"),
        ({"interleave": 2}, "interleave = 2 needs pipeline > 1"),
        ({"micro_batch": 0}, "micro_batch = 0 must be above 0"),
    ],
)
def test_refusals(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError) as mistake:
        Layout(**options).check(work_of(LLAMA, 8192))
    assert str(mistake.value).startswith(message) and "\n" not in str(mistake.value)


@settings(max_examples=60, deadline=None)
@given(decoders(), st.sampled_from(list(accelerators().values())), st.sampled_from([1, 2, 16]), st.booleans())
def test_every_decoder_has_an_estimate(decoder: Decoder, hardware, devices: int, again: bool) -> None:  # type: ignore[no-untyped-def]
    layout = Layout(data=devices, recompute="full" if again else "none")
    precision = hardware.training_precision
    told = training_estimate(decoder, hardware, layout, decoder.max_context, precision)
    rate = told.tokens_per_s_per_device
    assert 0 < rate.low < rate.value < rate.high and rate.level == 0.8
    assert all(0 < share < 1 for name, share in told.mfu.items() if name in ("6nd", "exact"))
    assert sum(told.memory_per_device.values()) == pytest.approx(told.memory_bytes.value)
    assert min(told.memory_per_device.values()) >= 0


def test_memory_follows_the_stages() -> None:
    """Rajbhandari et al. 2019, figure 1: 16 bytes a parameter, split in turn."""
    work = work_of(LLAMA, 8192)
    states = {}
    for shard in ("none", "optimizer", "gradients", "parameters"):
        memory = training_memory(work, Layout(data=64, shard=shard))
        states[shard] = (memory.weights + memory.gradients + memory.optimizer) / work.parameters
    assert states["none"] == pytest.approx(2 + 4 + 12)
    assert states["optimizer"] == pytest.approx(2 + 4 + 12 / 64)
    assert states["gradients"] == pytest.approx(2 + (4 + 12) / 64)
    assert states["parameters"] == pytest.approx(16 / 64)


def test_memory_of_activations() -> None:
    """Korthikanti et al. 2022, eq. 2 without the scores that flash attention does not keep: 34 s b h a layer less its
    dropout masks (2) and the projection kept once."""
    work = work_of(find_decoder("gpt-3-175b"), 2048)
    kept = training_memory(work, Layout()).activations / (2048 * 96 * 12288)
    assert 28 < kept < 36
    again = training_memory(work, Layout(recompute="full")).activations / (2048 * 96 * 12288)
    assert 2 < again < 2.5
    split = training_memory(work, Layout(tensor=8)).activations / (2048 * 96 * 12288)
    assert split == pytest.approx(kept / 8)


def test_time_moves_as_it_must() -> None:
    belief = belief_about(H100)

    def a_token(**options) -> float:  # type: ignore[no-untyped-def]
        layout = Layout(**options)
        return estimate_step(work_of(LLAMA, 8192), H100, layout, "bf16", belief).seconds.value / (
            layout.step_tokens(8192) / layout.devices
        )

    assert a_token(data=8, recompute="full") > 1.2 * a_token(data=8)
    assert a_token(data=512) > a_token(data=8)
    bubbles = [a_token(pipeline=4, accumulate=n, shard="none") for n in (4, 8, 32)]
    assert bubbles == sorted(bubbles, reverse=True)
    assert a_token(pipeline=4, accumulate=4, interleave=4, shard="none") < bubbles[0]
    # Sixteen devices of tensor parallelism leave the node; eight do not.
    assert a_token(tensor=16, shard="none") > 1.5 * a_token(tensor=8, shard="none")


def test_novel_parts_widen_the_interval() -> None:
    plain = training_estimate(LLAMA, H100, Layout(data=8), 8192).step_seconds
    sparse = training_estimate(find_decoder("mixtral-8x7b"), H100, Layout(data=64), 8192).step_seconds
    other = training_estimate(LLAMA, find_accelerator("MI300X"), Layout(data=8), 8192).step_seconds
    assert plain.source == "fitted" and sparse.source == other.source == "assumed"
    assert plain.high / plain.low < sparse.high / sparse.low and plain.high / plain.low < other.high / other.low
    assert novelty(LLAMA) == 0 < novelty(find_decoder("mamba2-2.7b"))


def test_a_finished_run_moves_the_belief() -> None:
    belief = belief_about(find_accelerator("MI300X"))
    ideal = ideal_step(work_of(LLAMA, 8192), find_accelerator("MI300X"), Layout(data=8), "bf16")
    before = belief.seconds(ideal)
    after = belief.after(ideal, 1.3 * before.value).seconds(ideal)
    assert 1.15 * before.value < after.value < 1.35 * before.value
    assert after.high / after.low < before.high / before.low and after.source == "measured"


def test_the_search_agrees_with_trying_everything() -> None:
    question = Question(work_of(LLAMA, 8192), H100, 16, belief_about(H100), batch=64)
    found = cheapest_layout(question)
    assert found is not None and found.layout.devices == 16
    assert found.layout.data * found.layout.micro_batch * found.layout.accumulate == 64
    belief = question.belief.efficiency
    tried = [
        (float(step_seconds(ideal_step(question.work, H100, layout, "bf16"), belief)) * WORTH**layout.ways, layout)
        for layout in layouts(question)
        if training_memory(question.work, layout).total <= H100.usable_bytes
    ]
    assert min(tried, key=lambda pair: pair[0])[1] == found.layout
    for layout in itertools.islice(layouts(question), 50):
        layout.check(question.work)


def test_the_planner_s_question() -> None:
    told = cheapest_training(LLAMA, H100, 8, 8192, batch=64)
    assert told is not None and told.fits and told.tokens_per_step == 64 * 8192
    assert told.memory_bytes.value <= told.usable_bytes.value and told.precision == "bf16"
    assert cheapest_training(LLAMA, find_accelerator("RTX 4090"), 1, 8192) is None


def test_what_would_fit() -> None:
    small = Question(work_of(find_decoder("llama-3.1-70b"), 8192), H100, 8, belief_about(H100))
    assert cheapest_layout(small) is None
    assert "70.6B parameters at context 8192 fit no layout on 8 x H100-SXM5-80GB" in no_layout(small)
    assert "16 of them would fit" in no_layout(small)
    assert cheapest_layout(small._replace(devices=16)) is not None
    strict = Question(work_of(LLAMA, 8192), H100, 8, belief_about(H100), micro_batch=16, recompute="none")
    assert cheapest_layout(strict) is None and "micro_batch = 1 with recompute 'full' would fit" in no_layout(strict)


def test_thousands_a_second() -> None:
    work, layout, belief = work_of(LLAMA, 8192), Layout(data=8), belief_about(H100)
    start = time.process_time()
    for _ in range(500):
        estimate_step(work, H100, layout, "bf16", belief)
    assert (time.process_time() - start) / 500 < 1e-3
