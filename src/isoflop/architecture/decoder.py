"""A decoder is a tuple of layers between an input and an output table; a layer is a mixer and a feed-forward."""

import hashlib
from typing import Literal

import msgspec

from isoflop.architecture.base import Description, require_positive
from isoflop.architecture.feed_forward import FeedForward
from isoflop.architecture.mixer import Attention, LatentAttention, Mixer
from isoflop.architecture.norm import Norm, Placement, RmsNorm
from isoflop.architecture.position import Alibi, NoPosition, Position, Rope


class Layer(Description, frozen=True):
    """One residual layer: its mixer, then its feed-forward, each added to the stream as `Decoder.placement` says;
    either may be missing. `parallel`: both read the same stream and are added at once, behind one shared norm or one
    each."""

    mixer: Mixer | None
    feed_forward: FeedForward | None
    parallel: Literal["no", "shared-norm", "own-norms"] = "no"

    def __post_init__(self) -> None:
        if self.mixer is None and self.feed_forward is None:
            raise ValueError("a layer has a mixer, a feed_forward, or both")
        if self.parallel != "no" and (self.mixer is None or self.feed_forward is None):
            raise ValueError(f"parallel = '{self.parallel}' needs both a mixer and a feed_forward")


class Decoder(Description, frozen=True):
    """A whole language model.

    `embedding_multiplier` scales the embedded input, `residual_multiplier` what each mixer and feed-forward adds to
    the residual stream, `logit_multiplier` the logits: the handles of width and depth transfer (Yang et al. 2022,
    arXiv 2203.03466; Dey et al. 2025, arXiv 2505.01618). `logit_softcap` c replaces a logit z by c tanh(z / c).
    `embedding_norm` normalises the embedded input, `final_norm` what the output table reads; `head_bias` is added
    there.
    """

    vocab_size: int
    d_model: int
    layers: tuple[Layer, ...]
    max_context: int
    norm: Norm = RmsNorm()
    placement: Placement = "pre"
    position: Position = Rope()
    tie_embeddings: bool = False
    embedding_multiplier: float = 1.0
    residual_multiplier: float = 1.0
    logit_multiplier: float = 1.0
    logit_softcap: float | None = None
    embedding_norm: bool = False
    final_norm: bool = True
    head_bias: bool = False

    def __post_init__(self) -> None:
        require_positive(
            vocab_size=self.vocab_size,
            d_model=self.d_model,
            max_context=self.max_context,
            embedding_multiplier=self.embedding_multiplier,
            residual_multiplier=self.residual_multiplier,
            logit_multiplier=self.logit_multiplier,
        )
        if self.logit_softcap is not None:
            require_positive(logit_softcap=self.logit_softcap)
        if not self.layers:
            raise ValueError("layers is empty; a decoder has at least one layer")
        for layer in set(self.layers):
            self._check(layer)

    def _check(self, layer: Layer) -> None:
        if layer.parallel != "no" and self.placement != "pre":
            raise ValueError(f"parallel = '{layer.parallel}' layers go with placement = 'pre', not '{self.placement}'")
        if isinstance(layer.mixer, Attention):
            rope = self.rope_of(layer.mixer)
            if rope is not None:
                rope.d_rotated(layer.mixer.d_head)
        if isinstance(layer.mixer, LatentAttention):
            if not isinstance(self.position, Rope | NoPosition):
                raise ValueError("latent attention goes with position 'rope' or 'none'")
            if isinstance(self.position, Rope):
                self.position.d_rotated(layer.mixer.d_rope)

    def rope_of(self, mixer: Mixer | None) -> Rope | None:
        """The rotation that applies in a mixer: its own, else the decoder's; None where nothing turns."""
        if isinstance(mixer, Attention):
            position = mixer.position or self.position
        elif isinstance(mixer, LatentAttention):
            position = self.position
        else:
            return None
        return position if isinstance(position, Rope) else None

    def alibi_of(self, mixer: Mixer | None) -> Alibi | None:
        """The penalty on distance that applies in a mixer, if any."""
        applies = isinstance(mixer, Attention) and mixer.position is None and isinstance(self.position, Alibi)
        return self.position if applies and isinstance(self.position, Alibi) else None

    @property
    def n_layers(self) -> int:
        return len(self.layers)

    @property
    def digest(self) -> str:
        """Hash of the whole description: equal descriptions, equal digests."""
        return hashlib.sha256(msgspec.json.encode(self, order="sorted")).hexdigest()[:16]
