"""What the trainers are fed: which samples to draw, and when a step's rows are complete. Pure.

Draws go out as far ahead as `lookahead` steps of the slowest rank need, finished samples come
back in any order and are packed in theirs, and a step is composed as soon as its rows are full.
What has been composed is in the ledger; after a restart the feed goes on from there, and in
strict order from there on it is the same feed as if there had been no restart.
"""

import zlib
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from actors.data.foresight import Horizon
from actors.data.ordering import Buffer, Draw, Draws, Key, Order
from actors.data.pacing import Pace
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
    given_up: tuple[Key, ...] = ()  # documents whose rest is not to be delivered any more


@dataclass(frozen=True, slots=True)
class Carry:
    """A document whose first `start` tokens have been delivered in `lane`."""

    lane: int  # row of a step, over all ranks, when it began: there may be fewer now
    key: Key
    start: int
    fact: Fact


@dataclass(slots=True)
class Recorded:
    """Where the ledger says we are."""

    next_step: int = 1
    carries: tuple[Carry, ...] = ()
    epoch: int = 0  # before it every sample is settled
    settled: dict[int, set[int]] = field(default_factory=dict[int, set[int]])
    left_out: set[int] = field(default_factory=set[int])


def checksum(tokens: Tokens) -> int:
    """Tells one document's tokens from another's."""
    return zlib.crc32(np.ascontiguousarray(tokens).data)


class Feed:
    """The lanes all ranks are fed from."""

    def __init__(
        self,
        shape: Shape,
        samples: NDArray[np.int64] | Callable[[int], NDArray[np.int64]],
        recorded: Recorded,
        *,
        seed: int,
        order: Order,
        expect: Callable[[int], float] = lambda _sample: 0.0,
    ) -> None:
        """`expect`: seconds a sample will take, 0 when nothing is known."""
        self.shape = shape
        self._expect = expect
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
        self._horizon = Horizon(self._draws.next, lambda draw: expect(draw.sample))
        self._pace, self._longest_s = Pace(), 0.0
        self._buffer: Buffer[Document] = Buffer(order)
        self._packer = Packer(shape.row_tokens, shape.step_rows)
        # Lanes in the middle of a document: nothing is composed before they have the rest of it.
        self._carries = {carry.key: carry for carry in recorded.carries}
        self._carries_out = False
        self._turns: dict[Key, int] = {}  # drawn, not finished
        self._unrecorded: Counter[int] = Counter()  # by epoch: drawn, not in the ledger
        self._buffered_tokens = 0  # finished, not packed
        self._facts: deque[tuple[Key, Fact]] = deque()  # packed, first token not composed
        self._refusals: list[Refusal] = []
        self._given_up: list[Key] = []
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
        steps = self._last_step() - self.next_step + 1
        if steps <= 0:
            return []
        out: list[Draw] = []
        if self._carries and not self._carries_out:
            self._carries_out = True
            out += [Draw(-1, *key) for key in self._carries]
        # A sample on its way is worth what samples were so far, but no more than one lane can use.
        worth = max(1, min(self._seen_tokens // self._seen, steps * self.shape.row_tokens))
        lacking = self._packer.lacking(steps) - worth * (len(self._turns) + len(self._buffer))
        while lacking > 0 and len(self._turns) < _MAX_OUTSTANDING:
            draw = self._horizon.next()
            self._dry = draw is None
            if draw is None:
                break
            if self._begin(draw):
                lacking -= worth
                out.append(draw)
        if len(self._turns) < _MAX_OUTSTANDING:
            early = self._horizon.early(self._buffer.passed, self._pace.rate, self._longest_s)
            out += [draw for draw in early if self._begin(draw)]
        return out

    def _begin(self, draw: Draw) -> bool:
        """A draw is made. False when it has turned out meanwhile that nothing will come of it."""
        self._turns[draw.key] = draw.turn
        self._unrecorded[draw.epoch] += 1
        if draw.sample not in self._left_out:
            return True
        self._end_turn(draw.key)
        self._pack()
        return False

    def foresee(self, now: float, longest_s: float) -> None:
        """Time passes; no sample is known to take longer than `longest_s`."""
        if self._buffer.passed > self._pace.turns:
            self._pace.composed(self._buffer.passed)
            self._pace.consumed(now)
        self._longest_s = longest_s

    def due(self, draw: Draw) -> int:
        """Turn by which it has to be begun."""
        return draw.turn - round(self._pace.rate * self._expect(draw.sample))

    @property
    def exhausted(self) -> bool:
        """Every sample has been left out and nothing is on its way: the run cannot go on."""
        done = self.next_step > self.shape.steps
        empty = not self._turns and not len(self._buffer) and not self._carries
        return self._dry and empty and not done

    @property
    def epoch(self) -> int:
        """The epoch draws are made from."""
        ahead = self._horizon.first()
        return self._draws.epoch if ahead is None else ahead.epoch

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
        carry = self._carries.pop(document.key, None)
        if carry is not None:
            if Fact.of(document) == carry.fact:
                self._packer.resume(carry.lane, document, carry.start)
            else:
                self._drop(carry, "has changed since its first part was delivered")
        elif document.key in self._turns:
            self._seen += 1
            self._seen_tokens += len(document.tokens)
            self._buffered_tokens += len(document.tokens)
            self._buffer.put(self._turns.pop(document.key), document)
        self._pack()

    def leaves_out(self, sample: int) -> bool:
        """No epoch will have this sample any more."""
        return sample in self._left_out

    def refuse(self, refusal: Refusal) -> bool:
        """A sample turned out to be of no use. False when nobody had drawn it."""
        key = refusal.key
        carry = self._carries.pop(key, None)
        if carry is not None:
            self._drop(carry, f"is {refusal.kind} since its first part was delivered")
        elif key in self._turns:
            self._end_turn(key)
        else:
            return False
        # The same sample may be on its way for two epochs at once.
        self.refused += key[1] not in self._left_out
        self._left_out.add(key[1])
        self._refusals.append(refusal)
        self._pack()
        return True

    def quarantine(self, key: Key) -> None:
        """A sample is not to be tried again; the ledger knows already."""
        self._left_out.add(key[1])
        carry = self._carries.pop(key, None)
        if carry is not None:
            self._drop(carry, "is quarantined since its first part was delivered")
        elif key in self._turns:
            self._end_turn(key)
        self._pack()

    def _end_turn(self, key: Key) -> None:
        """Nothing came of this draw."""
        self._buffer.put(self._turns.pop(key), None)
        self._unrecorded[key[0]] -= 1

    def _drop(self, carry: Carry, what: str) -> None:
        left = carry.fact.tokens - carry.start
        epoch, sample = carry.key
        self._given_up.append(carry.key)
        self.warnings.append(
            f"sample {sample} {what} (epoch {epoch}): its last {left} tokens are left out"
        )

    def _pack(self) -> None:
        """Move what is in turn to the packer."""
        while (document := self._buffer.pop()) is not None:
            self._buffered_tokens -= len(document.tokens)
            self._packer.add(document)
            self._facts.append((document.key, Fact.of(document)))

    def compose(self) -> Composition | None:
        """The next step, once its rows are full and somebody will want it soon."""
        if self.next_step > self._last_step() or self._carries:
            return None
        packed = self._packer.take()
        if packed is None:
            return None
        began = tuple(self._facts.popleft() for span in packed.spans if span.start == 0)
        self._unrecorded.subtract(epoch for (epoch, _), _ in began)
        self._unrecorded = +self._unrecorded  # without those that reached zero
        open_epoch = min([self.epoch, *self._unrecorded])
        composition = Composition(
            *(self.next_step, packed, began, tuple(self._refusals), open_epoch),
            given_up=tuple(self._given_up),
        )
        self._refusals.clear()
        self._given_up.clear()
        self.next_step += 1
        return composition
