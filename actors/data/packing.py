"""Endless lanes of tokens, cut into rows of equal length.

Every row of a step has a lane of its own. A lane that runs out of tokens takes the next document,
in the order they were added, and goes on with it in the same row of the steps that follow. So a
batch shows as many documents at once as it has rows, instead of one long document after another.
When a run goes on with fewer rows, the documents of lanes that are no more wait in those that are.

A row may hold several documents, a document may run over many steps. No token is lost, none is
repeated, and every span is known by name. The bytes behind a document are shared out over its spans
in whole numbers that sum to the document's bytes.
"""

import bisect
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from actors.data.ordering import Key

Tokens = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Document:
    """One finished sample."""

    key: Key
    tokens: Tokens  # <bos> first, <eos> last
    text_bytes: int  # of UTF-8 they stand for


@dataclass(frozen=True, slots=True)
class Span:
    """`length` tokens of a document, from its token `start` on, lie in `row` from `offset` on."""

    epoch: int
    sample: int
    start: int
    length: int
    row: int
    offset: int

    @property
    def key(self) -> Key:
        """Which document it belongs to."""
        return self.epoch, self.sample


@dataclass(frozen=True, slots=True)
class Packed:
    """Rows of one step. B rows of T tokens."""

    tokens: Tokens  # (B, T)
    spans: tuple[Span, ...]  # by row, then by offset; together they cover every row
    text_bytes: tuple[int, ...]  # of each row


@dataclass(slots=True)
class _Open:
    """A document with tokens left."""

    document: Document
    start: int

    @property
    def left(self) -> int:
        return len(self.document.tokens) - self.start


class Packer:
    """The lanes, and the documents that wait for one."""

    def __init__(self, row_tokens: int, lanes: int) -> None:
        self._row_tokens = row_tokens
        # Of each lane: what it is in the middle of, then the rests of lanes that are no more.
        self._lanes: list[list[tuple[int, _Open]]] = [[] for _ in range(lanes)]
        self._queue: deque[Document] = deque()
        self.tokens = 0  # buffered

    def add(self, document: Document) -> None:
        """Append a document to those that wait."""
        self._queue.append(document)
        self.tokens += len(document.tokens)

    def resume(self, lane: int, document: Document, start: int) -> None:
        """`lane` goes on with the rest of a document, of which `start` tokens are delivered.

        There may have been more lanes once: the rest then waits in lane `lane` modulo those of now,
        in the order of their numbers, whatever the order of the calls.
        """
        rests = self._lanes[lane % len(self._lanes)]
        assert all(lane != known for known, _ in rests)
        bisect.insort(rests, (lane, _Open(document, start)), key=lambda rest: rest[0])
        self.tokens += len(document.tokens) - start

    def lacking(self, steps: int) -> int:
        """Tokens without which the next `steps` steps are not full; 0: `take` so often."""
        left = [sum(rest.left for _, rest in lane) for lane in self._lanes]
        waiting = iter(self._queue)
        lacking = 0
        for _ in range(steps):
            for i, at_hand in enumerate(left):
                tokens = at_hand
                while tokens < self._row_tokens and (document := next(waiting, None)) is not None:
                    tokens += len(document.tokens)
                lacking += max(0, self._row_tokens - tokens)
                left[i] = max(0, tokens - self._row_tokens)
        return lacking

    def take(self) -> Packed | None:
        """The next row of every lane, or None while one of them would not be full."""
        if self.lacking(1):
            return None
        rows = np.empty((len(self._lanes), self._row_tokens), np.int32)
        spans = [span for row, into in enumerate(rows) for span in self._fill(row, into)]
        text_bytes = [0] * len(rows)
        for span, size in spans:
            text_bytes[span.row] += size
        self.tokens -= rows.size
        return Packed(rows, tuple(span for span, _ in spans), tuple(text_bytes))

    def _fill(self, row: int, into: Tokens) -> Iterator[tuple[Span, int]]:
        """Fill one lane's row; its spans and the bytes behind each."""
        offset = 0
        while offset < len(into):
            lane = self._lanes[row]
            if not lane:
                lane.append((row, _Open(self._queue.popleft(), 0)))
            head = lane[0][1]
            length = min(head.left, len(into) - offset)
            document, start = head.document, head.start
            into[offset : offset + length] = document.tokens[start : start + length]
            yield (
                Span(*document.key, start, length, row, offset),
                span_bytes(document, start, length),
            )
            offset += length
            head.start += length
            if not head.left:
                lane.pop(0)


def span_bytes(document: Document, start: int, length: int) -> int:
    """Bytes of text behind a span. Over all spans of a document they sum to its `text_bytes`."""
    count = len(document.tokens)
    return document.text_bytes * (start + length) // count - document.text_bytes * start // count


def repack(spans: Sequence[Span], documents: Iterable[Document], row_tokens: int) -> Packed:
    """The rows these spans describe, made again from their documents.

    Raises `ValueError` when the documents do not hold the spans.
    """
    by_key = {document.key: document for document in documents}
    rows = 1 + max(span.row for span in spans)
    tokens = np.zeros((rows, row_tokens), np.int32)
    text_bytes = [0] * rows
    for span in spans:
        document = by_key[span.key]
        piece = document.tokens[span.start : span.start + span.length]
        if len(piece) < span.length:
            raise ValueError(f"document {span.key} ends at token {len(document.tokens)}")
        tokens[span.row, span.offset : span.offset + span.length] = piece
        text_bytes[span.row] += span_bytes(document, span.start, span.length)
    return Packed(tokens, tuple(spans), tuple(text_bytes))


def documents_of(spans: Iterable[Span], rows: int, row_tokens: int) -> Tokens:
    """For every token of every row, which document of its row it belongs to, from 0: (B, T)."""
    documents = np.zeros((rows, row_tokens), np.int32)
    for span in spans:
        # Everything from here on belongs to this document, or to one that comes later.
        if span.offset:
            documents[span.row, span.offset :] += 1
    return documents
