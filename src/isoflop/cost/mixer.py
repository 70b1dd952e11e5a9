"""One mixer's parameters, mixing and cache, whichever it is."""

from isoflop.architecture import S4D, Attention, Decoder, Hyena, LatentAttention, Mamba1, Mamba2, Mixer
from isoflop.cost.attention import (
    attention_cache,
    attention_mixing,
    attention_parameters,
    latent_attention_cache,
    latent_attention_mixing,
    latent_attention_parameters,
    tokens_kept,
)
from isoflop.cost.convolution import (
    hyena_cache,
    hyena_mixing,
    hyena_parameters,
    s4d_cache,
    s4d_mixing,
    s4d_parameters,
)
from isoflop.cost.part import Convention, Mixing, Part
from isoflop.cost.recurrent import (
    mamba1_cache,
    mamba1_mixing,
    mamba1_parameters,
    mamba2_cache,
    mamba2_mixing,
    mamba2_parameters,
)


def mixer_parameters(mixer: Mixer, decoder: Decoder) -> Part:
    """Parameters of one mixer in a decoder."""
    match mixer:
        case Attention():
            return attention_parameters(mixer, decoder.d_model, decoder.norm)
        case LatentAttention():
            return latent_attention_parameters(mixer, decoder.d_model)
        case Mamba1():
            return mamba1_parameters(mixer, decoder.d_model)
        case Mamba2():
            return mamba2_parameters(mixer, decoder.d_model)
        case S4D():
            return s4d_parameters(mixer, decoder.d_model)
        case Hyena():
            return hyena_parameters(mixer, decoder.d_model)


def mixer_mixing(mixer: Mixer, d_model: int, context: int, convention: Convention) -> Mixing:
    """Forward FLOPs of one mixer beyond its matrices, over `context` tokens and for the token after them. `6nd` counts
    none."""
    if convention == "6nd":
        return Mixing(0, 0)
    match mixer:
        case Attention():
            return attention_mixing(mixer, context, whole=convention == "palm")
        case LatentAttention():
            return latent_attention_mixing(mixer, context, whole=convention == "palm")
        case Mamba1():
            return mamba1_mixing(mixer, d_model, context, convention)
        case Mamba2():
            return mamba2_mixing(mixer, d_model, context, convention)
        case S4D():
            return s4d_mixing(mixer, d_model, context, convention)
        case Hyena():
            return hyena_mixing(mixer, d_model, context, convention)


def mixer_cache(mixer: Mixer, d_model: int, itemsize: int) -> tuple[int, int]:
    """Bytes that one mixer keeps for each token, and for the sequence whatever its length."""
    match mixer:
        case Attention():
            return attention_cache(mixer, itemsize)
        case LatentAttention():
            return latent_attention_cache(mixer, itemsize)
        case Mamba1():
            return mamba1_cache(mixer, d_model, itemsize)
        case Mamba2():
            return mamba2_cache(mixer, d_model, itemsize)
        case S4D():
            return s4d_cache(mixer, d_model, itemsize)
        case Hyena():
            return hyena_cache(mixer, d_model, itemsize)


def mixer_tokens_kept(mixer: Mixer, context: int) -> int:
    """For how many of `context` tokens the mixer keeps its bytes a token."""
    return tokens_kept(mixer, context) if isinstance(mixer, Attention) else context
