"""Measure the device at hand for a minute, so that `isoflop cost ARCH --hardware this` and studies know its speed.

isoflop calibrate
isoflop calibrate --device cuda --json
isoflop calibrate --learn studies/quickstart      # finished runs move what the last calibration believes

The result is a JSON file in your configuration folder (or --out), in which every measurement is kept.
"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from isoflop.cost.this_device import Calibration


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: cuda if there is one"
    )
    parser.add_argument(
        "--threads", type=int, default=1, metavar="N", help="of a CPU; a study's runs take one (default)"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="in place of the file in your configuration folder")
    parser.add_argument(
        "--learn", type=Path, metavar="STUDY", help="measure nothing: learn from a study's finished runs"
    )
    parser.add_argument("--json", action="store_true", help="print the document instead of a table")


def run(args: argparse.Namespace) -> int:
    """Measure or learn, write, print. Returns the exit code."""
    import msgspec

    from isoflop.atomic import write_atomically
    from isoflop.cost.this_device import calibration_path

    path = args.out or calibration_path()
    found = _measured(args) if args.learn is None else _learned(args.learn, path)
    path.parent.mkdir(parents=True, exist_ok=True)
    document = msgspec.json.format(msgspec.json.encode(found), indent=2)
    write_atomically(path, document)
    if args.json:
        sys.stdout.write(document.decode() + "\n")
    else:
        _print(found, path)
    return 0


def _measured(args: argparse.Namespace) -> "Calibration":
    if args.threads < 1:
        raise ValueError(f"--threads {args.threads} must be at least 1")
    try:
        import torch

        from isoflop.calibrate import calibrate
    except ModuleNotFoundError as error:
        raise ValueError(f"calibrating needs {error.name}: pip install 'isoflop[train]'") from None
    device = args.device if args.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    return calibrate(device, args.threads, lambda text: print(f"measuring: {text}", file=sys.stderr))


def _learned(study: Path, path: Path) -> "Calibration":
    from isoflop.cost.this_device import read_calibration
    from isoflop.ladder.timing import learned

    found, used = learned(read_calibration(path), study)
    if not used:
        raise ValueError(f"{study}: no finished run trained as the calibration did (device, precision, threads, eager)")
    print(f"learned from {used} finished runs", file=sys.stderr)
    return found


def _print(found: "Calibration", path: Path) -> None:
    from rich.console import Console

    from isoflop.cli.tables import new_table

    table = new_table(found.hardware.name, "measured", last="right")
    for name, value in found.measurements.items():
        table.add_row(name, f"{value:.4g}")
    for name, share in found.belief.efficiency._asdict().items():
        table.add_row(f"efficiency: {name}", f"{share:.3g}")
    Console(highlight=False, markup=False).print(table)
    precision = next(iter(found.hardware.tflops))
    print(f"written to {path}; `isoflop cost ARCH --hardware this --precision {precision}` uses it")
