"""Every format and compression gives the same documents; whatever is wrong is named with its file and line."""

import bz2
import gzip
import json
import lzma
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isoflop.data import readers
from isoflop.data.readers import kind, read_documents
from isoflop.data.spec import DOCUMENT_BYTES

DOCUMENTS = ["one\ntwo\n", "þrír — 四 🙂", "  spaces \r\n kept\t"]


def zstd(content: bytes) -> bytes:
    return pytest.importorskip("zstandard").ZstdCompressor().compress(content)


COMPRESS = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstd}


def read(path: Path, key: str = "text", limit: int = DOCUMENT_BYTES) -> list[bytes]:
    with path.open("rb") as raw:
        return list(read_documents(path, raw, key, limit))


def json_lines(documents, key="text") -> bytes:
    return b"".join(json.dumps({"id": 1, key: text, "meta": {"a": [1]}}).encode() + b"\n" for text in documents)


def write_parquet(path, values, name="text", row_group_size=2, **options):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    table = pa.table({"id": list(range(len(values))), name: values})
    pq.write_table(table, path, row_group_size=row_group_size, **options)


@pytest.mark.parametrize("compression", COMPRESS)
@pytest.mark.parametrize("form", [".txt", ".md", ".jsonl", ".ndjson"])
def test_every_format_and_compression(tmp_path, form, compression):
    path = tmp_path / f"a.b{form.upper() if compression == '.gz' else form}{compression}"
    text = "".join(DOCUMENTS).encode()
    lines = form in readers.JSON_LINES
    path.write_bytes(COMPRESS[compression](json_lines(DOCUMENTS) if lines else text))
    assert read(path) == ([d.encode() for d in DOCUMENTS] if lines else [text])


@pytest.mark.parametrize("compression", [c for c in COMPRESS if c])
def test_concatenated_members_are_one_file(tmp_path, compression):
    path = tmp_path / f"a.txt{compression}"
    path.write_bytes(COMPRESS[compression](b"first ") + COMPRESS[compression](b"second"))
    assert read(path) == [b"first second"]


@pytest.mark.parametrize("page_compression", ["none", "snappy", "zstd", "gzip"])
def test_parquet(tmp_path, page_compression):
    write_parquet(tmp_path / "a.parquet", DOCUMENTS, compression=page_compression)
    assert read(tmp_path / "a.parquet") == [d.encode() for d in DOCUMENTS]


@pytest.mark.parametrize("type_name", ["large_string", "binary", "string_view", "dictionary"])
def test_parquet_text_types(tmp_path, type_name):
    pa = pytest.importorskip("pyarrow")
    values = pa.array(DOCUMENTS)
    kind = pa.dictionary(pa.int32(), pa.string()) if type_name == "dictionary" else getattr(pa, type_name)()
    write_parquet(tmp_path / "a.parquet", values.cast(kind))
    assert read(tmp_path / "a.parquet") == [d.encode() for d in DOCUMENTS]


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_byte_order_mark_is_dropped(tmp_path, name):
    content = b"hi" if name == "a.txt" else json_lines(["hi"])
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + content)
    assert read(tmp_path / name) == [b"hi"]


def test_blank_json_lines_are_passed_over(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b"\n" + json_lines(["x"]) + b"  \r\n" + json_lines(["y"]).rstrip())
    assert read(tmp_path / "a.jsonl") == [b"x", b"y"]


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.md.gz"])
def test_an_empty_file_has_no_documents(tmp_path, name):
    (tmp_path / name).write_bytes(gzip.compress(b"") if name.endswith("gz") else b"")
    assert read(tmp_path / name) == []


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.txt", (".txt", "")),
        ("a.tar.jsonl.zst", (".jsonl", ".zst")),
        ("A.PARQUET", (".parquet", "")),
        ("a.parquet.gz", ("", ".gz")),
        ("a.gz", ("", ".gz")),
        ("txt", ("", "")),
        ("a.bin", ("", "")),
    ],
)
def test_kind(name, expected):
    assert kind(Path(name)) == expected


@given(
    text=st.text(st.sampled_from("ab\n é四🙂"), max_size=200),
    limit=st.integers(4, 40),
    compression=st.sampled_from(["", ".gz", ".zst"]),
)
def test_cutting_a_long_text_loses_nothing(tmp_path_factory, text, limit, compression):
    path = tmp_path_factory.mktemp("cut") / f"a.txt{compression}"
    content = text.encode()
    path.write_bytes(COMPRESS[compression](content))
    documents = read(path, limit=limit)
    assert b"".join(documents) == content
    for document in documents[:-1]:
        assert 0 < len(document) <= limit
        document.decode()  # never within a character
        assert document.endswith(b"\n") or b"\n" not in document  # within a line only where it fills a document


def test_a_long_text_is_cut_at_line_ends(tmp_path):
    line = b"x" * 99 + b"\n"
    (tmp_path / "a.txt").write_bytes(line * 30_000)
    documents = read(tmp_path / "a.txt")
    assert len(documents) == 3
    assert all(len(d) % 100 == 0 and DOCUMENT_BYTES - 100 < len(d) <= DOCUMENT_BYTES for d in documents[:-1])


BAD = [
    ("a.txt", b"fine\nfine\nb\xffd\n", r"a\.txt: line 3: byte 0xff is not UTF-8"),
    ("a.txt", b"fine\n\0", r"a\.txt: line 2: holds a NUL byte, so this is a binary file"),
    ("a.txt", "utf-16".encode("utf-16"), r"a\.txt: line 1: holds a NUL byte"),
    ("a.txt", b"cut \xe2\x82", r"a\.txt: line 1: byte 0xe2 is not UTF-8"),
    ("a.jsonl", b'{"text":"a"}\n{"text":', r"a\.jsonl: line 2: is not a JSON object .*truncated"),
    ("a.jsonl", b'{"text":"a"}\n[1]\n', r"a\.jsonl: line 2: is not a JSON object"),
    ("a.jsonl", b'{"text":7}\n', r"line 1: is not a JSON object with a string under 'text' .*int"),
    ("a.jsonl", b'{"text":null}\n', r"line 1: is not a JSON object with a string under 'text' .*null"),
    ("a.jsonl", b'{"text":"\\ud800"}\n', r"line 1: is not a JSON object with a string"),
    (
        "a.jsonl",
        b'{"body":"a","id":1}\n',
        r"line 1: has no key 'text'; it has 'body', 'id': name the one that holds the text",
    ),
    ("a.jsonl", b'\n{"text":"\xff"}\n', r"a\.jsonl: line 2: is not UTF-8"),
    ("a.jsonl", b'{"text":"\\u0000"}\n', r"line 1: holds a NUL character"),
    ("a.parquet", b"PAR1 no", r"a\.parquet: row 1: the Parquet file is truncated or damaged"),
    ("a.jsonl.gz", b"not gzip", r"a\.jsonl\.gz: line 1: the \.gz data is truncated or damaged \(Not a gzipped"),
    ("a.txt.zst", b"not zstd", r"line 1: the \.zst data is truncated or damaged"),
    ("a.txt.xz", b"not xz!", r"line 1: the \.xz data is truncated or damaged"),
    ("a.txt.bz2", b"not bz2", r"line 1: the \.bz2 data is truncated or damaged"),
]


@pytest.mark.parametrize(("name", "content", "message"), BAD)
def test_what_is_wrong_is_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        read(tmp_path / name)
    assert "\n" not in str(caught.value)
    assert str(tmp_path / name) in str(caught.value)


@pytest.mark.parametrize("compression", [c for c in COMPRESS if c])
def test_truncated_compression_names_the_line_reached(tmp_path, compression):
    path = tmp_path / f"a.jsonl{compression}"
    path.write_bytes(COMPRESS[compression](json_lines(["x", "y"]))[:-4])
    with pytest.raises(ValueError, match=rf"line \d: the \{compression} data is truncated or damaged"):
        read(path)


def test_a_line_too_long_to_hold_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "LINE_BYTES", 100)
    (tmp_path / "a.jsonl").write_bytes(json_lines(["x", "y" * 200]))
    with pytest.raises(ValueError, match="line 2: is longer than 100 bytes"):
        read(tmp_path / "a.jsonl")


def test_parquet_mistakes(tmp_path):
    path = tmp_path / "a.parquet"
    write_parquet(path, ["a", "b", None])
    with pytest.raises(ValueError, match="row 3: 'text' is null"):
        read(path)
    with pytest.raises(
        ValueError,
        match=r"has no column 'body'; it has 'id', 'text': name the one that holds the text",
    ):
        read(path, "body")
    with pytest.raises(ValueError, match="column 'id' is of type int64, not text"):
        read(path, "id")
    write_parquet(path, [b"a", b"\xff"])
    with pytest.raises(ValueError, match="row 2: byte 0xff is not UTF-8"):
        read(path)
    write_parquet(path, ["a", "b\0"])
    with pytest.raises(ValueError, match="row 2: holds a NUL"):
        read(path)


def test_damaged_parquet_pages(tmp_path):
    path = tmp_path / "a.parquet"
    write_parquet(path, ["words " * 500 + str(k) for k in range(64)], compression="gzip", use_dictionary=False)
    content = bytearray(path.read_bytes())
    content[len(content) // 4 : len(content) // 2] = bytes(len(content) // 2 - len(content) // 4)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.parquet: row \d+: the Parquet file is truncated or damaged"):
        read(path)


MEASURE = """
import sys
from pathlib import Path
from isoflop.data.readers import read_documents

def peak():
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) // 1024  # MiB; ru_maxrss would include the parent's, before exec

def size(path):
    with path.open("rb") as raw:
        return sum(map(len, read_documents(path, raw, "text")))

small, large = map(Path, sys.argv[1:])
size(small)
before = peak()
print(size(large), peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc to measure peak memory")
@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.txt.zst", "a.jsonl", "a.parquet"])
def test_memory_stays_bounded(tmp_path, name):
    """64 MiB of text, in one row group where it is Parquet, within a quarter of that."""
    texts = [f"{k:07d} " * 512 for k in range(2**14)]  # 4 KiB each
    for folder, some in (("small", texts[:32]), ("large", texts)):
        (tmp_path / folder).mkdir()
        path = tmp_path / folder / name
        if name.endswith("parquet"):
            write_parquet(path, some, row_group_size=len(some), use_dictionary=False, compression="none")
        elif "jsonl" in name:
            path.write_bytes(json_lines(some))
        else:
            path.write_bytes(COMPRESS[kind(path)[1]]("\n".join(some).encode()))
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "small" / name), str(tmp_path / "large" / name)]
    n_bytes, growth = map(int, subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())
    assert n_bytes >= 2**26
    assert growth < 16
