"""The text that a trained model is judged and fine-tuned on."""

from pathlib import Path

from isoflop.data.dataset import MANIFEST, Dataset, open_dataset
from isoflop.data.prepare import prepare
from isoflop.data.spec import N_BYTES, Data

DATA = "data"  # where a study keeps its dataset
DEEPEST = 4  # how far below its study a checkpoint lies at most: STUDY/jobs/TRUNK/models/RUN


def find_dataset(source: str | None, checkpoint: Path, vocab_size: int, scratch: Path) -> Dataset:
    """The dataset for a model of `vocab_size` tokens.

    `source`: a study or a prepared folder; or, for a model of bytes, any text that [data] source can name, prepared in
    `scratch`. None: the text of the study that the checkpoint lies in, else, for bytes, "stdlib". Raises ValueError
    where the tokens are not the model's.
    """
    dataset = _find(source, checkpoint, vocab_size, scratch)
    if dataset.vocab_size != vocab_size:
        raise ValueError(
            f"{dataset.folder}: has {dataset.vocab_size} kinds of tokens and the model {vocab_size}; "
            "--data must name text in the model's own tokens"
        )
    return dataset


def _find(source: str | None, checkpoint: Path, vocab_size: int, scratch: Path) -> Dataset:
    homes = list(checkpoint.resolve().parents)[:DEEPEST] if source is None else [Path(source)]
    for folder in (place for home in homes for place in (home, home / DATA)):
        if (folder / MANIFEST).is_file():
            return open_dataset(folder)
    if vocab_size != N_BYTES:
        raise ValueError(
            f"the model's {vocab_size} tokens are not bytes: --data must name a study, or a prepared folder "
            f"({MANIFEST}), in its own tokens"
        )
    return prepare(Data(source=source or "stdlib"), scratch)
