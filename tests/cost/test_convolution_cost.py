"""S4D and Hyena: closed forms against torch's counts of obvious references, which compute what the modules compute.

B batch, T position, M d_model, I d_inner, P conjugate pair, S d_state = 2 P real numbers, N order, K d_conv."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from isoflop.architecture import S4D, Decoder, Hyena, Layer
from isoflop.cost.mixer import mixer_cache, mixer_mixing, mixer_parameters
from isoflop.model import DecoderModel
from isoflop.model import hyena as hyena_module
from isoflop.model import s4d as s4d_module
from isoflop.model.place import Place
from isoflop.train.init import initialize
from isoflop.train.recipe import Recipe

MAX_CONTEXT = 16
s4ds = st.builds(S4D, d_inner=st.integers(1, 9), d_state=st.integers(1, 4).map(lambda pairs: 2 * pairs))
hyenas = st.builds(
    Hyena,
    order=st.integers(1, 3),
    d_conv=st.integers(1, 4),
    d_filter=st.integers(1, 6),
    filter_layers=st.integers(1, 4),
    d_position=st.sampled_from((3, 5, 7)),
)


def decoder_of(mixer: S4D | Hyena, d_model: int) -> Decoder:
    return Decoder(vocab_size=3, d_model=d_model, layers=(Layer(mixer, None),), max_context=MAX_CONTEXT)


def module_of(mixer: S4D | Hyena, d_model: int, device: str = "cpu") -> s4d_module.S4D | hyena_module.Hyena:
    """The mixer inside a decoder, with its first values."""
    with torch.device(device):
        model = DecoderModel(decoder_of(mixer, d_model))
    if device == "cpu":
        initialize(model, seed=1, recipe=Recipe(lr=1.0, batch=1))
    return model.layers[0].mixer


def s4d_by_steps(m: s4d_module.S4D, x_BTM: Tensor) -> Tensor:
    """The recurrence over real numbers: an outer product writes a token into the state, a product reads it."""
    dt_I1 = m.log_dt.exp()[:, None]
    rate_re, rate_im = -m.log_A_real.exp(), m.A_imag
    size, angle = (dt_I1 * rate_re).exp(), dt_I1 * rate_im
    keep_re, keep_im = size * angle.cos(), size * angle.sin()
    norm = rate_re**2 + rate_im**2  # B = (lambda - 1) / A
    b_re = ((keep_re - 1) * rate_re + keep_im * rate_im) / norm
    b_im = (keep_im * rate_re - (keep_re - 1) * rate_im) / norm
    write_IS1 = torch.cat((b_re, b_im), dim=-1)[:, :, None]
    read_I1S = torch.cat((2 * m.C[..., 0], -2 * m.C[..., 1]), dim=-1)[:, None]
    u_BTI = m.inner(x_BTM)
    h_re = h_im = torch.zeros(len(x_BTM), *m.A_imag.shape, device=x_BTM.device)
    rows = []
    for u_BI in u_BTI.unbind(1):
        written_BIS = (write_IS1 @ u_BI[..., None, None])[..., 0]
        added_re, added_im = written_BIS.chunk(2, dim=-1)
        h_re, h_im = keep_re * h_re - keep_im * h_im + added_re, keep_re * h_im + keep_im * h_re + added_im
        rows.append((read_I1S @ torch.cat((h_re, h_im), dim=-1)[..., None])[..., 0, 0] + m.D * u_BI)
    return F.glu(m.out(F.gelu(torch.stack(rows, dim=1))), dim=-1)


def hyena_by_products(m: hyena_module.Hyena, x_BTM: Tensor, whole: bool, taps_NMT: Tensor | None = None) -> Tensor:
    """Every convolution as a product: rows of visible positions, or the whole Toeplitz matrix, zeros and all."""
    n_tokens = x_BTM.shape[1]
    taps_NMT = network(m.filters, n_tokens) if taps_NMT is None else taps_NMT
    windows_BTCK = F.pad(m.inner(x_BTM), (0, 0, m.mixer.d_conv - 1, 0)).unfold(1, m.mixer.d_conv, 1)
    short_BTC = (windows_BTCK[..., None, :] @ m.short.kernel[..., None])[..., 0, 0]
    z_BTM, *gates = short_BTC.chunk(m.mixer.order + 1, dim=-1)
    for gate_BTM, taps_MT in zip(gates, taps_NMT, strict=True):
        z_BTM = gate_BTM * (by_toeplitz if whole else by_rows)(z_BTM.transpose(1, 2), taps_MT).transpose(1, 2)
    return m.out(z_BTM)


def network(filters: hyena_module.HyenaFilters, length: int) -> Tensor:
    """The filters, their features told to want a gradient: by convention backward is twice forward everywhere."""
    time_T = torch.arange(length, device=filters.skip.device) / filters.max_context
    features = filters._features(time_T).requires_grad_()
    for layer in filters.hidden:
        features = layer(features)
    window_MT = (-filters._decay(time_T.device)[:, None] * time_T).exp()
    taps_NMT = (filters.last.flatten(0, 1) @ features.t()).unflatten(0, filters.skip.shape) * window_MT
    return torch.cat((taps_NMT[..., :1] + filters.skip[..., None], taps_NMT[..., 1:]), dim=-1)


def by_rows(x_BMT: Tensor, taps_MT: Tensor) -> Tensor:
    lengths = range(1, x_BMT.shape[-1] + 1)
    return torch.cat([(taps_MT[:, None, :t].flip(-1) @ x_BMT[..., :t, None])[..., 0] for t in lengths], dim=-1)


def by_toeplitz(x_BMT: Tensor, taps_MT: Tensor) -> Tensor:
    n = x_BMT.shape[-1]
    rows_M = [F.pad(taps_MT[:, : t + 1].flip(-1), (0, n - t - 1)) for t in range(n)]
    return (torch.stack(rows_M, dim=1) @ x_BMT[..., None])[..., 0]


def counted(make_out, backward: bool) -> int:
    """FLOPs by torch's count."""
    with FlopCounterMode(display=False) as counter:
        out = make_out()
        if backward:
            out.sum().backward()
    return counter.get_total_flops()


@given(mixer=s4ds | hyenas, d_model=st.integers(1, 7))
def test_parameters_and_state_are_the_modules(mixer: S4D | Hyena, d_model: int) -> None:
    m = module_of(mixer, d_model, "meta")
    part = mixer_parameters(mixer, decoder_of(mixer, d_model))
    assert part.total == part.active == sum(p.numel() for p in m.parameters())
    assert part.matmul == m.inner.weight.numel() + m.out.weight.numel()
    for dtype in (torch.float32, torch.bfloat16):
        a_token, fixed = mixer_cache(mixer, d_model, dtype.itemsize)
        state = m.new_state(3, 5, dtype, torch.device("meta"))
        assert 3 * (5 * a_token + fixed) == sum(v.nbytes for v in vars(state).values() if isinstance(v, Tensor))


@settings(max_examples=20)
@given(mixer=s4ds, d_model=st.integers(1, 7), context=st.integers(1, 9), batch=st.integers(1, 3))
def test_s4d(mixer: S4D, d_model: int, context: int, batch: int) -> None:
    m, x_BTM = module_of(mixer, d_model), torch.randn(batch, context, d_model)
    torch.testing.assert_close(m(x_BTM, Place(0)), s4d_by_steps(m, x_BTM), rtol=1e-4, atol=1e-5)

    m, x_BTM = m.to("meta"), torch.empty(batch, context, d_model, device="meta", requires_grad=True)
    matmul = 2 * mixer_parameters(mixer, decoder_of(mixer, d_model)).matmul
    for convention in ("palm", "exact", "hardware"):
        mixing = mixer_mixing(mixer, d_model, context, convention)
        forward = batch * (context * matmul + mixing.sequence)
        assert forward == counted(lambda: s4d_by_steps(m, x_BTM), backward=False)
        assert 3 * forward == counted(lambda: s4d_by_steps(m, x_BTM), backward=True)
        assert mixing.decode * batch == counted(lambda: s4d_by_steps(m, x_BTM[:, :1]), backward=False) - matmul * batch
    assert mixer_mixing(mixer, d_model, context, "6nd") == (0, 0)


@settings(max_examples=20)
@given(mixer=hyenas, d_model=st.integers(1, 7), context=st.integers(1, 9), whole=st.booleans())
def test_hyena(mixer: Hyena, d_model: int, context: int, whole: bool) -> None:
    m, x_1TM = module_of(mixer, d_model), torch.randn(1, context, d_model)
    out = hyena_by_products(m, x_1TM, whole)
    torch.testing.assert_close(m(x_1TM, Place(0)), out, rtol=1e-4, atol=1e-4 * float(out.detach().abs().max()))

    m, x_1TM = m.to("meta"), torch.empty(1, context, d_model, device="meta", requires_grad=True)
    linear = context * 2 * mixer_parameters(mixer, decoder_of(mixer, d_model)).matmul
    for convention in ("palm",) if whole else ("exact", "hardware"):
        forward = linear + mixer_mixing(mixer, d_model, context, convention).sequence
        assert forward == counted(lambda: hyena_by_products(m, x_1TM, whole), backward=False)
        assert 3 * forward == counted(lambda: hyena_by_products(m, x_1TM, whole), backward=True)
    assert mixer_mixing(mixer, d_model, context, "6nd") == (0, 0)


@given(mixer=hyenas, d_model=st.integers(1, 7), context=st.integers(1, 8))
def test_a_decoded_token_of_hyena_is_what_a_longer_sequence_adds(mixer: Hyena, d_model: int, context: int) -> None:
    """With the filters made before."""
    m = module_of(mixer, d_model, "meta")
    taps_NMT = torch.empty(mixer.order, d_model, context + 1, device="meta")
    lengths = (torch.empty(1, t, d_model, device="meta") for t in (context, context + 1))
    shorter, longer = (
        counted(lambda x=x: hyena_by_products(m, x, False, taps_NMT[..., : x.shape[1]]), backward=False)
        for x in lengths
    )
    linear = 2 * mixer_parameters(mixer, decoder_of(mixer, d_model)).matmul
    for convention in ("palm", "exact", "hardware"):
        assert mixer_mixing(mixer, d_model, context, convention).decode + linear == longer - shorter


@pytest.mark.parametrize(
    ("mixer", "matmul", "other", "cache"),
    [
        # 3 * 768 * 1536 matrices; 1536 * (2 + 2 * 64) rates and readings; 1536 * 64 states of 4 bytes
        (S4D(d_inner=1536), 3_538_944, 199_680, (0, 393_216)),
        # 4 * 768^2 matrices; 3 * 768 * 3 taps, 5 * 64 + 2 * 64^2 + 64 * 1536 weights, 6 * 64 biases and rates, 2 * 768
        (Hyena(), 2_359_296, 6_912 + 106_816 + 384 + 1_536, (3_072, 13_824)),
    ],
)
def test_by_hand(mixer: S4D | Hyena, matmul: int, other: int, cache: tuple[int, int]) -> None:
    part = mixer_parameters(mixer, decoder_of(mixer, 768))
    assert part == (matmul + other, matmul + other, matmul)
    assert mixer_cache(mixer, 768, itemsize=2) == cache
