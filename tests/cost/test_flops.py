"""Closed forms against torch's own FLOP counter, on the meta device, with plain products in place of kernels, and
against sums over every pair of a query and a key."""

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from isoflop.architecture import Attention, Decoder, LatentAttention, Layer, Mlp
from isoflop.cost import CONVENTIONS, flops, flops_by_part
from isoflop.cost.flops import train_flops
from isoflop.model import DecoderModel
from references import causal_by_mask, causal_by_rows, experts_by_loop, no_attention
from strategies import attending, attentions, decoders

ATTENTION = {"6nd": no_attention, "palm": causal_by_mask, "exact": causal_by_rows}
# Hypothesis patches once for all examples, which is what is wanted here.
PATCHED = settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])


def counted(decoder: Decoder, context: int, batch: int, backward: bool, exit_after: int | None = None) -> int:
    """FLOPs that the module makes, by torch's count."""
    with torch.device("meta"):
        model = DecoderModel(decoder)
        tokens = torch.empty(batch, context, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        if backward:
            losses = model.loss(tokens, tokens, exit_after)
            (losses.total if losses.exit_nats is None else losses.total + losses.exit_nats).backward()
        else:
            model(tokens)
    return counter.get_total_flops()


def counted_decode(decoder: Decoder, context: int) -> int:
    """FLOPs of the token that follows `context` others, whose state is kept."""
    with torch.device("meta"):
        model = DecoderModel(decoder)
        tokens = torch.empty(1, context + 1, dtype=torch.long)
        state = model.new_state(1, context + 1)
    model(tokens[:, :-1], state)
    with FlopCounterMode(display=False) as counter:
        model(tokens[:, -1:], state)
    return counter.get_total_flops()


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    def patch(convention: str) -> None:
        for module in ("attention", "latent"):
            monkeypatch.setattr(f"isoflop.model.{module}.causal_attention", ATTENTION[convention])
        monkeypatch.setattr("isoflop.model.experts.grouped_matmul", experts_by_loop)

    return patch


@pytest.mark.parametrize("convention", ["6nd", "palm", "exact"])
@PATCHED
@given(decoder=decoders(attending()), context=st.integers(1, 9), batch=st.integers(1, 3))
def test_forward_and_training(
    convention: str, plain: Callable[[str], None], decoder: Decoder, context: int, batch: int
) -> None:
    plain(convention)
    cost = flops(decoder, context, convention)
    forward, train = (counted(decoder, context, batch, backward) for backward in (False, True))
    assert cost.prefill_per_token == forward / (context * batch)
    assert cost.train_per_token == train / (context * batch)
    assert train_flops(decoder, context, context * batch, convention) == train


@PATCHED
@given(decoder=decoders(attending()).filter(lambda d: d.n_layers > 1), context=st.integers(1, 9), data=st.data())
def test_training_with_an_early_exit(
    plain: Callable[[str], None], decoder: Decoder, context: int, data: st.DataObject
) -> None:
    """Wherever it is, the head is read once more, forward and backward; generating costs what it did."""
    plain("exact")
    early, without = (flops(decoder, context, "exact", early_exit=exits) for exits in (True, False))
    after = data.draw(st.integers(1, decoder.n_layers - 1))
    train = counted(decoder, context, 2, True, after)
    assert early.train_per_token == train / (2 * context)
    assert train_flops(decoder, context, 2 * context, early_exit=True) == train
    assert early.train_per_token - without.train_per_token == 6 * decoder.vocab_size * decoder.d_model
    assert early.decode_per_token == without.decode_per_token
    assert early.prefill_per_token == without.prefill_per_token
    assert flops(decoder, context, "6nd", early_exit=True) == flops(decoder, context, "6nd")


@PATCHED
@given(decoder=decoders(attending()), context=st.integers(1, 8))
def test_decoding(plain: Callable[[str], None], decoder: Decoder, context: int) -> None:
    """With a cache: latents are absorbed, windows and chunks are what is left of them."""
    plain("exact")
    assert flops(decoder, context, "exact").decode_per_token == counted_decode(decoder, context)


@given(mixer=attentions(), context=st.integers(1, 60), cuts=st.sets(st.integers(1, 59)))
def test_mixing_is_the_sum_over_all_pairs(mixer: Attention, context: int, cuts: set[int]) -> None:
    """Each query with each key of its document, of its chunk, within its window."""

    def sees(query: int, key: int) -> bool:
        near = mixer.window is None or query - key < mixer.window
        same_chunk = mixer.chunk is None or query // mixer.chunk == key // mixer.chunk
        return key <= query and near and same_chunk

    borders = [0, *sorted(cut for cut in cuts if cut < context), context]
    lengths = tuple(b - a for a, b in pairwise(borders))
    pairs = sum(sees(query, key) for n in lengths for query in range(n) for key in range(n))
    decoder = Decoder(vocab_size=2, d_model=4, layers=(Layer(mixer, None),) * 2, max_context=64)
    found = flops_by_part(decoder, context, "exact", packed=lengths)["mixing"]
    a_pair = 2 * 4 * mixer.n_heads * mixer.d_head
    assert found.forward_per_token == a_pair * pairs / context
    assert found.decode_per_token == a_pair * sum(sees(lengths[-1], key) for key in range(lengths[-1] + 1))
    assert flops(decoder, context, "palm", packed=lengths) == flops(decoder, context, "palm")


@given(decoder=decoders(), context=st.integers(1, 100))
def test_a_decoded_token_is_what_a_longer_prefill_adds(decoder: Decoder, context: int) -> None:
    """Two prefills, one a token longer, differ by exactly the decoded token, unless decoding takes another form."""
    longer, shorter = (flops(decoder, t, "exact").prefill_per_token * t for t in (context + 1, context))
    if not any(type(layer.mixer).__name__ in ("LatentAttention", "Hyena") for layer in decoder.layers):
        assert flops(decoder, context, "exact").decode_per_token == pytest.approx(longer - shorter, rel=1e-9)


@given(decoder=decoders(), context=st.integers(1, 50), recompute=st.booleans())
def test_parts_add_up(decoder: Decoder, context: int, recompute: bool) -> None:
    for convention in CONVENTIONS:
        again = recompute and convention == "hardware"
        whole, parts = (f(decoder, context, convention, again) for f in (flops, flops_by_part))
        forward, backward, decode = (
            sum(getattr(part, f"{what}_per_token") for part in parts.values())
            for what in ("forward", "backward", "decode")
        )
        assert forward == pytest.approx(whole.prefill_per_token)
        assert forward + backward == pytest.approx(whole.train_per_token)
        assert decode == pytest.approx(whole.decode_per_token)
        assert parts["mixing"].forward_per_token == 0 or convention != "6nd"


def test_recomputing_adds_the_layers_forward() -> None:
    layer = Layer(mixer=Attention(n_heads=2, n_kv_heads=1, d_head=4), feed_forward=Mlp(d_ff=8))
    decoder = Decoder(vocab_size=11, d_model=8, layers=(layer, layer), max_context=16)
    exact, again = flops(decoder, 16, "exact"), flops(decoder, 16, "hardware", recompute=True)
    head = 2 * 11 * 8
    assert again.train_per_token - exact.train_per_token == exact.prefill_per_token - head
    assert again.prefill_per_token == exact.prefill_per_token
    assert flops(decoder, 16, "hardware") == exact


def test_mistakes_are_refused() -> None:
    layer = Layer(mixer=Attention(n_heads=2, n_kv_heads=1, d_head=4), feed_forward=None)
    decoder = Decoder(vocab_size=11, d_model=8, layers=(layer,), max_context=16)
    with pytest.raises(ValueError, match="recompute changes only the hardware convention, not exact"):
        flops(decoder, 16, "exact", recompute=True)
    with pytest.raises(ValueError, match="context = 0 must be at least 1"):
        flops(decoder, 0, "exact")
    for packed in ((), (16, 0), (7, 8)):
        with pytest.raises(ValueError, match=r"must be lengths of at least 1 that add up to context = 16, not \d+"):
            flops(decoder, 16, "exact", packed=packed)


def test_latent_attention_by_hand() -> None:
    """DeepSeek-V2, arXiv 2405.04434: expanded over a sequence, absorbed for the token after it."""
    mixer = LatentAttention(n_heads=3, kv_rank=16, d_nope=8, d_rope=4, d_value=6)
    decoder = Decoder(vocab_size=5, d_model=10, layers=(Layer(mixer, None),), max_context=32)
    parts = flops_by_part(decoder, 32, "exact")
    assert parts["mixing"].forward_per_token * 32 == 2 * 3 * (8 + 4 + 6) * (32 * 33 // 2)
    assert parts["mixing"].decode_per_token == 2 * 3 * (16 + 4 + 16) * 33
    projections = 10 * 3 * 12 + 10 * 20 + 16 * 3 * 14 + 3 * 6 * 10
    assert parts["mixer_matrices"].decode_per_token == parts["mixer_matrices"].forward_per_token == 2 * projections


def test_llama_2_7b_by_hand() -> None:
    """PaLM's appendix B: 6 N + 12 L H Q T, N without the input table and, here, without norms."""
    from isoflop.architecture.find import find_decoder

    cost = flops(find_decoder("llama-2-7b"), 4096, "palm")
    n = 6_607_343_616 - 65 * 4096
    assert cost.train_per_token == 6 * n + 12 * 32 * 32 * 128 * 4096
