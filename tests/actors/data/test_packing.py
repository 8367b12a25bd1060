"""No token is lost, none is repeated, and bytes are shared out exactly."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.data.packing import Document, Packed, Packer, documents_of, repack

ROW = 8


def document(sample: int, length: int, text_bytes: int = 0, epoch: int = 0) -> Document:
    """Every token of a document tells which document it is and where it stands."""
    tokens = (np.arange(length) + sample * 1000).astype(np.int32)
    return Document((epoch, sample), tokens, text_bytes)


def take_all(packer: Packer, rows: int) -> list[Packed]:
    taken: list[Packed] = []
    while (packed := packer.take(rows)) is not None:
        taken.append(packed)
    return taken


lengths = st.lists(st.integers(2, 40), min_size=1, max_size=30)


@given(lengths, st.integers(1, 5))
def test_every_token_comes_out_once_and_in_order(lengths: list[int], rows: int):
    packer = Packer(ROW)
    documents = [document(i, n) for i, n in enumerate(lengths)]
    for item in documents:
        packer.add(item)
    taken = take_all(packer, rows)
    stream = np.concatenate([item.tokens for item in documents])
    count = len(taken) * rows * ROW
    assert count + packer.tokens == len(stream)
    out = [packed.tokens.reshape(-1) for packed in taken]
    assert np.array_equal(np.concatenate([*out, stream[count:]]), stream)


@given(lengths, st.integers(1, 5))
def test_spans_say_exactly_where_each_token_is(lengths: list[int], rows: int):
    packer = Packer(ROW)
    documents = [document(i, n) for i, n in enumerate(lengths)]
    for item in documents:
        packer.add(item)
    for packed in take_all(packer, rows):
        covered = np.zeros((rows, ROW), int)
        for span in packed.spans:
            where = slice(span.offset, span.offset + span.length)
            covered[span.row, where] += 1
            expected = documents[span.sample].tokens[span.start : span.start + span.length]
            assert np.array_equal(packed.tokens[span.row, where], expected)
        assert (covered == 1).all()


@given(st.lists(st.tuples(st.integers(2, 40), st.integers(0, 500)), min_size=1, max_size=20))
def test_bytes_of_spans_sum_to_the_bytes_of_their_documents(sizes: list[tuple[int, int]]):
    packer = Packer(ROW)
    for i, (length, text_bytes) in enumerate(sizes):
        packer.add(document(i, length, text_bytes))
    padding = -packer.tokens % ROW
    if padding:
        packer.add(document(len(sizes), padding))
    total = sum(sum(packed.text_bytes) for packed in take_all(packer, 1))
    assert total == sum(text_bytes for _, text_bytes in sizes)


@given(lengths)
def test_rows_can_be_made_again_from_their_spans(lengths: list[int]):
    packer = Packer(ROW)
    documents = [document(i, n, text_bytes=3 * n) for i, n in enumerate(lengths)]
    for item in documents:
        packer.add(item)
    for packed in take_all(packer, 2):
        again = repack(packed.spans, documents, ROW)
        assert np.array_equal(again.tokens, packed.tokens)
        assert again.text_bytes == packed.text_bytes


def test_tokens_know_their_document_within_the_row():
    packer = Packer(ROW)
    for i, length in enumerate((3, 2, 9, 4)):
        packer.add(document(i, length))
    packed = packer.take(2)
    assert packed is not None
    assert documents_of(packed.spans, 2, ROW).tolist() == [
        [0, 0, 0, 1, 1, 2, 2, 2],
        [0, 0, 0, 0, 0, 0, 1, 1],
    ]


def test_a_document_delivered_in_part_goes_on_where_it_stopped():
    packer = Packer(ROW)
    packer.add(document(7, 12), start=4)
    packed = packer.take(1)
    assert packed is not None
    assert packed.tokens[0].tolist() == [7004, 7005, 7006, 7007, 7008, 7009, 7010, 7011]


def test_rows_that_are_not_full_are_not_handed_out():
    packer = Packer(ROW)
    packer.add(document(0, ROW * 2 - 1))
    assert packer.take(2) is None
    assert packer.tokens == ROW * 2 - 1


def test_documents_too_short_for_their_spans_are_refused():
    packer = Packer(ROW)
    packer.add(document(0, ROW))
    packed = packer.take(1)
    assert packed is not None
    with pytest.raises(ValueError, match="ends at token 5"):
        repack(packed.spans, [document(0, 5)], ROW)
