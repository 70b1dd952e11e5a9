import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from isoflop.data.corpus import is_validation
from isoflop.data.dataset import open_dataset
from isoflop.data.prepare import prepare
from isoflop.data.spec import BytePair, Bytes, Data
from isoflop.data.tokenizer import train_byte_pair

FILES = {"train.bin", "valid.bin", "dataset.json"}
PAIRS = BytePair(vocab_size=300, sample_bytes=2**16)


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    for k in range(200):
        (folder / f"{k:03d}.txt").write_text(f"Document {k} says {k * k}, naïvely.\n" * (k % 7 + 3))
    (folder / "copy.txt").write_bytes((folder / "000.txt").read_bytes())
    (folder / "empty.txt").write_text("")
    return folder


@pytest.fixture(params=[Bytes(), PAIRS], ids=["bytes", "byte-pair"])
def spec(request, source) -> Data:
    return Data(source=str(source), tokenizer=request.param, valid_fraction=0.2)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


def test_what_is_prepared(spec, source, tmp_path):
    dataset = prepare(spec, tmp_path / "deep" / "data")
    manifest = dataset.manifest
    documents = sorted({path.read_bytes() for path in source.iterdir()} - {b""})
    assert manifest.duplicates == 1
    assert manifest.train.documents + manifest.valid.documents == len(documents) == 200
    found = []
    for tokens, shard in ((dataset.train, manifest.train), (dataset.valid, manifest.valid)):
        assert tokens[-1] == 0
        ends = np.flatnonzero(tokens == 0)
        starts = np.concatenate([[0], ends[:-1] + 1])
        texts = [dataset.tokenizer.decode(tokens[a:b]) for a, b in zip(starts, ends, strict=True)]
        assert (len(texts), sum(map(len, texts))) == (shard.documents, shard.bytes)
        assert dataset.tokenizer.token_bytes[tokens].sum() == shard.bytes
        assert len(tokens) == shard.tokens
        found += texts
    assert sorted(found) == documents
    assert 0.1 < manifest.valid.documents / 200 < 0.3


def test_manifest_is_what_lies_beside_it(spec, source, tmp_path):
    dataset = prepare(spec, tmp_path)
    manifest = json.loads((tmp_path / "dataset.json").read_text())
    tokenizer = {"tokenizer.json"} if spec.tokenizer == PAIRS else set()
    assert set(content(tmp_path)) == FILES | tokenizer
    for name in ("train", "valid"):
        stored = (tmp_path / f"{name}.bin").read_bytes()
        assert hashlib.sha256(stored).hexdigest() == manifest[name]["sha256"]
        assert len(stored) == manifest[name]["tokens"] * np.dtype(manifest["dtype"]).itemsize
    order = [hashlib.sha256(path.read_bytes()).digest() for path in sorted(source.iterdir()) if path.stat().st_size]
    distinct = list(dict.fromkeys(order))
    assert hashlib.sha256(b"".join(distinct)).hexdigest() == manifest["corpus_digest"]
    assert manifest["source"] == str(source)
    assert dataset.train.dtype == (np.uint8 if spec.tokenizer == Bytes() else np.uint16)
    assert dataset.vocab_size == len(dataset.tokenizer.token_bytes) == manifest["vocab_size"]


def test_the_split_does_not_depend_on_the_tokenizer(source, tmp_path):
    as_bytes = prepare(Data(source=str(source), valid_fraction=0.2), tmp_path / "a")
    as_pairs = prepare(Data(source=str(source), valid_fraction=0.2, tokenizer=PAIRS), tmp_path / "b")
    assert as_bytes.manifest.valid.bytes == as_pairs.manifest.valid.bytes
    assert as_bytes.tokenizer.decode(as_bytes.valid) == as_pairs.tokenizer.decode(as_pairs.valid)
    assert as_bytes.digest != as_pairs.digest


def test_byte_pairs_learn_from_the_start_of_the_training_split_alone(source, tmp_path):
    texts = dict.fromkeys(path.read_bytes() for path in sorted(source.iterdir()) if path.stat().st_size)
    training = [text for text in texts if not is_validation(hashlib.sha256(text).digest(), 0.2)]
    for sample_bytes, count in ((2**16, len(training)), (sum(map(len, training[:60])) - 1, 60)):
        seen = []
        tokenizer = BytePair(vocab_size=300, sample_bytes=sample_bytes)
        spec = Data(source=str(source), tokenizer=tokenizer, valid_fraction=0.2)
        dataset = prepare(spec, tmp_path / str(count), lambda stage, position, total, seen=seen: seen.append(stage))
        assert seen.count("tokenizer") == count
        assert (dataset.folder / "tokenizer.json").read_text() == train_byte_pair(training[:count], 300).json


def test_nothing_is_redone(spec, tmp_path):
    first = prepare(spec, tmp_path)
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    calls = []
    again = prepare(spec, tmp_path, lambda *at: calls.append(at))
    assert not calls
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    assert again.digest == first.digest == open_dataset(tmp_path).digest


def test_the_source_is_not_needed_again(tmp_path):
    (tmp_path / "in").mkdir()
    for k in range(50):
        (tmp_path / "in" / f"{k}.txt").write_text(f"text {k}")
    spec = Data(source=str(tmp_path / "in"), valid_fraction=0.5)
    digest = prepare(spec, tmp_path / "out").digest
    (tmp_path / "in").rename(tmp_path / "gone")
    assert prepare(spec, tmp_path / "out").digest == digest


@pytest.mark.parametrize("name", ["train.bin", "valid.bin", "tokenizer.json", "dataset.json"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_damage_is_found_and_mended(source, tmp_path, name, damage):
    spec = Data(source=str(source), tokenizer=PAIRS, valid_fraction=0.2)
    prepare(spec, tmp_path)
    whole = content(tmp_path)
    path = tmp_path / name
    if damage == "remove":
        path.unlink()
    else:
        middle = len(whole[name]) // 2
        rest = b"" if damage == "truncate" else bytes([whole[name][middle] ^ 0xFF]) + whole[name][middle + 1 :]
        path.write_bytes(whole[name][:middle] + rest)
    if damage != "flip" or name.endswith("json"):  # a flip within a shard costs reading it all to find: prepare's work
        with pytest.raises(ValueError, match=r"prepare it (again|first)"):
            open_dataset(tmp_path)
    prepare(spec, tmp_path)
    assert content(tmp_path) == whole


def test_another_spec_replaces_what_was_there(source, tmp_path):
    specs = [Data(source=str(source), valid_fraction=fraction) for fraction in (0.2, 0.4)]
    for spec in specs:
        prepare(spec, tmp_path / "same")
    prepare(specs[1], tmp_path / "fresh")
    assert content(tmp_path / "same") == content(tmp_path / "fresh")


def test_a_failed_replacement_leaves_the_old_dataset(source, tmp_path):
    dataset = prepare(Data(source=str(source), valid_fraction=0.2), tmp_path / "out")
    before = content(dataset.folder)
    (tmp_path / "bad.jsonl").write_text("{")
    with pytest.raises(ValueError, match=r"bad\.jsonl: line 1"):
        prepare(Data(source=str(tmp_path / "bad.jsonl")), dataset.folder)
    assert content(dataset.folder) == before


def test_progress_ends_at_the_whole_corpus(spec, tmp_path):
    calls = []
    prepare(spec, tmp_path, lambda *at: calls.append(at))
    positions = [position for stage, position, _ in calls if stage == "tokens"]
    assert positions == sorted(positions)
    assert calls[-1][1] == calls[-1][2] > 0


def test_shards_are_read_only(source, tmp_path):
    dataset = prepare(Data(source=str(source), valid_fraction=0.2), tmp_path)
    with pytest.raises(ValueError, match="read-only"):
        dataset.train[0] = 1


def test_a_split_needs_documents(tmp_path):
    (tmp_path / "one.txt").write_text("a single document")
    with pytest.raises(
        ValueError, match=r"\(1 distinct documents, 17 bytes\) leaves 0 bytes for (train|valid)"
    ) as caught:
        prepare(Data(source=str(tmp_path / "one.txt")), tmp_path / "out")
    assert "are needed: give more documents" in str(caught.value)
    (tmp_path / "one.txt").write_text("")
    with pytest.raises(ValueError, match="0 bytes for training, at least 1 are needed"):
        prepare(Data(source=str(tmp_path / "one.txt")), tmp_path / "out")
    assert content(tmp_path / "out") == {}


def test_require_states_both_numbers(source, tmp_path):
    dataset = prepare(Data(source=str(source), valid_fraction=0.2), tmp_path)
    held = dataset.manifest.valid.tokens
    dataset.require(train_tokens=100, valid_tokens=held)
    message = rf"validation split holds {held} tokens \({dataset.manifest.valid.bytes} bytes of text\), {held + 1} are"
    with pytest.raises(ValueError, match=message):
        dataset.require(valid_tokens=held + 1)


def test_open_says_what_is_missing(tmp_path):
    with pytest.raises(ValueError, match=r"holds no dataset\.json, so no dataset was prepared here; prepare it first"):
        open_dataset(tmp_path)
    (tmp_path / "dataset.json").write_text('{"format": 9}')
    with pytest.raises(ValueError, match=r"dataset\.json: is no dataset of this version"):
        open_dataset(tmp_path)


def test_a_place_that_cannot_be_written_is_named(source, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        prepare(Data(source=str(source)), tmp_path / "file" / "data")


FULL = """
import resource, sys
from pathlib import Path
from isoflop.data.prepare import prepare
from isoflop.data.spec import Data
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    prepare(Data(source=sys.argv[1], valid_fraction=0.2), Path(sys.argv[2]))
except OSError as error:
    print(error.filename, error.errno)
"""


def test_a_full_disk_is_named_and_leaves_nothing(source, tmp_path):
    """A limit on a file's size stands for the full disk: a write fails half way."""
    run = subprocess.run(
        [sys.executable, "-c", FULL, str(source), str(tmp_path)], capture_output=True, text=True, check=True
    )
    filename, errno = run.stdout.split()
    assert Path(filename).name == ".train.bin.partial"
    assert int(errno) == 27  # EFBIG
    assert content(tmp_path) == {}


KILLED_EVERYWHERE = """
import os, pathlib, signal, sys
from pathlib import Path
from isoflop.data.dataset import intact, open_dataset
from isoflop.data.prepare import prepare
from isoflop.data.spec import BytePair, Data

source, place = sys.argv[1], Path(sys.argv[2])
old = Data(source=source, valid_fraction=0.2)
new = Data(source=source, valid_fraction=0.3, tokenizer=BytePair(vocab_size=300, sample_bytes=2**16))
digests = {prepare(spec, place / name).digest for name, spec in (("old", old), ("new", new))}
clean = {path.name: path.read_bytes() for path in (place / "new").iterdir()}

def dying(call, left):
    def counted(*args, **kwargs):
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*args, **kwargs)
    return counted

survived, kills, believed = False, 0, set()
while not survived:
    kills += 1
    folder = place / str(kills)
    prepare(old, folder)
    child = os.fork()
    if child == 0:
        left = [kills]
        os.fsync = dying(os.fsync, left)
        Path.replace = dying(Path.replace, left)
        Path.unlink = dying(Path.unlink, left)
        prepare(new, folder)
        os._exit(0)
    survived = os.waitpid(child, 0)[1] == 0
    try:
        found = open_dataset(folder)
        assert found.digest in digests and intact(folder, found.manifest)
        believed.add(found.digest)
    except ValueError as error:
        assert "no dataset was prepared here" in str(error), error
        believed.add(None)
    prepare(new, folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == clean, kills
assert believed == {None, *digests}
print(kills)
"""


def test_killed_at_every_step_nothing_half_done_is_believed(source, tmp_path):
    """SIGKILL before each sync, rename and removal in turn, while one dataset replaces another."""
    command = [sys.executable, "-c", KILLED_EVERYWHERE, str(source), str(tmp_path)]
    env = {**os.environ, "TOKENIZERS_PARALLELISM": "false"}
    run = subprocess.run(command, env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) > 12


SLOW = """
import sys, time
from pathlib import Path
from isoflop.data import prepare
from isoflop.data.spec import Data
prepare.BATCH_BYTES = 100
def progress(*at):
    print(*at, flush=True)
    time.sleep(0.01)
prepare.prepare(Data(source=sys.argv[1], valid_fraction=0.2), Path(sys.argv[2]), progress)
"""


def test_killed_from_outside_while_writing(source, tmp_path):
    command = [sys.executable, "-c", SLOW, str(source), str(tmp_path / "killed")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
        for _ in range(5):
            assert child.stdout.readline().startswith(b"tokens ")
        child.send_signal(signal.SIGKILL)
    assert not FILES & set(content(tmp_path / "killed"))
    spec = Data(source=str(source), valid_fraction=0.2)
    prepare(spec, tmp_path / "killed")
    prepare(spec, tmp_path / "clean")
    assert content(tmp_path / "killed") == content(tmp_path / "clean")


def test_two_at_once_agree(source, tmp_path):
    command = [sys.executable, "-c", SLOW.replace("0.01", "0.001"), str(source), str(tmp_path / "both")]
    children = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(2)]
    outputs = [child.communicate()[0] for child in children]
    assert [child.returncode for child in children] == [0, 0]
    assert sorted(bool(output) for output in outputs) == [False, True]  # one worked, the other waited and found it done
    prepare(Data(source=str(source), valid_fraction=0.2), tmp_path / "clean")
    assert content(tmp_path / "both") == content(tmp_path / "clean")


def test_the_standard_library_as_bytes(tmp_path):
    dataset = prepare(Data(), tmp_path)
    assert dataset.manifest.source.startswith("standard library of ")
    assert dataset.manifest.train.bytes > 2_000_000
    assert dataset.manifest.valid.bytes > 100_000
    assert prepare(Data(), tmp_path / "again").digest == dataset.digest
