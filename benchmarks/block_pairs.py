"""The two sides of a block with the same weights, and what a call of it costs at least."""

import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from block_plain import PlainSide
from block_scan import OurScan, ScanSide, TheirScan
from block_sides import Ours, Side, Theirs, free, trained
from block_specs import MAX_CONTEXT, VOCAB, Spec, common
from isoflop.architecture import S4D, Decoder, Hyena, Layer, Mamba2, Mixer, MixtureOfExperts
from isoflop.cost.cache import cache
from isoflop.cost.feed_forward import feed_forward_parameters
from isoflop.cost.flops import flops_by_part
from isoflop.model import DecoderModel
from isoflop.model.routing import choose
from isoflop.train.init import initialize
from isoflop.train.recipe import Recipe
from isoflop.weights.hugging_face import HuggingFaceFolder


class Block:
    """A block of ours beside its peer."""

    def __init__(self, spec: Spec, decoder: Decoder, ours: Ours | ScanSide, theirs: Side) -> None:
        self.name, self.decoder, self.ours, self.theirs = spec.name, decoder, ours, theirs
        self.peer = type(theirs.module).__name__ + (f" {spec.experts}" if spec.experts else "")

    def runs(self, mode: str, x_BTM: Tensor, n_tokens: int) -> dict[str, Callable[[], tuple[Tensor, ...]]]:
        """Calls that return the same tensors; x are the tokens, or the one that follows `n_tokens` others."""
        sides: dict[str, Side] = {"ours": self.ours, "theirs": self.theirs}
        if mode == "train":
            return {name: trained(side, x_BTM) for name, side in sides.items()}
        n_sequences = len(x_BTM)
        if not self.ours.mixes:
            return {name: free(side.forward(n_sequences, x_BTM.shape[1]), x_BTM) for name, side in sides.items()}
        if mode == "prefill":
            return {name: free(side.prefill(n_sequences, n_tokens), x_BTM) for name, side in sides.items()}
        past_BSM = torch.randn(n_sequences, n_tokens, x_BTM.shape[-1])
        with torch.no_grad():
            return {name: free(side.stepper(past_BSM), x_BTM) for name, side in sides.items()}

    def flops(self, mode: str, n_sequences: int, n_tokens: int) -> float:
        """Exact FLOPs of a call."""
        parts = flops_by_part(self.decoder, n_tokens, "exact")
        if isinstance(self.ours, ScanSide):
            names: tuple[str, ...] = ("mixing",)
        else:
            names = ("mixer_matrices", "mixing") if self.ours.mixes else ("feed_forward", "router")
        if mode.startswith("decode"):
            return n_sequences * sum(parts[name].decode_per_token for name in names)
        forward = n_sequences * n_tokens * sum(parts[name].forward_per_token for name in names)
        return 3 * forward if mode == "train" else forward

    def bytes(self, mode: str, x_BTM: Tensor, n_tokens: int) -> float:
        """Least bytes moved in a call: the weights used, input and output, what is cached."""
        moved = 4 * (self._weights(x_BTM) + 2 * x_BTM.numel())
        kept = cache(self.decoder, n_tokens, "fp32").bytes_at_context if self.ours.mixes else 0
        if mode == "train":
            return 3 * moved
        return moved + len(x_BTM) * kept

    def _weights(self, x_BTM: Tensor) -> int:
        """Of experts, only those that a token chose."""
        module, f = self.ours.module, self.decoder.layers[0].feed_forward
        everything = sum(p.numel() for p in module.parameters())
        if self.ours.mixes or not isinstance(f, MixtureOfExperts):
            return everything
        with torch.no_grad():
            chosen = choose(module.router(x_BTM.flatten(0, 1)), f, getattr(module, "selection_bias", None))
        part = feed_forward_parameters(f, self.decoder.d_model)
        expert = (part.total - part.active) // max(1, f.n_experts - f.top_k)
        return everything - (f.n_experts - chosen.expert_NK.unique().numel()) * expert


def build(spec: Spec, d_model: int) -> Block:
    """The block at a width, both sides in evaluation mode."""
    if not spec.path:
        return _beside_plain(spec, d_model)
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    torch.manual_seed(0)
    config = transformers.CONFIG_MAPPING[spec.family](**common(d_model) | spec.keys(d_model))
    chosen = {"attn_implementation": spec.attention, "experts_implementation": spec.experts}
    options = {key: value for key, value in chosen.items() if value}
    theirs = transformers.AutoModelForCausalLM.from_config(config, **options).float().eval()
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        model = HuggingFaceFolder(Path(folder)).load()
    return Block(spec, model.decoder, Ours(model, spec.mixes), Theirs(theirs, spec.path))


def _beside_plain(spec: Spec, d_model: int) -> Block:
    mixer = _unknown_to_transformers(spec.name, d_model)
    layer = Layer(mixer=mixer, feed_forward=None)
    decoder = Decoder(vocab_size=VOCAB, d_model=d_model, layers=(layer,), max_context=MAX_CONTEXT)
    if isinstance(mixer, Mamba2):
        return Block(spec, decoder, ScanSide(OurScan, mixer), ScanSide(TheirScan, mixer))
    model = DecoderModel(decoder).eval()
    initialize(model, 0, Recipe(lr=1e-3, batch=1))
    ours = Ours(model, mixes=True)
    return Block(spec, decoder, ours, PlainSide(ours.module))


def _unknown_to_transformers(name: str, d_model: int) -> Mixer:
    match name:
        case "s4d":
            return S4D(d_inner=d_model, d_state=64)
        case "hyena":
            return Hyena(order=2, d_filter=64)
        case _:
            return Mamba2(n_heads=d_model // 64, d_head=64, d_state=128)
