"""Prove, for an architecture, that its closed forms are right: run its modules and count.

isoflop check llama-3.1-8b
isoflop check decoder.toml --json

Parameters, FLOPs in every convention (forward, backward, decoded, by part), cache bytes and saved activations are
counted on the modules themselves, on a device that holds shapes without numbers, so that any size fits; equal layers
run once. A small twin with the same kinds of layers then runs with numbers: cached decoding must agree with the full
forward, no token may see a later one, every parameter must get a gradient. Exits 1 if anything differs.

ARCH is the name of a published model, a TOML file, or a Hugging Face directory or config.json.
"""

import argparse
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from rich.console import Console

    from isoflop.check.certificate import Certificate
    from isoflop.check.line import Line

EXIT_DIFFERENT = 1
MOST_FAILURES = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    parser.add_argument("arch", metavar="ARCH", help="a published model's name, a TOML file, or a Hugging Face model")
    parser.add_argument("--json", action="store_true", help="print the document instead of a table")


def run(args: argparse.Namespace) -> int:
    """Prove and print. Returns the exit code."""
    from isoflop.architecture.find import find_decoder

    decoder = find_decoder(args.arch)
    from isoflop.check.certificate import certify

    certificate = certify(args.arch, decoder)
    if args.json:
        print(msgspec.json.format(msgspec.json.encode(certificate), indent=2).decode())
    else:
        _print(certificate)
    return 0 if certificate.holds else EXIT_DIFFERENT


def _print(certificate: "Certificate") -> None:
    from rich.console import Console

    c, console = certificate, Console(highlight=False)
    kinds = "1 kind" if c.kinds == 1 else f"{c.kinds} kinds"
    console.print(f"{c.architecture}: {c.n_layers} layers of {kinds}, one of each run", soft_wrap=True)
    console.print(f"sequences of {_listed(c.contexts.sequence)} tokens; decoded after {_listed(c.contexts.decode)}")
    console.print(f"FLOPs a token, in training on hardware with every layer recomputed; kernels {c.kernels}")
    console.print("of each check's lines the one with the largest number:\n")
    _print_table(console, c)
    failures = [line for line in c.lines if line.verdict == "fails"]
    for line in failures[:MOST_FAILURES]:
        console.print(f"fails: {_where(line)}: {_number(line.closed_form)} but counted {_number(line.counted)}")
    if len(failures) > MOST_FAILURES:
        console.print(f"and {len(failures) - MOST_FAILURES} more: --json has them all")
    console.print(f"{len(c.lines) - len(failures)} hold, {len(failures)} fail")


def _print_table(console: "Console", certificate: "Certificate") -> None:
    """A row a check: how many lines, and of these the first that fails or else the one with the largest number."""
    from isoflop.cli.tables import new_table

    groups: dict[str, list[Line]] = {}
    for line in certificate.lines:
        groups.setdefault(line.check, []).append(line)
    table = new_table("lines", "check", "closed form", "", "counted", last="right")
    table.columns[1].justify = "left"
    for check, lines in groups.items():
        shown = next((x for x in lines if x.verdict == "fails"), max(lines, key=lambda x: x.closed_form))
        table.add_row(str(len(lines)), check, _number(shown.closed_form), _sign(shown), _number(shown.counted))
    console.print(table)


def _sign(line: "Line") -> str:
    signs = {("equal", "holds"): "=", ("equal", "fails"): "!=", ("at most", "holds"): ">=", ("at most", "fails"): "<"}
    return signs[line.relation, line.verdict]


def _where(line: "Line") -> str:
    return ", ".join(text for text in (line.check, line.part, line.at) if text)


def _number(value: float) -> str:
    """Whole numbers in full as long as they fit."""
    if value == value // 1:
        return f"{value:,.0f}" if abs(value) < 1e13 else f"{value:.10e}"
    return f"{value:.10g}" if value > 1 else f"{value:.1e}"


def _listed(numbers: tuple[int, ...]) -> str:
    return ", ".join(map(str, numbers)) or "none"
