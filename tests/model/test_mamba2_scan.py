"""Mamba-2 by its recurrence, many tokens in a call, beside products of chunks in torch; however the tokens are cut.

B batch, T token, Z what the first matrix gives.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isoflop.architecture import Decoder, Layer, Mamba2
from isoflop.model import mamba2
from isoflop.model.kernels import mamba2 as kernel

pytestmark = pytest.mark.skipif(not kernel.available(), reason="no C++ compiler")
SHAPES = st.builds(
    lambda groups, of_group, **rest: Mamba2(n_heads=groups * of_group, n_groups=groups, norm_groups=groups, **rest),
    groups=st.integers(1, 3),
    of_group=st.integers(1, 4),
    d_head=st.integers(1, 40),
    d_state=st.integers(1, 20),
    d_conv=st.integers(1, 5),
    conv_bias=st.booleans(),
    dt_max=st.sampled_from((None, 0.05)),
)


def module_of(m: Mamba2, seed: int) -> mamba2.Mamba2:
    decoder = Decoder(vocab_size=2, d_model=4, layers=(Layer(m, None),), max_context=8)
    module = mamba2.Mamba2(m, decoder).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.normal_(0, 0.5, generator=generator)
    return module


def state_of(module: mamba2.Mamba2, batch: int) -> mamba2.Mamba2State:
    """Of some past."""
    state = module.new_state(batch, 0, torch.float32, torch.device("cpu"))
    for tensor in (state.window, state.written):
        tensor.normal_(generator=torch.Generator().manual_seed(1))
    return state


@settings(max_examples=60, deadline=None)
@given(SHAPES, st.integers(1, 2), st.integers(1, 150), st.integers(0, 150), st.integers(0, 2**20))
@torch.no_grad()
def test_scan_is_chunks_however_it_is_cut(m: Mamba2, batch: int, n_tokens: int, cut: int, seed: int) -> None:
    module = module_of(m, seed)
    width = m.d_inner + m.d_convolved + m.n_heads
    x_BTZ = torch.randn(batch, n_tokens, width, generator=torch.Generator().manual_seed(seed))
    whole, pieces, chunks = (state_of(module, batch) for _ in range(3))
    y_BTI = kernel.scan(m, x_BTZ, module.between, whole.window, whole.written)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3 - before if before in (1, 2) else 2)
        parts = [
            kernel.scan(m, x.contiguous(), module.between, pieces.window, pieces.written)
            for x in (x_BTZ[:, :cut], x_BTZ[:, cut : cut + 1], x_BTZ[:, cut + 1 :])
            if x.shape[1]
        ]
    finally:
        torch.set_num_threads(before)
    assert torch.equal(torch.cat(parts, dim=1), y_BTI)
    assert torch.equal(pieces.window, whole.window) and torch.equal(pieces.written, whole.written)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernel, "scans", lambda *_: False)
        wanted_BTI = module._mix(x_BTZ, chunks)
    torch.testing.assert_close(y_BTI, wanted_BTI, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(whole.written, chunks.written, rtol=1e-3, atol=1e-4)
    assert torch.equal(whole.window, chunks.window)
