"""The text that a trained model is judged and fine-tuned on, in the model's own tokens."""

import os
from pathlib import Path

import msgspec

from isoflop.data.corpus import STDLIB, find_corpus
from isoflop.data.dataset import MANIFEST, TOKENIZER, Dataset, open_dataset
from isoflop.data.prepare import Progress, prepare
from isoflop.data.spec import DOCUMENT_BYTES, N_BYTES, SHORTEST_DOCUMENT, TEXT_KEY, Bytes, Data, File
from isoflop.data.tokenizer_file import FileTokenizer
from isoflop.weights.folder import inside
from isoflop.weights.special_tokens import special_tokens

DATA = "data"  # where a study keeps its dataset
DEEPEST = 4  # how far below its study a checkpoint lies at most: STUDY/jobs/TRUNK/models/RUN

# Of text that is prepared for one question a few documents are held out. Long texts are cut into many for that, none so
# short that windows would not fit: no common text has as many bytes a token.
BYTES_A_TOKEN = 16
SHORTEST = 2**13
LEAST_DOCUMENTS = 8  # of one long text, however long the windows
HELD_OUT, LEAST_SHARE, MOST_SHARE = 10, 0.05, 0.5


def find_dataset(
    source: str | None,
    checkpoint: Path,
    vocab_size: int,
    context: int,
    scratch: Path,
    progress: Progress | None = None,
    text_key: str | None = None,
) -> Dataset:
    """The dataset for a model of `vocab_size` tokens that reads windows of `context`.

    `source`: a study or a prepared folder; or any text that [data] source can name, which becomes, in `scratch`, what
    the checkpoint's tokenizer.json makes of it, or bytes; `text_key` holds it, where it has keys. None: the text of the
    study that the checkpoint lies in, else "stdlib". Raises ValueError where the tokens are not the model's.
    """
    homes = list(checkpoint.resolve().parents)[:DEEPEST] if source is None else [Path(source)]
    for folder in (place for home in homes for place in (home, home / DATA)):
        if (folder / MANIFEST).is_file():
            if text_key is not None:
                raise ValueError(f"--text-key {text_key}: {folder} is prepared, and its text known; leave it out")
            return _prepared(folder, vocab_size)
    if text_key == "":
        raise ValueError('--text-key: is empty; give the key or column that holds the text, such as "text"')
    tokenizer = _own_tokenizer(checkpoint, vocab_size)
    spec = Data(source=source or STDLIB, tokenizer=tokenizer, text_key=text_key or TEXT_KEY)
    return prepare(_cut(spec, context), scratch, progress)


def _prepared(folder: Path, vocab_size: int) -> Dataset:
    dataset = open_dataset(folder)
    if isinstance(dataset.tokenizer, FileTokenizer):
        _require_own(folder / TOKENIZER, dataset.tokenizer, vocab_size)
    elif dataset.vocab_size != vocab_size:
        raise ValueError(
            f"{folder}: has {dataset.vocab_size} kinds of tokens and the model {vocab_size}; "
            "--data must name text in the model's own tokens"
        )
    return dataset


def _own_tokenizer(checkpoint: Path, vocab_size: int) -> Bytes | File:
    """The tokenizer beside the weights; bytes where there is none."""
    if not os.path.lexists(checkpoint / TOKENIZER):
        if vocab_size != N_BYTES:
            raise ValueError(
                f"{checkpoint}: has no {TOKENIZER}, and its {vocab_size} tokens are not bytes: --data must name a "
                f"study, or a prepared folder ({MANIFEST}), in its own tokens"
            )
        return Bytes()
    file, marks = inside(checkpoint, TOKENIZER), special_tokens(checkpoint)
    ends = [*marks.get("eos_token_id", []), *marks.get("bos_token_id", [])]
    found = File(path=str(file), end=ends[0] if ends else None)
    _require_own(file, FileTokenizer(file, found.end), vocab_size)
    return found


def _require_own(file: Path, tokenizer: FileTokenizer, vocab_size: int) -> None:
    if tokenizer.n_needed > vocab_size:
        raise ValueError(
            f"{file}: has tokens up to number {tokenizer.n_needed - 1}, and the model only {vocab_size}: "
            "the tokenizer is not this model's"
        )


def _cut(spec: Data, context: int) -> Data:
    """Documents short enough that there are many, and a share of them that holds out some ten."""
    n_bytes = find_corpus(spec).n_bytes
    most = min(DOCUMENT_BYTES, max(SHORTEST_DOCUMENT, n_bytes // LEAST_DOCUMENTS))
    document = min(max(SHORTEST, BYTES_A_TOKEN * context), most)
    share = min(max(LEAST_SHARE, HELD_OUT * document / max(n_bytes, 1)), MOST_SHARE)
    return msgspec.structs.replace(spec, document_bytes=document, valid_fraction=share)
