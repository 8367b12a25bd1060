"""No token is lost, none is repeated, and bytes are shared out exactly."""

from itertools import pairwise

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


def take_all(packer: Packer) -> list[Packed]:
    taken: list[Packed] = []
    while (packed := packer.take()) is not None:
        taken.append(packed)
    return taken


lengths = st.lists(st.integers(2, 40), min_size=1, max_size=30)


def packed_all(lengths: list[int], lanes: int) -> tuple[Packer, list[Document], list[Packed]]:
    packer = Packer(ROW, lanes)
    documents = [document(i, n, text_bytes=3 * n) for i, n in enumerate(lengths)]
    for item in documents:
        packer.add(item)
    return packer, documents, take_all(packer)


@given(lengths, st.integers(1, 5))
def test_a_lane_is_whole_documents_one_after_the_other(lengths: list[int], lanes: int):
    packer, documents, taken = packed_all(lengths, lanes)
    delivered = 0
    for lane in range(lanes):
        spans = [span for packed in taken for span in packed.spans if span.row == lane]
        for before, after in pairwise(spans):
            whole = before.start + before.length == len(documents[before.sample].tokens)
            goes_on = after.start == before.start + before.length
            assert (whole and after.start == 0) or (after.key == before.key and goes_on)
        delivered += sum(span.length for span in spans)
    assert delivered + packer.tokens == sum(lengths)


@given(lengths, st.integers(1, 5))
def test_no_token_is_delivered_twice(lengths: list[int], lanes: int):
    _, _, taken = packed_all(lengths, lanes)
    tokens = np.concatenate([packed.tokens.reshape(-1) for packed in taken] or [np.empty(0)])
    assert len(np.unique(tokens)) == len(tokens)


@given(lengths, st.integers(1, 5))
def test_documents_begin_in_the_order_they_were_added(lengths: list[int], lanes: int):
    _, _, taken = packed_all(lengths, lanes)
    began = [span.sample for packed in taken for span in packed.spans if span.start == 0]
    assert began == list(range(len(began)))


@given(lengths, st.integers(1, 5), st.integers(1, 4))
def test_what_is_lacking_is_exactly_what_keeps_steps_from_being_full(
    lengths: list[int], lanes: int, steps: int
):
    packer = Packer(ROW, lanes)
    for i, length in enumerate(lengths):
        packer.add(document(i, length))
    full = not packer.lacking(steps)
    taken = [packer.take() for _ in range(steps)]
    assert full == all(packed is not None for packed in taken)


@given(lengths, st.integers(1, 5))
def test_spans_say_exactly_where_each_token_is(lengths: list[int], lanes: int):
    _, documents, taken = packed_all(lengths, lanes)
    for packed in taken:
        covered = np.zeros((lanes, ROW), int)
        for span in packed.spans:
            where = slice(span.offset, span.offset + span.length)
            covered[span.row, where] += 1
            expected = documents[span.sample].tokens[span.start : span.start + span.length]
            assert np.array_equal(packed.tokens[span.row, where], expected)
        assert (covered == 1).all()


@given(st.lists(st.tuples(st.integers(2, 40), st.integers(0, 500)), min_size=1, max_size=20))
def test_bytes_of_spans_sum_to_the_bytes_of_their_documents(sizes: list[tuple[int, int]]):
    packer = Packer(ROW, 1)
    for i, (length, text_bytes) in enumerate(sizes):
        packer.add(document(i, length, text_bytes))
    padding = -packer.tokens % ROW
    if padding:
        packer.add(document(len(sizes), padding))
    total = sum(sum(packed.text_bytes) for packed in take_all(packer))
    assert total == sum(text_bytes for _, text_bytes in sizes)


@given(lengths, st.integers(1, 5))
def test_rows_can_be_made_again_from_their_spans(lengths: list[int], lanes: int):
    _, documents, taken = packed_all(lengths, lanes)
    for packed in taken:
        again = repack(packed.spans, documents, ROW)
        assert np.array_equal(again.tokens, packed.tokens)
        assert again.text_bytes == packed.text_bytes


def test_tokens_know_their_document_within_the_row():
    packer = Packer(ROW, 2)
    for i, length in enumerate((3, 2, 9, 7, 4)):
        packer.add(document(i, length))
    packed = packer.take()
    assert packed is not None
    assert documents_of(packed.spans, 2, ROW).tolist() == [
        [0, 0, 0, 1, 1, 2, 2, 2],
        [0, 0, 0, 0, 0, 0, 0, 1],
    ]


def test_a_document_delivered_in_part_goes_on_in_its_lane():
    packer = Packer(ROW, 2)
    packer.add(document(1, ROW))
    packer.resume(1, document(7, 12), start=4)
    packed = packer.take()
    assert packed is not None
    assert packed.tokens[0].tolist() == [1000, 1001, 1002, 1003, 1004, 1005, 1006, 1007]
    assert packed.tokens[1].tolist() == [7004, 7005, 7006, 7007, 7008, 7009, 7010, 7011]


@pytest.mark.parametrize("calls", [(1, 3, 5), (5, 1, 3), (3, 5, 1)])
def test_rests_of_lanes_that_are_no_more_wait_in_their_order(calls: tuple[int, ...]):
    packer = Packer(ROW, 2)
    packer.add(document(8, 2 * ROW))
    for lane in calls:
        packer.resume(lane, document(lane, 9), start=4)
    assert packer.lacking(1) == 0
    packed = packer.take()
    assert packed is not None
    assert packed.tokens[0].tolist() == [8000 + i for i in range(ROW)]
    assert packed.tokens[1].tolist() == [1004, 1005, 1006, 1007, 1008, 3004, 3005, 3006]
    assert packer.tokens == ROW + 2 + 5


def test_rows_that_are_not_full_are_not_handed_out():
    packer = Packer(ROW, 2)
    packer.add(document(0, ROW * 5))
    assert packer.lacking(1) == ROW
    assert packer.take() is None
    packer.add(document(1, ROW - 1))
    assert packer.lacking(1) == 1
    assert packer.take() is None
    assert packer.tokens == ROW * 6 - 1


def test_documents_too_short_for_their_spans_are_refused():
    packer = Packer(ROW, 1)
    packer.add(document(0, ROW))
    packed = packer.take()
    assert packed is not None
    with pytest.raises(ValueError, match="ends at token 5"):
        repack(packed.spans, [document(0, 5)], ROW)
