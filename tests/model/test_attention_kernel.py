"""Our attention kernel and its torch stand-in against one masked softmax in fp64: values, gradients, bits, builds."""

import ctypes
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from isoflop.model.kernels import attention as kernel
from isoflop.model.kernels import build
from isoflop.model.kernels.attention import attention
from isoflop.model.kernels.plain import Options, torch_attention
from lesser import assert_runs, needs_x86

needs_compiler = pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="needs a C++ compiler")


@dataclass(frozen=True)
class Case:
    """B, T, H, K, D, E, keys that nobody sees at the end, and what attention is asked."""

    batch: int
    context: int
    kv_heads: int
    group: int
    width: int
    value_width: int
    spare: int
    options: Options
    slopes: bool
    sinks: bool

    def tensors(self) -> tuple[list[Tensor], Options, Tensor]:
        """q, k, v as views of one tensor (they must not be copied to be read), the sinks; the seed of the gradient."""
        generator = torch.Generator().manual_seed(1)
        heads, keys = self.kv_heads * self.group, self.options.start + self.context + self.spare
        wide = max(self.width, self.value_width) + 3
        all_heads = torch.randn(self.batch, keys, heads + 2 * self.kv_heads, wide, generator=generator)
        q, k, v = all_heads.split((heads, self.kv_heads, self.kv_heads), dim=2)
        leaves = [q[:, : self.context, :, : self.width], k[..., : self.width], v[..., 1 : 1 + self.value_width]]
        slopes = torch.rand(heads, generator=generator) if self.slopes else None
        sinks = torch.randn(heads, generator=generator) if self.sinks else None
        leaves = [x.detach().requires_grad_() for x in (*leaves, *([sinks] if sinks is not None else []))]
        options = replace(self.options, slopes_H=slopes, sinks_H=leaves[3] if self.sinks else None)
        return leaves, options, torch.randn(self.batch, self.context, heads, self.value_width, generator=generator)


@st.composite
def cases(draw: st.DrawFn, longest: int = 70) -> Case:
    context = draw(st.integers(1, longest))
    start = draw(st.sampled_from((0, 0, 1, 7, 16, 61)))
    width = draw(st.sampled_from((1, 3, 5, 16, 32, 40, 64, 80, 128, 192)))
    reach = st.none() | st.integers(1, start + context + 3)
    return Case(
        batch=draw(st.integers(1, 2)),
        context=context,
        kv_heads=draw(st.integers(1, 2)),
        group=draw(st.integers(1, 3)),
        width=width,
        value_width=draw(st.sampled_from((width, 128 if width == 192 else 7))),
        spare=draw(st.sampled_from((0, 0, 5))),
        options=Options(
            scale=draw(st.sampled_from((1.0, 0.3, 1.5))) / math.sqrt(width),
            start=start,
            window=draw(reach),
            chunk=draw(reach),
            softcap=draw(st.sampled_from((None, None, 0.7, 30.0))),
        ),
        slopes=draw(st.booleans()),
        sinks=draw(st.booleans()),
    )


def masked(q: Tensor, k: Tensor, v: Tensor, o: Options) -> Tensor:
    """Every score, a mask of every pair, one softmax with the sink as one more column."""
    context, keys, group = q.shape[1], k.shape[1], q.shape[2] // k.shape[2]
    k, v = k.repeat_interleave(group, 2), v.repeat_interleave(group, 2)
    position, key = o.start + torch.arange(context)[:, None], torch.arange(keys)
    seen = key <= position
    if o.window is not None:
        seen &= position - key < o.window
    if o.chunk is not None:
        seen &= position // o.chunk == key // o.chunk
    score = o.scale * torch.einsum("bthd,bshd->bhts", q, k)
    if o.softcap is not None:
        score = o.softcap * torch.tanh(score / o.softcap)
    if o.slopes_H is not None:
        score = score - o.slopes_H.double()[:, None, None] * (position - key)
    score = score.masked_fill(~seen, -math.inf)
    if o.sinks_H is not None:
        score = torch.cat([score, o.sinks_H[:, None, None].expand(*score.shape[:3], 1)], dim=-1)
    return torch.einsum("bhts,bshe->bthe", score.softmax(-1)[..., :keys], v)


def native(q: Tensor, k: Tensor, v: Tensor, o: Options) -> Tensor:
    return attention(q, k, v, **vars(o))


def same_as_masked(case: Case, found_by: Callable[[Tensor, Tensor, Tensor, Options], Tensor]) -> None:
    leaves, options, seed = case.tensors()
    exact = [x.detach().double().requires_grad_() for x in leaves]
    wanted = masked(*exact[:3], replace(options, sinks_H=exact[3] if case.sinks else None))
    found = found_by(*leaves[:3], options)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)
    gradients = torch.autograd.grad(found, leaves, seed), torch.autograd.grad(wanted, exact, seed.double())
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-5 * max(1.0, theirs.abs().max().item()))


@needs_compiler
def test_the_kernel_can_be_had() -> None:
    assert kernel.available()


@needs_compiler
@settings(max_examples=150)
@given(cases())
def test_kernel(case: Case) -> None:
    same_as_masked(case, native)


@needs_compiler
@settings(max_examples=150)
@given(cases(longest=1))
def test_one_query(case: Case) -> None:
    """As in decoding, without gradients: another kernel."""
    leaves, options, _ = case.tensors()
    exact = [x.detach().double() for x in leaves]
    wanted = masked(*exact[:3], replace(options, sinks_H=exact[3] if case.sinks else None))
    with torch.no_grad():
        found = native(*(x.detach() for x in leaves[:3]), options)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)


@settings(max_examples=60)
@given(cases())
def test_torch_implementation(case: Case) -> None:
    same_as_masked(case, torch_attention)


@needs_compiler
@pytest.mark.parametrize("found_by", (native, torch_attention))
@pytest.mark.parametrize(
    "options",
    (
        Options(0.3),
        Options(0.3, start=37, window=150),
        Options(0.3, start=1100, window=40, chunk=300, softcap=2.0),
    ),
)
def test_several_blocks(found_by: Callable[[Tensor, Tensor, Tensor, Options], Tensor], options: Options) -> None:
    """More queries than a block of either, and for the kernel more than a task."""
    same_as_masked(Case(1, 1100, 1, 2, 16, 24, 3, options, True, True), found_by)


@needs_compiler
@settings(max_examples=20)
@given(cases(longest=300))
def test_threads_change_no_bit(case: Case) -> None:
    leaves, options, seed = case.tensors()
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            out = native(*leaves[:3], options)
            results.append((out, *torch.autograd.grad(out, leaves, seed)))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, two) for one, two in zip(*results, strict=True))


@needs_compiler
def test_extreme_scores() -> None:
    """Neither huge scores nor values that are not numbers pass unnoticed."""
    q = torch.full((1, 40, 1, 16), 1e3, requires_grad=True)
    v = torch.randn(1, 40, 1, 16)
    out = attention(q, q, v, scale=1.0)
    torch.testing.assert_close(out, v.cumsum(1) / torch.arange(1, 41)[None, :, None, None])
    assert torch.autograd.grad(out.sum(), q)[0].isfinite().all()
    broken = q.detach().clone()
    broken[0, 20] = math.nan
    out = attention(broken, q, v, scale=1.0)
    assert out[0, 20].isnan().all() and out[0, :20].isfinite().all() and out[0, 21:].isfinite().all()


@needs_compiler
@settings(max_examples=3)
@given(cases(longest=20))
def test_compiled(case: Case) -> None:
    """One graph, of the same values and gradients."""
    torch._dynamo.reset()
    leaves, options, seed = case.tensors()

    def doubled(q: Tensor, k: Tensor, v: Tensor, sinks_H: Tensor | None) -> Tensor:
        return attention(2 * q, k, v, **(vars(options) | {"sinks_H": sinks_H})).flatten(2) * 3

    arguments = (*leaves, None) if len(leaves) == 3 else tuple(leaves)
    found = torch.compile(doubled, fullgraph=True, dynamic=False, backend="aot_eager")(*arguments)
    wanted = doubled(*arguments)
    torch.testing.assert_close(found, wanted)
    gradients = (torch.autograd.grad(y, leaves, seed.flatten(2)) for y in (found, wanted))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)


@needs_compiler
def test_operations_obey_their_schemas() -> None:
    """Shapes known beforehand are the real ones; nothing is written to that is not said to be."""
    leaves, o, seed = Case(1, 9, 1, 2, 5, 3, 2, Options(0.5, start=2, window=4), True, True).tensors()
    q, k, v = (x.detach() for x in leaves[:3])
    options = tuple(None if x is None else x.detach() if isinstance(x, Tensor) else x for x in o.tuple())
    out, lse = torch.ops.isoflop.attention(q, k, v, *options)
    check = ("test_schema", "test_faketensor")
    torch.library.opcheck(torch.ops.isoflop.attention.default, (q, k, v, *options), test_utils=check)
    gradient = torch.ops.isoflop.attention_gradient.default
    torch.library.opcheck(gradient, (seed, out, lse, q, k, v, *options), test_utils=check)


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float64))
@pytest.mark.parametrize("window", (None, 20))
def test_other_dtypes(dtype: torch.dtype, window: int | None) -> None:
    q, k, v = (torch.randn(1, 40, heads, 16, dtype=dtype) for heads in (4, 2, 2))
    found = attention(q, k, v, scale=0.25, window=window)
    wanted = masked(q.double(), k.double(), v.double(), Options(0.25, window=window))
    tolerance = 1e-12 if dtype == torch.float64 else 3e-2
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), wanted, rtol=tolerance, atol=tolerance)


def test_causal_attention_elsewhere_is_torchs() -> None:
    q, k, v = (torch.randn(1, 30, 2, 16, dtype=torch.bfloat16) for _ in range(3))
    wanted = F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)), is_causal=True, scale=0.25)
    assert torch.equal(attention(q, k, v, scale=0.25), wanted.transpose(1, 2))


# ---- builds


@needs_compiler
def test_a_build_is_kept_and_its_folder_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    source = tmp_path / "three.cpp"
    source.write_text('extern "C" int three() { return 3; }')
    folder = build.cache_folder()
    assert folder.stat().st_mode & 0o777 == 0o700
    first = build.built(source, os.environ.get("CXX", "g++"), folder)
    written = first.stat().st_mtime_ns
    assert build.built(source, os.environ.get("CXX", "g++"), folder) == first
    assert first.stat().st_mtime_ns == written and [x.name for x in folder.iterdir()] == [first.name]
    assert ctypes.CDLL(str(first)).three() == 3
    source.write_text('extern "C" int three() { return 4; }')
    assert build.built(source, os.environ.get("CXX", "g++"), folder) != first


@needs_compiler
def test_what_others_can_write_is_never_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    source = tmp_path / "three.cpp"
    source.write_text('extern "C" int three() { return 3; }')
    folder = build.cache_folder()
    built = build.built(source, os.environ.get("CXX", "g++"), folder)
    built.chmod(0o722)
    with pytest.raises(PermissionError, match="not this user's alone"):
        build.built(source, os.environ.get("CXX", "g++"), folder)
    folder.chmod(0o777)
    with pytest.raises(PermissionError, match="not this user's alone"):
        build.cache_folder()


@pytest.mark.parametrize("compiler", ("no-such-compiler", "false"))
def test_without_a_compiler_torch_does_it(tmp_path: Path, compiler: str) -> None:
    """One line on stderr, however often it is called, and the same values."""
    program = (
        "import torch; from isoflop.model.kernels.attention import attention, available\n"
        "q = torch.ones(1, 3, 1, 4)\n"
        "assert not available()\n"
        "for _ in range(2): assert torch.equal(attention(q, q, q, scale=1.0, window=2), q)\n"
    )
    environment = os.environ | {"CXX": compiler, "XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("isoflop: attention runs on plain torch, slower: ") and compiler in line


@needs_compiler
@needs_x86
@pytest.mark.parametrize("lesser", ("-mno-avx512f", "-mno-avx"))
def test_processors_with_shorter_vectors(tmp_path: Path, lesser: str) -> None:
    program = (
        "import torch; from isoflop.model.kernels.attention import attention\n"
        "from isoflop.model.kernels.plain import Options, torch_attention\n"
        "for D, E in ((16, 16), (5, 7), (24, 40), (64, 64), (80, 128)):\n"
        "    q, k, v = (torch.randn(1, 150, h, d, requires_grad=True) for h, d in ((2, D), (1, D), (1, E)))\n"
        "    options = Options(0.2, window=90, softcap=3.0, sinks_H=torch.randn(2), slopes_H=torch.rand(2))\n"
        "    one = q[:, -1:].detach(), k.detach(), v.detach(), Options(**vars(options) | {'start': 149})\n"
        "    with torch.no_grad():\n"
        "        torch.testing.assert_close(attention(*one[:3], **vars(one[3])), torch_attention(*one))\n"
        "    for o in (Options(0.2), options):\n"
        "        ours, theirs = attention(q, k, v, **vars(o)), torch_attention(q, k, v, o)\n"
        "        assert 'isoflop' in type(ours.grad_fn).__name__.lower(), ours.grad_fn\n"
        "        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)\n"
        "        seed = torch.randn_like(ours)\n"
        "        for x, y in zip(*(torch.autograd.grad(z, (q, k, v), seed) for z in (ours, theirs))):\n"
        "            torch.testing.assert_close(x, y, rtol=1e-5, atol=3e-5)\n"
    )
    assert_runs(program, lesser, tmp_path)
