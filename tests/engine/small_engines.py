"""Small models of every kind, engines over them, and the plain model that they must agree with."""

import functools

import torch

from isoflop.architecture import (
    S4D,
    Attention,
    Decoder,
    Hyena,
    LatentAttention,
    Layer,
    Mamba1,
    Mamba2,
    Mixer,
    Mlp,
    TemperatureTuning,
)
from isoflop.cost.cache import QUANTIZED
from isoflop.engine import store
from isoflop.engine.engine import Engine, Options
from isoflop.engine.request import Request
from isoflop.engine.sampling import Sampling
from isoflop.engine.sequence import Sequence as Running
from isoflop.engine.speculate import Proposal
from isoflop.model import DecoderModel, attention, latent
from isoflop.train.init import initialize
from isoflop.train.recipe import Recipe

VOCABULARY = 61
FULL = Attention(n_heads=4, n_kv_heads=2, d_head=8)
WINDOW = Attention(n_heads=4, n_kv_heads=2, d_head=8, window=7, sinks=True)
CHUNK = Attention(n_heads=3, n_kv_heads=1, d_head=10, chunk=6, qk_norm="head", temperature=TemperatureTuning(3.0, 0.2))
CAPPED = Attention(n_heads=2, n_kv_heads=2, d_head=8, softcap=5.0, qk_norm="unweighted-after", qkv_bias=True)
LATENT = LatentAttention(n_heads=3, kv_rank=12, d_nope=6, d_rope=4, d_value=5)
MAMBA1 = Mamba1(d_inner=24, d_state=4, dt_rank=3)
MAMBA2 = Mamba2(n_heads=4, d_head=6, d_state=5)
DIAGONAL = S4D(d_inner=24, d_state=8)
KINDS: dict[str, tuple[Mixer, ...]] = {
    "attention": (FULL, CAPPED),
    "window": (WINDOW, FULL),
    "windows": (WINDOW, WINDOW),
    "chunk": (CHUNK, FULL),
    "latent": (LATENT, LATENT),
    "mamba-1": (MAMBA1, MAMBA1),
    "mamba-2": (MAMBA2, MAMBA2),
    "s4d": (DIAGONAL, DIAGONAL),
    "hyena": (Hyena(), Hyena()),
    "hybrid": (MAMBA2, FULL, MAMBA1, WINDOW),
}
STATES = ("mamba-1", "mamba-2", "s4d", "hyena", "hybrid")


@functools.cache
def model_of(*mixers: Mixer, dtype: torch.dtype = torch.float32, max_context: int = 128) -> DecoderModel:
    """With random weights; decisive ones, so that no two tokens are about equally likely."""
    layers = tuple(Layer(mixer, Mlp(d_ff=32)) for mixer in mixers)
    decoder = Decoder(vocab_size=VOCABULARY, d_model=24, layers=layers, max_context=max_context)
    model = DecoderModel(decoder, dtype)
    initialize(model, 1, Recipe(lr=1e-3, batch=1))
    return model


def prompts_of(seed: int, n: int, shared: int = 0, most: int = 24) -> dict[str, tuple[int, ...]]:
    """n prompts, every second of which begins with the same `shared` tokens."""
    generator = torch.Generator().manual_seed(seed)

    def draw(length: int) -> list[int]:
        return torch.randint(VOCABULARY, (length,), generator=generator).tolist()

    lengths = torch.randint(1, most + 1, (n,), generator=generator).tolist()
    beginning = draw(shared)
    return {str(i): tuple((beginning if i % 2 else []) + draw(length)) for i, length in enumerate(lengths)}


@torch.no_grad()
def assert_plain(model: DecoderModel, prompts: dict[str, tuple[int, ...]], outputs: dict[str, list[int]]) -> None:
    """Each output is what the model says without any cache, one likeliest token after the other: in one full forward
    over prompt and output, every token of the output is the likeliest after those before it."""
    assert outputs.keys() == prompts.keys()
    for id, prompt in prompts.items():
        logits_TV = model(torch.tensor([[*prompt, *outputs[id]]]))[0, len(prompt) - 1 : -1]
        assert logits_TV.argmax(-1).tolist() == outputs[id], id


def greedy(n: int) -> Sampling:
    return Sampling(temperature=0.0, max_tokens=n)


def run(engine: Engine) -> dict[str, list[int]]:
    """Every request's output, once nobody is left; everything they held must be free."""
    outputs: dict[str, list[int]] = {}
    while engine.has_work:
        for event in engine.step():
            if event.token is not None:
                outputs.setdefault(event.id, []).append(event.token)
    assert engine.stats.pages_held == engine.stats.slots_held == 0
    return outputs


def served(engine: Engine, prompts: dict[str, tuple[int, ...]], n: int) -> dict[str, list[int]]:
    for id, prompt in prompts.items():
        engine.submit(Request(id, prompt, greedy(n)))
    return run(engine)


def engine_of(model: DecoderModel, drafter: object = None, **options: object) -> Engine:
    settings = {"memory": 1 << 20, "page_tokens": 4, "most_running": 4, "tokens_per_step": 64, "typical": 64} | options
    return Engine(model, Options(**settings), drafter)  # type: ignore[arg-type]


class Oracle:
    """Drafts what will be said, but for a wrong token now and then."""

    cost = 0.0

    def __init__(self, outputs: dict[str, list[int]], wrong_every: int) -> None:
        self.outputs, self.wrong_every = outputs, wrong_every

    def propose(self, asked: list[tuple[Running, int]]) -> list[Proposal]:
        return [Proposal(tuple(self._drafts(sequence, k))) for sequence, k in asked]

    def _drafts(self, sequence: Running, k: int) -> list[int]:
        at = len(sequence.tokens) - sequence.row.n_prompt
        drafts = self.outputs[sequence.id][at : at + k]
        return [(t + ((at + i + 1) % self.wrong_every == 0)) % VOCABULARY for i, t in enumerate(drafts)]

    def forget(self, sequence: Running) -> None: ...


def rounded(x: torch.Tensor, dtype: str) -> torch.Tensor:
    """x as the cache gives it back: a vector a head and token."""
    if dtype not in QUANTIZED:
        return x.to(store.DTYPES[dtype]).to(x.dtype)
    codes, scales = store.quantize(x, dtype)
    return store.dequantize(codes, scales, x.shape[-1], dtype)


def round_what_is_kept(patch: object, dtype: str) -> None:
    """Have the plain model round keys, values and latents as a cache of `dtype` does, and expand nothing else."""
    exact_attention, exact_expanded = attention.causal_attention, latent.LatentAttention.expanded

    def rough_attention(q, k, v, *options):  # type: ignore[no-untyped-def]
        return exact_attention(q, rounded(k, dtype), rounded(v, dtype), *options)

    def rough_expanded(module, q, latent_BTR, key_BTP):  # type: ignore[no-untyped-def]
        kept = rounded(torch.cat((latent_BTR, key_BTP), dim=-1), dtype)
        return exact_expanded(module, q, *module.parts(kept))

    patch.setattr(attention, "causal_attention", rough_attention)  # type: ignore[attr-defined]
    patch.setattr(latent.LatentAttention, "expanded", rough_expanded)  # type: ignore[attr-defined]
