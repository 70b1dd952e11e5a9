"""A checkpoint of ours as a Hugging Face model (config.json, safetensors, tokenizer files), or as one GGUF file.

isoflop export my-llama path/to/llama
isoflop export studies/quickstart path/to/model
isoflop export my-llama my-llama.gguf --format gguf --dtype q8_0

CKPT is a checkpoint, or a study with one finished target. The family is the one of transformers that computes exactly
the same function; where none does, the answer says what the nearest lacks. vLLM reads such a folder; llama.cpp reads
GGUF, of llama, mistral (without windows), mixtral, qwen2, qwen3, qwen3_moe and mamba. OUT appears whole or not at all.
Memory: the two largest tensors.
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
    parser.add_argument("out", metavar="OUT", help="the folder or file to write; nothing may be there")
    parser.add_argument("--format", choices=("hf", "gguf"), default="hf", help="Hugging Face (default), or GGUF")
    parser.add_argument("--dtype", metavar="T", help="of GGUF's matrices: fp32, bf16 (default), q8_0, q4_0")
    parser.add_argument("--no-tokenizer", action="store_true", help="leave the tokenizer out of a GGUF file")
    parser.add_argument("--json", action="store_true", help="print the document instead of a line")


def run(args: argparse.Namespace) -> int:
    """Export and print. Returns the exit code."""
    if args.format == "gguf":
        return _run_gguf(args)
    if args.dtype is not None or args.no_tokenizer:
        raise ValueError("--dtype and --no-tokenizer are of --format gguf")
    from isoflop.cli.transfer import progress
    from isoflop.weights.hugging_face import export_folder
    from isoflop.weights.load import find_weights

    model_type = export_folder(find_weights(Path(args.checkpoint)), Path(args.out), progress("export"))
    return _told(args, model_type)


def _run_gguf(args: argparse.Namespace) -> int:
    from isoflop.cli.transfer import progress
    from isoflop.weights.gguf_file import KINDS, export_gguf
    from isoflop.weights.load import find_weights

    kind = next((kind for kind in KINDS if kind == (args.dtype or "bf16")), None)
    if kind is None:
        raise ValueError(f"--dtype {args.dtype} is unknown; valid: {', '.join(KINDS)}")
    source, tell = find_weights(Path(args.checkpoint)), progress("export")
    name = export_gguf(source, Path(args.out), kind, not args.no_tokenizer, tell)
    return _told(args, name)


def _told(args: argparse.Namespace, model_type: str) -> int:
    if args.json:
        document = Exported(args.checkpoint, args.out, model_type)
        print(msgspec.json.format(msgspec.json.encode(document), indent=2).decode())
    else:
        print(f"{args.out}: a {model_type}")
    return 0
