"""Tokenizers: trained the same every time, cached whole or not at all, given ones checked."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.data.tokenizer import (
    SMALLEST_VOCAB,
    TokenizerError,
    cache_key,
    cache_path,
    check_given,
    digest_of,
    load,
    pieces,
    read_cached,
    train,
    write_whole,
)

TEXTS = [(Path(os.__file__).parent / name).read_text() for name in ("ast.py", "json/decoder.py")]


@pytest.fixture(scope="module")
def document() -> bytes:
    return train(TEXTS, 600)


def decoded(document: bytes, tokens: "np.ndarray[tuple[int], np.dtype[np.int32]]") -> str:
    return load(document)._tokenizer.decode(tokens.tolist(), skip_special_tokens=False)


def test_the_same_text_gives_the_same_tokenizer(document: bytes):
    assert train(TEXTS, 600) == document


def test_little_text_gives_a_smaller_vocabulary():
    vocabulary = json.loads(train(["x = 1\n"], 4000))["model"]["vocab"]
    assert SMALLEST_VOCAB <= len(vocabulary) < 300


def test_a_vocabulary_without_room_for_bytes_is_refused():
    with pytest.raises(TokenizerError, match="at least 259"):
        train(TEXTS, SMALLEST_VOCAB - 1)


def test_texts_survive_whatever_they_hold(document: bytes):
    text = "def größe(x):\n\treturn '日本' + \"<eos>\"  # \x00\x7f 🚀\r\n"
    tokens = load(document).document(text)
    assert decoded(document, tokens[1:-1]) == text
    encoder = load(document)
    assert encoder.eos not in tokens[1:-1]
    assert encoder.bos not in tokens[1:-1]


@given(st.text(max_size=200), st.integers(1, 30))
def test_tokens_do_not_depend_on_pieces(text: str, size: int):
    encoder = load(DOCUMENT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("actors.data.tokenizer._PIECE_CHARS", size)
        assert "".join(pieces(text)) == text
        in_pieces = encoder.document(text)
    encoder._in_pieces = False
    assert np.array_equal(in_pieces, encoder.document(text))


DOCUMENT = train(TEXTS, 600)


def test_long_code_is_tokenized_in_pieces_as_it_would_be_whole(document: bytes):
    encoder = load(document)
    assert encoder._in_pieces
    in_pieces = encoder.document(TEXTS[0])
    encoder._in_pieces = False
    assert np.array_equal(in_pieces, encoder.document(TEXTS[0]))


# --- the cache ------------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_what_a_tokenizer_depends_on_decides_where_it_lies(cache: Path):
    key = cache_key("corpus", 512, 0.02)
    assert key not in (cache_key("other", 512, 0.02), cache_key("corpus", 513, 0.02))
    assert key != cache_key("corpus", 512, 0.03)
    assert cache_path(key).is_relative_to(cache / "trireme")


def test_a_relative_cache_directory_is_ignored(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "somewhere")
    assert cache_path("k").is_relative_to(Path.home() / ".cache")


@pytest.mark.usefixtures("cache")
def test_a_damaged_cache_entry_is_none(document: bytes):
    assert read_cached("k") is None
    write_whole(cache_path("k"), document)
    assert read_cached("k") == document
    cache_path("k").write_bytes(document[: len(document) // 2])
    assert read_cached("k") is None
    assert [path.name for path in cache_path("k").parent.iterdir()] == ["k.json"]


# --- given ones -----------------------------------------------------------------------------------


def test_a_given_tokenizer_that_fits_is_taken_as_it_is(tmp_path: Path, document: bytes):
    path = tmp_path / "tokenizer.json"
    path.write_bytes(document)
    assert digest_of(check_given(str(path), 600)) == digest_of(document)


def test_a_given_tokenizer_with_too_many_tokens_is_refused_with_the_fix(
    tmp_path: Path, document: bytes
):
    path = tmp_path / "tokenizer.json"
    path.write_bytes(document)
    with pytest.raises(
        TokenizerError, match=r"ids up to 599, .* is 599; set model.vocab_size to 600"
    ):
        check_given(str(path), 599)


def test_a_given_tokenizer_without_marks_is_refused_with_those_accepted(
    tmp_path: Path, document: bytes
):
    path = tmp_path / "tokenizer.json"
    path.write_bytes(document.replace(b"<eos>", b"<foo>"))
    with pytest.raises(
        TokenizerError, match="no token that ends a document; accepted: one of <eos>"
    ):
        check_given(str(path), 600)


def test_common_marks_of_others_are_understood(document: bytes):
    renamed = document.replace(b"<bos>", b"<s>").replace(b"<eos>", b"</s>")
    encoder = load(renamed)
    assert (encoder.bos, encoder.eos) == (0, 1)


@pytest.mark.parametrize("content", [b"", b"{}", b"not json at all", b"\xff\xfe", b'{"model": 3}'])
def test_files_that_are_no_tokenizer_are_refused(tmp_path: Path, content: bytes):
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(TokenizerError, match=r"tokenizer\.json is not a tokenizer"):
        check_given(str(path), 600)


def test_a_given_tokenizer_that_is_not_there(tmp_path: Path):
    with pytest.raises(TokenizerError, match=r"cannot read .*: No such file"):
        check_given(str(tmp_path / "nowhere.json"), 600)
