"""A checkpoint of ours as one GGUF file, for llama.cpp and what reads its format. E expert, M d_model, F d_ff,
D d_head.

What llama.cpp computes for a family is not written down anywhere but in its code; the families here are those whose
logits were compared with ours, number by number.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from isoflop.architecture import Attention, Decoder, LinearScaling, Mamba1, MixtureOfExperts, Mlp, Rope
from isoflop.architecture.hugging_face import nearest
from isoflop.weights.checkpoint import Checkpoint
from isoflop.weights.folding import Folded
from isoflop.weights.gguf_tokenizer import add_tokenizer
from isoflop.weights.writer import Tell, held, silent

Kind = Literal["fp32", "bf16", "q8_0", "q4_0"]
KINDS: tuple[Kind, ...] = ("fp32", "bf16", "q8_0", "q4_0")
BLOCK = 32  # columns of a block of q8_0 and q4_0; matrices of other widths are written in 16 bits

# Families of transformers, and what llama.cpp calls the architecture that computes them.
NAMES = {
    "llama": "llama",
    "mistral": "llama",
    "mixtral": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "qwen3_moe": "qwen3moe",
    "mamba": "mamba",
}
IN_FULL = ("ffn_gate_inp.weight", "ssm_conv1d.weight", "ssm_a")  # matrices that llama.cpp wants in fp32


class Piece(NamedTuple):
    """A tensor of theirs: what makes it of one of ours."""

    theirs: str
    ours: str
    make: Callable[[Tensor], Tensor]


def export_gguf(source: Path, target: Path, kind: Kind, tokenizer: bool = True, tell: Tell = silent) -> str:
    """Write the file; returns llama.cpp's name of the architecture. It appears whole or not at all. Raises ValueError
    where no architecture of llama.cpp is known to compute the same, or the tokenizer is none of those it has; OSError.
    """
    gguf = _library()
    if target.exists() or target.is_symlink():
        raise ValueError(f"{target}: is there already; give a name that is free")
    ours = Checkpoint(source)
    folded = Folded(ours.decoder)
    name = architecture_of(folded.decoder)
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = target.with_name(f".{target.name}.partial")
    with held(folder):
        try:
            partial = folder / "gguf"
            writer = gguf.GGUFWriter(partial, name)
            _describe(writer, folded.decoder)
            add_tokenizer(writer, source, ours, tokenizer)
            _write(writer, list(pieces(folded.decoder, ours.shapes, name)), ours, folded, kind, tell)
            with partial.open("rb+") as written:
                os.fsync(written.fileno())
            if target.exists() or target.is_symlink():  # another was whole before we took the lock
                raise ValueError(f"{target}: is there already; give a name that is free")
            partial.rename(target)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    return name


def architecture_of(decoder: Decoder) -> str:
    """llama.cpp's architecture that computes the decoder. Raises ValueError naming what it cannot say."""
    model_type, _ = nearest(decoder)
    why = "" if model_type in NAMES else f"a {model_type}: only {', '.join(NAMES)} are written"
    for layer in decoder.layers:
        mixer, feed_forward = layer.mixer, layer.feed_forward
        if isinstance(mixer, Attention) and mixer.window is not None:
            why = why or f"windows of a {model_type}: only full attention is written"
        if isinstance(mixer, Mamba1) and mixer.inner_norms:
            why = why or "norms inside Mamba"
        if isinstance(feed_forward, MixtureOfExperts) and not feed_forward.renormalize:
            why = why or "experts whose weights do not sum to one"
    rope = decoder.position
    if isinstance(rope, Rope) and not isinstance(rope.scaling, LinearScaling | None):
        why = why or f"a rope scaled by {type(rope.scaling).__name__}: only linear scaling is written"
    if len({(type(layer.mixer), type(layer.feed_forward)) for layer in decoder.layers}) > 1:
        why = why or "layers of different kinds"
    if why:
        raise ValueError(f"GGUF: {why}; export a Hugging Face folder instead")
    return NAMES[model_type]


def pieces(decoder: Decoder, shapes: dict[str, tuple[int, ...]], name: str) -> Iterator[Piece]:
    """Every tensor of theirs."""
    ends = {"embedding": "token_embd.weight", "norm.weight": "output_norm.weight", "head.weight": "output.weight"}
    for ours in shapes:
        if not ours.startswith("layers."):
            yield Piece(ends[ours], ours, lambda tensor: tensor)
            continue
        _, i, inner = ours.split(".", 2)
        mixer = decoder.layers[int(i)].mixer
        yield from (
            Piece(f"blk.{i}.{theirs}", ours, make)
            for theirs, make in _of_layer(inner, mixer, interleaved=name == "llama")
        )


def _of_layer(inner: str, mixer: Any, interleaved: bool) -> list[tuple[str, Callable[[Tensor], Tensor]]]:
    stem, _, last = inner.rpartition(".")
    if stem == "mixer.qkv":
        return _queries_keys_values(mixer, last, interleaved)
    if stem in ("feed_forward.gate_up", "feed_forward.up"):
        return [(f"ffn_gate.{last}", lambda x: x.chunk(2)[0]), (f"ffn_up.{last}", lambda x: x.chunk(2)[1])]
    if inner == "feed_forward.gate_up":
        gate: Callable[[Tensor], Tensor] = lambda x: x.chunk(2, dim=-1)[0].mT  # noqa: E731
        return [("ffn_gate_exps.weight", gate), ("ffn_up_exps.weight", lambda x: x.chunk(2, dim=-1)[1].mT)]
    if inner == "feed_forward.down":
        return [("ffn_down_exps.weight", lambda x: x.mT)]
    if stem == "mixer.out" and isinstance(mixer, Mamba1):
        return [(f"ssm_out.{last}", lambda x: x)]
    if inner == "mixer.A_log":
        return [("ssm_a", lambda x: -torch.exp(x.float()))]
    return [(_PLAIN[inner] if inner in _PLAIN else f"{_STEMS[stem]}.{last}", lambda x: x)]


_STEMS = {
    "mixer_norm": "attn_norm",
    "feed_forward_norm": "ffn_norm",
    "mixer.out": "attn_output",
    "mixer.q_norm": "attn_q_norm",
    "mixer.k_norm": "attn_k_norm",
    "feed_forward.down": "ffn_down",
    "feed_forward.router": "ffn_gate_inp",
    "mixer.xz": "ssm_in",
    "mixer.dtbc": "ssm_x",
    "mixer.dt": "ssm_dt",
}
_PLAIN = {
    "mixer.convolution.kernel": "ssm_conv1d.weight",
    "mixer.convolution.bias": "ssm_conv1d.bias",
    "mixer.dt_bias": "ssm_dt.bias",
    "mixer.D": "ssm_d",
}


def _queries_keys_values(
    mixer: Attention, last: str, interleaved: bool
) -> list[tuple[str, Callable[[Tensor], Tensor]]]:
    """Three tensors of one; of "llama" a rope turns neighbours, so a head's rows change places."""
    queries, keys = mixer.n_heads * mixer.d_head, mixer.n_kv_heads * mixer.d_head

    def turned(x: Tensor) -> Tensor:
        return x.unflatten(0, (-1, 2, mixer.d_head // 2)).transpose(1, 2).reshape(x.shape) if interleaved else x

    return [
        (f"attn_q.{last}", lambda x: turned(x[:queries])),
        (f"attn_k.{last}", lambda x: turned(x[queries : queries + keys])),
        (f"attn_v.{last}", lambda x: x[queries + keys :]),
    ]


def _describe(writer: Any, decoder: Decoder) -> None:
    first = decoder.layers[0]
    writer.add_vocab_size(decoder.vocab_size)
    writer.add_context_length(decoder.max_context)
    writer.add_embedding_length(decoder.d_model)
    writer.add_block_count(decoder.n_layers)
    writer.add_layer_norm_rms_eps(decoder.norm.eps)
    match first.feed_forward:
        case Mlp(d_ff=d_ff):
            writer.add_feed_forward_length(d_ff)
        case MixtureOfExperts() as experts:
            writer.add_feed_forward_length(experts.d_ff)
            writer.add_expert_feed_forward_length(experts.d_ff)
            writer.add_expert_count(experts.n_experts)
            writer.add_expert_used_count(experts.top_k)
        case None:
            writer.add_feed_forward_length(0)
    match first.mixer:
        case Attention() as attention:
            _describe_attention(writer, decoder, attention)
        case Mamba1() as mamba:
            writer.add_head_count(0)
            writer.add_ssm_conv_kernel(mamba.d_conv)
            writer.add_ssm_inner_size(mamba.d_inner)
            writer.add_ssm_state_size(mamba.d_state)
            writer.add_ssm_time_step_rank(mamba.dt_rank)


def _describe_attention(writer: Any, decoder: Decoder, attention: Attention) -> None:
    from gguf import RopeScalingType

    writer.add_head_count(attention.n_heads)
    writer.add_head_count_kv(attention.n_kv_heads)
    writer.add_key_length(attention.d_head)
    writer.add_value_length(attention.d_head)
    writer.add_rope_dimension_count(attention.d_head)
    rope = decoder.rope_of(attention)
    assert rope is not None
    writer.add_rope_freq_base(rope.theta)
    if isinstance(rope.scaling, LinearScaling):
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope.scaling.factor)


def _write(writer: Any, found: list[Piece], ours: Checkpoint, folded: Folded, kind: Kind, tell: Tell) -> None:
    """Every tensor is announced, then made again and written: no more than one is held."""
    from gguf import GGMLQuantizationType
    from gguf.quants import quantize

    def made(piece: Piece) -> tuple[Any, Any]:
        whole = ours.read(piece.ours).float() * folded.factor(piece.ours)
        values = np.ascontiguousarray(piece.make(whole).float().numpy())
        type_ = GGMLQuantizationType[_type_of(piece.theirs, values.shape, kind)]
        return quantize(values, type_) if type_ != GGMLQuantizationType.F32 else values, type_

    total = 0
    for piece in found:
        data, type_ = made(piece)
        writer.add_tensor_info(piece.theirs, data.shape, data.dtype, data.nbytes, type_)
        total += data.nbytes
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    done = 0
    for piece in found:
        data, _ = made(piece)
        writer.write_tensor_data(data)
        done += data.nbytes
        tell(done, total)
    writer.close()


def _type_of(name: str, shape: tuple[int, ...], kind: Kind) -> str:
    if len(shape) == 1 or name.endswith(IN_FULL) or kind == "fp32":
        return "F32"
    blocks = kind in ("q8_0", "q4_0")
    return kind.upper() if not blocks or shape[-1] % BLOCK == 0 else "BF16"


def _library() -> Any:
    try:
        import gguf
    except ImportError:
        raise ValueError("--format gguf needs the gguf package: pip install 'isoflop[gguf]'") from None
    return gguf
