"""Serving: the one published measurement, and how time and memory must move."""

import json

import msgspec
import pytest
from published_runs import truth

from isoflop.architecture.find import find_decoder
from isoflop.cost.cache import cache
from isoflop.cost.serving import Demand, ServingEstimate, Speculation, serving_estimate
from isoflop.hardware import find_accelerator

H100 = find_accelerator("H100-SXM")
LLAMA = find_decoder("llama-3.1-8b")


def _asked(**options) -> ServingEstimate:  # type: ignore[no-untyped-def]
    return serving_estimate(LLAMA, H100, Demand(**({"prompt": 1024, "output": 256} | options)))


@pytest.mark.parametrize(("row", "devices"), [(0, 1), (1, 2)])
def test_thirteen_billion_on_a100(row: int, devices: int) -> None:
    measured = json.loads(truth("training_runs.json").read_text())["inference_points"][row]
    demand = Demand(prompt=512, output=1, batch=1)
    told = serving_estimate(find_decoder("llama-2-13b"), find_accelerator("A100-SXM4-40GB"), demand, devices)
    assert told.decode_s.low < measured["decode_ms_per_token"] / 1e3 < told.decode_s.high
    assert told.prefill_s.low < measured["prefill_ms"] / 1e3 < told.prefill_s.high


def test_limits_of_memory() -> None:
    told = _asked()
    assert told.fits and told.batch == told.batch_limit and not _asked(batch=told.batch + 1).fits
    assert told.cache_bytes_per_sequence == cache(LLAMA, 1280).bytes_at_context
    assert told.context_limit is not None and 1280 <= told.context_limit < 1290
    assert _asked(cache_dtype="fp8").batch_limit in (2 * told.batch_limit, 2 * told.batch_limit + 1)
    assert _asked(weights="int4").weight_bytes < 0.45 * told.weight_bytes


def test_latency_bounds_the_batch() -> None:
    told = _asked(latency_s=0.015)
    assert told.decode_s.value <= 0.015 and 1 < told.batch < told.batch_limit
    assert _asked(batch=told.batch + 1).decode_s.value > 0.015
    assert told.tokens_per_s.value < _asked().tokens_per_s.value


def test_what_a_step_waits_for() -> None:
    assert _asked(batch=1).bound == "weights"
    assert serving_estimate(LLAMA, H100, Demand(prompt=65536, output=256)).bound == "cache"
    assert _asked(batch=1, weights="int4").decode_s.value < 0.6 * _asked(batch=1).decode_s.value


def test_experts_are_covered_by_a_batch() -> None:
    """One token of Mixtral reads 2 of 8 experts, a large batch all: 47 over 13 billion weights at the most."""
    mixtral = find_decoder("mixtral-8x7b")

    def step(batch: int) -> float:
        return serving_estimate(mixtral, H100, Demand(prompt=16, output=16, batch=batch), 2).decode_s.value

    assert 2.5 < step(64) / step(1) < 47 / 13 and step(64) / step(32) < 1.1


def test_drafts() -> None:
    """Leviathan et al. 2022, eq. 1; drafting pays at batch one and not where products bind."""
    assert Speculation(4, 0.8).tokens == pytest.approx(sum(0.8**i for i in range(5)))
    large, small = find_decoder("llama-3.1-70b"), find_decoder("llama-3.2-1b")

    def rate(batch: int, draft: bool) -> float:
        pair = (small, Speculation(4, 0.7)) if draft else None
        demand = Demand(prompt=256, output=256, batch=batch)
        return serving_estimate(large, H100, demand, 8, pair).tokens_per_s.value

    assert rate(1, True) > 1.5 * rate(1, False) and rate(1024, True) < rate(1024, False)


def test_recurrences_keep_states_only() -> None:
    mamba = find_decoder("mamba2-2.7b")
    told = serving_estimate(mamba, H100, Demand(prompt=64, output=64))
    assert told.cache_bytes_per_sequence == cache(mamba, 4096).state_bytes_per_sequence and told.context_limit is None


def test_costs() -> None:
    told = _asked(batch=64)
    assert told.price is not None and told.usd_per_mtok is not None and told.joules_per_token is not None
    seconds = 1e6 / told.tokens_per_s.value
    assert told.usd_per_mtok.value == pytest.approx(seconds / 3600 * told.price.mid)
    assert told.usd_per_mtok.low < told.usd_per_mtok.value < told.usd_per_mtok.high
    assert told.joules_per_token.value == pytest.approx(seconds / 1e6 * 700 * 1.2)
    assert msgspec.json.decode(msgspec.json.encode(told), type=ServingEstimate) == told


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": 0}, "prompt = 0, output = 256 and the batch must be at least 1"),
        ({"prompt": 131072}, "prompt \\+ output = 131328 exceeds the architecture's 131072 tokens"),
        ({"weights": "int3"}, "weights 'int3' are unknown; valid: bf16, fp16, fp8, int8, int4"),
        ({"latency_s": 0.0}, "latency_s = 0 must be above 0"),
    ],
)
def test_refusals(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _asked(**options)
