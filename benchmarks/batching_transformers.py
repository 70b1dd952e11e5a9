"""transformers' continuous batching as a side of benchmarks/batching.py: THREADS KIND. `generate_batch` is one length
of output for all; its manager, which this drives, has one for each request."""

import logging
import sys
from typing import Any

from batching_load import Ask, serve


def run(manager: Any, asks: list[Ask], at_once: int) -> dict[str, float]:
    waiting = iter(asks)
    for _, ask in zip(range(at_once), waiting, strict=False):
        manager.add_request(list(ask.prompt), max_new_tokens=ask.n_new)
    for _ in range(len(asks)):
        while (result := manager.get_result(timeout=60)) is None or not result.is_finished():
            assert manager.is_running(), "transformers' thread ended"
        for ask in (x for x in (next(waiting, None),) if x is not None):
            manager.add_request(list(ask.prompt), max_new_tokens=ask.n_new)
    return {}


def main() -> None:
    logging.disable()  # before the import: it tries torchao's libraries for GPUs, and tells of each that it cannot load
    import torch
    from transformers import ContinuousBatchingConfig, GenerationConfig, LlamaForCausalLM

    from inference_transformers import CONFIG

    torch.set_num_threads(int(sys.argv[1]))
    model = LlamaForCausalLM(CONFIG).to({"fp32": torch.float32, "bf16": torch.bfloat16}[sys.argv[2]]).eval()
    # Of pages of 16, 32 and 256 and of eager and fused attention none was faster here by more than 5 %.
    cache = ContinuousBatchingConfig(
        page_size=32, num_blocks=1024, max_batch_tokens=512, use_cuda_graph=False, allow_block_sharing=False
    )
    greedy = GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0)
    with model.continuous_batching_context_manager(greedy, continuous_batching_config=cache, warmup=False) as manager:
        serve(lambda asks, at_once: run(manager, asks, at_once))


if __name__ == "__main__":
    main()
