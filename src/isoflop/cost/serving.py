"""Serving a decoder: seconds of a prompt and of a generated token, how many sequences fit, what a token costs.

    prefill   FLOPs of the prompt / (peak e)  |  weights / (bandwidth e)                              + overheads
    decode    FLOPs of the batch / (peak e)   |  (weights that the batch needs + caches) / (bandwidth e) + overheads

where a | b, work that overlaps, is sqrt(a^2 + b^2), and overheads are those of each layer's kernels and of waiting for
the other devices twice a layer, which split every matrix. A batch of b tokens, each sent to k of E experts, needs
E (1 - (1 - k/E)^b) of them on average. Quantized weights keep the tables in half precision; fp8 multiplies in fp8,
integers are widened first. Caches are those of cache.py: keys and values within their windows, latents, states.

Efficiencies of serving are assumed, within a quarter: 0.8 of the bandwidth and 25 microseconds a layer reproduce a 13B
model on one and two A100, the only measurement that tests hold them to.
"""

import math
from collections import Counter
from typing import Literal, NamedTuple, get_args

import msgspec

from isoflop.architecture import Decoder, MixtureOfExperts
from isoflop.cost.cache import cache
from isoflop.cost.flops import flops_by_part
from isoflop.cost.money import priced
from isoflop.cost.parameters import parameters
from isoflop.cost.products import feed_forward_products
from isoflop.cost.quantity import LEVEL, Quantity
from isoflop.hardware import GIB, Accelerator
from isoflop.hardware.prices import Range, listed_prices, watts

WeightType = Literal["bf16", "fp16", "fp8", "int8", "int4"]
Bound = Literal["weights", "cache", "compute", "overhead"]
WEIGHT_TYPES: tuple[WeightType, ...] = get_args(WeightType)
# Bytes of a weight, scales among them: one of two bytes for each group of 128 weights.
BYTES_A_WEIGHT: dict[WeightType, float] = {"bf16": 2, "fp16": 2, "fp8": 1, "int8": 1 + 2 / 128, "int4": 0.5 + 2 / 128}

PRODUCTS, BANDWIDTH = 0.70, 0.80  # of the stated rates
LAYER_S, WAIT_S = 25e-6, 24e-6  # a layer's kernels; a sum over devices, however small
LINK = 0.78
RESERVED = 2 * GIB  # context, workspaces, graphs
WITHIN = 1.25  # the factor to either side within which the truth should lie
MOST_BATCH = 2**16


class Speculation(msgspec.Struct, frozen=True):
    """A draft model proposes `drafted` tokens, each accepted with probability `acceptance` (Leviathan et al. 2022,
    arXiv 2211.17192, eq. 1)."""

    drafted: int
    acceptance: float

    def __post_init__(self) -> None:
        if self.drafted < 1 or not 0 <= self.acceptance < 1:
            raise ValueError(
                f"drafted = {self.drafted} must be at least 1, acceptance = {self.acceptance:g} from 0 to below 1"
            )

    @property
    def tokens(self) -> float:
        """Tokens that one pass of the large model yields on average."""
        return (1 - self.acceptance ** (self.drafted + 1)) / (1 - self.acceptance)

    def speed_up(self, draft: float, verify: float = 1.0) -> float:
        """Tokens in the time of one without drafts, where a drafted token takes `draft` and the pass that judges all of
        them `verify`, in passes over one token (Leviathan et al. 2022, theorem 3.8, where that is 1)."""
        return self.tokens / (self.drafted * draft + verify)


class Demand(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked: tokens of a prompt and of its answer; sequences at a time (None: as many as memory and
    `latency_s`, seconds between the tokens of one answer, allow); types of the weights and the cache."""

    prompt: int
    output: int
    batch: int | None = None
    latency_s: float | None = None
    weights: WeightType = "bf16"
    cache_dtype: str = "bf16"

    def __post_init__(self) -> None:
        if self.prompt < 1 or self.output < 1 or (self.batch is not None and self.batch < 1):
            raise ValueError(f"prompt = {self.prompt}, output = {self.output} and the batch must be at least 1")
        if self.weights not in WEIGHT_TYPES:
            raise ValueError(f"weights '{self.weights}' are unknown; valid: {', '.join(WEIGHT_TYPES)}")
        if self.latency_s is not None and not self.latency_s > 0:
            raise ValueError(f"latency_s = {self.latency_s:g} must be above 0")


class ServingEstimate(msgspec.Struct, frozen=True):
    """The JSON document. `prefill_s` of one prompt; `decode_s` of a step of the batch, in the middle of an answer;
    `tokens_per_s` answered by all devices, prompts included in the time. `batch_limit` and `context_limit`: what memory
    allows at this context, and at this batch (None: no limit, nothing grows). `bound`: what a decoding step waits for
    most. Costs are of answered tokens; None where no price or power is known."""

    hardware: str
    devices: int
    prompt: int
    output: int
    batch: int
    weights: str
    cache_dtype: str
    weight_bytes: float
    cache_bytes_per_sequence: int
    memory_bytes: float
    usable_bytes: float
    fits: bool
    batch_limit: int
    context_limit: int | None
    prefill_s: Quantity
    decode_s: Quantity
    tokens_per_s: Quantity
    bound: Bound
    price: Range | None
    usd_per_mtok: Quantity | None
    joules_per_token: Quantity | None


def serving_estimate(
    decoder: Decoder,
    hardware: Accelerator,
    demand: Demand,
    devices: int = 1,
    draft: tuple[Decoder, Speculation] | None = None,
    price: Range | None = None,
) -> ServingEstimate:
    """What a group of devices answers. Takes about a millisecond. Raises ValueError for a context that the decoder does
    not take, or devices that do not divide its heads."""
    if demand.prompt + demand.output > decoder.max_context:
        raise ValueError(
            f"prompt + output = {demand.prompt + demand.output} exceeds the architecture's {decoder.max_context} tokens"
        )
    if devices < 1:
        raise ValueError(f"devices = {devices} must be at least 1")
    server = _server(decoder, hardware, demand, devices)
    drafter = None if draft is None else _server(draft[0], hardware, demand, devices)
    usable = devices * hardware.usable_bytes - devices * RESERVED
    resident = server.weight_bytes + (drafter.weight_bytes if drafter else 0.0)
    a_sequence = server.cache_whole + (drafter.cache_whole if drafter else 0)
    limit = int(max(0.0, usable - resident) // a_sequence) if a_sequence else MOST_BATCH
    limit = min(limit, MOST_BATCH)
    speculation = None if draft is None else draft[1]
    batch = demand.batch or _largest(server, drafter, speculation, max(1, limit), demand.latency_s)
    decode, tokens = _round(server, drafter, speculation, batch)
    prefill = server.prefill_s + (drafter.prefill_s if drafter else 0.0)
    a_token = (prefill + decode * demand.output / tokens / batch) / demand.output
    device_seconds = _within(a_token * devices)
    price, power = price or listed_prices().get(hardware.name), watts(hardware)
    memory = resident + batch * a_sequence + devices * RESERVED
    return ServingEstimate(
        hardware=hardware.name,
        devices=devices,
        prompt=demand.prompt,
        output=demand.output,
        batch=batch,
        weights=demand.weights,
        cache_dtype=demand.cache_dtype,
        weight_bytes=server.weight_bytes,
        cache_bytes_per_sequence=server.cache_whole,
        memory_bytes=memory,
        usable_bytes=devices * hardware.usable_bytes,
        fits=memory <= devices * hardware.usable_bytes,
        batch_limit=limit,
        context_limit=_longest(decoder, demand, (usable - resident) / batch),
        prefill_s=_within(prefill),
        decode_s=_within(decode),
        tokens_per_s=_within(a_token).inverse(),
        bound=server.bound(batch),
        price=price,
        usd_per_mtok=None if price is None else priced(device_seconds.times(1e6 / 3600), price),
        joules_per_token=None if power is None else priced(device_seconds, power),
    )


class _Server(NamedTuple):
    """A decoder on a group of devices: whole bytes, and seconds of their parts. `experts`: for each kind of sparse
    layers the seconds to read all its experts, how many there are, and how many a token needs."""

    weight_bytes: float
    cache_whole: int
    prefill_s: float
    dense_s: float
    experts: tuple[tuple[float, int, int], ...]
    cache_s: float
    compute_s: float
    fixed_s: float

    def weights_s(self, tokens: float) -> float:
        """To read what `tokens` tokens need of the weights."""
        return self.dense_s + sum((s * (1.0 - (1 - k / n) ** tokens) for s, n, k in self.experts), 0.0)

    def step_s(self, batch: int, tokens: int = 1) -> float:
        """Of one pass over `tokens` tokens of each sequence."""
        memory = self.weights_s(batch * tokens) + batch * self.cache_s
        return math.hypot(memory, batch * tokens * self.compute_s) + self.fixed_s

    def bound(self, batch: int) -> Bound:
        parts: dict[Bound, float] = {
            "weights": self.weights_s(batch),
            "cache": batch * self.cache_s,
            "compute": batch * self.compute_s,
            "overhead": self.fixed_s,
        }
        return max(parts, key=lambda name: parts[name])


def _server(decoder: Decoder, hardware: Accelerator, demand: Demand, devices: int) -> _Server:
    heads = {h for layer in decoder.layers if (h := getattr(layer.mixer, "n_heads", None)) is not None}
    if any(h % devices for h in heads):
        raise ValueError(f"devices = {devices} does not divide the {min(heads)} heads that they would split")
    half = hardware.peak(hardware.training_precision)
    rate = PRODUCTS * devices * (hardware.peak("fp8") if demand.weights == "fp8" else half)
    mixing_rate, bandwidth = PRODUCTS * devices * half, BANDWIDTH * devices * hardware.bandwidth
    a_weight = BYTES_A_WEIGHT[demand.weights]
    count, head = parameters(decoder), decoder.vocab_size * decoder.d_model
    tables = count.total - count.non_embedding
    sparse = _experts(decoder)
    routed = sum(weights for weights, _, _ in sparse)
    dense = (count.non_embedding - routed) * a_weight + 2 * head  # of the input table a token needs a row
    middle = demand.prompt + demand.output // 2
    at_prompt = flops_by_part(decoder, demand.prompt, "exact")
    after = flops_by_part(decoder, min(middle, decoder.max_context), "exact")
    token = sum(part.forward_per_token for name, part in at_prompt.items() if name not in ("mixing", "head"))
    matrices = sum(part.decode_per_token for name, part in after.items() if name != "mixing")
    waits = 2 * decoder.n_layers * (devices > 1)
    fixed = decoder.n_layers * LAYER_S + waits * WAIT_S
    passed = waits * 2 * decoder.d_model * 2 * (devices - 1) / devices / (LINK * hardware.link_gb_s * 1e9)
    prefill = demand.prompt * (token / rate + at_prompt["mixing"].forward_per_token / mixing_rate)
    return _Server(
        weight_bytes=count.non_embedding * a_weight + 2 * tables,
        cache_whole=cache(decoder, demand.prompt + demand.output, demand.cache_dtype).bytes_at_context,
        prefill_s=math.hypot(prefill, (dense + routed * a_weight) / bandwidth) + fixed + demand.prompt * passed,
        dense_s=dense / bandwidth,
        experts=tuple((weights * a_weight / bandwidth, n, k) for weights, n, k in sparse),
        cache_s=cache(decoder, middle, demand.cache_dtype).bytes_at_context / bandwidth,
        compute_s=matrices / rate + after["mixing"].decode_per_token / mixing_rate + passed,
        fixed_s=fixed,
    )


def _experts(decoder: Decoder) -> list[tuple[int, int, int]]:
    """Weights of routed experts, how many there are and how many a token needs, by kind of sparse feed-forward."""
    sparse = Counter(f for layer in decoder.layers if isinstance(f := layer.feed_forward, MixtureOfExperts))
    return [
        (
            n * sum(p.d_in * p.d_out * p.matrices for p in feed_forward_products(f, decoder.d_model) if p.matrices > 1),
            f.n_experts,
            f.top_k,
        )
        for f, n in sparse.items()
    ]


def _round(
    server: _Server, drafter: _Server | None, speculation: Speculation | None, batch: int
) -> tuple[float, float]:
    """Seconds until each sequence has its next tokens, and how many those are."""
    if drafter is None or speculation is None:
        return server.step_s(batch), 1.0
    drafted = speculation.drafted * drafter.step_s(batch)
    return drafted + server.step_s(batch, speculation.drafted + 1), speculation.tokens


def _largest(
    server: _Server, drafter: _Server | None, speculation: Speculation | None, limit: int, latency_s: float | None
) -> int:
    """The largest batch within memory whose sequences wait at most `latency_s` for a token; at least one."""
    if latency_s is None:
        return limit
    low, high = 1, limit
    while low < high:
        middle = (low + high + 1) // 2
        seconds, tokens = _round(server, drafter, speculation, middle)
        low, high = (middle, high) if seconds / tokens <= latency_s else (low, middle - 1)
    return low


def _longest(decoder: Decoder, demand: Demand, room: float) -> int | None:
    """The longest sequence whose cache takes at most `room` bytes; None where the architecture's own is shorter."""

    def fits(context: int) -> bool:
        return cache(decoder, context, demand.cache_dtype).bytes_at_context <= room

    if fits(decoder.max_context):
        return None
    low, high = 0, decoder.max_context
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def _within(value: float) -> Quantity:
    return Quantity(value, value / WITHIN, value * WITHIN, LEVEL, "assumed")
