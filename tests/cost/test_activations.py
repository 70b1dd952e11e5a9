"""Saved activations: the closed form against what autograd saves, and against torch's own memory tracker."""

import msgspec
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker

from isoflop.architecture import Attention, Decoder, Layer, Mamba2, MixtureOfExperts, Mlp
from isoflop.architecture.find import find_decoder
from isoflop.check.products import kinds_of
from isoflop.check.saved import count_saved
from isoflop.cost.activations import Activations, saved_activations
from isoflop.model import DecoderModel
from isoflop.model.kernels.attention import available
from strategies import decoders, hyenas, mamba1s, mamba2s, s4ds

needs_the_kernel = pytest.mark.skipif(
    not available(), reason="no compiler here: the stated attention kernel cannot run"
)


@settings(max_examples=60)
@given(decoder=decoders(), batch=st.integers(1, 3), context=st.integers(2, 9))
def test_what_autograd_saves(decoder: Decoder, batch: int, context: int) -> None:
    counted = count_saved(decoder, batch, context)
    assert saved_activations(decoder, batch, context) == Activations(**counted)


@settings(max_examples=60)
@given(
    decoder=decoders(mamba1s() | mamba2s() | s4ds() | hyenas()),
    batch=st.integers(1, 3),
    context=st.integers(2, 300) | st.sampled_from((16, 17, 64, 65, 128, 129)),
)
def test_chunks_of_recurrences(decoder: Decoder, batch: int, context: int) -> None:
    """One chunk, several, and a last one that is not full."""
    long = msgspec.structs.replace(decoder, max_context=300)
    assert saved_activations(long, batch, context) == Activations(**count_saved(long, batch, context))


def tracked(decoder: Decoder, batch: int, context: int) -> int:
    """Bytes that live after the forward and loss because the forward made them, as torch's memory tracker sees the real
    CPU path run on fake tensors; without what the loss hands out and no backward needs."""
    with FakeTensorMode():
        model = DecoderModel(decoder)
        tokens = torch.zeros(batch, context, dtype=torch.long)
        tracker = MemTracker()
        tracker.track_external(model, tokens)
        with tracker:
            losses = model.loss(tokens, tokens)
            snapshot = tracker.get_tracker_snapshot("current")
    (by_kind,) = [kinds for device, kinds in snapshot.items() if device.type == "cpu"]
    activations = sum(n for kind, n in by_kind.items() if str(kind).endswith("ACT"))
    scalars = [losses.total, losses.nats]
    for stats in losses.router:
        scalars += [x for x in stats if x.dim() == 0]
    return activations - sum({x.untyped_storage()._cdata: x.nbytes for x in scalars}.values())


@needs_the_kernel
@pytest.mark.parametrize(
    "name",
    [
        "llama-3.2-1b",
        "gpt2-124m",
        "gemma-2-2b",
        "deepseek-v2-lite-16b",
        "olmoe-1b-7b",
        "gpt-oss-20b",
        "mamba-130m",
        "mamba2-130m",
        "jamba-v0.1",
        "nemotron-h-8b",
    ],
)
def test_torchs_memory_tracker(name: str) -> None:
    decoder, _ = kinds_of(find_decoder(name))
    assert tracked(decoder, 2, 70) == saved_activations(decoder, 2, 70).total


@needs_the_kernel
@settings(max_examples=15)
@given(decoder=decoders(), batch=st.integers(1, 2), context=st.integers(2, 9))
def test_torchs_memory_tracker_on_random_decoders(decoder: Decoder, batch: int, context: int) -> None:
    assert tracked(decoder, batch, context) == saved_activations(decoder, batch, context).total


def test_a_layer_by_hand() -> None:
    """Two tokens of d_model 4 through one layer: every tensor written out, in numbers a token."""
    layer = Layer(mixer=Attention(n_heads=2, n_kv_heads=1, d_head=2), feed_forward=Mlp(d_ff=3))
    decoder = Decoder(vocab_size=5, d_model=4, layers=(layer,), max_context=8)
    found = saved_activations(decoder, 1, 2)
    norm = 4 + 4 + 1  # the stream, the stream over its root mean square, that
    attention = 4 + 8 + (4 + 2) + 4 + 2  # input, projection, rotated queries and keys, output, denominators
    sines = 2  # a position: both signs
    mlp = 4 + 6 + 3 + 3  # input, gate and up, the gate's SiLU, their product
    assert found.norms == 4 * 2 * 2 * norm
    assert found.mixers == 4 * 2 * (attention + sines)
    assert found.feed_forwards == 4 * 2 * mlp
    assert found.head == 4 * (2 * (norm + 4 + 5) + 1)  # and the normed stream, the probabilities; the loss's divisor


def test_a_scan_by_hand() -> None:
    """Two tokens, one chunk, one group of two heads of three values: what Mamba-2 keeps, in numbers a token."""
    mixer = Mamba2(n_heads=2, d_head=3, d_state=5)
    decoder = Decoder(vocab_size=5, d_model=4, layers=(Layer(mixer=mixer, feed_forward=None),), max_context=8)
    inside = 4 + (6 + 16 + 2) + 2 * 16 + 2 * 2  # input, projection, convolved, its SiLU, dt and its softplus
    scan = 2 + 6 + 2 * (2 * 2 + 1) + 2 * (1 + 2) + 6  # dt, written, logs and decays, scores and weights, from_before
    after = 3 * 6 + 1 + 2 * 6  # y, the gate's SiLU, their product; one root mean square; normed, weighted
    once = 2 * 2 + 5 * 6  # decays, the state that the chunk finds
    assert saved_activations(decoder, 1, 2).mixers == 4 * (2 * (inside + scan + after) + once)


def test_what_is_asked_wrongly() -> None:
    layer = Layer(mixer=None, feed_forward=MixtureOfExperts(n_experts=2, top_k=1, d_ff=3))
    decoder = Decoder(vocab_size=5, d_model=4, layers=(layer,), max_context=8)
    with pytest.raises(ValueError, match="batch = 0 and context = 2 must be at least 1"):
        saved_activations(decoder, 0, 2)
    with pytest.raises(ValueError, match="kernels 'cuda' are unknown; valid: eager-cpu-fp32"):
        saved_activations(decoder, 1, 2, "cuda")  # type: ignore[arg-type]
