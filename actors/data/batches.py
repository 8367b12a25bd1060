"""Batches on request: from the spool, from the feed, or made again from what the ledger knows.

Whatever a trainer gets is in the ledger first, and a step that was asked for once is answered the
same way ever after. Not covered: who works on the samples (leases.py) and how answers travel.
"""

from collections.abc import Callable
from dataclasses import dataclass

from actors.data.feed import Feed, Recorded, Refusal, Shape
from actors.data.ledger import Ledger, tokens_of
from actors.data.ordering import Key
from actors.data.packing import Document, Tokens, documents_of
from actors.data.replay import Diverged, Replays

# Steps kept in the spool behind the slowest rank: a replaced trainer asks for the one it was on.
KEPT_BEHIND = 2
# Samples of old steps go before all new ones: somebody is waiting for them.
_REPLAY_ORDER = -(2**40)


@dataclass(frozen=True, slots=True)
class Answer:
    """A batch, and who asked for it. Tokens and documents are int32 (rows, row_tokens)."""

    peer: str
    step: int
    rank: int
    epoch: int
    tokens: Tokens
    documents: Tokens
    text_bytes: int


class Batches:
    """The ledger, the feed, the replays, and who waits."""

    def __init__(self, ledger: Ledger, shape: Shape, feed: Callable[[Recorded], Feed]) -> None:
        self.shape = shape
        self._ledger = ledger
        self._make_feed = feed
        self.feed = feed(ledger.recorded())
        # Earlier steps may have been composed for other ranks or rows.
        self._doubtful_below = self.feed.next_step + 1
        self._ranks_and_rows = shape.ranks, shape.rows
        self._replays = Replays(shape.row_tokens)
        self._waiting: dict[tuple[int, int], str] = {}
        self._to_lease: list[tuple[Key, int]] = []
        self.warnings: list[str] = []
        self.rewound = False  # set when all that is on its way has become pointless

    # --- what is asked ----------------------------------------------------------------------------

    def request(self, step: int, rank: int, peer: str) -> None:
        """`peer` wants this batch. Raises `ValueError` when there is no such batch."""
        if not 0 <= rank < self.shape.ranks:
            raise ValueError(f"rank {rank} of {self.shape.ranks}")
        if not 1 <= step <= self.shape.steps:
            raise ValueError(f"step {step} of a run of {self.shape.steps}")
        if step < self._doubtful_below:
            self._reshape(step)
        self.feed.requested(step, rank)
        self._waiting[step, rank] = peer

    def _reshape(self, step: int) -> None:
        """The trainers go on from here: what follows is to be composed for as many as there are.

        All of them ask for the same step first, or one beyond: none asks for what is forgotten.
        """
        first = min(step, self.feed.next_step)
        # Of a step that is still to come, what lies in the lanes behind it counts.
        composed = self._ledger.shape_of(first) or self._ledger.shape_of(first - 1)
        if composed is None or composed == self._ranks_and_rows:
            return
        self._ledger.reshape(first)
        self._doubtful_below = first
        self.warnings.append(
            f"steps from {first} on are composed for {self.shape.ranks} trainers of "
            f"{self.shape.rows} rows; the one before was for {composed[0]} of {composed[1]}"
        )
        self._begin_anew()

    @property
    def waiting(self) -> int:
        """Requests not answered yet."""
        return len(self._waiting)

    @property
    def ahead(self) -> int:
        """Steps composed and not yet asked for by the slowest rank."""
        return max(0, self.feed.next_step - 1 - self.feed.slowest)

    def to_lease(self) -> list[tuple[Key, int]]:
        """Samples wanted now that were not before, each with its place in the queue."""
        wanted, self._to_lease = self._to_lease, []
        wanted += [(draw.key, self.feed.due(draw)) for draw in self.feed.draw()]
        return wanted

    # --- what comes back --------------------------------------------------------------------------

    def finished(self, document: Document) -> None:
        """A sample is done."""
        self.feed.finished(document)
        self._rewind(self._replays.finished(document))

    def refused(self, refusal: Refusal) -> None:
        """A sample is of no use."""
        self.feed.refuse(refusal)
        self._rewind(self._replays.refuse(refusal))

    def quarantined(self, key: Key, reason: str, deaths: int) -> None:
        """A sample has ended too many workers."""
        self._ledger.quarantine(key[1], reason, deaths)
        self.feed.quarantine(key)
        self._rewind(self._replays.refuse(Refusal(key, "quarantined", reason)))

    def settle(self) -> list[Answer]:
        """Compose and record what is complete; the batches that somebody waits for."""
        while (composition := self.feed.compose()) is not None:
            keep = min(self.feed.slowest, *(step for step, _ in self._waiting), composition.step)
            self._ledger.commit(composition, self.shape, forget_before=keep - KEPT_BEHIND)
        for replayed in self._replays.done():
            self._ledger.respool(replayed.step, replayed.packed, self.shape)
        answers = [self._answer(*asked, peer) for asked, peer in sorted(self._waiting.items())]
        self.warnings += self.feed.warnings
        self.feed.warnings.clear()
        return [answer for answer in answers if answer is not None]

    def sent(self, answer: Answer) -> None:
        """That request is settled."""
        self._waiting.pop((answer.step, answer.rank), None)

    def _answer(self, step: int, rank: int, peer: str) -> Answer | None:
        found = self._ledger.batch(step, rank)
        if found is None:
            if step < self.feed.next_step:
                self._replay(step)
            return None
        blob, epoch, text_bytes = found
        shape = self.shape
        first = rank * shape.rows
        spans = [
            span
            for span in self._ledger.spans(step, shape)
            if first <= span.row < first + shape.rows
        ]
        documents = documents_of(spans, shape.step_rows, shape.row_tokens)
        return Answer(
            *(peer, step, rank, epoch, tokens_of(blob, shape)),
            documents[first : first + shape.rows],
            text_bytes,
        )

    def _replay(self, first: int) -> None:
        """Make `first` again, and the steps after it before they are asked for."""
        for step in range(first, min(first + self.shape.lookahead + 1, self.feed.next_step)):
            if self._ledger.shape_of(step) != self._ranks_and_rows:
                break  # composed anew when it is asked for
            if step in self._replays or self._ledger.batch(step, 0) is not None:
                continue
            spans = self._ledger.spans(step, self.shape)
            facts = self._ledger.known({span.key for span in spans})
            missing = self._replays.want(step, spans, facts)
            self._to_lease += [(key, _REPLAY_ORDER + step) for key in missing]

    def _rewind(self, diverged: Diverged | None) -> None:
        """A sample is not what it was: nobody has been given anything from this step on in the
        present lives of the trainers, so from there on steps are composed anew, without it."""
        if diverged is None:
            return
        refusal = diverged.refusal
        self._ledger.truncate(diverged.step, refusal.key[1], refusal.kind, refusal.detail)
        self.warnings.append(
            f"step {diverged.step} and later ones are composed anew: sample {refusal.key[1]} is "
            f"{refusal.kind} ({refusal.detail})"
        )
        self._begin_anew()

    def _begin_anew(self) -> None:
        """From what the ledger says now."""
        self.feed = self._make_feed(self._ledger.recorded())
        for step, rank in self._waiting:
            self.feed.requested(step, rank)
        self._replays = Replays(self.shape.row_tokens)
        self._to_lease.clear()
        self.rewound = True
