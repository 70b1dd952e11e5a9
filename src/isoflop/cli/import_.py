"""A Hugging Face model's weights as a checkpoint of ours, tensor by tensor.

isoflop import path/to/llama my-llama
isoflop import path/to/gemma my-gemma --dtype bf16 --json

HF_DIR holds config.json and safetensors, sharded or not; tokenizer files come along. Nothing in it is executed; links
that leave it are refused. Weights are imported though no tokenizer reads text for them, with a line that says why none
does. OUT appears whole or not at all. Memory: the two largest tensors.
"""

import argparse
import sys
from pathlib import Path

import msgspec

DTYPES = {"fp32": "F32", "bf16": "BF16", "fp16": "F16"}


class Imported(msgspec.Struct, frozen=True):
    """The JSON document; `ignored` are tensors that hold no weights, `digest` that of the architecture,
    `no_text` says why no text can be read with them; null where it can."""

    source: str
    out: str
    model_type: str
    digest: str
    params: int
    dtype: str
    bytes: int
    ignored: list[str]
    no_text: str | None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    parser.add_argument("source", metavar="HF_DIR", help="a folder with config.json and *.safetensors")
    parser.add_argument("out", metavar="OUT", help="the checkpoint to write; nothing may be there")
    parser.add_argument("--dtype", choices=list(DTYPES), help="type of matrices (default: as stored)")
    parser.add_argument("--json", action="store_true", help="print the document instead of a line")


def run(args: argparse.Namespace) -> int:
    """Import and print. Returns the exit code."""
    from isoflop.cli.transfer import progress
    from isoflop.cost import parameters
    from isoflop.weights import folder
    from isoflop.weights.folder import TensorFolder
    from isoflop.weights.hugging_face import import_folder

    dtype = folder.DTYPES[DTYPES[args.dtype]] if args.dtype else None
    theirs = import_folder(Path(args.source), Path(args.out), dtype, progress("import"))
    kept = dtype or theirs.dtype
    document = Imported(
        source=args.source,
        out=args.out,
        model_type=theirs.model_type,
        digest=theirs.decoder.digest,
        params=parameters(theirs.decoder).total,
        dtype=str(kept).removeprefix("torch."),
        bytes=sum(entry.nbytes for entry in TensorFolder(Path(args.out), codes=True).entries.values()),
        ignored=theirs.ignored,
        no_text=_no_text(Path(args.source), theirs.decoder.vocab_size),
    )
    _print(document, args.json)
    if document.no_text is not None:
        told = f"isoflop import: the weights are imported, and no text can be read with them: {document.no_text}"
        print("".join(c if c.isprintable() else ascii(c)[1:-1] for c in told), file=sys.stderr)
    return 0


def _no_text(source: Path, vocab_size: int) -> str | None:
    """Why text cannot become this model's tokens. No reason to refuse the weights: they can be counted, quantized on
    prepared tokens, exported, or served in tokens by who has the right tokenizer, while an import may take an hour."""
    from isoflop.data.tokenizer_file import n_needed, open_tokenizer
    from isoflop.engine.template import open_template
    from isoflop.engine.vocabulary import TOKENIZER, open_vocabulary

    try:
        open_vocabulary(source, vocab_size)
        open_template(source)
        file = source / TOKENIZER
        needed = n_needed(open_tokenizer(file).inner, file) if file.exists() else 0
    except ValueError as error:
        return str(error)
    if needed > vocab_size:
        return f"{file}: has tokens up to number {needed - 1}, and the model only {vocab_size}: it is not this model's"
    return None


def _print(found: Imported, as_json: bool) -> None:
    if as_json:
        print(msgspec.json.format(msgspec.json.encode(found), indent=2).decode())
        return
    print(f"{found.out}: {found.params:,} parameters of a {found.model_type}, matrices in {found.dtype}")
    if found.ignored:
        print(f"passed over, for they hold no weights: {', '.join(found.ignored)}")
