"""What the trainers are fed: which samples to draw, and when a step's rows are complete. Pure.

Draws go out as far ahead as `lookahead` steps of the slowest rank need, finished samples come
back in any order and are packed in theirs, and a step is composed as soon as its rows are full.
What has been composed is in the ledger; after a restart the feed goes on from there, and in
strict order from there on it is the same feed as if there had been no restart.
"""

import zlib
from collections import Counter, deque
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from actors.data.ordering import Buffer, Draw, Draws, Key, Order
from actors.data.packing import Document, Packed, Packer, Tokens

# Samples drawn and not finished, whatever the estimates say.
_MAX_OUTSTANDING = 4096
# What a document is taken to be before any has been seen.
_FIRST_GUESS_TOKENS = 1000


@dataclass(frozen=True, slots=True)
class Shape:
    """What one step consists of."""

    ranks: int
    rows: int  # of one rank
    row_tokens: int  # seq_len + 1
    steps: int  # of the whole run: nothing is composed beyond
    lookahead: int

    @property
    def step_rows(self) -> int:
        """Rows of all ranks together."""
        return self.ranks * self.rows


@dataclass(frozen=True, slots=True)
class Fact:
    """What the ledger remembers of a document, to know it again."""

    tokens: int
    text_bytes: int
    crc: int

    @classmethod
    def of(cls, document: Document) -> "Fact":
        """The fact about a document."""
        return cls(len(document.tokens), document.text_bytes, checksum(document.tokens))


@dataclass(frozen=True, slots=True)
class Refusal:
    """A sample nobody can use."""

    key: Key
    kind: str
    detail: str


@dataclass(frozen=True, slots=True)
class Composition:
    """All rows of one step, to be recorded before any is offered."""

    step: int
    packed: Packed  # rows of rank 0 first
    began: tuple[tuple[Key, Fact], ...]  # documents whose first token is here, in order
    refused: tuple[Refusal, ...]  # since the step before
    open_epoch: int  # in every epoch before this one all samples are settled


@dataclass(frozen=True, slots=True)
class Carry:
    """A document whose first `start` tokens have been delivered."""

    key: Key
    start: int
    fact: Fact


@dataclass(slots=True)
class Recorded:
    """Where the ledger says we are."""

    next_step: int = 1
    carry: Carry | None = None
    epoch: int = 0  # before it every sample is settled
    settled: dict[int, set[int]] = field(default_factory=dict[int, set[int]])
    left_out: set[int] = field(default_factory=set[int])


def checksum(tokens: Tokens) -> int:
    """Tells one document's tokens from another's."""
    return zlib.crc32(np.ascontiguousarray(tokens).data)


class Feed:
    """The one stream all ranks are fed from."""

    def __init__(
        self,
        shape: Shape,
        samples: NDArray[np.int64],
        recorded: Recorded,
        *,
        seed: int,
        order: Order,
    ) -> None:
        self.shape = shape
        self.next_step = recorded.next_step
        self.refused = 0
        self._left_out = recorded.left_out
        self._is_first_start = recorded.next_step == 1
        self._draws = Draws(
            seed,
            samples,
            epoch=recorded.epoch,
            settled=recorded.settled,
            left_out=recorded.left_out,
        )
        self._buffer: Buffer[Document] = Buffer(order)
        self._packer = Packer(shape.row_tokens)
        self._carry = recorded.carry
        self._carry_out = False
        self._turns: dict[Key, int] = {}  # drawn, not finished
        self._unrecorded: Counter[int] = Counter()  # by epoch: drawn, not in the ledger
        self._buffered_tokens = 0  # finished, not packed
        self._facts: deque[tuple[Key, Fact]] = deque()  # packed, first token not composed
        self._refusals: list[Refusal] = []
        self._requested: dict[int, int] = {}
        self._seen, self._seen_tokens = 1, _FIRST_GUESS_TOKENS
        self._dry = False
        self.warnings: list[str] = []

    # --- demand -----------------------------------------------------------------------------------

    def requested(self, step: int, rank: int) -> None:
        """A trainer asks for its batch: what lies far behind it will not be needed soon."""
        self._requested[rank] = step

    @property
    def slowest(self) -> int:
        """The step the slowest rank asked for last; 0 before anyone did."""
        return min(self._requested.values(), default=0)

    def _last_step(self) -> int:
        """The last step worth composing now."""
        if not self._requested:
            # A first start need not wait for questions; after a restart they say what is needed.
            ahead = self.shape.lookahead if self._is_first_start else 0
        else:
            ahead = max(self.slowest + self.shape.lookahead, *self._requested.values())
        return min(ahead, self.shape.steps)

    def draw(self) -> list[Draw]:
        """Samples to lease now, the most urgent first."""
        out: list[Draw] = []
        if self._carry is not None and not self._carry_out and self.next_step <= self._last_step():
            self._carry_out = True
            out.append(Draw(-1, *self._carry.key))
        while self._has_room():
            draw = self._draws.next()
            self._dry = draw is None
            if draw is None:
                break
            self._turns[draw.key] = draw.turn
            self._unrecorded[draw.epoch] += 1
            out.append(draw)
        return out

    def _has_room(self) -> bool:
        steps = self._last_step() - self.next_step + 1
        if steps <= 0 or len(self._turns) >= _MAX_OUTSTANDING:
            return False
        wanted = steps * self.shape.step_rows * self.shape.row_tokens
        expected = len(self._turns) * self._seen_tokens // self._seen
        return self._packer.tokens + self._buffered_tokens + expected < wanted

    @property
    def exhausted(self) -> bool:
        """Every sample has been left out and nothing is on its way: the run cannot go on."""
        done = self.next_step > self.shape.steps
        empty = not self._turns and not len(self._buffer) and self._carry is None
        return self._dry and empty and not done

    @property
    def epoch(self) -> int:
        """The epoch draws are made from."""
        return self._draws.epoch

    @property
    def outstanding(self) -> int:
        """Samples drawn and not finished."""
        return len(self._turns)

    @property
    def buffered_tokens(self) -> int:
        """Tokens finished and not yet in a composed step."""
        return self._packer.tokens + self._buffered_tokens

    # --- supply -----------------------------------------------------------------------------------

    def finished(self, document: Document) -> None:
        """A sample is done. Those not (or no longer) on their way are ignored."""
        carry = self._carry
        if carry is not None and document.key == carry.key:
            if Fact.of(document) == carry.fact:
                self._packer.add(document, carry.start)
            else:
                self._drop_carry("has changed since its first part was delivered")
            self._carry = None
        elif document.key in self._turns:
            self._seen += 1
            self._seen_tokens += len(document.tokens)
            self._buffered_tokens += len(document.tokens)
            self._buffer.put(self._turns.pop(document.key), document)
        self._pack()

    def refuse(self, refusal: Refusal) -> bool:
        """A sample turned out to be of no use. False when nobody had drawn it."""
        key = refusal.key
        if self._carry is not None and key == self._carry.key:
            self._drop_carry(f"is {refusal.kind} since its first part was delivered")
            self._carry = None
        elif key in self._turns:
            self._end_turn(key)
        else:
            return False
        self._left_out.add(key[1])
        self._refusals.append(refusal)
        self.refused += 1
        self._pack()
        return True

    def quarantine(self, key: Key) -> None:
        """A sample is not to be tried again; the ledger knows already."""
        self._left_out.add(key[1])
        if self._carry is not None and key == self._carry.key:
            self._drop_carry("is quarantined since its first part was delivered")
            self._carry = None
        elif key in self._turns:
            self._end_turn(key)
        self._pack()

    def _end_turn(self, key: Key) -> None:
        """Nothing came of this draw."""
        self._buffer.put(self._turns.pop(key), None)
        self._unrecorded[key[0]] -= 1

    def _drop_carry(self, what: str) -> None:
        assert self._carry is not None
        left = self._carry.fact.tokens - self._carry.start
        epoch, sample = self._carry.key
        self.warnings.append(
            f"sample {sample} {what} (epoch {epoch}): its last {left} tokens are left out"
        )

    def _pack(self) -> None:
        """Move what is in turn to the packer. The rest of a carried document goes first."""
        if self._carry is not None:
            return
        while (document := self._buffer.pop()) is not None:
            self._buffered_tokens -= len(document.tokens)
            self._packer.add(document)
            self._facts.append((document.key, Fact.of(document)))

    def compose(self) -> Composition | None:
        """The next step, once its rows are full and somebody will want it soon."""
        if self.next_step > self._last_step():
            return None
        packed = self._packer.take(self.shape.step_rows)
        if packed is None:
            return None
        began = tuple(self._facts.popleft() for span in packed.spans if span.start == 0)
        self._unrecorded.subtract(epoch for (epoch, _), _ in began)
        self._unrecorded = +self._unrecorded  # without those that reached zero
        open_epoch = min([self.epoch, *self._unrecorded])
        refused = tuple(self._refusals)
        composition = Composition(self.next_step, packed, began, refused, open_epoch)
        self._refusals.clear()
        self.next_step += 1
        return composition
