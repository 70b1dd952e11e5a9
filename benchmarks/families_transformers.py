"""transformers as a side of benchmarks/families.py: its own model of the same shape, in fp32, with its own cache.

python families_transformers.py THREADS FAMILY [EXPERTS]; EXPERTS: which implementation of experts, if one is wanted.
"""

import sys
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from families_shape import FAMILIES
from inference_shape import PROMPT, TOKENS, Watch, serve
from isoflop.architecture.hugging_face import nearest


class Theirs:
    def __init__(self, family: str, experts: str | None) -> None:
        model_type, keys = nearest(FAMILIES[family])
        config = AutoConfig.for_model(**keys | {"model_type": model_type})
        chosen = {"experts_implementation": experts} if experts else {}
        self.model = AutoModelForCausalLM.from_config(config, **chosen).eval()

    def decode(self, batch: int) -> float:
        tokens = torch.stack([torch.arange(100 + i, 100 + i + PROMPT) for i in range(batch)])
        with torch.inference_mode():
            last, cache = self._tokens(tokens, None)
            with Watch() as watch:
                for _ in range(TOKENS):
                    last, cache = self._tokens(last, cache)
        return watch.seconds

    def prefill(self, n_tokens: int) -> float:
        with torch.inference_mode(), Watch() as watch:
            self._tokens(torch.arange(100, 100 + n_tokens)[None], None)
        return watch.seconds

    def _tokens(self, tokens: torch.Tensor, cache: Any) -> tuple[torch.Tensor, Any]:
        """What is said next, and the cache, by whichever name the family calls it."""
        name = "cache_params" if self.model.config.model_type == "mamba2" else "past_key_values"
        out = self.model(tokens, use_cache=True, logits_to_keep=1, **{name: cache})
        return out.logits[:, -1:].argmax(-1), getattr(out, name)


def main() -> None:
    torch.set_num_threads(int(sys.argv[1]))
    theirs = Theirs(sys.argv[2], next(iter(sys.argv[3:]), None))
    serve(4, theirs.decode, theirs.prefill)


if __name__ == "__main__":
    main()
