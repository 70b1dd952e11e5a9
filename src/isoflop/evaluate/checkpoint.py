"""A model written like the one that it was made from."""

from pathlib import Path

from isoflop.model import DecoderModel
from isoflop.weights.checkpoint import Checkpoint, Codes, is_checkpoint, write_checkpoint
from isoflop.weights.hugging_face import SPECIAL_TOKENS, HuggingFaceFolder


def write_like(folder: Path, model: DecoderModel, source: Path, origin: str, codes: Codes | None = None) -> None:
    """Write the model as a checkpoint in the types, and with the tokenizer, special tokens and early exit, of `source`.
    `folder` is empty or not there; `codes` are matrices to be written as such. Raises ValueError, OSError."""
    if is_checkpoint(source):
        ours = Checkpoint(source)
        dtype, special, exit_after = ours.dtype, ours.record.special_tokens, ours.record.exit_after or None
    else:
        theirs = HuggingFaceFolder(source)
        dtype, exit_after = theirs.dtype, None
        special = {key: theirs.keys[key] for key in SPECIAL_TOKENS if key in theirs.keys}
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
        exit_after=exit_after,
    )
