"""Bytes that a sequence keeps, against what the modules allocate."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isoflop.architecture import Attention, Decoder, Layer
from isoflop.cost import cache
from isoflop.model import DecoderModel
from strategies import decoders

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp8": torch.float8_e4m3fn}


@settings(max_examples=100)
@given(decoders(), st.integers(1, 40), st.integers(1, 3))
def test_bytes_equal_what_the_modules_allocate(decoder: Decoder, context: int, batch: int) -> None:
    with torch.device("meta"):
        model = DecoderModel(decoder)
    for name, dtype in DTYPES.items():
        allocated = model.new_state(batch, context, dtype).nbytes
        assert batch * cache(decoder, context, name).bytes_at_context == allocated


@given(decoders(), st.integers(0, 100), st.sampled_from(sorted(DTYPES)))
def test_bytes_a_token_and_of_states_add_up_where_nothing_is_windowed(
    decoder: Decoder, context: int, dtype: str
) -> None:
    found = cache(decoder, context, dtype)
    whole = found.bytes_per_token * context + found.state_bytes_per_sequence
    attentions = [layer.mixer for layer in decoder.layers if isinstance(layer.mixer, Attention)]
    reach = [mixer.window or mixer.chunk or context for mixer in attentions]
    assert found.bytes_at_context == whole if min(reach, default=context) >= context else found.bytes_at_context < whole


def test_a_window_keeps_its_last_tokens() -> None:
    wide, narrow = (Attention(n_heads=4, n_kv_heads=2, d_head=8, window=w) for w in (None, 100))
    decoder = Decoder(vocab_size=2, d_model=8, layers=(Layer(wide, None), Layer(narrow, None)), max_context=4096)
    assert cache(decoder, 4096, "bf16").bytes_at_context == (4096 + 100) * 2 * 2 * 8 * 2
    assert cache(decoder, 50, "bf16").bytes_at_context == 2 * 50 * 2 * 2 * 8 * 2
    assert cache(decoder, 4096, "bf16").bytes_per_token == 2 * 2 * 2 * 8 * 2


def test_mistakes_are_refused() -> None:
    from isoflop.architecture.find import find_decoder

    with pytest.raises(ValueError, match="cache dtype 'int3' is unknown; valid: fp32, bf16, fp16, fp8"):
        cache(find_decoder("llama-2-7b"), 1, "int3")
    with pytest.raises(ValueError, match="context = -1 must not be negative"):
        cache(find_decoder("llama-2-7b"), -1)
