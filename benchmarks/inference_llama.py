"""llama.cpp as a side of benchmarks/inference.py: a GGUF file of random weights, decoded greedily."""

import sys
from pathlib import Path

import gguf
import llama_cpp as ll
import numpy as np

from inference_shape import (
    CONTEXT,
    D_FF,
    D_HEAD,
    D_MODEL,
    HEADS,
    KV_HEADS,
    LAYERS,
    PROMPT,
    TOKENS,
    VOCAB,
    Watch,
    serve,
)

TYPES = {
    "q4_0": gguf.GGMLQuantizationType.Q4_0,
    "q8_0": gguf.GGMLQuantizationType.Q8_0,
    "bf16": gguf.GGMLQuantizationType.BF16,
    "f32": gguf.GGMLQuantizationType.F32,
}


def write(path: Path, kind: gguf.GGMLQuantizationType) -> float:
    """The file; returns the bytes of the matrices of a step."""
    writer, rng = gguf.GGUFWriter(path, "llama"), np.random.default_rng(0)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(D_MODEL)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(D_FF)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(D_HEAD)
    writer.add_vocab_size(VOCAB)
    writer.add_tokenizer_model("no_vocab")
    total = 0

    def matrix(name: str, rows: int, columns: int) -> int:
        data = gguf.quants.quantize(rng.normal(0, 0.02, (rows, columns)).astype(np.float32), kind)
        writer.add_tensor(name, data, raw_dtype=kind)
        return data.nbytes

    matrix("token_embd.weight", VOCAB, D_MODEL)
    for i in range(LAYERS):
        for norm in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{i}.{norm}.weight", np.ones(D_MODEL, np.float32))
        total += matrix(f"blk.{i}.attn_q.weight", HEADS * D_HEAD, D_MODEL)
        total += matrix(f"blk.{i}.attn_k.weight", KV_HEADS * D_HEAD, D_MODEL)
        total += matrix(f"blk.{i}.attn_v.weight", KV_HEADS * D_HEAD, D_MODEL)
        total += matrix(f"blk.{i}.attn_output.weight", D_MODEL, HEADS * D_HEAD)
        total += matrix(f"blk.{i}.ffn_gate.weight", D_FF, D_MODEL)
        total += matrix(f"blk.{i}.ffn_up.weight", D_FF, D_MODEL)
        total += matrix(f"blk.{i}.ffn_down.weight", D_MODEL, D_FF)
    writer.add_tensor("output_norm.weight", np.ones(D_MODEL, np.float32))
    total += matrix("output.weight", VOCAB, D_MODEL)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return total


class Llama:
    def __init__(self, path: Path, threads: int) -> None:
        ll.llama_backend_init()
        quiet = ll.llama_log_callback(lambda level, text, data: None)
        ll.llama_log_set(quiet, None)
        self.quiet = quiet
        self.model = ll.llama_model_load_from_file(str(path).encode(), ll.llama_model_default_params())
        options = ll.llama_context_default_params()
        options.n_ctx, options.n_batch, options.n_ubatch, options.n_seq_max = 8 * CONTEXT, 512, 512, 8
        options.n_threads = options.n_threads_batch = threads
        self.context = ll.llama_init_from_model(self.model, options)
        self.batch = ll.llama_batch_init(512, 0, 1)

    def step(self, tokens: list[tuple[int, int, int]], wanted: bool | None = True) -> None:
        """Tokens, positions and sequences; logits of all, or (None) of the last."""
        self.batch.n_tokens = len(tokens)
        for i, (token, position, sequence) in enumerate(tokens):
            self.batch.token[i], self.batch.pos[i] = token, position
            self.batch.n_seq_id[i], self.batch.seq_id[i][0] = 1, sequence
            self.batch.logits[i] = 1 if wanted else i == len(tokens) - 1
        assert ll.llama_decode(self.context, self.batch) == 0
        ll.llama_synchronize(self.context)

    def best(self, i: int) -> int:
        return int(np.ctypeslib.as_array(ll.llama_get_logits_ith(self.context, i), (VOCAB,)).argmax())

    def decode(self, batch: int) -> float:
        ll.llama_memory_clear(ll.llama_get_memory(self.context), True)
        for sequence in range(batch):
            self.step([(100 + sequence + i, i, sequence) for i in range(PROMPT)], None)
        last = [5 + sequence for sequence in range(batch)]
        with Watch() as watch:
            for n in range(TOKENS):
                self.step([(token, PROMPT + n, sequence) for sequence, token in enumerate(last)])
                last = [self.best(i) for i in range(batch)]
        return watch.seconds

    def prefill(self, n_tokens: int) -> float:
        ll.llama_memory_clear(ll.llama_get_memory(self.context), True)
        with Watch() as watch:
            self.step([(100 + i, i, 0) for i in range(n_tokens)], None)
            self.best(n_tokens - 1)
        return watch.seconds


def main() -> None:
    threads, kind, folder = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    path, size = folder / f"{kind}.gguf", folder / f"{kind}.bytes"
    if not path.exists():
        size.write_text(str(write(path, TYPES[kind])))
    llama = Llama(path, threads)
    serve(float(size.read_text()), llama.decode, llama.prefill)


if __name__ == "__main__":
    main()
