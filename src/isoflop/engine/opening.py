"""A checkpoint opened for talking to: its model, its vocabulary, its chat template."""

from pathlib import Path
from typing import NamedTuple

from isoflop.engine.store import DTYPES
from isoflop.engine.template import Template, open_template
from isoflop.engine.vocabulary import Vocabulary, open_vocabulary
from isoflop.model import DecoderModel
from isoflop.weights.load import find_weights, load


class Opened(NamedTuple):
    """`folder` is where the weights lie, which is deeper than what was named where that was a study."""

    folder: Path
    model: DecoderModel
    vocabulary: Vocabulary
    template: Template


def open_checkpoint(path: Path, dtype: str | None, device: str | None = None) -> Opened:
    """Everything of a checkpoint; matrices in `dtype` (as stored where None) on `device`. Text comes first: a model
    without it is refused before its weights are read. Raises ValueError."""
    folder = find_weights(path)
    vocabulary = open_vocabulary(folder, _vocab_size(folder))
    template = open_template(folder)
    model = load(folder, None if dtype is None else DTYPES[dtype])
    return Opened(folder, model if device is None else model.to(device), vocabulary, template)


def _vocab_size(folder: Path) -> int:
    from isoflop.architecture import Decoder
    from isoflop.architecture.files import from_dict
    from isoflop.data.plain_json import read_json
    from isoflop.weights.checkpoint import ARCHITECTURE, is_checkpoint
    from isoflop.weights.folder import inside
    from isoflop.weights.hugging_face import HuggingFaceFolder

    if is_checkpoint(folder):
        return from_dict(read_json(inside(folder, ARCHITECTURE)), Decoder, str(folder / ARCHITECTURE)).vocab_size
    return HuggingFaceFolder(folder).decoder.vocab_size
