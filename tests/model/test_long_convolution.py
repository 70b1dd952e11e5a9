"""Long convolutions, S4D and Hyena against their definitions; decoding against the whole forward.

B batch, C channel, T position, M d_model, I d_inner, P conjugate pair, N order."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import cont2discrete
from torch import Tensor, nn

from isoflop.architecture import S4D, Decoder, Hyena, Layer, NoPosition
from isoflop.model import DecoderModel
from isoflop.model.long_convolution import DIRECT_UP_TO, causal_convolution, fast_size
from isoflop.model.place import Place
from isoflop.train.init import initialize
from isoflop.train.recipe import Recipe

MAX_CONTEXT, D_MODEL = 48, 6
SMALL = (S4D(d_inner=10, d_state=6), Hyena(d_filter=12))
NAMES = ("s4d", "hyena")
s4ds = st.builds(S4D, d_inner=st.integers(1, 9), d_state=st.integers(1, 4).map(lambda pairs: 2 * pairs))
hyenas = st.builds(
    Hyena,
    order=st.integers(1, 3),
    d_conv=st.integers(1, 4),
    d_filter=st.integers(1, 12),
    filter_layers=st.integers(1, 4),
    d_position=st.sampled_from((3, 5, 9)),
)


def model_of(mixer: S4D | Hyena, seed: int = 0, vocab_size: int = 3, d_model: int = D_MODEL) -> DecoderModel:
    layers = (Layer(mixer, None),)
    decoder = Decoder(vocab_size, d_model, layers, MAX_CONTEXT, position=NoPosition())
    model = DecoderModel(decoder)
    initialize(model, seed, Recipe(lr=1.0, batch=1))
    return model


def module_of(mixer: S4D | Hyena, seed: int = 0) -> nn.Module:
    return model_of(mixer, seed).layers[0].mixer


def random(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def assert_close(found: Tensor, wanted: Tensor, bar: float) -> None:
    """Equal up to `bar` of the largest entry."""
    assert found.shape == wanted.shape
    assert (found - wanted).abs().max() <= bar * wanted.abs().max().clamp_min(1e-3)


def toeplitz(x_BCT: Tensor, taps_CT: Tensor) -> Tensor:
    """The convolution by its definition."""
    n = x_BCT.shape[-1]
    lags_TS = torch.arange(n)[:, None] - torch.arange(n)
    matrix_CTS = taps_CT[:, lags_TS.clamp_min(0)] * (lags_TS >= 0)
    return torch.einsum("cts,bcs->bct", matrix_CTS, x_BCT)


# ---- the convolution


@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 70), st.data())
def test_convolution_is_the_toeplitz_product(batch: int, channels: int, length: int, data: st.DataObject) -> None:
    n_last = data.draw(st.none() | st.integers(1, length))
    x, taps = random(batch, channels, length).requires_grad_(), random(channels, length, seed=2).requires_grad_()
    found, wanted = causal_convolution(x, taps, n_last), toeplitz(x, taps)
    wanted = wanted if n_last is None else wanted[..., -n_last:]
    assert_close(found, wanted, 1e-5)
    seed = random(*found.shape, seed=3)
    gradients = (torch.autograd.grad(y, (x, taps), seed) for y in (found, wanted))
    for ours, theirs in zip(*gradients, strict=True):
        assert_close(ours, theirs, 1e-5)


def test_a_layout_in_which_positions_are_far_apart() -> None:
    x_BTC, taps = random(2, 33, 5), random(5, 33, seed=2)
    y_BCT = causal_convolution(x_BTC.transpose(1, 2), taps)
    assert_close(y_BCT, toeplitz(x_BTC.transpose(1, 2), taps), 1e-5)


@given(st.integers(1, 10**6))
def test_transforms_have_a_fast_even_length(least: int) -> None:
    size = rest = fast_size(least)
    assert size % 2 == 0 and max(least, 2) <= size <= max(2, 1.25 * least + 1)
    for factor in (2, 3, 5):
        while rest % factor == 0:
            rest //= factor
    assert rest == 1


@pytest.mark.parametrize("n_last", [None, 1, DIRECT_UP_TO, DIRECT_UP_TO + 1])
def test_sums_of_bf16_are_made_in_float32(n_last: int | None) -> None:
    x, taps = random(2, 3, 40).bfloat16().requires_grad_(), random(3, 40, seed=2).requires_grad_()
    found, wanted = causal_convolution(x, taps, n_last), toeplitz(x.float(), taps)
    assert found.dtype == torch.bfloat16
    wanted = wanted if n_last is None else wanted[..., -n_last:]
    assert_close(found.float(), wanted, 2**-8)
    grad_x, grad_taps = torch.autograd.grad(found.float().sum(), (x, taps))
    assert grad_x.dtype == torch.bfloat16 and grad_taps.dtype == torch.float32


# ---- S4D


@settings(max_examples=20)
@given(s4ds, st.integers(1, 40), st.integers(0, 10**6))
def test_kernel_is_the_impulse_response_of_the_held_system(mixer: S4D, length: int, seed: int) -> None:
    """scipy's zero-order hold of the real system [[re, -im], [im, re]] behind every conjugate pair."""
    m = module_of(mixer, seed)
    kernel_IT = m.kernel(length).double()
    for channel in range(mixer.d_inner):
        re, im, c = -m.log_A_real[channel].exp(), m.A_imag[channel], m.C[channel]
        re, im, c = (v.detach().double().numpy() for v in (re, im, c))
        a = np.block([[np.diag(re), np.diag(-im)], [np.diag(im), np.diag(re)]])
        b = np.concatenate((np.ones_like(re), np.zeros_like(re)))[:, None]
        read = np.concatenate((2 * c[:, 0], -2 * c[:, 1]))[None]
        dt = math.exp(m.log_dt[channel].item())
        a, b, read, d, _ = cont2discrete((a, b, read, np.array([[m.D[channel].item()]])), dt, method="zoh")
        taps = [
            float((read @ np.linalg.matrix_power(a, t) @ b)[0, 0]) + (t == 0) * float(d[0, 0]) for t in range(length)
        ]
        assert_close(kernel_IT[channel], torch.tensor(taps).double(), 1e-4)


def test_s4d_starts_where_the_paper_says() -> None:
    m = module_of(S4D(d_inner=500, d_state=8))
    torch.testing.assert_close(-m.log_A_real.exp(), torch.full((500, 4), -0.5))
    torch.testing.assert_close(m.A_imag[17], math.pi * torch.arange(4.0))
    dt = m.log_dt.exp()
    assert (dt > 0.999e-3).all() and (dt < 0.1001).all() and dt.log().std() > 1
    assert m.C.square().sum(-1).mean().item() == pytest.approx(1, rel=0.1)
    assert m.D.std().item() == pytest.approx(1, rel=0.1)


# ---- Hyena


@settings(max_examples=20)
@given(hyenas, st.integers(0, 10**6), st.data())
def test_a_tap_follows_from_its_position_alone(mixer: Hyena, seed: int, data: st.DataObject) -> None:
    filters = module_of(mixer, seed).filters
    n, channel = data.draw(st.integers(0, mixer.order - 1)), data.draw(st.integers(0, D_MODEL - 1))
    t = data.draw(st.integers(0, MAX_CONTEXT - 1))
    waves = [2 * math.pi * k * t / MAX_CONTEXT for k in range(mixer.d_position // 2)]
    x = torch.tensor([t / MAX_CONTEXT, *(math.cos(w) for w in waves), *(-math.sin(w) for w in waves)])
    for layer in filters.hidden:
        x = torch.sin(layer.frequency * (layer.matrix @ x + layer.bias))
    share = channel / (D_MODEL - 1)
    fall = math.log(0.01) * ((1 - share) / 1.5 + share / 0.3)
    wanted = filters.last[n, channel] @ x * math.exp(fall * t / MAX_CONTEXT) + (t == 0) * filters.skip[n, channel]
    for length in {t + 1, MAX_CONTEXT}:
        assert (filters(length)[n, channel, t] - wanted).abs().item() < 1e-4


def test_hyena_starts_with_filters_of_an_energy_about_one() -> None:
    filters = [module_of(Hyena(d_position=17), seed).filters for seed in range(20)]
    energy = torch.stack(
        [(f(MAX_CONTEXT) - F.pad(f.skip[..., None], (0, MAX_CONTEXT - 1))).square().sum(-1) for f in filters]
    )
    assert 0.3 < energy.mean() < 1.3
    assert torch.stack([f.skip for f in filters]).std().item() == pytest.approx(1, rel=0.15)
    assert [layer.frequency.unique().tolist() for layer in filters[0].hidden] == [[14], [1], [1]]
    bounds = [17**-0.5, (6 / 64) ** 0.5, (6 / 64) ** 0.5]
    found = [layer.matrix.abs().max().item() for layer in filters[0].hidden]
    assert found == pytest.approx(bounds, rel=0.01) and all(f <= b for f, b in zip(found, bounds, strict=True))


def test_hyena_refuses_positions_beyond_its_filters() -> None:
    m = module_of(Hyena())
    with pytest.raises(ValueError, match="49 tokens exceed max_context = 48, the length of the filters"):
        m(random(1, 49, D_MODEL), Place(0))
    with torch.no_grad():
        state = m.new_state(1, 60, torch.float32, torch.device("cpu"))
        m(random(1, 48, D_MODEL), Place(0), state)
        with pytest.raises(ValueError, match="49 tokens exceed max_context = 48"):
            m(random(1, 1, D_MODEL), Place(48), state)


# ---- both


@settings(max_examples=30)
@given(s4ds | hyenas, st.lists(st.integers(1, 12), min_size=1, max_size=6).filter(lambda n: sum(n) <= MAX_CONTEXT))
def test_pieces_give_what_the_whole_gives(mixer: S4D | Hyena, pieces: list[int]) -> None:
    m, x_BTM = module_of(mixer, seed=len(pieces)), random(2, sum(pieces), D_MODEL)
    with torch.no_grad():
        whole_BTM, seen, outs = m(x_BTM, Place(0)), 0, []
        state = m.new_state(2, sum(pieces), torch.float32, torch.device("cpu"))
        for piece_BTM in x_BTM.split(pieces, dim=1):
            outs.append(m(piece_BTM, Place(seen), state))
            seen += piece_BTM.shape[1]
    assert_close(torch.cat(outs, dim=1), whole_BTM, 1e-4)


@pytest.mark.parametrize("mixer", SMALL, ids=NAMES)
def test_bf16_follows_float32(mixer: S4D | Hyena) -> None:
    m, x_BTM = module_of(mixer), random(2, 40, D_MODEL)
    out_BTM = m(x_BTM.bfloat16(), Place(0))
    assert out_BTM.dtype == torch.bfloat16
    assert_close(out_BTM.float(), m(x_BTM, Place(0)), 0.05)
    out_BTM.float().square().sum().backward()
    assert all(p.grad.dtype == torch.float32 and torch.isfinite(p.grad).all() for p in m.parameters())
    assert all(p.grad.any() for p in m.parameters())
    with torch.no_grad():
        state = m.new_state(2, 40, torch.bfloat16, torch.device("cpu"))
        steps = [m(x_B1M.bfloat16(), Place(t), state) for t, x_B1M in enumerate(x_BTM.split(1, dim=1))]
    assert_close(torch.cat(steps, dim=1).float(), out_BTM.detach().float(), 0.05)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated")  # what tracing a custom gradient makes of it
@pytest.mark.parametrize("mixer", SMALL, ids=NAMES)
def test_compiled_is_eager(mixer: S4D | Hyena) -> None:
    m, x_BTM = module_of(mixer), random(2, 40, D_MODEL)
    outs = m(x_BTM, Place(0)), torch.compile(m, backend="aot_eager", fullgraph=True)(x_BTM, Place(0))
    assert_close(outs[1], outs[0], 1e-5)
    gradients = [torch.autograd.grad(out.square().sum(), list(m.parameters())) for out in outs]
    for found, wanted in zip(*gradients, strict=True):
        assert_close(found, wanted, 1e-4)


@pytest.mark.parametrize("mixer", [S4D(d_inner=32, d_state=32), Hyena(d_filter=32, d_position=17)], ids=NAMES)
def test_it_learns_to_repeat_what_it_saw_before(mixer: S4D | Hyena) -> None:
    """Token t is token t - 4 again: ln 8 = 2.08 nats without a memory, with one 3/23 of that, for the first tokens."""
    model = model_of(mixer, vocab_size=8, d_model=16)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    generator, losses = torch.Generator().manual_seed(5), []
    for _ in range(150):
        tokens_BT = torch.randint(8, (8, 4), generator=generator).repeat(1, 6)
        loss = model.loss(tokens_BT[:, :-1], tokens_BT[:, 1:]).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 2
    assert np.mean(losses[-10:]) < 0.8
