"""The loader's dealings with its data workers: plans and leases out, results in.

Carries out what the lease table decides. Workers here read files themselves; for those of other
hosts the first stage is done here and the text travels with the lease.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from actors.data.corpus import Corpus
from actors.data.feed import Refusal
from actors.data.guests import GuestBook
from actors.data.learning import Learning, Timing
from actors.data.leases import Grant, LeaseTable, Poisoned
from actors.data.packing import Document, Tokens
from actors.data.stages import Options, SampleProblem, State, read
from actors.data.terms import Terms
from protocol import tensors
from protocol.codec import Buffer
from protocol.errors import ProtocolError
from protocol.messages import (
    Goodbye,
    JoinPool,
    Lease,
    LeaseRequest,
    Message,
    PeerDown,
    PeerUp,
    SampleHandover,
    SampleParked,
    SampleReady,
    SampleRefused,
    Stop,
    Welcome,
)
from protocol.transport import Received, Sent

Outcome = Document | Refusal | Poisoned

# Heartbeats a worker of another host may miss before its leases are given to others.
SILENT_BEATS = 20
# How often anybody late or silent is looked for: that is judged in seconds, and to look at ten
# thousand workers takes milliseconds.
WATCH_S = 0.1
# Longer than anything takes: estimates are made of what workers say.
_LONGEST_S = 86_400.0


class Send(Protocol):
    """How a message leaves: `AsyncMailbox.send`."""

    def __call__(
        self, channel: str, message: Message, *, to: str = "", frames: Sequence[Buffer] = ()
    ) -> Sent:
        """See `AsyncMailbox.send`."""
        ...


class Log(Protocol):
    """Where it is said: a structlog logger."""

    def info(self, event: str, **fields: object) -> object:
        """What is good to know."""
        ...

    def warning(self, event: str, **fields: object) -> object:
        """What should not happen."""
        ...


class Crew:
    """All workers of a run."""

    def __init__(
        self,
        table: LeaseTable,
        corpus: Corpus,
        terms: Terms,
        send: Send,
        log: Log,
        learning: Learning | None = None,
        noted: Callable[[str, int], int | None] = lambda _name, _life: None,
    ) -> None:
        """`noted`: the lease that a life of a worker was at, see noting.py."""
        self.table = table
        self.learning = learning or Learning(0, cutoff_s=terms.plan.cutoff_s)
        self.finished = self.parked = 0  # samples, so far
        self._corpus = corpus
        self._terms = terms
        self._send, self._noted = send, noted
        self._log = log
        self.guests = GuestBook(table)
        self._channel: dict[str, str] = {}
        self._watch_at = float("-inf")

    # --- what workers say -------------------------------------------------------------------------

    def hear(self, received: Received, now: float) -> list[Outcome]:
        """A message of a worker, or about one; what became of samples by it."""
        name = received.sender
        match received.message:
            case JoinPool() as join:
                return self._join(received, join, now)
            case LeaseRequest() as request:
                return self._request(received, request, now)
            case SampleReady() as ready:
                return self._ready(received, ready, now)
            case SampleRefused() as refused:
                key = self.table.finished(name, refused.lease, now)
                if key is not None:
                    self.learning.forget(key)
                return [] if key is None else [Refusal(key, refused.kind, refused.detail)]
            case SampleParked() as parked:
                self.parked += 1
                self.table.park(name, parked.lease, now)
                return []
            case SampleHandover() as handover:
                return self._handed_over(received, handover, now)
            case _:
                return self._farewell(received, now)

    def _farewell(self, received: Received, now: float) -> list[Outcome]:
        """Who has left, by their own word or the supervisor's."""
        match received.message:
            case Goodbye():
                return self._gone(received.sender, "", now, why="it said goodbye")
            case PeerDown(name=name, incarnation=incarnation, reason=reason):
                if 0 <= self._incarnation(name) <= incarnation:
                    return self._gone(name, reason or "died", now)
            case PeerUp(name=name, incarnation=incarnation):
                if 0 <= self._incarnation(name) < incarnation:
                    return self._gone(name, "was replaced", now)
            case _:
                pass
        return []

    def _join(self, received: Received, join: JoinPool, now: float) -> list[Outcome]:
        name = received.sender
        self._meet(received, join.host)
        self.learning.share_out_soon()
        poisoned = self.table.join(
            name, received.incarnation, join.pool, shares_files=join.shares_files, now=now
        )
        self._send(received.channel, self._terms.plan, to=name, frames=[self._terms.tokenizer])
        return list(poisoned)

    def _meet(self, received: Received, host: str) -> None:
        name = received.sender
        self._channel[name] = received.channel
        if received.channel == "remote" and not self.guests.knows(name):
            self.guests.joined(name, host)
            self._log.info("remote worker joined", worker=name, host=host)

    def _request(self, received: Received, request: LeaseRequest, now: float) -> list[Outcome]:
        """Room for samples. A worker nobody knows joined a loader that is no more: it has its
        plan, and plans do not change within a run."""
        name, poisoned = received.sender, list[Poisoned]()
        known = self.table.workers.get(name)
        if known is None or known.incarnation != received.incarnation:
            self._meet(received, request.host)
            self.learning.share_out_soon()
            poisoned = self.table.join(
                *(name, received.incarnation, request.pool),
                shares_files=received.channel == "samples",
                now=now,
            )
        self.table.request(name, request.credit, now)
        if received.channel == "remote":
            self._send("remote", Welcome(peers={}), to=name)
        return list(poisoned)

    def _handed_over(
        self, received: Received, handover: SampleHandover, now: float
    ) -> list[Outcome]:
        name = received.sender
        if not _are_times(handover.elapsed_s):
            return self._distrust(name, "times that cannot be", now)
        state = bytes(received.frames[0]) if received.frames else b""
        if not state or handover.stage >= len(self._terms.plan.stages):
            return self._distrust(name, "a hand-over without its state", now)
        key = self.table.subject(handover.lease)
        known = self.table.handed_over(name, handover.lease, handover.stage, state, now)
        if known and key is not None:
            self.learning.handed_over(key, Timing(handover.elapsed_s, handover.elapsed_s))
        return []

    def _ready(self, received: Received, ready: SampleReady, now: float) -> list[Outcome]:
        try:
            tokens: Tokens = tensors.read(ready.tokens, received.frames)
        except ProtocolError as error:
            return self._distrust(received.sender, str(error), now)
        if not self._plausible(tokens, ready.text_bytes):
            return self._distrust(received.sender, "tokens that cannot be", now)
        if not _are_times(*ready.stage_s, ready.waited_s):
            return self._distrust(received.sender, "times that cannot be", now)
        key = self.table.finished(received.sender, ready.lease, now)
        if key is None:
            return []
        spent_s = sum(ready.stage_s)
        line_s = max(0.0, spent_s - ready.waited_s)
        self.learning.finished(key, Timing(line_s, spent_s))
        self.finished += 1
        self.guests.delivered(received.sender)
        # A copy: the frame's memory belongs to the message.
        return [Document(key, tokens.copy(), ready.text_bytes)]

    def _plausible(self, tokens: Tokens, text_bytes: int) -> bool:
        """Could a worker have made this of a sample? Token ids index the trainers' embedding."""
        if tokens.dtype != np.int32 or tokens.ndim != 1 or len(tokens) < 2:
            return False
        if not 0 < text_bytes <= 2 * self._terms.plan.max_sample_bytes:
            return False
        return bool(tokens.min() >= 0 and tokens.max() < self._terms.vocab_size)

    def _distrust(self, name: str, what: str, now: float) -> list[Outcome]:
        """Take everything back from a worker that sent nonsense; it may ask again."""
        self._log.warning("nonsense from a worker", worker=name, what=what)
        return list(self.table.leave(name, blame=f"returned {what}", now=now))

    # --- who leaves -------------------------------------------------------------------------------

    def _gone(self, name: str, blame: str, now: float, *, why: str = "") -> list[Outcome]:
        """A worker has left or died; `blame` as in `LeaseTable.leave`, `why` where nobody is."""
        if self.guests.knows(name):
            host = self.guests.host_of(name)
            facts = {"worker": name, "host": host, "delivered": self.guests.left(name)}
            if blame:
                self._log.warning("remote worker lost", **facts, why=blame)
            else:
                self._log.info("remote worker left", **facts, why=why)
        return list(self.table.leave(name, blame=self._told(name, blame, now), now=now))

    def _told(self, name: str, blame: str, now: float) -> str:
        """`blame`, for the sample it was at; "" when it was at none that is still open."""
        worker = self.table.workers.get(name)
        at = self._noted(name, worker.incarnation) if worker is not None and blame else None
        if at is None or worker is None:
            return blame
        self.table.at_work(name, at, now)
        return blame if at in worker.held or worker.parked else ""

    def _incarnation(self, name: str) -> int:
        """Which life of `name` holds leases; -1: none."""
        worker = self.table.workers.get(name)
        return -1 if worker is None else worker.incarnation

    def watch(self, now: float) -> list[Outcome]:
        """Leases that have expired and workers of other hosts that have fallen silent."""
        if now < self._watch_at:
            return []
        self._watch_at = now + WATCH_S
        outcomes: list[Outcome] = list(self.table.expire(now))
        silence_s = SILENT_BEATS * self._terms.plan.heartbeat_s
        for name in self.table.silent(silence_s, now):
            outcomes += self._gone(name, f"was silent for more than {silence_s:g} s", now)
        return outcomes

    def dismiss(self, stop: Stop) -> None:
        """Tell workers of other hosts that the run is over."""
        for name, channel in self._channel.items():
            if channel == "remote" and name in self.table.workers:
                self._send("remote", stop, to=name)

    # --- leases -----------------------------------------------------------------------------------

    def lease(self, now: float) -> list[Outcome]:
        """Give out what there is to give; samples that turn out to be unusable on the way."""
        outcomes: list[Outcome] = []
        self.learning.share_out(self.table, now)
        while grants := self.table.grants(now):
            for grant in grants:
                outcomes += self._grant(grant, now)
        return outcomes

    def _grant(self, grant: Grant, now: float) -> list[Outcome]:
        worker = self.table.workers.get(grant.worker)
        if worker is None:
            return []  # a lease sent to it before this one found nobody
        ref = self._corpus.ref(grant.key[1])
        stage, frames = grant.stage, [grant.state] if grant.stage else []
        if stage == 0 and not worker.shares_files:
            options = Options(max_sample_bytes=self._terms.plan.max_sample_bytes)
            try:
                stage, frames = 1, [read(State(), ref, options).text]
            except SampleProblem as problem:
                self.table.finished(grant.worker, grant.lease, now)
                return [Refusal(grant.key, problem.kind, problem.detail)]
        lease = Lease(
            lease=grant.lease,
            epoch=grant.key[0],
            sample=grant.key[1],
            attempt=grant.attempt,
            ref=ref,
            stage=stage,
            expires_s=self._terms.lease_s,
            cutoff_s=self.learning.cutoff_of(grant, worker),
        )
        sent = self._send(self._channel[grant.worker], lease, to=grant.worker, frames=frames)
        if sent is not Sent.SENT:  # it has gone, and whoever tells us so is on the way
            return self._gone(grant.worker, "", now, why="its connection has gone")
        return []


def _are_times(*seconds: float) -> bool:
    """Whether these can be durations; not a number is none."""
    return all(0.0 <= s <= _LONGEST_S for s in seconds)
