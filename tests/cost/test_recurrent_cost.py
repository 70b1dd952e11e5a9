"""Costs of Mamba-1 and Mamba-2 against the modules and against counted operations."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from isoflop.architecture import Decoder, Layer, Mamba1, Mamba2
from isoflop.cost.part import Convention, Part
from isoflop.cost.recurrent import (
    mamba1_cache,
    mamba1_mixing,
    mamba1_parameters,
    mamba2_cache,
    mamba2_mixing,
    mamba2_parameters,
)
from isoflop.model import mamba1, mamba2
from references import mamba1_recurrence, mamba2_recurrence

COMMON = {
    "d_state": st.integers(1, 20),
    "d_conv": st.integers(1, 5),
    "conv_bias": st.booleans(),
    "proj_bias": st.booleans(),
}


def mamba1s() -> st.SearchStrategy[Mamba1]:
    sizes = {"d_inner": st.integers(1, 40), "dt_rank": st.integers(1, 9), "inner_norms": st.booleans()}
    return st.builds(Mamba1, **COMMON, **sizes)


@st.composite
def mamba2s(draw: st.DrawFn) -> Mamba2:
    n_groups = draw(st.integers(1, 3))
    sizes = {"n_heads": n_groups * draw(st.integers(1, 3)), "d_head": draw(st.integers(1, 9))}
    common = {name: draw(value) for name, value in COMMON.items()}
    return Mamba2(n_groups=n_groups, norm_groups=draw(st.sampled_from((1, n_groups))), **sizes, **common)


def on_meta(mixer: Mamba1 | Mamba2, d_model: int) -> mamba1.Mamba1 | mamba2.Mamba2:
    decoder = Decoder(vocab_size=2, d_model=d_model, layers=(Layer(mixer, None),), max_context=8)
    with torch.device("meta"):
        return mamba1.Mamba1(mixer, decoder) if isinstance(mixer, Mamba1) else mamba2.Mamba2(mixer, decoder)


def part(mixer: Mamba1 | Mamba2, d_model: int) -> Part:
    return mamba1_parameters(mixer, d_model) if isinstance(mixer, Mamba1) else mamba2_parameters(mixer, d_model)


@given(mamba1s() | mamba2s(), st.integers(1, 30))
def test_parameters_are_those_of_the_module(mixer: Mamba1 | Mamba2, d_model: int) -> None:
    module = on_meta(mixer, d_model)
    total = sum(p.numel() for p in module.parameters())
    matrices = sum(p.numel() for name, p in module.named_parameters() if name.endswith(".weight") and p.dim() == 2)
    assert part(mixer, d_model) == Part(total, total, matrices)


@given(mamba1s() | mamba2s(), st.sampled_from((torch.float32, torch.bfloat16)), st.integers(1, 1000))
def test_state_bytes_are_those_allocated(mixer: Mamba1 | Mamba2, dtype: torch.dtype, capacity: int) -> None:
    state = on_meta(mixer, 4).new_state(3, capacity, dtype, torch.device("meta"))
    allocated = sum(tensor.nbytes for tensor in vars(state).values())
    cache = mamba1_cache if isinstance(mixer, Mamba1) else mamba2_cache
    assert cache(mixer, 4, dtype.itemsize) == (0, allocated / 3)


def count(mixer: Mamba1 | Mamba2, tokens: int) -> int:
    """FLOPs that torch counts in the convolution and the recurrence of one sequence."""
    channels = mixer.d_inner if isinstance(mixer, Mamba1) else mixer.d_convolved

    def empty(*shape: int) -> Tensor:
        return torch.empty(1, *shape, device="meta")

    with FlopCounterMode(display=False) as counter:
        kernel = torch.empty(channels, 1, mixer.d_conv, device="meta")
        F.conv1d(F.pad(empty(channels, tokens), (mixer.d_conv - 1, 0)), kernel, groups=channels)
        if isinstance(mixer, Mamba1):
            x, b = empty(tokens, mixer.d_inner), empty(tokens, mixer.d_state)
            state = empty(mixer.d_inner, mixer.d_state)
            mamba1_recurrence(x, x, state[0], b, b, state)
        else:
            x, b = empty(tokens, mixer.n_heads, mixer.d_head), empty(tokens, mixer.n_groups, mixer.d_state)
            state = empty(mixer.n_groups, mixer.d_state, mixer.n_heads // mixer.n_groups, mixer.d_head)
            mamba2_recurrence(x, x[..., 0], x[0, 0, :, 0], b, b, state)
    return counter.get_total_flops()


@settings(max_examples=30)
@given(mamba1s() | mamba2s(), st.integers(1, 6))
def test_flops_are_those_counted(mixer: Mamba1 | Mamba2, tokens: int) -> None:
    mixing = mamba1_mixing if isinstance(mixer, Mamba1) else mamba2_mixing
    assert mixing(mixer, 4, tokens, "exact") == (count(mixer, tokens), count(mixer, 1))


@pytest.mark.parametrize("convention", ["6nd", "palm", "hardware"])
def test_conventions(convention: Convention) -> None:
    for mixer, mixing in (
        (Mamba1(d_inner=8, d_state=4, dt_rank=2), mamba1_mixing),
        (Mamba2(n_heads=2, d_head=4, d_state=4), mamba2_mixing),
    ):
        wanted = (0, 0) if convention == "6nd" else mixing(mixer, 4, 10, "exact")
        assert mixing(mixer, 4, 10, convention) == wanted
