"""Mamba-1 and Mamba-2 against transformers' modules, and their scans against the recurrence a token at a time.

B batch, T position, M d_model, I d_inner, H head, G group, R head of a group, P d_head, N d_state."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from isoflop.architecture import Decoder, Layer, Mamba1, Mamba2
from isoflop.model import DecoderModel, mamba1, mamba2
from isoflop.model.convolution import CausalConvolution
from isoflop.model.kernels import scan as kernel
from isoflop.model.place import Place
from isoflop.model.scan import chunk_of, selective_scan
from isoflop.model.ssd import CHUNK, state_space
from isoflop.train.init import initialize
from isoflop.train.recipe import Recipe
from references import mamba1_recurrence, mamba2_recurrence

transformers = pytest.importorskip("transformers")

PLACE = Place(0)
D_MODEL = 12


def module(mixer: Mamba1 | Mamba2, d_model: int = D_MODEL, seed: int = 0) -> mamba1.Mamba1 | mamba2.Mamba2:
    """The module, every parameter random, dt and decays where they start."""
    decoder = Decoder(vocab_size=2, d_model=d_model, layers=(Layer(mixer, None),), max_context=8)
    built = (mamba1.Mamba1 if isinstance(mixer, Mamba1) else mamba2.Mamba2)(mixer, decoder)
    generator = torch.Generator().manual_seed(seed)
    own = built.first_values(generator)
    for name, parameter in built.named_parameters():
        draw = torch.randn(parameter.shape, generator=generator) * parameter.shape[-1] ** -0.5
        parameter.data.copy_(own[name] + 0.1 * draw if name in own else draw + (1 if "norm" in name else 0))
    return built


def assert_close(found: Tensor, wanted: Tensor, bar: float = 1e-4, terms: float = 0.0) -> None:
    """Equal up to `bar` of the largest entry, or of the `terms` that may cancel in it."""
    assert found.shape == wanted.shape
    assert torch.isfinite(found).all()
    assert (found - wanted).abs().max() <= bar * max(wanted.abs().max().item(), terms)


# ---- transformers


def mamba_1(**change: object) -> tuple[Mamba1, nn.Module]:
    from transformers import MambaConfig
    from transformers.models.mamba.modeling_mamba import MambaMixer

    ours = Mamba1(d_inner=24, d_state=5, dt_rank=3, **change)
    config = MambaConfig(
        hidden_size=D_MODEL,
        state_size=5,
        time_step_rank=3,
        expand=2,
        num_hidden_layers=1,
        conv_kernel=ours.d_conv,
        use_conv_bias=ours.conv_bias,
        use_bias=ours.proj_bias,
    )
    return ours, MambaMixer(config, 0)


def jamba() -> tuple[Mamba1, nn.Module]:
    from transformers import JambaConfig
    from transformers.models.jamba.modeling_jamba import JambaMambaMixer

    ours = Mamba1(d_inner=24, d_state=5, dt_rank=3, inner_norms=True, norm_eps=1e-3)
    config = JambaConfig(
        hidden_size=D_MODEL, mamba_d_state=5, mamba_dt_rank=3, mamba_expand=2, num_hidden_layers=1, rms_norm_eps=1e-3
    )
    return ours, JambaMambaMixer(config, 0)


def mamba_2(**change: object) -> tuple[Mamba2, nn.Module]:
    from transformers import Mamba2Config
    from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

    ours = Mamba2(n_heads=6, d_head=4, d_state=5, **{"n_groups": 1, "norm_groups": 1} | change)
    config = Mamba2Config(
        hidden_size=D_MODEL,
        num_heads=6,
        head_dim=4,
        state_size=5,
        expand=2,
        num_hidden_layers=1,
        n_groups=ours.n_groups,
        conv_kernel=ours.d_conv,
        use_conv_bias=ours.conv_bias,
        use_bias=ours.proj_bias,
        layer_norm_epsilon=ours.norm_eps,
        time_step_limit=(ours.dt_min, float("inf") if ours.dt_max is None else ours.dt_max),
        chunk_size=32,
    )
    return ours, Mamba2Mixer(config, 0)


def nemotron_h() -> tuple[Mamba2, nn.Module]:
    from transformers import NemotronHConfig
    from transformers.models.nemotron_h.modeling_nemotron_h import NemotronHMamba2Mixer

    ours = Mamba2(n_heads=6, d_head=5, d_state=4, n_groups=3, norm_groups=3, dt_min=0.02)
    config = NemotronHConfig(
        hidden_size=D_MODEL,
        mamba_num_heads=6,
        mamba_head_dim=5,
        ssm_state_size=4,
        n_groups=3,
        conv_kernel=4,
        use_conv_bias=True,
        layers_block_type=["mamba"],
        chunk_size=32,
        time_step_min=0.02,
        layer_norm_epsilon=1e-5,
    )
    return ours, NemotronHMamba2Mixer(config, 0)


THEIR_NAMES = {
    "xz.": "in_proj.",
    "zxbcdt.": "in_proj.",
    "convolution.kernel": "conv1d.weight",
    "convolution.bias": "conv1d.bias",
    "dtbc.": "x_proj.",
    "dt.weight": "dt_proj.weight",
    "dt_norm.": "dt_layernorm.",
    "b_norm.": "b_layernorm.",
    "c_norm.": "c_layernorm.",
    "norm_weight": "norm.weight",
    "out.": "out_proj.",
}


def their_name(name: str, theirs: nn.Module) -> str:
    if name == "dt_bias" and hasattr(theirs, "dt_proj"):
        return "dt_proj.bias"
    for ours, their in THEIR_NAMES.items():
        if name.startswith(ours):
            return name.replace(ours, their, 1)
    return name


CASES = {
    "mamba-1": mamba_1,
    "mamba-1-biases": lambda: mamba_1(proj_bias=True, conv_bias=False, d_conv=3),
    "jamba": jamba,
    "mamba-2": mamba_2,
    "mamba-2-groups": lambda: mamba_2(n_groups=2, norm_groups=2, dt_min=0.01, dt_max=0.05, norm_eps=1e-2),
    "mamba-2-biases": lambda: mamba_2(proj_bias=True, conv_bias=False, d_conv=2),
    "nemotron-h": nemotron_h,
}


@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_are_those_of_transformers(case: str) -> None:
    mixer, theirs = CASES[case]()
    ours = module(mixer)
    their_parameters = dict(theirs.named_parameters())
    pairs = {name: their_parameters.pop(their_name(name, theirs)) for name, _ in ours.named_parameters()}
    assert not their_parameters, "every parameter of theirs has one of ours"
    for name, parameter in ours.named_parameters():
        pairs[name].data.copy_(parameter.data.view_as(pairs[name]))
    x_BTM, grad_BTM = torch.randn(2, 3, 77, D_MODEL, generator=torch.Generator().manual_seed(1))
    mine_BTM, their_BTM = x_BTM.clone().requires_grad_(), x_BTM.clone().requires_grad_()
    out_BTM, wanted_BTM = ours(mine_BTM, PLACE), theirs(their_BTM)
    assert_close(out_BTM, wanted_BTM)
    out_BTM.backward(grad_BTM)
    wanted_BTM.backward(grad_BTM)
    assert_close(mine_BTM.grad, their_BTM.grad)
    for name, parameter in ours.named_parameters():
        assert_close(parameter.grad, pairs[name].grad.view_as(parameter))


# ---- the recurrence


def compare(fast, slow, inputs: tuple[Tensor, ...], seed: int, bar: float = 1e-4) -> None:
    """Values, last states and gradients of two functions of the same inputs; the slow one in float64."""
    fast_in = [x.clone().requires_grad_() for x in inputs]
    slow_in = [x.double().requires_grad_() for x in inputs]
    fast_out, slow_out = fast(*fast_in), slow(*slow_in)
    generator = torch.Generator().manual_seed(seed)
    grads = [torch.randn(y.shape, generator=generator).to(y.dtype) for y in fast_out]
    for found, wanted in zip(fast_out, slow_out, strict=True):
        assert_close(found, wanted.to(found.dtype), bar, terms=0.1)
    fast_grads = torch.autograd.grad(fast_out, fast_in, grads)
    slow_grads = torch.autograd.grad(slow_out, slow_in, [grad.double() for grad in grads])
    for found, wanted in zip(fast_grads, slow_grads, strict=True):
        assert_close(found, wanted.to(found.dtype), bar, terms=0.1)


def around(length: int) -> st.SearchStrategy[int]:
    """Few tokens, or some more or fewer than a few chunks."""
    return st.integers(1, 5) | st.builds(lambda k, d: k * length + d, st.integers(1, 3), st.integers(-1, 1))


def mamba1_inputs(batch: int, tokens: int, d_inner: int, d_state: int, seed: int) -> tuple[Tensor, ...]:
    g = torch.Generator().manual_seed(seed)
    x, dt = torch.randn(batch, tokens, d_inner, generator=g), torch.rand(batch, tokens, d_inner, generator=g)
    b, c = torch.randn(2, batch, tokens, d_state, generator=g)
    state = torch.randn(batch, d_inner, d_state, generator=g)
    return x, dt, -3 * torch.rand(d_inner, d_state, generator=g), b, c, state


def mamba2_inputs(batch: int, tokens: int, groups: int, r: int, p: int, n: int, seed: int) -> tuple[Tensor, ...]:
    g = torch.Generator().manual_seed(seed)
    heads = groups * r
    x, dt = torch.randn(batch, tokens, heads, p, generator=g), torch.rand(batch, tokens, heads, generator=g)
    b, c = torch.randn(2, batch, tokens, groups, n, generator=g)
    state = torch.randn(batch, groups, n, r, p, generator=g)
    return x, dt, -3 * torch.rand(heads, generator=g), b, c, state


@settings(max_examples=40)
@given(st.integers(1, 3), around(16), st.integers(1, 37), st.integers(1, 17), st.integers(0, 9))
def test_selective_scan_is_the_recurrence(batch: int, tokens: int, d_inner: int, d_state: int, seed: int) -> None:
    inputs = mamba1_inputs(batch, tokens, d_inner, d_state, seed)
    compare(selective_scan, mamba1_recurrence, inputs, seed)
    # The kernel takes float32 only: this is plain torch.
    compare(selective_scan, mamba1_recurrence, tuple(x.double() for x in inputs), seed, bar=1e-10)


@settings(max_examples=40)
@given(
    st.integers(1, 2),
    around(CHUNK),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 9),
    st.integers(1, 9),
    st.integers(0, 9),
)
def test_state_space_duality_is_the_recurrence(
    batch: int, tokens: int, groups: int, r: int, p: int, n: int, seed: int
) -> None:
    inputs = mamba2_inputs(batch, tokens, groups, r, p, n, seed)
    compare(state_space, mamba2_recurrence, inputs, seed)
    # The kernel takes float32 only: this is plain torch (whose states are float32 all the same).
    compare(state_space, mamba2_recurrence, tuple(x.double() for x in inputs), seed)


def test_long_sequences_span_many_chunks() -> None:
    tokens = 1200
    assert chunk_of(tokens) > chunk_of(16)
    compare(selective_scan, mamba1_recurrence, mamba1_inputs(1, tokens, 3, 4, 0), 0)
    compare(state_space, mamba2_recurrence, mamba2_inputs(1, tokens, 1, 2, 3, 4, 0), 0)


@pytest.mark.skipif(not kernel.available(torch.empty(1)), reason="no C++ compiler")
def test_the_number_of_threads_changes_no_bit() -> None:
    inputs = [x.requires_grad_() for x in mamba1_inputs(3, 50, 70, 5, 0)]
    found, threads = [], torch.get_num_threads()
    for n in (1, 2, 3):
        torch.set_num_threads(n)
        outs = selective_scan(*inputs)
        found.append((*outs, *torch.autograd.grad([y.square().sum() for y in outs], inputs)))
    torch.set_num_threads(threads)
    assert all(torch.equal(x, y) for other in found[1:] for x, y in zip(found[0], other, strict=True))


def extreme_steps(dt: Tensor) -> Tensor:
    """Steps that forget everything among steps that keep nearly everything."""
    g = torch.Generator().manual_seed(7)
    return torch.where(torch.rand(dt.shape, generator=g) < 0.1, 1e4, 1e-4 * dt)


def test_large_steps_and_long_memories_stay_right() -> None:
    x, dt, a, b, c, state = mamba1_inputs(2, 150, 5, 4, 3)
    compare(selective_scan, mamba1_recurrence, (x, extreme_steps(dt), a, b, c, state), 3)
    x, dt, a, b, c, state = mamba2_inputs(2, 150, 2, 2, 3, 4, 3)
    compare(state_space, mamba2_recurrence, (x, extreme_steps(dt), a, b, c, state), 3)


# ---- the convolution


@settings(max_examples=60)
@given(
    st.integers(1, 3),
    st.integers(1, 9),
    st.integers(1, 300),
    st.integers(1, 5),
    st.booleans(),
    st.sampled_from((torch.float32, torch.float64)),
)
def test_convolution_is_that_of_torch(
    batch: int, tokens: int, channels: int, width: int, bias: bool, dtype: torch.dtype
) -> None:
    """float32 runs in the kernel where there is a compiler, float64 in torch; inputs are columns of a wider matrix."""
    ours = CausalConvolution(channels, width, bias).to(dtype)
    generator = torch.Generator().manual_seed(tokens)
    for parameter in ours.parameters():
        parameter.data.normal_(generator=generator)
    wide_BTC = torch.randn(batch, tokens, channels + 3, generator=generator).to(dtype).requires_grad_()
    x_BTC = wide_BTC[..., 2:-1]
    padded_BCS = nn.functional.pad(x_BTC.mT, (width - 1, 0))
    wanted_BTC = nn.functional.conv1d(padded_BCS, ours.kernel[:, None], ours.bias, groups=channels).mT
    grad_BTC = torch.randn(wanted_BTC.shape, generator=generator).to(dtype)
    inputs = [wide_BTC, *ours.parameters()]
    found = (ours(x_BTC), *torch.autograd.grad(ours(x_BTC), inputs, grad_BTC))
    wanted = (wanted_BTC, *torch.autograd.grad(wanted_BTC, inputs, grad_BTC))
    for mine, theirs in zip(found, wanted, strict=True):
        assert_close(mine, theirs, 1e-5, terms=1.0)


# ---- decoding


@st.composite
def mixers(draw: st.DrawFn) -> Mamba1 | Mamba2:
    common = {"d_conv": draw(st.integers(1, 4)), "conv_bias": draw(st.booleans()), "proj_bias": draw(st.booleans())}
    d_state = draw(st.integers(1, 6))
    if draw(st.booleans()):
        return Mamba1(
            d_inner=draw(st.integers(1, 20)),
            d_state=d_state,
            dt_rank=draw(st.integers(1, 4)),
            inner_norms=draw(st.booleans()),
            **common,
        )
    n_groups = draw(st.integers(1, 3))
    n_heads = n_groups * draw(st.integers(1, 3))
    return Mamba2(
        n_heads=n_heads,
        d_head=draw(st.integers(1, 5)),
        d_state=d_state,
        n_groups=n_groups,
        norm_groups=draw(st.sampled_from((1, n_groups))),
        dt_min=draw(st.sampled_from((0.0, 0.02))),
        dt_max=draw(st.sampled_from((None, 0.05))),
        **common,
    )


@settings(max_examples=40)
@given(mixers(), st.lists(st.integers(1, 3) | st.integers(60, 70), min_size=1, max_size=5), st.integers(0, 9))
def test_a_sequence_in_pieces_is_the_sequence(mixer: Mamba1 | Mamba2, pieces: list[int], seed: int) -> None:
    ours = module(mixer, seed=seed)
    x_BTM = torch.randn(2, sum(pieces), D_MODEL, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        state = ours.new_state(2, sum(pieces), torch.float32, torch.device("cpu"))
        found = [ours(piece_BTM, PLACE, state) for piece_BTM in x_BTM.split(pieces, dim=1)]
        assert_close(torch.cat(found, dim=1), ours(x_BTM, PLACE))


# ---- precision, compiling, first values

SMALL = (
    Mamba1(d_inner=24, d_state=5, dt_rank=3, inner_norms=True),
    Mamba2(n_heads=4, d_head=6, d_state=5, n_groups=2, norm_groups=2),
)


@pytest.mark.parametrize("mixer", SMALL, ids=("mamba-1", "mamba-2"))
def test_bf16_follows_float32(mixer: Mamba1 | Mamba2) -> None:
    ours = module(mixer)
    x_BTM = torch.randn(2, 70, D_MODEL, generator=torch.Generator().manual_seed(1))
    out_BTM = ours(x_BTM.bfloat16(), PLACE)
    assert out_BTM.dtype == torch.bfloat16
    assert_close(out_BTM.float(), ours(x_BTM, PLACE), 0.05)
    out_BTM.sum().backward()
    assert all(torch.isfinite(p.grad).all() and p.grad.any() for p in ours.parameters())
    with torch.no_grad():
        state = ours.new_state(2, 70, torch.bfloat16, torch.device("cpu"))
        steps = [ours(x_B1M.bfloat16(), PLACE, state) for x_B1M in x_BTM.split(1, dim=1)]
    assert_close(torch.cat(steps, dim=1).float(), out_BTM.detach().float(), 0.05)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated")  # what tracing a custom gradient makes of it
@pytest.mark.parametrize("mixer", SMALL, ids=("mamba-1", "mamba-2"))
def test_compiled_is_eager(mixer: Mamba1 | Mamba2) -> None:
    ours = module(mixer)
    compiled = torch.compile(ours, backend="aot_eager", fullgraph=True)
    x_BTM = torch.randn(2, 70, D_MODEL, generator=torch.Generator().manual_seed(1))
    outs = ours(x_BTM, PLACE), compiled(x_BTM, PLACE)
    assert_close(outs[1], outs[0])
    grads = [torch.autograd.grad(out.square().sum(), list(ours.parameters())) for out in outs]
    for found, wanted in zip(grads[1], grads[0], strict=True):
        assert_close(found, wanted)


@pytest.mark.parametrize("mixer", SMALL, ids=("mamba-1", "mamba-2"))
def test_first_steps_lie_where_the_paper_puts_them(mixer: Mamba1 | Mamba2) -> None:
    ours = module(mixer)
    values = ours.first_values(torch.Generator().manual_seed(0))
    assert {name: value.shape for name, value in values.items()} == {
        name: dict(ours.named_parameters())[name].shape for name in ("A_log", "dt_bias", "D")
    }
    dt = nn.functional.softplus(values["dt_bias"])
    assert (dt > 0.999e-3).all() and (dt < 0.1001).all()
    decay = values["A_log"].exp()
    if isinstance(mixer, Mamba1):
        torch.testing.assert_close(decay[0], torch.arange(1.0, mixer.d_state + 1))
    assert (decay > 0.999).all() and (decay < 16.01).all()


@pytest.mark.parametrize("mixer", SMALL, ids=("mamba-1", "mamba-2"))
def test_shapes_without_data(mixer: Mamba1 | Mamba2) -> None:
    ours = module(mixer).to("meta")
    x_BTM = torch.empty(2, 70, D_MODEL, device="meta", requires_grad=True)
    ours(x_BTM, PLACE).sum().backward()
    assert x_BTM.grad.shape == x_BTM.shape


@torch.no_grad()
def test_mamba_1_cast_to_bf16() -> None:
    """A_log is cast too, and the kernel takes fp32 only: what it was given once was read as such."""
    m = Mamba1(d_inner=24, d_state=4, dt_rank=3)
    decoder = Decoder(vocab_size=7, d_model=8, layers=(Layer(m, None),), max_context=8)
    model = DecoderModel(decoder)
    initialize(model, 1, Recipe(lr=1e-3, batch=1))
    exact_BTV = model(torch.tensor([[1, 2, 3]]))
    torch.testing.assert_close(model.to(torch.bfloat16)(torch.tensor([[1, 2, 3]])), exact_BTV, rtol=0.05, atol=0.05)
