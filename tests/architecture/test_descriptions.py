"""Construction: what is impossible is refused by the field's name, both values, and the nearest valid one."""

from collections.abc import Callable

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from isoflop.architecture import (
    Attention,
    Decoder,
    Dense,
    Experts,
    Layer,
    Llama3Scaling,
    MixtureOfExperts,
    Mlp,
    RmsNorm,
    Rope,
)
from isoflop.architecture.base import require_multiple
from isoflop.cost import parameters
from strategies import decoders

LAYER = Layer(mixer=Attention(n_heads=2, n_kv_heads=1, d_head=4), feed_forward=Mlp(d_ff=8))


def decoder(**changes: object) -> Decoder:
    return Decoder(**{"vocab_size": 10, "d_model": 8, "layers": (LAYER,), "max_context": 8} | changes)


IMPOSSIBLE: list[tuple[Callable[[], object], str]] = [
    (lambda: Attention(n_heads=7, n_kv_heads=2, d_head=4), "n_heads = 7 .*n_kv_heads = 2; .*n_heads is 6"),
    (lambda: Attention(n_heads=2, n_kv_heads=4, d_head=4), "n_heads = 2 .*n_kv_heads = 4; .*n_heads is 4"),
    (lambda: Attention(n_heads=11, n_kv_heads=4, d_head=4), "n_heads = 11 .*n_kv_heads = 4; .*n_heads is 12"),
    (lambda: Attention(n_heads=0, n_kv_heads=1, d_head=4), "n_heads = 0 must be above 0"),
    (lambda: Attention(n_heads=1, n_kv_heads=1, d_head=4, scale=0.0), "scale = 0.0 must be above 0"),
    (lambda: Mlp(d_ff=-1), "d_ff = -1 must be above 0"),
    (lambda: MixtureOfExperts(n_experts=2, top_k=3, d_ff=4), "top_k = 3 exceeds n_experts = 2; .*top_k is 2"),
    (lambda: MixtureOfExperts(n_experts=2, top_k=0, d_ff=4), "top_k = 0 must be above 0"),
    (lambda: MixtureOfExperts(n_experts=2, top_k=1, d_ff=4, z_coef=-1), "z_coef = -1 must not be negative"),
    (lambda: RmsNorm(eps=0), "eps = 0 must be above 0"),
    (lambda: Rope(theta=float("nan")), "theta = nan must be above 0"),
    (
        lambda: Llama3Scaling(factor=8, low_freq_factor=5, high_freq_factor=4, original_max_context=8),
        "low_freq_factor = 5 must lie above 0 and at most at high_freq_factor = 4",
    ),
    (lambda: decoder(layers=()), "layers is empty"),
    (lambda: decoder(max_context=0), "max_context = 0 must be above 0"),
    (lambda: decoder(logit_multiplier=float("inf")), "logit_multiplier = inf must be finite"),
    (
        lambda: decoder(layers=(msgspec.structs.replace(LAYER, mixer=Attention(n_heads=1, n_kv_heads=1, d_head=1)),)),
        "rope needs at least 2 dimensions of a head to turn; d_head = 1 leaves none",
    ),
    (lambda: Dense(d_head=16).build(40, 100, 64), "d_model = 40 .*d_head = 16; .*d_model is 32"),
    (lambda: Dense(aspect=0), "aspect = 0 must be above 0"),
    (lambda: Experts(n_experts=4, top_k=5), "top_k = 5 exceeds n_experts = 4"),
    (lambda: Experts(active_ratio=0), "active_ratio = 0 must be above 0"),
]


@pytest.mark.parametrize(("build", "message"), IMPOSSIBLE)
def test_impossible(build: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


@given(st.integers(1, 1000), st.integers(1, 100))
def test_the_nearest_multiple_is_the_nearest(value: int, of: int) -> None:
    nearest = min(range(of, value + of + 1, of), key=lambda multiple: abs(multiple - value))
    if value % of == 0:
        require_multiple("a", value, "b", of)
        return
    with pytest.raises(ValueError, match=f"a = {value} is not a multiple of b = {of}; the nearest valid a is") as error:
        require_multiple("a", value, "b", of)
    found = int(str(error.value).rsplit(maxsplit=1)[1])
    assert found % of == 0 and found > 0 and abs(found - value) == abs(nearest - value)


def test_descriptions_are_frozen() -> None:
    with pytest.raises(AttributeError):
        LAYER.mixer = None
    assert hash(decoder()) == hash(decoder())


@given(decoders(), decoders())
def test_equal_digests_mean_equal_descriptions(one: Decoder, other: Decoder) -> None:
    assert (one.digest == other.digest) == (one == other)


def test_the_digest_is_stable() -> None:
    """A run is named by it: if this fails, runs trained before can no longer be found."""
    assert decoder().digest == "690b6da2cf63999b"
    assert decoder(max_context=9).digest != decoder().digest


@pytest.mark.parametrize("d_model", [64, 96, 256])
def test_a_dense_and_a_sparse_member_do_the_same_work(d_model: int) -> None:
    dense, sparse = (family.build(d_model, 100, 64) for family in (Dense(), Experts(n_experts=8, top_k=2)))
    routers = dense.n_layers * 8 * d_model
    assert parameters(sparse).matmul - routers == pytest.approx(parameters(dense).matmul, rel=0.05)
    assert parameters(sparse).total > 2 * parameters(dense).non_embedding


def test_queries_share_keys_where_that_divides() -> None:
    mixers = [Dense(d_head=16, queries_per_kv=4).build(16 * n, 100, 64).layers[0].mixer for n in (1, 2, 4, 6, 7, 12)]
    assert [m.n_kv_heads for m in mixers] == [1, 1, 1, 1, 1, 3]
