"""Seconds of a training step: a roofline whose every kind of work has its own efficiency.

    compute  = products / (peak e_product) + attention / (peak e_attention) + bytes / (bandwidth e_bandwidth)
               + layers * overhead                                              a micro-batch
    step     = (((accumulate compute + exposed) bubble)^p + hidden^p)^(1/p) spread + optimizer

- Products at the peak and their bytes are added, not the larger taken: kernels of one layer follow each other, and the
  sum reproduces how small matrices fall short.
- Collectives that run beside compute (gathering sharded parameters, reducing gradients, passing keys around a ring)
  hide behind it by a p-norm; those that compute waits for (tensor and expert parallel) are exposed.
- A bubble of (pipeline - 1) / (accumulate * interleave) (Narayanan et al. 2021, section 2.2).
- `spread`: each doubling of the nodes waits for a slower slowest device.

`Ideal` holds the seconds that each kind would take at the stated rates, so that efficiencies can be fitted to many
steps at once: `step_seconds` also works on arrays.
"""

from typing import TYPE_CHECKING, NamedTuple

from isoflop.cost.efficiency import Efficiency
from isoflop.cost.layout import Layout
from isoflop.cost.work import Work
from isoflop.hardware import Accelerator

if TYPE_CHECKING:
    import numpy as np

ITEMSIZE = {"fp32": 4}  # bytes of a number; 2 in every other precision, fp8 among them
BACKWARD = 2  # a backward does twice the products and touches twice the elements
ATTENTION_BACKWARD = 2.5  # five products of the forward's two, scores again among them (Dao 2023)
VOCABULARY_BYTES = 20  # a logit: written, read as float32, exponentiated, its gradient
OPTIMIZER_BYTES = 30  # a parameter: AdamW reads four float32 and writes three, and its half precision copy
P_HIDDEN = 2.0
ALONE = 0.78  # of a link's rate, a large collective with nothing beside it (assumed: nccl-tests on A100 and H100 nodes)


class Ideal(NamedTuple):
    """Seconds of a step on one device at stated rates, by kind; `overheads` counts layers run, `doublings` of nodes."""

    products: "float | np.ndarray"
    low_precision: "float | np.ndarray"
    attention: "float | np.ndarray"
    traffic: "float | np.ndarray"
    optimizer: "float | np.ndarray"
    exposed: "float | np.ndarray"
    hidden: "float | np.ndarray"
    overheads: "float | np.ndarray"
    bubble: "float | np.ndarray"
    doublings: "float | np.ndarray"


def ideal_step(work: Work, hardware: Accelerator, layout: Layout, precision: str) -> Ideal:
    """The step of one device of the layout. `precision` of the layers' products; all else is in half precision."""
    passes = 1 + BACKWARD + (layout.recompute == "full")
    tokens = layout.micro_batch * work.context / layout.context  # a micro-batch, of one device
    split = layout.tensor * layout.pipeline
    every = tokens * layout.accumulate
    item = ITEMSIZE.get(precision, 2)
    half = hardware.peak(hardware.training_precision if precision == "fp8" else precision)
    flops = every * passes * work.layers.product_flops / split
    head = every * (1 + BACKWARD) * work.head_flops / split
    attended = every * (passes - BACKWARD + ATTENTION_BACKWARD) * work.layers.mixing_flops / split
    low = precision == "fp8"
    return Ideal(
        products=(head + (0 if low else flops)) / half,
        low_precision=flops / hardware.peak(precision) if low else 0.0,
        attention=attended / half,
        traffic=_traffic(work, layout, tokens, passes, item) / hardware.bandwidth,
        optimizer=OPTIMIZER_BYTES * _optimized(work, layout) / hardware.bandwidth,
        exposed=_exposed(work, hardware, layout, item * tokens, passes),
        hidden=_hidden(work, hardware, layout, item * tokens, item),
        overheads=work.n_layers * layout.accumulate / layout.pipeline,
        bubble=1 + (layout.pipeline - 1) / (layout.accumulate * layout.interleave),
        doublings=float(max(0, (layout.devices - 1) // hardware.node).bit_length()),
    )


def step_seconds(ideal: Ideal, e: Efficiency) -> "float | np.ndarray":
    """Seconds of a step at given efficiencies."""
    products = ideal.products / e.products + ideal.low_precision / e.low_precision
    compute = products + ideal.attention / e.attention + ideal.traffic / e.bandwidth + ideal.overheads * e.overhead_s
    busy = (compute + ideal.exposed / ALONE) * ideal.bubble
    hidden = ideal.hidden / e.link
    waited = (busy**P_HIDDEN + hidden**P_HIDDEN) ** (1 / P_HIDDEN)
    return waited * (1 + e.spread * ideal.doublings) + ideal.optimizer / e.bandwidth


def _traffic(work: Work, layout: Layout, tokens: float, passes: int, item: int) -> float:
    """Bytes through memory: activations, weights once a pass and micro-batch, logits."""
    split = layout.tensor * layout.pipeline
    activations = item * tokens * work.layers.elements / split
    weights = item * (work.layers.weights - work.layers.expert_weights * (1 - 1 / layout.expert)) / split
    head = tokens * (item * (1 + BACKWARD) * (work.vocab_size + work.d_model) + VOCABULARY_BYTES * work.vocab_size)
    return layout.accumulate * (passes * (activations + weights) + head / split)


def _optimized(work: Work, layout: Layout) -> float:
    """Parameters that one device updates."""
    mine = work.parameters / (layout.tensor * layout.pipeline)
    return mine if layout.shard == "none" else mine / layout.sharded


def _hidden(work: Work, hardware: Accelerator, layout: Layout, a_number: float, item: int) -> float:
    """Seconds of collectives beside compute: parameters and gradients among replicas, keys around a ring; `a_number`:
    bytes of one number for each token of a micro-batch."""
    mine = item * work.parameters / (layout.tensor * layout.pipeline)
    gathers = {"none": 0, "optimizer": 1, "gradients": 1, "parameters": 2 * layout.accumulate}[layout.shard]
    reductions = {"none": 2, "optimizer": 1, "gradients": layout.accumulate, "parameters": layout.accumulate}
    rounds = gathers + reductions[layout.shard]
    replicas = rounds * _ring(hardware, mine, layout.sharded, inner=layout.tensor)
    keys = a_number * layout.context * work.layers.keys / (layout.tensor * layout.pipeline)
    ring = layout.accumulate * (1 + BACKWARD) * _ring(hardware, keys, layout.context, inner=layout.tensor)
    return replicas + ring


def _exposed(work: Work, hardware: Accelerator, layout: Layout, a_number: float, passes: int) -> float:
    """Seconds of collectives that compute waits for: a gather and a scatter a branch and pass among tensor parts, rows
    to experts and back, activations to the next stage."""
    stream = a_number * work.d_model
    pairs = passes * 2 * work.layers.branches / layout.pipeline
    tensor = pairs * _ring(hardware, stream, layout.tensor, inner=1)
    rows = a_number * passes * work.layers.routed / (layout.tensor * layout.pipeline)
    experts = _all_to_all(hardware, rows, layout.expert, inner=layout.tensor * layout.context)
    stages = 0.0
    if layout.pipeline > 1:
        a_link = hardware.link_gb_s if layout.devices <= hardware.node else hardware.network_gb_s
        stages = 2 * layout.interleave * stream / layout.tensor / (a_link * 1e9)
    return layout.accumulate * (tensor + experts + stages)


def _ring(hardware: Accelerator, total_bytes: float, group: int, inner: int) -> float:
    """Seconds to gather, or to reduce and scatter, `total_bytes` among devices that are `inner` apart. Within a node
    each passes on all but its part; across nodes the rings of a node's members share its network links."""
    if group == 1:
        return 0.0
    a_device = hardware.link_gb_s * 1e9
    if group * inner > hardware.node:
        members = max(1, hardware.node // inner)
        a_device = min(a_device, members * hardware.network_gb_s * 1e9)
    return total_bytes * (group - 1) / group / a_device


def _all_to_all(hardware: Accelerator, sent_bytes: float, group: int, inner: int) -> float:
    """Seconds to send each device of a group its part: what leaves the node takes the network."""
    if group == 1:
        return 0.0
    members = min(group, max(1, hardware.node // inner))
    beyond = sent_bytes * (group - members) / group
    within = sent_bytes * (members - 1) / group
    return max(within / (hardware.link_gb_s * 1e9), beyond / (hardware.network_gb_s * 1e9))
