"""Certificates: they hold for random decoders, and fail where a closed form is wrong."""

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings

from isoflop import check
from isoflop.architecture import Attention, Decoder, Layer, Mlp
from isoflop.architecture.find import find_decoder
from isoflop.check.products import kinds_of
from isoflop.check.twin import shrink
from strategies import decoders

LAYER = Layer(mixer=Attention(n_heads=4, n_kv_heads=2, d_head=8, window=3), feed_forward=Mlp(d_ff=24))
SMALL = Decoder(vocab_size=31, d_model=16, layers=(LAYER, LAYER), max_context=9)


@settings(max_examples=6)
@given(decoder=decoders())
def test_random_decoders_hold(decoder: Decoder) -> None:
    certificate = check.certify("random", decoder)
    assert certificate.holds, [line for line in certificate.lines if line.verdict == "fails"]
    assert {line.verdict for line in certificate.lines} == {"holds"}


def test_contexts_around_a_window() -> None:
    contexts = check.certify("small", SMALL).contexts
    assert contexts.sequence == (1, 2, 3, 4, 7, 9)
    assert contexts.decode == (1, 2, 3, 4, 7, 8) and contexts.packed == contexts.sequence


def off_by_one(name: str, field: str) -> Callable[[pytest.MonkeyPatch], None]:
    """A closed form whose `field` is one too large."""

    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        module, attribute = name.rsplit(".", 1)
        right = getattr(__import__(module, fromlist=[attribute]), attribute)

        def wrong(*args: Any, **kwargs: Any) -> Any:
            out = right(*args, **kwargs)
            return msgspec.structs.replace(out, **{field: getattr(out, field) + 1})

        monkeypatch.setattr(name, wrong)

    return patch


@pytest.mark.parametrize(
    ("where", "field", "failing"),
    [
        ("isoflop.check.proofs.parameters", "total", {"parameters, total"}),
        ("isoflop.check.proofs.parameters", "active", {"parameters, active"}),
        ("isoflop.check.prove_flops.parameters", "matmul", {"parameters, matmul"}),
        ("isoflop.check.proofs.cache", "bytes_at_context", {"cache, a sequence"}),
        ("isoflop.check.proofs.cache", "bytes_per_token", {"cache, a token"}),
        ("isoflop.check.proofs.saved_activations", "mixers", {"saved activations"}),
        (
            "isoflop.check.prove_flops.flops",
            "decode_per_token",
            {f"FLOPs {c}, decode" for c in ("6nd", "palm", "exact", "hardware")},
        ),
    ],
)
def test_a_wrong_closed_form_fails(where: str, field: str, failing: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    off_by_one(where, field)(monkeypatch)
    certificate = check.certify("small", SMALL)
    assert not certificate.holds
    assert {line.check for line in certificate.lines if line.verdict == "fails"} == failing


def test_a_wrong_mask_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """The closed form forgets the window: `exact` and `hardware` differ where it matters, `palm` and `6nd` do not."""
    from isoflop.cost import attention

    forgotten = lambda m, context: context * (context + 1) // 2  # noqa: E731
    monkeypatch.setattr(attention, "visible_keys", forgotten)
    failed = {line.check for line in check.certify("small", SMALL).lines if line.verdict == "fails"}
    assert failed and all(name.startswith(("FLOPs exact", "FLOPs hardware")) for name in failed)


def test_a_leaking_module_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """Behaviour is looked at on the real module: one that looks ahead is caught."""
    from isoflop.model import attention

    honest = attention.Attention.forward

    def looks_ahead(self: Any, x_BTM: Any, place: Any, state: Any = None) -> Any:
        return honest(self, x_BTM, place, state) + x_BTM.mean(1, keepdim=True)

    monkeypatch.setattr(attention.Attention, "forward", looks_ahead)
    failed = {line.check for line in check.certify("small", SMALL).lines if line.verdict == "fails"}
    assert failed == {"cached decoding = full forward", "a token sees no later one"}


@given(decoder=decoders())
def test_a_twin_is_valid_and_small(decoder: Decoder) -> None:
    twin = shrink(decoder)
    assert twin.placement == decoder.placement and twin.n_layers <= len(kinds_of(decoder)[1])
    assert twin.d_model <= decoder.d_model and shrink(twin) == twin


@pytest.mark.parametrize("name", ["deepseek-v3-671b", "jamba-v0.1", "phi-3-mini-3.8b", "gpt-oss-120b", "mamba2-2.7b"])
def test_twins_of_published_models_keep_their_kinds(name: str) -> None:
    decoder = find_decoder(name)
    twin = shrink(decoder)
    kinds = {(type(layer.mixer), type(layer.feed_forward)) for layer in decoder.layers}
    assert {(type(layer.mixer), type(layer.feed_forward)) for layer in twin.layers} == kinds
