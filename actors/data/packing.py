"""One endless stream of tokens, cut into rows of equal length.

Documents follow one another in the order they are added; a row may hold several, a document may
run over many rows. No token is lost, none is repeated, and every span is known by name. The bytes
behind a document are shared out over its spans in whole numbers that sum to the document's bytes.
"""

from collections import deque
from collections.abc import Iterable, Sequence
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


class Packer:
    """The stream."""

    def __init__(self, row_tokens: int) -> None:
        self._row_tokens = row_tokens
        self._stream: deque[_Open] = deque()
        self.tokens = 0  # buffered

    def add(self, document: Document, start: int = 0) -> None:
        """Append a document, from its token `start` on: the rest has been delivered before."""
        left = len(document.tokens) - start
        if left > 0:
            self._stream.append(_Open(document, start))
            self.tokens += left

    def take(self, rows: int) -> Packed | None:
        """The next `rows` rows, or None when there are not enough tokens."""
        wanted = rows * self._row_tokens
        if self.tokens < wanted:
            return None
        flat = np.empty(wanted, np.int32)
        spans: list[Span] = []
        text_bytes = [0] * rows
        at = 0
        while at < wanted:
            head = self._stream[0]
            row, offset = divmod(at, self._row_tokens)
            left = len(head.document.tokens) - head.start
            length = min(left, self._row_tokens - offset)
            flat[at : at + length] = head.document.tokens[head.start : head.start + length]
            spans.append(Span(*head.document.key, head.start, length, row, offset))
            text_bytes[row] += span_bytes(head.document, head.start, length)
            at += length
            head.start += length
            if length == left:
                self._stream.popleft()
        self.tokens -= wanted
        return Packed(flat.reshape(rows, self._row_tokens), tuple(spans), tuple(text_bytes))


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
