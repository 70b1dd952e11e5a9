"""transformers as a side of benchmarks/inference.py: a static cache, compiled or not."""

import sys

import torch
from transformers import LlamaConfig, LlamaForCausalLM, StaticCache

from inference_shape import CONTEXT, D_FF, D_HEAD, D_MODEL, HEADS, KV_HEADS, LAYERS, PROMPT, TOKENS, VOCAB, Watch, serve

CONFIG = LlamaConfig(
    vocab_size=VOCAB,
    hidden_size=D_MODEL,
    intermediate_size=D_FF,
    num_hidden_layers=LAYERS,
    num_attention_heads=HEADS,
    num_key_value_heads=KV_HEADS,
    head_dim=D_HEAD,
    max_position_embeddings=CONTEXT,
    tie_word_embeddings=False,
)


class Theirs:
    def __init__(self, dtype: torch.dtype, compiled: bool) -> None:
        self.model = LlamaForCausalLM(CONFIG).to(dtype).eval()
        self.step = torch.compile(self.model, dynamic=False) if compiled else self.model

    def decode(self, batch: int) -> float:
        cache = StaticCache(CONFIG, max_cache_len=PROMPT + TOKENS)
        tokens = torch.arange(100, 100 + PROMPT).repeat(batch, 1)
        with torch.inference_mode():
            self._tokens(self.model, tokens, cache, 0)
            last = tokens[:, :1]
            with Watch() as watch:
                for n in range(TOKENS):
                    last = self._tokens(self.step, last, cache, PROMPT + n)
        return watch.seconds

    def prefill(self, n_tokens: int) -> float:
        cache = StaticCache(CONFIG, max_cache_len=n_tokens)
        with torch.inference_mode(), Watch() as watch:
            self._tokens(self.model, torch.arange(100, 100 + n_tokens)[None], cache, 0)
        return watch.seconds

    def _tokens(self, model: object, tokens: torch.Tensor, cache: StaticCache, start: int) -> torch.Tensor:
        positions = torch.arange(start, start + tokens.shape[1])[None]
        out = model(tokens, past_key_values=cache, position_ids=positions, logits_to_keep=1)  # type: ignore[operator]
        return out.logits[:, -1:].argmax(-1)


def main() -> None:
    torch.set_num_threads(int(sys.argv[1]))
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[sys.argv[2]]
    theirs = Theirs(dtype, "compile" in sys.argv)
    nbytes = sum(p.nbytes for name, p in theirs.model.named_parameters() if "embed" not in name)
    serve(nbytes, theirs.decode, theirs.prefill)


if __name__ == "__main__":
    main()
