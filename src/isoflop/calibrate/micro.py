"""Single kernels on a device: rates of products by shape, bandwidth, attention, the optimizer, launching.

Each is repeated for a share of a second and the fastest repetition counts: what else runs on the machine only slows. On
one thread of a CPU the clock is that of the processor, which stands still while other work has it.
"""

import time
from collections.abc import Callable

import torch
from torch import Tensor

# rows, inner width, columns: squares, and the shapes of a training step of small models
PRODUCTS = ((256, 256, 256), (512, 512, 512), (1024, 1024, 1024), (2048, 2048, 2048), (4096, 4096, 4096))
NARROW = ((512, 96, 256), (2048, 256, 1024), (2048, 1024, 256), (512, 64, 256))
LARGEST_ON_CPU = 2048
BEST_OF_S = 0.6
OPTIMIZED = 4_000_000
LAUNCHES = 500


def best_seconds(run: Callable[[], object], device: torch.device, budget_s: float = BEST_OF_S) -> float:
    """The least seconds that one call took, of as many as a budget allows; two at least."""
    run()
    clock = time.process_time if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    best, began, calls = float("inf"), time.perf_counter(), 0
    while calls < 2 or time.perf_counter() - began < budget_s:
        _wait(device)
        started = clock()
        run()
        _wait(device)
        best, calls = min(best, clock() - started), calls + 1
    return best


def product_rates(device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """FLOP/s of products, by shape."""
    rates = {}
    for rows, inner, columns in (*PRODUCTS, *NARROW):
        if device.type == "cpu" and rows > LARGEST_ON_CPU:
            continue
        a, b = (torch.randn(shape, device=device, dtype=dtype) for shape in ((rows, inner), (inner, columns)))
        seconds = best_seconds(lambda a=a, b=b: a @ b, device)  # type: ignore[misc]
        rates[f"product {rows}x{inner}x{columns}, FLOP/s"] = 2.0 * rows * inner * columns / seconds
    return rates


def bandwidth(device: torch.device) -> float:
    """Bytes a second that a copy of a large tensor reads and writes."""
    n = 2**24 if device.type == "cpu" else 2**28
    source = torch.ones(n, device=device)
    target = torch.empty_like(source)
    return 2.0 * int(source.nbytes) / best_seconds(lambda: target.copy_(source), device)


def attention_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Causal FLOP/s of attention, forward and backward."""
    batch, heads, length, width = (2, 8, 512, 64) if device.type == "cpu" else (4, 32, 4096, 128)
    q, k, v = (torch.randn(batch, heads, length, width, device=device, dtype=dtype, requires_grad=True) for _ in "qkv")

    def run() -> None:
        torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True).sum().backward()

    forward = 4.0 * width * batch * heads * length * (length + 1) / 2
    return 3.5 * forward / best_seconds(run, device)


def optimizer_bytes_a_second(device: torch.device, bytes_a_parameter: int) -> float:
    """At so many bytes a parameter, those that a step of AdamW moves."""
    parameters = [torch.nn.Parameter(torch.randn(OPTIMIZED // 4, device=device)) for _ in range(4)]
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, fused=True)
    return bytes_a_parameter * OPTIMIZED / best_seconds(optimizer.step, device)


def launch_seconds(device: torch.device) -> float:
    """Of one operation on almost nothing."""
    x = torch.ones(8, device=device)

    def run() -> Tensor:
        for _ in range(LAUNCHES):
            x.add_(1.0)
        return x

    return best_seconds(run, device) / LAUNCHES


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
