"""The whole decoder. B batch, T position, M d_model, V vocabulary."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isoflop import architecture
from isoflop.model.experts import MixtureOfExperts
from isoflop.model.kernels import rows
from isoflop.model.layer import LayerModel
from isoflop.model.linear import Linear
from isoflop.model.norm import build_norm
from isoflop.model.packed import Packed, Runs
from isoflop.model.place import Place, sinusoids
from isoflop.model.rope import RopeTables
from isoflop.model.routing import RouterStats


class Losses(NamedTuple):
    """`total` is minimised; `nats` is the cross-entropy in nats per token; `router` has an entry a
    sparse layer in training, none in evaluation (`eval()`). `exit_nats`: of what is read early, where that was asked;
    no part of `total`."""

    total: Tensor
    nats: Tensor
    router: tuple[RouterStats, ...]
    exit_nats: Tensor | None = None


@dataclass
class DecodeState:
    """What the layers keep of the tokens seen so far, and how many those are; a forward moves it on in place."""

    layers: list[Any]
    length: int = 0

    @property
    def nbytes(self) -> int:
        """Bytes of all its tensors."""
        held = (vars(layer).values() for layer in self.layers if layer is not None)
        return sum(value.nbytes for values in held for value in values if isinstance(value, Tensor))


class DecoderModel(nn.Module):
    """The module of an architecture.Decoder; `model(tokens_BT)` returns logits [B, T, V] in float32."""

    def __init__(self, decoder: architecture.Decoder, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.decoder, self.dtype = decoder, dtype
        self.embedding = nn.Parameter(torch.empty(decoder.vocab_size, decoder.d_model))
        if isinstance(decoder.position, architecture.Learned):
            self.positions = nn.Parameter(torch.empty(decoder.max_context, decoder.d_model))
        self.embedding_norm = build_norm(decoder.norm, decoder.d_model) if decoder.embedding_norm else None
        self.layers = nn.ModuleList(LayerModel(layer, decoder) for layer in decoder.layers)
        self.norm = build_norm(decoder.norm, decoder.d_model) if decoder.final_norm else None
        self.head = None if decoder.tie_embeddings else Linear(decoder.d_model, decoder.vocab_size)
        self.head_bias = nn.Parameter(torch.empty(decoder.vocab_size)) if decoder.head_bias else None
        turns = [_turns_of(layer.mixer, decoder) for layer in decoder.layers]
        distinct = list(dict.fromkeys(turn for turn in turns if turn is not None))
        self.ropes = nn.ModuleList(RopeTables(*turn, decoder.max_context) for turn in distinct)
        self.rope_of_layer = [None if turn is None else distinct.index(turn) for turn in turns]

    def forward(self, tokens_BT: Tensor, state: DecodeState | None = None) -> Tensor:
        """Logits; with a state, of tokens that continue it. Raises ValueError beyond the learned positions."""
        return self._logits(tokens_BT, state)[0]

    def new_state(self, batch: int, capacity: int, dtype: torch.dtype | None = None) -> DecodeState:
        """An empty state for `batch` sequences of up to `capacity` tokens; `dtype` of what is cached."""
        kind = self.dtype if dtype is None else dtype
        layers: Any = self.layers
        return DecodeState(
            [
                None if layer.mixer is None else layer.mixer.new_state(batch, capacity, kind, self.embedding.device)
                for layer in layers
            ]
        )

    def loss(self, tokens_BT: Tensor, targets_BT: Tensor, exit_after: int | None = None) -> Losses:
        """Mean next-token cross-entropy, and the routers' losses where there are any; also that of the last norm and
        head's reading of what leaves the first `exit_after` layers."""
        left: list[Tensor] | None = None if exit_after is None else []
        logits_BTV, router = self._logits(tokens_BT, left=left)
        nats = F.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten())
        losses = Losses(nats + self._router_loss(router), nats, router)
        if exit_after is None or left is None:
            return losses
        early_BTV = self.read(left[exit_after - 1])
        return losses._replace(exit_nats=F.cross_entropy(early_BTV.flatten(0, 1), targets_BT.flatten()))

    def _logits(
        self, tokens_BT: Tensor, state: DecodeState | None = None, left: list[Tensor] | None = None
    ) -> tuple[Tensor, tuple[RouterStats, ...]]:
        start = 0 if state is None else state.length
        turns = [rope(start, tokens_BT.shape[1]) for rope in self.ropes]
        states = None if state is None else state.layers
        x_BTM, router = self._stream(tokens_BT, Place(start), turns, states, left=left)
        if state is not None:
            state.length += tokens_BT.shape[1]
        return self.read(x_BTM), router

    def packed(self, packed: Packed) -> Tensor:
        """What leaves the last layer, [T, M], for tokens of several sequences; moves their states on in place."""
        place = Place(0, positions_T=packed.positions_T)
        x_1TM, _ = self._stream(packed.tokens_T[None], place, packed.turns, packed.layers, packed.runs, packed.dtype)
        return x_1TM[0]

    def _stream(
        self,
        tokens_BT: Tensor,
        place: Place,
        turns: Sequence[tuple[Tensor, Tensor]],
        states: Sequence[Any] | None,
        runs: Runs | None = None,
        dtype: torch.dtype | None = None,
        left: list[Tensor] | None = None,
    ) -> tuple[Tensor, tuple[RouterStats, ...]]:
        """What leaves the last layer; and into `left`, which goes without runs, what leaves each."""
        x_BTM, router, done = self._embed(tokens_BT, place, dtype or self.dtype), [], 0
        places = [place._replace(cos_TC=cos_TC, sin_TC=sin_TC) for cos_TC, sin_TC in turns]
        for i, (layer, rope) in enumerate(zip(self.layers, self.rope_of_layer, strict=True)):
            if runs is not None and i == done:
                done = runs.forward(i, x_BTM, turns)
            if i < done:
                continue
            of_layer = place if rope is None else places[rope]
            x_BTM, stats = layer(x_BTM, of_layer, None if states is None else states[i])
            router += [stats] if stats is not None else []
            done = i + 1
            if left is not None:
                left.append(x_BTM)
        return x_BTM, tuple(router)

    def read(self, x_BTM: Tensor) -> Tensor:
        """Logits, float32, of rows that left the last layer. A tied table may be read through a `head` of its own, as
        where only the copy that multiplies is quantized."""
        x_BTM = x_BTM if self.norm is None else self.norm(x_BTM)
        if self.head is None and rows.multiplies(x_BTM, self.embedding):
            return self._cap(rows.linear(x_BTM, self.embedding, None).float())
        if self.head is None:
            return self._cap(F.linear(x_BTM, self.embedding.to(x_BTM.dtype)).float())
        return self._cap(self.head(x_BTM).float())

    def _embed(self, tokens_BT: Tensor, place: Place, dtype: torch.dtype) -> Tensor:
        d, n_tokens = self.decoder, tokens_BT.shape[1]
        x_BTM = F.embedding(tokens_BT, self.embedding).to(dtype)
        if d.embedding_multiplier != 1:
            x_BTM = x_BTM * d.embedding_multiplier
        if isinstance(d.position, architecture.Learned):
            x_BTM = x_BTM + self._learned(place, n_tokens).to(dtype)
        if isinstance(d.position, architecture.Sinusoidal):
            x_BTM = x_BTM + sinusoids(d.position, place.positions(n_tokens, x_BTM.device), d.d_model).to(x_BTM)
        return x_BTM if self.embedding_norm is None else self.embedding_norm(x_BTM)

    def _learned(self, place: Place, n_tokens: int) -> Tensor:
        if place.positions_T is not None:
            return self.positions.index_select(0, place.positions_T)
        end = place.start + n_tokens
        if end > self.decoder.max_context:
            raise ValueError(f"{end} tokens exceed the {self.decoder.max_context} learned positions")
        return self.positions[place.start : end]

    def _cap(self, logits_BTV: Tensor) -> Tensor:
        if self.head_bias is not None:
            logits_BTV = logits_BTV + self.head_bias
        if self.decoder.logit_multiplier != 1:
            logits_BTV = logits_BTV * self.decoder.logit_multiplier
        cap = self.decoder.logit_softcap
        return logits_BTV if cap is None else cap * torch.tanh(logits_BTV / cap)

    def after_step(self, router: tuple[RouterStats, ...]) -> None:
        """What experts do after an optimizer's step, given the statistics of that step's loss."""
        for mixture, stats in zip(self._sparse(), router, strict=True):
            mixture.after_step(stats)

    def _router_loss(self, router: tuple[RouterStats, ...]) -> Tensor | float:
        if not self.training:  # no statistics, no losses
            return 0.0
        return sum((mixture.loss(stats) for mixture, stats in zip(self._sparse(), router, strict=True)), start=0.0)

    def _sparse(self) -> list[MixtureOfExperts]:
        return [module for module in self.modules() if isinstance(module, MixtureOfExperts)]


def _turns_of(mixer: architecture.Mixer | None, decoder: architecture.Decoder) -> tuple[architecture.Rope, int] | None:
    """Which rotation of how many dimensions a mixer needs."""
    rope = decoder.rope_of(mixer)
    match mixer:
        case architecture.Attention(d_head=d) if rope is not None:
            return rope, rope.d_rotated(d)
        case architecture.LatentAttention(d_rope=d) if rope is not None:
            return rope, rope.d_rotated(d)
        case _:
            return None
