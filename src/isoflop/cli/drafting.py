"""--draft: who guesses for the model (isoflop.engine.speculate)."""

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from isoflop.engine.engine import Engine
    from isoflop.engine.opening import Opened
    from isoflop.engine.speculate import Drafter

DRAFTS = 4
ROW_COST = 0.1  # of a further token in a pass, in passes over one: measured, benchmarks/speculate.py
EXIT = re.compile(r"early-exit(?::(\d+))?")
VALID = "a CKPT, ngram, early-exit, early-exit:LAYERS"


def add_drafts(parser: argparse.ArgumentParser) -> None:
    """Speculative decoding."""
    group = parser.add_argument_group("drafts", "guesses that the model judges several at a time; the text is its own")
    group.add_argument(
        "--draft",
        metavar="D",
        help="a small CKPT with the same tokenizer, ngram, early-exit (the one that was trained), early-exit:LAYERS",
    )
    group.add_argument("--drafts", type=int, default=DRAFTS, metavar="K", help=f"at a time, at most (default {DRAFTS})")


def draft_for(engine: "Engine", opened: "Opened", args: argparse.Namespace) -> None:
    """Let the drafter that was asked for guess, if any was. Raises ValueError."""
    if args.draft is not None:
        engine.draft_with(_drafter(engine, opened, args))


def _drafter(engine: "Engine", opened: "Opened", args: argparse.Namespace) -> "Drafter":
    from isoflop.engine.draft_exit import early_exit
    from isoflop.engine.ngram import NgramDrafter

    if args.draft == "ngram":
        return NgramDrafter()
    exit_after = EXIT.fullmatch(args.draft)
    if exit_after is not None:
        return early_exit(engine, int(exit_after[1] or _trained(opened)))
    return _small_model(engine, opened, args)


def _trained(opened: "Opened") -> int:
    """After how many layers the head was trained to read too."""
    from isoflop.weights.checkpoint import Checkpoint, is_checkpoint

    after = Checkpoint(opened.folder).record.exit_after if is_checkpoint(opened.folder) else 0
    if not after:
        n = opened.model.decoder.n_layers - 1
        raise ValueError(f"--draft early-exit: the model was trained with none; valid: early-exit:1 to early-exit:{n}")
    return after


def _small_model(engine: "Engine", opened: "Opened", args: argparse.Namespace) -> "Drafter":
    from isoflop.engine.draft_model import draft_model
    from isoflop.engine.opening import open_checkpoint

    path = Path(args.draft)
    if not path.exists():
        raise ValueError(f"--draft {args.draft}: no such checkpoint; valid: {VALID}")
    draft = open_checkpoint(path, args.dtype, args.device)
    if draft.vocabulary.pieces != opened.vocabulary.pieces:
        raise ValueError(
            f"--draft {args.draft}: its tokenizer ({len(draft.vocabulary.pieces)} tokens) is not that of {args.model} "
            f"({len(opened.vocabulary.pieces)} tokens); they must be the same"
        )
    return draft_model(engine, draft.model)
