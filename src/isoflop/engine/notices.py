"""What an engine says at its start: features that do nothing, or something else than usual, for an architecture."""

from isoflop.architecture import S4D, Attention, Decoder, Dynamic, Hyena, LatentAttention, LongRope, Mamba1, Mamba2
from isoflop.cost.cache import QUANTIZED
from isoflop.engine.plan import Plan
from isoflop.model import DecoderModel
from isoflop.model.latent import LatentAttention as LatentModule
from isoflop.model.quantized import QuantizedLinear

RECURRENT = (Mamba1, Mamba2, S4D)


def notices(decoder: Decoder, plan: Plan, reuse: bool, drafts: bool) -> list[str]:
    """One line each."""
    found = [_lengths(decoder), _pages(decoder), _prefixes(decoder, plan, reuse), _types(decoder, plan.dtype)]
    found += [_hyena(decoder), _drafts(decoder, drafts)]
    return [line for line in found if line is not None]


def copies(model: DecoderModel) -> list[str]:
    """Of the dense copies that latent attention keeps of quantized matrices: bytes beside codes and caches."""
    ups = [m.kv_up for m in model.modules() if isinstance(m, LatentModule) and isinstance(m.kv_up, QuantizedLinear)]
    n_bytes = sum(up.d_out * up.d_in for up in ups) * model.dtype.itemsize
    said = "decoding keeps dense copies of what latent attention makes keys and values with"
    return [f"{said}: {n_bytes} bytes beside codes and caches"] if ups else []


def _has(decoder: Decoder, *kinds: type) -> bool:
    return any(isinstance(layer.mixer, kinds) for layer in decoder.layers)


def _lengths(decoder: Decoder) -> str | None:
    ropes = [decoder.rope_of(layer.mixer) for layer in decoder.layers]
    if not any(rope is not None and isinstance(rope.scaling, Dynamic | LongRope) for rope in ropes):
        return None
    return (
        "rope scaling follows the length of a sequence: a request's positions turn as for prompt + max_tokens tokens "
        "from its start on, and prefixes are shared between requests that turn alike"
    )


def _pages(decoder: Decoder) -> str | None:
    if _has(decoder, Attention, LatentAttention, Hyena):
        return None
    return "pages are inert: no layer keeps anything of each token, and a request's states are of one size"


def _prefixes(decoder: Decoder, plan: Plan, reuse: bool) -> str | None:
    if not reuse or not plan.slot_bytes:
        return None
    if plan.n_slots > 1:
        return (
            f"prefixes are found again at the ends of blocks whose states were kept; {plan.n_slots} slots hold states"
        )
    return "prefix reuse is inert: there is memory for the states of one sequence and none to keep copies"


def _types(decoder: Decoder, dtype: str) -> str | None:
    if dtype not in QUANTIZED or _has(decoder, Attention, LatentAttention):
        return None
    return f"cache dtype {dtype} is inert: only keys, values and latents are quantized, and this model keeps none"


def _hyena(decoder: Decoder) -> str | None:
    if not _has(decoder, Hyena):
        return None
    return "Hyena's convolutions read all inputs of a sequence for every token, one sequence after the other"


def _drafts(decoder: Decoder, drafts: bool) -> str | None:
    if not drafts or not _has(decoder, *RECURRENT, Hyena):
        return None
    return "drafted tokens run one by one through recurrent layers, whose states after each are kept until it is judged"
