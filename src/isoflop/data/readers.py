"""One file as a stream of documents, in bounded memory: text, JSON lines, Parquet.

Whatever is wrong with a file is one `ValueError` that names the file and the line (text, JSON lines) or the row
(Parquet); the operating system's own errors pass as they are.
"""

import io
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import msgspec

from isoflop.data.spec import DOCUMENT_BYTES

TEXT = (".txt", ".text", ".md", ".rst", ".py")
JSON_LINES = (".jsonl", ".ndjson")
PARQUET = (".parquet",)
COMPRESSION = (".gz", ".bz2", ".xz", ".zst")  # of text and JSON lines; Parquet compresses its own pages

LINE_BYTES = 2**26  # a longer line of JSON is refused: it would have to be held in memory whole
NAME_IT = "name the one that holds the text (--text-key; data.text_key of a study)"
ROWS = 256  # of a Parquet file, read at once

UTF8_BOM = b"\xef\xbb\xbf"


def suffixes() -> str:
    """The file names understood, for messages."""
    plain = " ".join((*TEXT, *JSON_LINES))
    return f"{plain} (each also with {' '.join(COMPRESSION)}) {' '.join(PARQUET)}"


def kind(path: Path) -> tuple[str, str]:
    """The format's and the compression's suffix of a file, from its name; the first is empty where not understood."""
    parts = [suffix.lower() for suffix in path.suffixes[-2:]]
    compression = parts.pop() if parts and parts[-1] in COMPRESSION else ""
    form = parts[-1] if parts else ""
    known = form in TEXT + JSON_LINES or (form in PARQUET and not compression)
    return (form, compression) if known else ("", compression)


@dataclass
class Place:
    """Where in a file reading has got to: `done` lines or rows were read."""

    path: Path
    unit: str = "line"
    done: int = 0

    def mistake(self, what: str, beyond: int = 1) -> ValueError:
        return ValueError(f"{self.path}: {self.unit} {self.done + beyond}: {what}")


def read_documents(path: Path, raw: BinaryIO, text_key: str, document_bytes: int = DOCUMENT_BYTES) -> Iterator[bytes]:
    """The documents of one file in their order, as UTF-8. `raw` is `path`, opened; its position shows progress. A text
    longer than `document_bytes` is cut into documents of at most this, at a line's end where there is one."""
    form, compression = kind(path)
    place = Place(path, "row" if form in PARQUET else "line")
    if form in PARQUET:
        return _read_parquet(raw, place, text_key)
    stream = _decompressed(raw, compression)
    if form in JSON_LINES:
        return _told(_read_json_lines(stream, place, text_key), compression, place)
    return _told(_read_text(stream, place, document_bytes), compression, place)


def _told(texts: Iterator[bytes], compression: str, place: Place) -> Iterator[bytes]:
    """The same texts; of a decompressor's mistakes it is told where they are."""
    from lzma import LZMAError

    try:
        yield from texts
    except (EOFError, LZMAError, zlib.error) as broken:
        raise _broken(place, compression, broken) from None
    except OSError as broken:
        if broken.errno is not None:  # the operating system's, not a decompressor's
            raise
        raise _broken(place, compression, broken) from None


def _broken(place: Place, compression: str, why: Exception) -> ValueError:
    return place.mistake(f"the {compression} data is truncated or damaged ({why}); fetch or compress the file again")


def _decompressed(raw: BinaryIO, compression: str) -> BinaryIO:
    if compression == ".gz":
        import gzip

        return cast(BinaryIO, gzip.GzipFile(fileobj=raw))
    if compression == ".bz2":
        import bz2

        return cast(BinaryIO, bz2.BZ2File(raw))
    if compression == ".xz":
        import lzma

        return cast(BinaryIO, lzma.LZMAFile(raw))
    return _zstd(raw) if compression == ".zst" else raw


def _zstd(raw: BinaryIO) -> BinaryIO:
    """Arrow's reader: it continues across frames and, unlike zstandard's, notices a truncated one."""
    import pyarrow as pa

    return cast(BinaryIO, io.BufferedReader(pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), "zstd")))


def _read_text(stream: BinaryIO, place: Place, document_bytes: int) -> Iterator[bytes]:
    rest = stream.read(len(UTF8_BOM)).removeprefix(UTF8_BOM)
    while block := stream.read(document_bytes - len(rest)):
        text = rest + block
        cut = _cut(text) if len(text) == document_bytes else len(text)
        text, rest = text[:cut], text[cut:]
        yield _checked(text, place)
        place.done += text.count(b"\n")
    if rest:
        yield _checked(rest, place)


def _cut(text: bytes) -> int:
    """Where to end a document: after the last line's end, or where there is none between two characters."""
    after_line = text.rfind(b"\n") + 1
    if after_line:
        return after_line
    # A lead byte (>= 0xC0) among the last three may start a character that continues in the next block.
    return len(text) - next((k for k in (1, 2, 3) if text[-k] >= 0xC0), 0)


def _checked(text: bytes, place: Place) -> bytes:
    """`text`, once it is known to be text."""
    zero = text.find(b"\0")
    if zero >= 0:
        raise _not_text(place, text.count(b"\n", 0, zero) + 1)
    try:
        text.decode()
    except UnicodeDecodeError as wrong:
        line = text.count(b"\n", 0, wrong.start) + 1
        raise place.mistake(f"byte 0x{text[wrong.start]:02x} is not UTF-8; convert the file to UTF-8", line) from None
    return text


def _not_text(place: Place, beyond: int = 1) -> ValueError:
    return place.mistake("holds a NUL byte, so this is a binary file (or UTF-16), not UTF-8 text; leave it out", beyond)


def _read_json_lines(stream: BinaryIO, place: Place, text_key: str) -> Iterator[bytes]:
    decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])  # Raw: the other keys are skipped, not built
    while line := stream.readline(LINE_BYTES + 1):
        if len(line) > LINE_BYTES:
            raise place.mistake(f"is longer than {LINE_BYTES} bytes; JSON lines hold one document a line")
        if place.done == 0:
            line = line.removeprefix(UTF8_BOM)
        if not line.isspace():
            yield _text_of(line, decoder, place, text_key)
        place.done += 1


def _text_of(line: bytes, decoder: "msgspec.json.Decoder[dict[str, msgspec.Raw]]", place: Place, key: str) -> bytes:
    try:
        fields = decoder.decode(line)
        if key not in fields:
            raise place.mistake(f"has no key {key!r}; it has {_listing(fields)}: {NAME_IT}")
        text = msgspec.json.decode(fields[key], type=str)
    except UnicodeDecodeError:
        raise place.mistake("is not UTF-8; convert the file to UTF-8") from None
    except msgspec.DecodeError as wrong:
        raise place.mistake(f"is not a JSON object with a string under {key!r} ({wrong})") from None
    return _encoded(text, place)


def _encoded(text: str | bytes, place: Place) -> bytes:
    if isinstance(text, bytes):
        return _checked(text, Place(place.path, place.unit, place.done))
    encoded = text.encode()
    if b"\0" in encoded:
        raise place.mistake("holds a NUL character, which text does not; remove it or the document")
    return encoded


def _listing(names: Any) -> str:
    return ", ".join(repr(name) for name in list(names)[:8]) or "none"


def _read_parquet(raw: BinaryIO, place: Place, column: str) -> Iterator[bytes]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # Without pre-buffering and with a buffer, a row group's pages are read as they are needed.
        file = pq.ParquetFile(raw, pre_buffer=False, buffer_size=DOCUMENT_BYTES)
        _check_column(file.schema_arrow, place, column)
        for batch in file.iter_batches(batch_size=ROWS, columns=[column], use_threads=False):
            yield from _read_batch(batch.column(0), place, column)
    except pa.ArrowInvalid as broken:
        raise place.mistake(f"the Parquet file is truncated or damaged ({_first_line(broken)})") from None
    except OSError as broken:
        if broken.errno is not None:
            raise
        raise place.mistake(f"the Parquet file is truncated or damaged ({_first_line(broken)})") from None


def _first_line(error: Exception) -> str:
    return str(error).split("\n", 1)[0]


def _check_column(schema: Any, place: Place, column: str) -> None:
    import pyarrow as pa

    if column not in schema.names:
        listing = _listing(schema.names)
        raise ValueError(f"{place.path}: has no column {column!r}; it has {listing}: {NAME_IT}")
    kind = schema.field(column).type
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    texts = (pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary(), pa.binary_view())
    if kind not in texts:
        raise ValueError(f"{place.path}: column {column!r} is of type {kind}, not text: {NAME_IT}")


def _read_batch(values: Any, place: Place, column: str) -> Iterator[bytes]:
    for value in values:
        try:
            text = value.as_py()
        except UnicodeDecodeError:
            raise place.mistake("is not UTF-8; convert the file to UTF-8") from None
        if text is None:
            raise place.mistake(f"{column!r} is null; drop such rows")
        yield _encoded(text, place)
        place.done += 1
