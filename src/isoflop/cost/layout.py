"""How a training step is spread over devices.

    data      replicas that see different sequences, `shard` says what of the model they split among them
              (Rajbhandari et al. 2019, arXiv 1910.02054): none; optimizer (1); gradients (2); parameters (3, FSDP)
    tensor    every matrix, and between the matrices the sequence (Shoeybi et al. 2019; Korthikanti et al. 2022)
    pipeline  the layers, in stages; `interleave` chunks a stage (Narayanan et al. 2021, arXiv 2104.04473)
    context   the tokens of a sequence, keys and values passed around a ring (Liu et al. 2023, arXiv 2310.01889)
    expert    the routed experts, among the data replicas

Devices are numbered with tensor innermost, then context, then data, then pipeline: the dearest traffic stays in a node.
"""

from typing import Literal, get_args

import msgspec

from isoflop.architecture.base import require_positive
from isoflop.cost.work import Work

Shard = Literal["none", "optimizer", "gradients", "parameters"]
SHARDS: tuple[Shard, ...] = get_args(Shard)
Recompute = Literal["none", "full"]
RECOMPUTES: tuple[Recompute, ...] = get_args(Recompute)


class Layout(msgspec.Struct, frozen=True, kw_only=True):
    """Degrees of each kind, sequences a replica takes at a time, and times it does so before a step. `recompute`:
    whether the forward of a layer is run again in its backward."""

    data: int = 1
    tensor: int = 1
    pipeline: int = 1
    context: int = 1
    expert: int = 1
    shard: Shard = "parameters"
    interleave: int = 1
    micro_batch: int = 1
    accumulate: int = 1
    recompute: Recompute = "none"

    def __post_init__(self) -> None:
        require_positive(
            data=self.data,
            tensor=self.tensor,
            pipeline=self.pipeline,
            context=self.context,
            expert=self.expert,
            interleave=self.interleave,
            micro_batch=self.micro_batch,
            accumulate=self.accumulate,
        )
        if self.shard not in SHARDS:
            raise ValueError(f"shard '{self.shard}' is unknown; valid: {', '.join(SHARDS)}")
        if self.recompute not in RECOMPUTES:
            raise ValueError(f"recompute '{self.recompute}' is unknown; valid: {', '.join(RECOMPUTES)}")
        if self.interleave > 1 and self.pipeline == 1:
            raise ValueError(f"interleave = {self.interleave} needs pipeline > 1")

    @property
    def devices(self) -> int:
        return self.data * self.tensor * self.pipeline * self.context

    @property
    def ways(self) -> int:
        """In how many ways a step is split beyond replicas."""
        return sum(degree > 1 for degree in (self.tensor, self.pipeline, self.context))

    @property
    def sharded(self) -> int:
        """Devices that split what `shard` names: replicas, and the parts of a sequence, which hold equal weights."""
        return self.data * self.context

    def step_tokens(self, context: int) -> int:
        """Tokens of an optimizer step."""
        return self.data * self.micro_batch * self.accumulate * context

    def check(self, work: Work) -> None:
        """Raise ValueError, naming both numbers, where the decoder cannot be split so."""
        self._divides("tensor", self.tensor, "attention heads", work.n_heads)
        self._divides("tensor", self.tensor, "d_model", work.d_model)
        self._divides("context", 2 * self.context if self.context > 1 else 1, "tokens of a sequence", work.context)
        if self.pipeline * self.interleave > work.n_layers:
            raise ValueError(
                f"pipeline = {self.pipeline} with interleave = {self.interleave} needs as many layers;"
                f" the architecture has {work.n_layers}"
            )
        if self.expert > 1 and work.n_experts is None:
            raise ValueError(f"expert = {self.expert} needs an architecture with experts")
        self._divides("expert", self.expert, "experts", work.n_experts)
        self._divides("expert", self.expert, "data replicas", self.data)

    def _divides(self, kind: str, degree: int, of_name: str, of: int | None) -> None:
        if of is not None and of % degree:
            valid = ", ".join(str(d) for d in range(1, min(of, 128) + 1) if of % d == 0)
            raise ValueError(f"{kind} = {degree} does not divide the {of} {of_name}; valid up to 128: {valid}")
