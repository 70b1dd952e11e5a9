"""A pair for benchmarks/speculate.py: a model and a small one of its family, trained on the same text.

    python benchmarks/speculate_pair.py FOLDER [--early-exit LAYERS]

The source of the running Python's standard library as 2048 byte pairs, a twentieth of its files held out. FOLDER gets
the checkpoints `target` (d_model 320, 8 layers, 10.5 M parameters that multiply) and `draft` (128, 2 layers, .7 M), and
`held_out.txt`. About 9 minutes of one thread, 7 of them for the target. Neither is done learning; a pair that is agrees
on more or less, but costs the same. With --early-exit there is a third, `early`: the target once more, whose head
learns to read after so many layers too.
"""

import argparse
import time
from functools import partial
from pathlib import Path

import torch

from isoflop.architecture import Attention, Decoder, Layer, Mlp, Rope
from isoflop.data.dataset import Dataset
from isoflop.data.prepare import prepare
from isoflop.data.spec import BytePair, Data
from isoflop.data.stream import BatchStream, evaluation_batches
from isoflop.data.tokenizer import SEPARATOR
from isoflop.train.optimizer import AdamW
from isoflop.train.recipe import EarlyExit
from isoflop.train.rules import CompleteP
from isoflop.train.schedule import WarmupStableDecay
from isoflop.train.spec import TrainSpec
from isoflop.train.trainer import Trainer
from isoflop.weights.checkpoint import save_model

VOCAB, CONTEXT, BATCH = 2048, 256, 1024  # tokens of a sequence, tokens of a batch
TARGET = (320, 8, 5, 520)
SIZES = {"target": TARGET, "early": TARGET, "draft": (128, 2, 4, 900)}  # d_model, layers, heads, steps
RULE = CompleteP(lr=0.01, batch_tokens=BATCH, base_d_model=32, base_n_layers=2)  # the quickstart's
SCHEDULE = WarmupStableDecay(decay=0.3)


def train(name: str, dataset: Dataset, folder: Path, early_exit: EarlyExit | None = None) -> None:
    """One of them, saved; tells what it reached."""
    d_model, n_layers, n_heads, steps = SIZES[name]
    attention = Attention(n_heads=n_heads, n_kv_heads=n_heads, d_head=d_model // n_heads)
    layer = Layer(attention, Mlp(d_ff=d_model * 8 // 24 * 8))
    plain = Decoder(VOCAB, d_model, (layer,) * n_layers, position=Rope(), max_context=2 * CONTEXT)
    decoder, recipe = RULE.choose(plain, steps * BATCH, CONTEXT)
    spec = TrainSpec(
        decoder=decoder,
        recipe=recipe,
        optimizer=AdamW(),
        grad_clip=1.0,
        dtype="fp32",
        seed=0,
        compile=True,
        early_exit=early_exit,
    )
    trainer = Trainer(spec, "cpu")
    stream, started = BatchStream(dataset.train, CONTEXT, 0), time.monotonic()
    trainer.warm_up_compiler(*stream.batch(0, recipe.batch))
    for step in range(steps):
        decays = step >= SCHEDULE.decay_start(steps)
        warm = SCHEDULE.trunk_factor(step, SCHEDULE.warmup_steps(steps))
        trainer.train_step(
            *stream.batch(step * recipe.batch, recipe.batch), SCHEDULE.decay_factor(step, steps) if decays else warm
        )
        if step % 50 == 49:
            print(f"{name} {step + 1} of {steps}: {trainer.read_loss():.3f} nats a token", flush=True)
    seconds = time.monotonic() - started
    judged = partial(evaluation_batches, dataset.valid, CONTEXT, 4, 2**15)
    reached, early = trainer.evaluate(judged()), trainer.evaluate_exit(judged())
    exits = "" if early is None else f", {early:.3f} read early"
    print(f"{name}: {steps * BATCH} tokens in {seconds:.0f} s, {reached:.3f} nats a held-out token{exits}", flush=True)
    special = {"bos_token_id": SEPARATOR, "eos_token_id": SEPARATOR}
    exit_after = None if early_exit is None else early_exit.after
    save_model(folder / name, trainer.model, "benchmarks/speculate_pair.py", dataset.folder, special, exit_after)


def main() -> None:
    """Make the pair."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--early-exit", type=int, metavar="LAYERS")
    parser.add_argument("--weight", type=float, default=EarlyExit(after=1).weight, help="of the exit's loss")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    dataset = prepare(Data(tokenizer=BytePair(vocab_size=VOCAB)), args.folder / "data")
    (args.folder / "held_out.txt").write_bytes(dataset.tokenizer.decode(dataset.valid[: 2**16]))
    for name in ("draft", "target"):
        train(name, dataset, args.folder)
    if args.early_exit is not None:
        train("early", dataset, args.folder, EarlyExit(after=args.early_exit, weight=args.weight))


if __name__ == "__main__":
    main()
