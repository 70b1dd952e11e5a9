"""Bytes that a training step takes on one device, by kind, at its worst instant.

Stated: AdamW with float32 master weights, moments and gradients; activations in half precision, kept by attention that
stores no scores; sharded parameters gathered a layer ahead. A fused cross-entropy holds logits and their gradient in
half precision; torch's holds logits in half precision and, in float32, log-probabilities and two gradients.

Two instants compete: the loss on the last stage (its activations and the logits), and the first backward of the first
stage (activations of every micro-batch in flight, and one layer's computed again). What libraries take is assumed.
"""

from typing import Literal, NamedTuple

from isoflop.cost.layout import Layout
from isoflop.cost.work import Work

FLOAT32, HALF = 4, 2
FUSED_LOGIT, PLAIN_LOGIT = 2 * HALF, HALF + 3 * FLOAT32
WORKSPACES = 2**30  # of matrix products and kernels (assumed)
COLLECTIVES = 2**29  # of NCCL, about 350 to 400 MiB a communicator (assumed)
FRAGMENTATION = 0.04  # of what comes and goes, lost between blocks (assumed)

Instant = Literal["loss", "backward"]


class Memory(NamedTuple):
    """Bytes by kind. `instant`: when most is in use."""

    weights: float
    gradients: float
    optimizer: float
    activations: float
    logits: float
    buffers: float
    instant: Instant

    @property
    def by_kind(self) -> dict[str, float]:
        return {name: getattr(self, name) for name in self._fields if name != "instant"}

    @property
    def total(self) -> float:
        return sum(self[:6])


def training_memory(work: Work, layout: Layout, precision: str = "bf16", fused_loss: bool = True) -> Memory:
    """Bytes on the fullest device of a layout."""
    itemsize = FLOAT32 if precision == "fp32" else HALF
    a_logit = FUSED_LOGIT if fused_loss else PLAIN_LOGIT
    tokens = layout.micro_batch * work.context / layout.context
    mine = _parameters(work, layout)
    weights, gradients, optimizer = _states(mine, layout, itemsize)
    at_loss, at_backward = _activations(work, layout, tokens, itemsize)
    logits = tokens * work.vocab_size / layout.tensor * a_logit
    instant: Instant = "loss" if at_loss + logits >= at_backward else "backward"
    activations = at_loss if instant == "loss" else at_backward
    logits = logits if instant == "loss" else 0.0
    moving = activations + logits
    gathered = (
        (2 * itemsize + FLOAT32) * work.widest.weights / layout.tensor
        if layout.shard == "parameters" and layout.sharded > 1
        else 0.0
    )
    fixed = WORKSPACES + (COLLECTIVES if layout.devices > 1 else 0)
    return Memory(
        weights, gradients, optimizer, activations, logits, gathered + fixed + FRAGMENTATION * moving, instant
    )


def _parameters(work: Work, layout: Layout) -> float:
    """Parameters that the fullest device would hold unsharded: its stage's layers, and an embedding table."""
    experts = work.layers.expert_weights * (1 - 1 / layout.expert) if layout.shard != "parameters" else 0.0
    tables = work.parameters - work.layers.weights
    if layout.pipeline > 1:
        tables = min(tables, work.vocab_size * work.d_model)
    return ((work.layers.weights - experts) / layout.pipeline + tables) / layout.tensor


def _states(mine: float, layout: Layout, itemsize: int) -> tuple[float, float, float]:
    """Weights, gradients, and what the optimizer keeps: master weights too where weights are in half precision."""
    if layout.shard == "parameters" or itemsize == FLOAT32:
        part = mine / layout.sharded if layout.shard == "parameters" else mine
        moments = mine if layout.shard == "none" else mine / layout.sharded
        return FLOAT32 * part, FLOAT32 * part, 2 * FLOAT32 * moments
    gradients = mine / layout.sharded if layout.shard == "gradients" else mine
    optimized = mine if layout.shard == "none" else mine / layout.sharded
    return HALF * mine, FLOAT32 * gradients, 3 * FLOAT32 * optimized


def _activations(work: Work, layout: Layout, tokens: float, itemsize: int) -> tuple[float, float]:
    """Bytes at the loss on the last stage, and at the first backward of the first."""
    a_token = itemsize * tokens / layout.tensor
    layers = 1 / layout.pipeline
    kept = work.layers.kept if layout.recompute == "none" else work.n_layers * work.d_model
    again = work.widest.kept if layout.recompute == "full" else 0.0
    in_flight = min(layout.pipeline, layout.accumulate)
    ahead = 1 + (layout.pipeline - 1) / (layout.pipeline * layout.interleave) if layout.interleave > 1 else 1.0
    ends = 2 * work.d_model  # the last stream and its norm, for the output table
    return a_token * (kept * layers + ends), a_token * (kept * layers * in_flight * ahead + again)
