"""A model written like the one that it was made from."""

from pathlib import Path

from isoflop.model import DecoderModel
from isoflop.weights.checkpoint import Checkpoint, Codes, is_checkpoint, write_checkpoint
from isoflop.weights.hugging_face import SPECIAL_TOKENS, HuggingFaceFolder


def write_like(folder: Path, model: DecoderModel, source: Path, origin: str, codes: Codes | None = None) -> None:
    """Write the model as a checkpoint in the types, and with the tokenizer and special tokens, of the one at `source`.
    `folder` is empty or not there; `codes` are matrices to be written as such. Raises ValueError, OSError."""
    if is_checkpoint(source):
        ours = Checkpoint(source)
        dtype, special = ours.dtype, ours.record.special_tokens
    else:
        theirs = HuggingFaceFolder(source)
        dtype, special = theirs.dtype, {key: theirs.keys[key] for key in SPECIAL_TOKENS if key in theirs.keys}
    state = model.state_dict()
    write_checkpoint(
        folder,
        model.decoder,
        lambda name, form: state[name].detach().to("cpu", form.dtype),
        dtype,
        origin,
        tokenizer=source,
        special_tokens=special,
        codes=codes,
    )
