"""Multipliers that no family has, taken into the weights: the same function, said otherwise."""

import msgspec

from isoflop.architecture import Decoder


class Folded:
    """`decoder` computes what the given one does once its tensors are multiplied as `factor` says. What a layer adds to
    the stream is linear in its last matrix and that one's bias, unless a norm follows; logits in the last norm's
    weights."""

    def __init__(self, given: Decoder) -> None:
        self._residual = given.residual_multiplier if given.placement == "pre" else 1.0
        self._logit = given.logit_multiplier if given.final_norm else 1.0
        self.decoder = msgspec.structs.replace(
            given,
            residual_multiplier=given.residual_multiplier / self._residual,
            logit_multiplier=given.logit_multiplier / self._logit,
        )

    def factor(self, name: str) -> float:
        """What our tensor of this name is multiplied with."""
        if name.startswith("norm.") or name == "head_bias":
            return self._logit
        if name.startswith("layers."):
            module, _, last = name.rpartition(".")
            writes = module.endswith((".mixer.out", ".down")) or last in ("down", "down_bias")
            return self._residual if writes else 1.0
        return 1.0
