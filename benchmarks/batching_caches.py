"""What the caches of benchmarks/batching.py are worth: PART THREADS ROUNDS.

prefix    time to the first token where 1,000 tokens of the prompt were seen before
room      sequences at once in the memory that a reservation of the longest context would give to four
contexts  time and memory of a decoded token far into a text, beside what the cost model says
"""

import statistics
import sys
import time

import torch

from batching_load import CONTEXT, requests
from inference import bandwidth_of
from inference_ours import FORMATS, build
from inference_shape import D_FF, D_HEAD, D_MODEL, HEADS, KV_HEADS, LAYERS, VOCAB
from isoflop.architecture import Attention, Decoder, Layer, Mamba2, Mixer, Mlp
from isoflop.cost.cache import cache
from isoflop.cost.serving import Demand, serving_estimate
from isoflop.engine.engine import Engine, Options
from isoflop.engine.request import Request
from isoflop.engine.sampling import Sampling
from isoflop.hardware import Accelerator
from isoflop.model import DecoderModel
from isoflop.model.quantized import quantize_linears
from timing import clock_of, matmul_peak

PREFIX, OWN = 1000, 16
CONTEXTS, STEPS = (2**10, 2**12, 2**14, 2**16), 16
FAMILIES = "dense", "hybrid", "mamba-2"


def build_family(family: str, max_context: int) -> DecoderModel:
    """int8, as wide and deep as inference.py's; a hybrid has attention in every fourth layer."""
    attention: Mixer = Attention(n_heads=HEADS, n_kv_heads=KV_HEADS, d_head=D_HEAD)
    recurrent: Mixer = Mamba2(n_heads=2 * HEADS, d_head=D_HEAD, d_state=64)
    mixers = {"dense": [attention], "hybrid": [recurrent] * 3 + [attention], "mamba-2": [recurrent]}[family]
    layers = tuple(Layer(mixer=mixers[i % len(mixers)], feed_forward=Mlp(d_ff=D_FF)) for i in range(LAYERS))
    decoder = Decoder(vocab_size=VOCAB, d_model=D_MODEL, layers=layers, max_context=max_context, tie_embeddings=False)
    torch.manual_seed(0)
    model = DecoderModel(decoder).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.normal_(0, 0.02) if parameter.dim() > 1 else parameter.fill_(1)
    quantize_linears(model, FORMATS["int8"])
    return model


def greedy(n_tokens: int) -> Sampling:
    return Sampling(temperature=0.0, max_tokens=n_tokens, ignore_eos=True)


def prefix(rounds: int) -> None:
    print(f"\ntime to the first token, {PREFIX} of {PREFIX + OWN} tokens seen before (two requests before it), ms")
    print(f"{'':12}{'nothing shared':>16}{'shared':>16}{'times':>16}")
    for family in ("dense", "hybrid"):
        model = build_family(family, 2048)
        engines = [Engine(model, Options(reuse=reuse, memory=2**28, most_running=8)) for reuse in (False, True)]
        took: list[list[float]] = [[], []]
        for turn in range(rounds + 3):
            for engine, seconds in zip(engines, took, strict=True):
                seconds.append(_first(engine, turn))
        plain, shared = (statistics.median(seconds[2:]) * 1e3 for seconds in took)
        print(f"{family:12}{plain:>16.1f}{shared:>16.1f}{plain / shared:>16.1f}")
        burst = [_burst(model, reuse) for reuse in (False, True)]
        print(f"{'':12}{burst[0] * 1e3:>16.1f}{burst[1] * 1e3:>16.1f}{burst[0] / burst[1]:>16.1f}", end="")
        print("   the last of eight that come at once, nothing seen before")


def _prompt(own: int) -> tuple[int, ...]:
    return (*range(PREFIX), *range(2000 + OWN * own, 2000 + OWN * (own + 1)))


def _first(engine: Engine, turn: int) -> float:
    start = time.perf_counter()
    engine.submit(Request("", _prompt(turn), greedy(1)))
    while engine.has_work:
        engine.step()
    return time.perf_counter() - start


def _burst(model: DecoderModel, reuse: bool) -> float:
    engine = Engine(model, Options(reuse=reuse, memory=2**28, most_running=8))
    start = time.perf_counter()
    for i in range(8):
        engine.submit(Request(str(i), _prompt(i), greedy(1)))
    while engine.has_work:
        engine.step()
    return time.perf_counter() - start


def room(rounds: int) -> None:
    """The same requests in the same memory: as many at once as whole contexts fit, or as many as pages fit."""
    model, _ = build("int8")
    asks = requests()
    longest = max(len(ask.prompt) + ask.n_new for ask in asks)
    memory = 4 * cache(model.decoder, CONTEXT, "fp32").bytes_at_context
    print(f"\nmemory of {memory / 2**20:.0f} MiB, all requests waiting at the start")
    print(f"{'':44}{'at once':>12}{'s':>12}")
    for name, reserved in (("pages", None), ("contexts", CONTEXT), ("the longest request's length", longest)):
        most = 64 if reserved is None else memory // cache(model.decoder, reserved, "fp32").bytes_at_context
        engine = Engine(model, Options(reuse=False, dtype="fp32", memory=memory, most_running=most))
        took, peak = [], 0
        for _ in range(rounds):
            start = time.perf_counter()
            for i, ask in enumerate(asks):
                engine.submit(Request(str(i), ask.prompt, greedy(ask.n_new)))
            while engine.has_work:
                engine.step()
                peak = max(peak, engine.stats.running)
            took.append(time.perf_counter() - start)
        label = name if reserved is None else f"reserved: {name}, {reserved} tokens"
        print(f"{label:44}{peak:>12}{min(took):>12.2f}")


def contexts(rounds: int) -> None:
    """The caches are filled by hand: what stands in them does not matter to time."""
    here = _this_machine()
    print("\na decoded token far into a text, int8 weights, bf16 cache: ms (MiB held, MiB by the cost model)")
    print(
        f"of this machine, {here.bandwidth / 1e9:.1f} GB/s and {here.peak('bf16') / 1e9:.0f} GFLOP/s, the cost model",
        end="",
    )
    print(" expects: ms, its interval, whether the measured ms lie within")
    print(f"{'':12}" + "".join(f"{context // 1024:>23}k" for context in CONTEXTS))
    for family in FAMILIES:
        model = build_family(family, CONTEXTS[-1] + 1024)
        weights = sum(t.nbytes for name, t in model.named_buffers() if name.startswith(("layers", "head")))
        costs = [cache(model.decoder, context, "bf16", "fp32").bytes_at_context for context in CONTEXTS]
        measured = [_token(model, context, rounds) for context in CONTEXTS]
        held = [
            f"{ms:.2f} ({n / 2**20:.2f}, {cost / 2**20:.2f})" for (ms, n), cost in zip(measured, costs, strict=True)
        ]
        expected = [_expected(model, here, context, ms) for context, (ms, _) in zip(CONTEXTS, measured, strict=True)]
        grown = [
            f"{ms / measured[0][0]:.2f} ({(weights + cost) / (weights + costs[0]):.2f})"
            for (ms, _), cost in zip(measured, costs, strict=True)
        ]
        for name, cells in ((family, held), ("  expected", expected), ("  times 1k", grown)):
            print(f"{name:12}" + "".join(f"{cell:>24}" for cell in cells))
    print("times 1k: measured (bytes read)")


def _this_machine() -> Accelerator:
    """As `isoflop calibrate` would tell of it, but by what our own kernel reads at best, with these threads."""
    threads = torch.get_num_threads()
    return Accelerator(
        name="this",
        vendor="",
        tflops={"bf16": matmul_peak(clock_of(threads)) / 1e12},
        memory_gb=1e3,
        bandwidth_tb_s=bandwidth_of(threads) / 1e12,
        link_gb_s=1.0,
        source="measured",
        date="",
    )


def _expected(model: DecoderModel, here: Accelerator, context: int, ms: float) -> str:
    """The cost model keeps tables in half precision: here the head is int8, 25 MB less of 126."""
    said = serving_estimate(model.decoder, here, Demand(prompt=context, output=1, batch=1, weights="int8")).decode_s
    assert said.low is not None and said.high is not None
    within = "yes" if said.low * 1e3 <= ms <= said.high * 1e3 else "sooner" if ms < said.low * 1e3 else "later"
    return f"{said.value * 1e3:.1f}, {said.low * 1e3:.1f} to {said.high * 1e3:.1f}: {within}"


def _token(model: DecoderModel, context: int, rounds: int) -> tuple[float, int]:
    """The least ms of a step after `context` tokens, of the processor where there is one thread; and the bytes held."""
    needed = cache(model.decoder, context + 1024, "bf16", "fp32").bytes_at_context
    engine = Engine(model, Options(reuse=False, dtype="bf16", memory=needed + 2**20, most_running=1, typical=context))
    n_steps = STEPS * (rounds + 1)
    engine.submit(Request("", tuple(i % VOCAB for i in range(context)), greedy(n_steps)))
    with torch.inference_mode():
        _fill(engine, context - 1)
    groups = zip(engine.plan.groups, engine.holdings.pages, strict=True)
    held = sum(group.page_bytes * pool.n_held for group, pool in groups) + engine.plan.slot_bytes
    clock, least = clock_of(torch.get_num_threads()), float("inf")
    for _ in range(n_steps - 1):
        start = clock()
        engine.step()
        least = min(least, clock() - start)
    return least * 1e3, held


def _fill(engine: Engine, n_tokens: int) -> None:
    """Let the caches know the first request's tokens without having computed them."""
    for layer in engine.memory.layers:
        for store in getattr(layer, "stores", ()):
            for tensor in vars(store).values():
                if isinstance(tensor, torch.Tensor):
                    tensor.fill_(0.01)
    sequence = engine.scheduler.waiting.pop()
    engine.holdings.enter(sequence, 0)
    assert engine.holdings.reserve(sequence, n_tokens)
    engine.scheduler.start(sequence)
    engine.memory.obey(engine.holdings.orders)
    engine.holdings.settle(sequence, n_tokens)


def main() -> None:
    part, threads, rounds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(threads)
    {"prefix": prefix, "room": room, "contexts": contexts}[part](rounds)


if __name__ == "__main__":
    main()
