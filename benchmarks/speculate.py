"""Speculative decoding: acceptance, the speed-up that it predicts, and the one measured, with and without by turns.

    python benchmarks/speculate.py                                             a model made for it, see below
    python benchmarks/speculate.py --target CKPT --draft SMALL --draft ngram   trained ones; prompts from --text FILE

speculate_pair.py trains a pair in about 9 minutes, with text that neither has seen:

    python benchmarks/speculate_pair.py FOLDER --early-exit 1
    python benchmarks/speculate.py --target FOLDER/target --draft FOLDER/draft --draft ngram --draft early-exit:4 \\
        --text FOLDER/held_out.txt --drafts 1 2 3 4 5 6
    python benchmarks/speculate.py --target FOLDER/early --draft early-exit:1 --text FOLDER/held_out.txt --drafts 2 3 4

Without --target: 12 layers, d_model 768, 32k tokens, random weights whose layers after the second change the stream by
a share of what they would. The smaller that share, the more often an early exit is right: acceptance is set, and time
is real. Every row is the best of --repeats over all --prompts.
"""

import argparse
from pathlib import Path

import torch

from inference_shape import CONTEXT, D_FF, D_HEAD, D_MODEL, HEADS, KV_HEADS, LAYERS, VOCAB
from isoflop.architecture import Attention, Decoder, Layer, Mlp, Rope
from isoflop.engine.draft_exit import early_exit
from isoflop.engine.draft_model import draft_model
from isoflop.engine.engine import Engine, Options
from isoflop.engine.gain import Gain, gain
from isoflop.engine.ngram import NgramDrafter
from isoflop.engine.opening import open_checkpoint
from isoflop.engine.request import Request
from isoflop.engine.sampling import Sampling
from isoflop.engine.speculate import Drafter
from isoflop.model import DecoderModel
from isoflop.train.init import initialize
from isoflop.train.recipe import Recipe

EXIT = 2  # layers of the made model that do most of the work
ROOM = 256 << 20


def made(share: float) -> DecoderModel:
    """12 layers, of which those after the second do `share` of what they would."""
    mixer = Attention(n_heads=HEADS, n_kv_heads=KV_HEADS, d_head=D_HEAD)
    layers = tuple(Layer(mixer, Mlp(d_ff=D_FF)) for _ in range(LAYERS))
    model = DecoderModel(Decoder(VOCAB, D_MODEL, layers, position=Rope(), max_context=CONTEXT))
    initialize(model, 1, Recipe(lr=1e-3, batch=1))
    with torch.no_grad():
        model.embedding *= 4 / model.embedding.norm(dim=-1).mean()
        for name, weight in model.named_parameters():
            parts = name.split(".")
            if parts[0] == "layers" and int(parts[1]) >= EXIT and parts[-2] in ("out", "down"):
                weight *= share
    return model


def drafter_of(engine: Engine, name: str) -> Drafter:
    """ngram, early-exit:N, or a checkpoint."""
    if name == "ngram":
        return NgramDrafter()
    if name.startswith("early-exit:"):
        return early_exit(engine, int(name.removeprefix("early-exit:")))
    return draft_model(engine, open_checkpoint(Path(name), None).model)


def decoded(engine: Engine, prompts: list[list[int]], batch: int, sampling: Sampling) -> float:
    """Tokens a second after the prompts, `batch` of them at a time."""
    before = engine.stats
    for begin in range(0, len(prompts), batch):
        for i, prompt in enumerate(prompts[begin : begin + batch]):
            engine.submit(Request(str(i), tuple(prompt), sampling))
        while engine.has_work:
            engine.step()
    after = engine.stats
    return (after.decode_tokens - before.decode_tokens) / (after.decode_s - before.decode_s)


def compare(
    model: DecoderModel,
    name: str,
    prompts: list[list[int]],
    batch: int,
    sampling: Sampling,
    drafts: int,
    args: argparse.Namespace,
) -> tuple[Gain, float]:
    """What the drafts gained by the engine's count, and by whole runs with and without them by turns."""
    row_cost = args.row_cost if args.row_cost >= 0 else None
    options = Options(memory=ROOM, drafts=drafts, row_cost=row_cost, most_running=batch, snapshots=0)
    rates: dict[str, list[float]] = {"with": [], "without": []}
    gains = []
    for _ in range(args.repeats):
        engine = Engine(model, options)
        rates["without"].append(decoded(engine, prompts, batch, sampling))
        engine.close()
        engine = Engine(model, options)
        engine.draft_with(drafter_of(engine, name))
        rates["with"].append(decoded(engine, prompts, batch, sampling))
        gains.append(gain(engine, prompts[:batch]))
        engine.close()
    return gains[rates["with"].index(max(rates["with"]))], max(rates["with"]) / max(rates["without"])


def prompts_of(args: argparse.Namespace, n: int) -> list[list[int]]:
    """Pieces of --text, or random tokens with a piece said twice."""
    if args.target is None:
        draws = torch.randint(VOCAB, (n, 24), generator=torch.Generator().manual_seed(1)).tolist()
        return [draw * 2 for draw in draws]
    vocabulary = open_checkpoint(args.target, None).vocabulary
    tokens = vocabulary.encode(args.text.read_text())
    starts = range(0, len(tokens) - args.prompt, max(1, len(tokens) // n))
    return [tokens[start : start + args.prompt] for start in starts[:n]]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", type=Path)
    parser.add_argument("--draft", action="append", default=[])
    parser.add_argument("--text", type=Path, default=Path(argparse.__file__), help="prompts of trained models")
    parser.add_argument("--prompt", type=int, default=32, help="tokens of each")
    parser.add_argument("--prompts", type=int, default=1, help="batches of them")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--drafts", type=int, nargs="+", default=[4])
    parser.add_argument("--batch", type=int, nargs="+", default=[1])
    parser.add_argument("--temperature", type=float, nargs="+", default=[0.0, 1.0])
    parser.add_argument("--share", type=float, nargs="+", default=[0.0, 0.1, 0.3], help="of the made models")
    parser.add_argument("--row-cost", type=float, default=-1.0, help="fewer guesses where they do not pay (-1: never)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.target is None:
        models = {f"made, {share:g}": made(share) for share in args.share}
    else:
        models = {args.target.name: open_checkpoint(args.target, None).model}
    print("model         drafter        T    k batch  accept tokens/pass  guess  judge predicted  measured")
    for label, model in models.items():
        for name in args.draft or [f"early-exit:{EXIT}", "ngram"]:
            for t, k, n in ((t, k, n) for t in args.temperature for k in args.drafts for n in args.batch):
                sampling = Sampling(temperature=t, max_tokens=args.tokens, seed=1, ignore_eos=True)
                told, measured = compare(model, name, prompts_of(args, n * args.prompts), n, sampling, k, args)
                print(row(label, name, t, k, n, told, measured), flush=True)


def row(label: str, name: str, t: float, k: int, n: int, told: Gain, measured: float) -> str:
    """One line of the table."""
    numbers = (told.acceptance, told.tokens_per_pass, told.draft_cost, told.verify_cost, told.predicted_speed_up)
    a, tokens, guess, judge, predicted = (float("nan") if number is None else number for number in numbers)
    shown = name if len(name) < 15 else Path(name).name[:14]
    start = f"{label[:13]:13} {shown:14} {t:3g} {k:3d} {n:5d} {a:7.2f} {tokens:11.2f}"
    return f"{start} {guess:6.2f} {judge:6.2f} {predicted:9.2f} {measured:9.2f}"


if __name__ == "__main__":
    main()
