"""A checkpoint of ours as a Hugging Face model: config.json, safetensors, tokenizer files.

isoflop export my-llama path/to/llama
isoflop export studies/quickstart path/to/model

CKPT is a checkpoint, or a study with one finished target. The family is the one of transformers that computes exactly
the same function; where none does, the answer says what the nearest lacks. HF_DIR appears whole or not at all. Memory:
the two largest tensors.
"""

import argparse
from pathlib import Path

import msgspec


class Exported(msgspec.Struct, frozen=True):
    """The JSON document."""

    checkpoint: str
    out: str
    model_type: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    parser.add_argument("checkpoint", metavar="CKPT", help="a checkpoint of ours, or a study")
    parser.add_argument("out", metavar="HF_DIR", help="the folder to write; nothing may be there")
    parser.add_argument("--json", action="store_true", help="print the document instead of a line")


def run(args: argparse.Namespace) -> int:
    """Export and print. Returns the exit code."""
    from isoflop.cli.transfer import progress
    from isoflop.weights.hugging_face import export_folder
    from isoflop.weights.load import find_weights

    model_type = export_folder(find_weights(Path(args.checkpoint)), Path(args.out), progress("export"))
    if args.json:
        document = Exported(args.checkpoint, args.out, model_type)
        print(msgspec.json.format(msgspec.json.encode(document), indent=2).decode())
    else:
        print(f"{args.out}: a {model_type}")
    return 0
