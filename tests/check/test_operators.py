"""What the check counts with, held against brute force and against torch's own counter."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from isoflop.check.definitions import by_definition
from isoflop.check.operators import visible_pairs
from isoflop.check.products import count_sequence, on_meta
from references import causal_by_mask, causal_by_rows, experts_by_loop
from strategies import attending, decoders

spans = st.none() | st.integers(1, 9)


@given(start=st.integers(0, 9), n=st.integers(1, 9), beyond=st.integers(0, 3), span=spans, kind=st.booleans())
def test_visible_pairs(start: int, n: int, beyond: int, span: int | None, kind: bool) -> None:
    """Every pair asked whether it is visible."""
    window, chunk = (span, None) if kind else (None, span)
    n_keys = start + n + beyond
    seen = sum(
        s <= p and (window is None or p - s < window) and (chunk is None or p // chunk == s // chunk)
        for p in range(start, start + n)
        for s in range(n_keys)
    )
    assert visible_pairs(n, n_keys, start, window, chunk) == seen


@pytest.mark.parametrize("whole", [False, True])
@settings(max_examples=15)
@given(decoder=decoders(attending()), context=st.integers(1, 7))
def test_the_ledger_is_torchs_counter(whole: bool, decoder, context: int) -> None:
    """Kernels counted from their arguments are what plain products in their place make, forward and backward."""
    ours = count_sequence(decoder, context, whole)
    with pytest.MonkeyPatch.context() as patch:
        attention = causal_by_mask if whole else causal_by_rows
        patch.setattr("isoflop.model.attention.causal_attention", attention)
        patch.setattr("isoflop.model.latent.causal_attention", attention)
        patch.setattr("isoflop.model.experts.grouped_matmul", experts_by_loop)
        model = on_meta(decoder)
        with torch.device("meta"), by_definition(), FlopCounterMode(display=False) as counter:
            logits = model(torch.empty(1, context, dtype=torch.long))
            forward = counter.get_total_flops()
            logits.sum().backward()
    assert sum(ours.forward.values()) == forward
    assert sum(ours.backward.values()) == counter.get_total_flops() - forward
