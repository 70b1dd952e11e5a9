"""What quantize and extend have in common: a trained model in, text to judge it on, another model out, in a folder."""

import argparse
import math
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

if TYPE_CHECKING:
    from isoflop.data.dataset import Dataset
    from isoflop.evaluate.extension import Watch
    from isoflop.model import DecoderModel
    from isoflop.train.extend import FineTuning

EXIT_NO = 1
BATCH_TOKENS = 8192
Answer = TypeVar("Answer")


class Trained(NamedTuple):
    """The model as it is, and the folder of its weights."""

    model: "DecoderModel"
    source: Path


def add_model(parser: argparse.ArgumentParser) -> None:
    """The arguments of what comes in and goes out."""
    parser.add_argument("model", type=Path, metavar="CKPT", help="the trained model: a folder of isoflop.load")
    parser.add_argument("out", type=Path, metavar="OUT", help="the folder to write; nothing may be there")


def add_text(parser: argparse.ArgumentParser, eval_tokens: int) -> None:
    """The arguments of the text that is read."""
    said = "text (a file or folder), a study or a prepared folder (default: CKPT's study's, or Python's library)"
    parser.add_argument("--data", metavar="TEXT", help=said)
    parser.add_argument("--text-key", metavar="K", help="key or column of that text, where it has any (default text)")
    told = f"held-out tokens read ({eval_tokens})"
    parser.add_argument("--eval-tokens", type=int, default=eval_tokens, metavar="E", help=told)


def add_training(parser: argparse.ArgumentParser, what: str) -> None:
    """The arguments of training."""
    parser.add_argument("--steps", type=int, default=0, metavar="K", help=f"steps of {what} (default 0)")
    parser.add_argument("--batch", type=int, metavar="B", help=f"sequences a step (default {BATCH_TOKENS} tokens)")
    parser.add_argument("--lr", type=float, metavar="LR", help="peak learning rate (default 0.08 / d_model)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the order of the text (default 0)")


def require_methods(names: Sequence[str], known: Sequence[str]) -> tuple[str, ...]:
    """Each method once. Raises ValueError where one is unknown."""
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"--method {unknown[0]} is unknown; valid: {', '.join(known)}")
    return tuple(dict.fromkeys(names))


def require_at_least(args: argparse.Namespace, lowest: Mapping[str, int]) -> None:
    """Raises ValueError for a number below its lowest."""
    for name, least in lowest.items():
        value = getattr(args, name)
        if value is not None and value < least:
            raise ValueError(f"--{name.replace('_', '-')} {value} must be at least {least}")


def require_positive(args: argparse.Namespace, *names: str) -> None:
    """Raises ValueError for what is said and no finite number above 0."""
    for name in names:
        value = getattr(args, name)
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"--{name.replace('_', '-')} {value} must be a finite number above 0")


def open_trained(args: argparse.Namespace) -> Trained:
    """The model in fp32. Raises ValueError, also where something lies at OUT already."""
    import torch

    from isoflop.weights.load import find_weights, load
    from isoflop.weights.writer import refuse_existing

    refuse_existing(args.out)
    source = find_weights(args.model)
    return Trained(load(source, torch.float32), source)


def remade(
    verb: str,
    args: argparse.Namespace,
    trained: Trained,
    context: int,
    work: Callable[["Dataset", dict[str, str], "Watch"], Answer],
) -> Answer | None:
    """What the work makes of the text and its watch; None, and a line, where training diverged. Raises ValueError."""
    from isoflop.cli.extend_text import watch
    from isoflop.evaluate.text import find_dataset
    from isoflop.ladder.run import environment
    from isoflop.train.extend import Diverged

    vocab_size = trained.model.decoder.vocab_size
    with watch(quiet=args.json) as told, tempfile.TemporaryDirectory() as scratch:
        tell = told.stage("reading the text")
        dataset = find_dataset(
            args.data,
            trained.source,
            vocab_size,
            context,
            Path(scratch),
            lambda _, done, total: tell(done, total),
            args.text_key,
        )
        try:
            return work(dataset, environment(), told)
        except Diverged as error:
            print(f"isoflop {verb}: training diverged: {error}", file=sys.stderr)
            return None


def fine_tuning(args: argparse.Namespace, model: "DecoderModel", context: int) -> "FineTuning | None":
    """What training was asked for, if any."""
    from isoflop.train.extend import FineTuning, default_lr

    if args.steps == 0:
        return None
    batch = args.batch or max(1, BATCH_TOKENS // context)
    return FineTuning(args.steps, batch, args.lr or default_lr(model.decoder), args.seed)


def command(verb: str, args: argparse.Namespace) -> list[str]:
    """The command line that asks the same again."""
    words = ["isoflop", verb, str(args.model), str(args.out)]
    for name, value in vars(args).items():
        if name in ("model", "out", "json", "traceback") or value is None or value is False:
            continue
        for one in _listed(value):
            words += [f"--{name.replace('_', '-')}"] + ([] if one is True else [str(one)])
    return words


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
