import msgspec
import pytest

from isoflop.data.spec import BytePair, Bytes, Data


def test_defaults_are_the_standard_library_as_bytes():
    assert Data() == Data(
        source="stdlib", tokenizer=Bytes(), text_key="text", document_bytes=2**20, valid_fraction=0.05
    )


@pytest.mark.parametrize("spec", [Data(), Data(source="a", tokenizer=BytePair(vocab_size=300, sample_bytes=5))])
def test_survives_json(spec):
    assert msgspec.json.decode(msgspec.json.encode(spec), type=Data) == spec


def test_tokenizer_is_told_by_its_type():
    assert msgspec.convert({"tokenizer": {"type": "byte-pair", "vocab_size": 512}}, Data).tokenizer.vocab_size == 512
    with pytest.raises(msgspec.ValidationError, match="word-piece"):
        msgspec.convert({"tokenizer": {"type": "word-piece"}}, Data)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"valid_fraction": 0}, r"data\.valid_fraction: 0.* is not between 0 and 1"),
        ({"valid_fraction": 1.0}, r"data\.valid_fraction: 1\.0 is not between"),
        ({"valid_fraction": float("nan")}, "nan is not between"),
        ({"source": ""}, r"data\.source: is empty"),
        ({"text_key": ""}, r"data\.text_key: is empty"),
        ({"document_bytes": 255}, r"data\.document_bytes: 255 is outside 256 to 67108864; 1048576 is the default"),
    ],
)
def test_mistakes_are_one_line(fields, message):
    with pytest.raises(ValueError, match=message) as caught:
        Data(**fields)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("vocab_size", "sample_bytes"), [(256, 1), (2**24 + 1, 1), (300, 0)])
def test_byte_pair_bounds(vocab_size, sample_bytes):
    with pytest.raises(ValueError, match=r"tokenizer\.(vocab_size|sample_bytes): "):
        BytePair(vocab_size=vocab_size, sample_bytes=sample_bytes)


def test_unknown_keys_are_refused():
    with pytest.raises(msgspec.ValidationError, match="sorce"):
        msgspec.convert({"sorce": "x"}, Data)
