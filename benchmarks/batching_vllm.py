"""vLLM's build for CPUs as a side of benchmarks/batching.py: THREADS KIND, in an environment of its own. Weights are
vLLM's random ones, prefixes are not shared. torchvision, torchaudio and torchcodec must not be there: those that the
package asks for are built for another torch."""

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from batching_load import CONTEXT, VOCAB, Ask, serve
from inference_shape import D_FF, D_HEAD, D_MODEL, HEADS, KV_HEADS, LAYERS

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": VOCAB,
    "hidden_size": D_MODEL,
    "intermediate_size": D_FF,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "head_dim": D_HEAD,
    "max_position_embeddings": CONTEXT,
    "tie_word_embeddings": False,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
}


def run(engine: Any, asks: list[Ask], at_once: int) -> dict[str, float]:
    from vllm import SamplingParams

    waiting, under_way = iter(enumerate(asks)), 0
    while True:
        for _, (i, ask) in zip(range(at_once - under_way), waiting, strict=False):
            greedy = SamplingParams(temperature=0, max_tokens=ask.n_new, ignore_eos=True, detokenize=False)
            engine.add_request(str(i), {"prompt_token_ids": list(ask.prompt)}, greedy)
            under_way += 1
        if not under_way:
            return {}
        under_way -= sum(output.finished for output in engine.step())


def main() -> None:
    threads, kind = int(sys.argv[1]), {"bf16": "bfloat16", "fp32": "float32"}[sys.argv[2]]
    cores = sorted(os.sched_getaffinity(0))[:threads]
    os.environ |= {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores)),
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "OMP_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
    }
    from vllm import LLM

    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(CONFIG))
        llm = LLM(
            model=folder,
            load_format="dummy",
            dtype=kind,
            skip_tokenizer_init=True,
            max_model_len=CONTEXT,
            enable_prefix_caching=False,
            enforce_eager="eager" in sys.argv,
        )
    serve(lambda asks, at_once: run(llm.llm_engine, asks, at_once))


if __name__ == "__main__":
    main()
