"""The thread that keeps a loader's workers busy while the program computes.

    hear what workers made -> decide -> compose and record -> collate -> lease

It decides nothing itself (deciding.py) and holds the processes through seats.py. The program's own
thread meets it in `Ready`: batches come out in order, bounded by the look-ahead, and word of each
that was taken goes back. Nothing here outlives the loader: the thread ends when the loader is
closed or forgotten, and with it all processes.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from actors import process
from actors.data.alone import talk
from actors.data.alone.batching import Composed, Share
from actors.data.alone.deciding import Deciding, Leased, Loss
from actors.data.alone.record import Record
from actors.data.alone.seats import Heard, Made, Seat, Seats
from actors.data.crowd import Crowd
from actors.data.learning import Timing
from protocol.clock import Clock
from protocol.waker import Waker

log = logging.getLogger("trireme.data")

# Losses of each kind that are named in the log.
_NAMED = 20
# How often hangs are looked for and the number of workers is reconsidered.
_LOOK_S = 0.5
# How a worker ended is known a moment after it has; nobody waits longer for it.
_CODE_S = 0.05


class LoaderError(RuntimeError):
    """The loader cannot go on: says why, and what to do."""


@dataclass(frozen=True, slots=True)
class Batch:
    """What the program gets, and which samples it is made of."""

    samples: tuple[int, ...]
    value: Any


@dataclass(slots=True)
class Ready:
    """Where the program and the engine meet."""

    changed: threading.Condition = field(default_factory=threading.Condition)
    batches: deque[Batch] = field(default_factory=deque[Batch])
    over: bool = False  # the epoch's last batch is among them, or was taken
    serial: int = 0  # of the epoch that is wanted: what is made for another is dropped
    problem: BaseException | None = None
    waited: bool = False  # the consumer found nothing since the last look
    wanting: bool = False  # the consumer waits now


@dataclass(frozen=True, slots=True)
class Means:
    """What an engine works with."""

    seats: Seats
    deciding: Deciding[Made]
    crowd: Crowd
    clock: Clock
    collate: Callable[[list[Any]], Any]
    record: Record | None
    name: Callable[[int], str]


class Engine:
    """One loader's thread."""

    def __init__(self, means: Means, ready: Ready) -> None:
        self._seats, self._deciding, self._crowd = means.seats, means.deciding, means.crowd
        self._clock, self._collate, self._record = means.clock, means.collate, means.record
        self._name = means.name
        self._ready = ready
        self._waker = Waker()
        self._seats.watch(self._waker.fd)
        self._commands: deque[Callable[[float], None]] = deque()
        self._closing = False
        self._asleep = False
        self._losses: list[Loss] = []  # that the record does not have yet
        self._last_loss: Loss | None = None
        self._dead: list[tuple[Seat, float]] = []
        self._looked = self._clock.now()
        self._line_s = self._cpu_s = 0.0
        self._replaced = 0
        self._serial = self._epoch = self._step = 0
        self._thread = threading.Thread(target=self._run, name="trireme-data", daemon=True)
        self._seats.wanted = self._crowd.number
        self._thread.start()

    # --- the program's thread ---------------------------------------------------------------------

    def begin(self, share: Share, after: int, left_out: Mapping[int, str]) -> None:
        """An epoch begins, after so many batches of it; what is left of the one before is dropped.

        `left_out`: samples that are not to be tried.
        """
        known = dict(left_out)
        with self._ready.changed:
            self._ready.batches.clear()
            self._ready.over = False
            self._ready.serial += 1
            serial = self._ready.serial
        self._tell(lambda now: self._begin(share, after, known, serial, now))

    def consumed(self, *, waited: bool) -> None:
        """A batch was taken; `waited`: not at once.

        Nobody is woken for that while there are samples that workers have no room for: the news
        that one of them has will do so.
        """
        self._commands.append(lambda now: self._deciding.consumed(now, waited=waited))
        if self._asleep and not self._deciding.has_queued:
            self._waker.ring()

    def wanted(self) -> None:
        """The consumer begins to wait: workers that are idle may have more to do."""
        if self._deciding.held_back:
            self._waker.ring()

    def close(self) -> None:
        """End the thread and all processes."""
        self._closing = True
        self._waker.ring()
        self._thread.join()

    @property
    def lives(self) -> bool:
        """Is the thread there?"""
        return self._thread.is_alive()

    def status(self) -> dict[str, Any]:
        """Figures for people, of this moment, roughly."""
        deciding, table = self._deciding, self._deciding.table
        return {
            "queues": {
                "fast": len(table.fast),
                "slow": len(table.slow),
                "leased": table.leased,
                "batches": len(self._ready.batches),
            },
            "workers": len(table.workers),
            "slow_workers": deciding.learning.split.slow,
            "cutoff_s": deciding.learning.cutoff.seconds,
            "ahead": deciding.ahead(),
            "replaced": self._replaced,
            "handed_over": deciding.learning.handovers,
            "late": table.late,
            "samples": deciding.seen,
            "refused": dict(deciding.refused),
        }

    def _tell(self, command: Callable[[float], None]) -> None:
        self._commands.append(command)
        self._waker.ring()

    # --- the engine's thread ----------------------------------------------------------------------

    def _run(self) -> None:
        try:
            # SystemExit of a collate function, say, is not ours: it is for the program to see.
            for live in (self._live, self._keep_losses):
                try:
                    live()
                except BaseException as error:  # noqa: BLE001 - the program has to hear of it
                    self._fail(error)
        finally:
            self._seats.close()
            self._waker.close()

    def _live(self) -> None:
        while not self._closing:
            self._turn()

    def _turn(self) -> None:
        self._asleep = True  # before the commands are looked at: see `consumed`
        news = self._seats.wait(0.0 if self._commands else self._timeout_s())
        self._asleep = False
        for fd in news:
            seat = self._seats.seat_of(fd)
            if seat is not None:
                self._hear(seat)
            elif self._seats.is_keeper(fd):
                self._seats.hear_keeper()
            else:
                self._waker.clear()
        now = self._clock.now()
        while self._commands:
            self._commands.popleft()(now)
        self._bury(now)
        if now - self._looked > _LOOK_S:
            self._look(now)
        for seat in self._seats.fill():
            self._deciding.joined(seat.name, seat.life, now)
        self._publish()
        self._lease(now)

    def _timeout_s(self) -> float:
        return _CODE_S / 4 if self._dead else _LOOK_S

    def _begin(
        self, share: Share, after: int, left_out: dict[int, str], serial: int, now: float
    ) -> None:
        self._serial, self._epoch, self._step = serial, share.epoch, after
        self._deciding.begin(share, left_out, now)

    # --- hearing ----------------------------------------------------------------------------------

    def _hear(self, seat: Seat) -> None:
        heard, lives = self._seats.hear(seat)
        now = self._clock.now()
        for item in heard:
            self._learn(seat, item, now)
        if not lives:
            # The sample it noted is the one to blame, not one whose result we have not seen.
            lease, since = self._seats.working_on(seat)
            self._deciding.at_work(seat.name, lease, since)
            self._seats.gone(seat)
            self._dead.append((seat, now))

    def _learn(self, seat: Seat, heard: Heard, now: float) -> None:
        deciding, name, report, pieces = self._deciding, seat.name, heard.report, heard.pieces
        self._cpu_s += report.cpu_s
        for lease in report.parked:
            deciding.parked(name, lease, now)
        for over in report.over:
            made = self._seats.made(seat, over.state, pieces)
            timing = Timing(over.line_s, over.total_s)
            deciding.handed_over(name, over.lease, over.stage, made, timing, now)
            self._line_s += over.line_s
        for done in report.done:
            made = self._seats.made(seat, done.value, pieces)
            timing = Timing(done.line_s, done.total_s)
            deciding.finished(name, done.lease, made, timing, now)
            self._line_s += done.line_s
        for bad in report.bad:
            self._lost(deciding.bad(name, bad.lease, bad.kind, bad.detail, now))

    def _bury(self, now: float) -> None:
        """Say how workers ended, once that is known."""
        for seat, since in list(self._dead):
            code = self._seats.how_it_ended(seat, seat.life)
            if code is None and now - since < _CODE_S:
                continue
            self._dead.remove((seat, since))
            seat.is_buried = True
            losses = self._deciding.left(seat.name, process.words(code), now)
            if seat.index < self._seats.wanted:
                self._replaced += 1
                log.warning("%s died: %s; another takes its place", seat.name, process.words(code))
            self._lost(losses)

    def _lost(self, losses: list[Loss]) -> None:
        for loss in losses:
            self._losses.append(loss)
            self._last_loss = loss
            if self._deciding.refused[loss.kind] <= _NAMED:
                log.warning(
                    "%s is left out: %s: %s", self._name(loss.sample), loss.kind, loss.detail
                )
        if losses and self._deciding.is_hopeless():
            raise LoaderError(self._why_hopeless())

    def _why_hopeless(self) -> str:
        deciding = self._deciding
        kinds = ", ".join(f"{count} {kind}" for kind, count in deciding.refused.most_common())
        last = self._last_loss
        example = f"; the last: {self._name(last.sample)}: {last.detail}" if last else ""
        return (
            f"{sum(deciding.refused.values())} of {deciding.seen} samples could not be used "
            f"({kinds}{example}); mend the data or the stages, or raise max_bad_share"
        )

    # --- now and then -----------------------------------------------------------------------------

    def _look(self, now: float) -> None:
        """Hangs, and how many workers there are to be."""
        for seat in self._seats.seats:
            if seat.link is not None:
                lease, since = self._seats.working_on(seat)
                self._deciding.at_work(seat.name, lease, since)
        hung, losses = self._deciding.expire(now)
        for seat in self._seats.seats:
            if seat.name in hung and seat.link is not None:
                self._seats.kill(seat)
        self._lost(losses)
        period_s, self._looked = now - self._looked, now
        occupied, used = self._line_s / period_s, self._cpu_s / period_s
        self._line_s = self._cpu_s = 0.0
        waited, self._ready.waited = self._ready.waited, False
        self._seats.wanted = self._crowd.decide(occupied=occupied, used=used, starving=waited)
        for seat in self._seats.seats[self._seats.wanted :]:
            if seat.link is not None and self._deciding.is_idle(seat.name):
                self._seats.dismiss(seat)

    # --- speaking ---------------------------------------------------------------------------------

    def _publish(self) -> None:
        deciding, ready = self._deciding, self._ready
        while (composed := deciding.compose()) is not None:
            losses, self._losses = self._losses, []
            self._step += 1
            if self._record is not None:
                self._record.composed(self._epoch, self._step, composed, losses)
            batch = self._batch(composed)
            del composed
            with ready.changed:
                if ready.serial == self._serial:
                    ready.batches.append(batch)
                    ready.changed.notify_all()
            del batch
        if deciding.is_over and not ready.over:
            if self._record is not None:
                self._record.ended(self._epoch, self._step)
                self._keep_losses()
            if deciding.is_hopeless():
                raise LoaderError(self._why_hopeless())
            with ready.changed:
                ready.over = ready.serial == self._serial
                ready.changed.notify_all()
        if deciding.unneeded:
            self._seats.release(deciding.unneeded)
            deciding.unneeded.clear()

    def _keep_losses(self) -> None:
        losses, self._losses = self._losses, []
        if losses and self._record is not None:
            self._record.lost(losses)

    def _batch(self, composed: Composed[Made]) -> Batch:
        values = [self._seats.read(made) for made in composed.items]
        return Batch(composed.samples, self._collate(values))

    def _lease(self, now: float) -> None:
        by_seat: dict[str, list[talk.Task]] = {}
        leases = self._deciding.grants(now)
        while self._ready.wanting and self._deciding.looks_farther():
            leases += self._deciding.grants(now)
        for lease in leases:
            by_seat.setdefault(lease.worker, []).append(_task(lease))
        for name, tasks in by_seat.items():
            seat = self._seats.by_name[name]
            if seat.link is not None:
                self._seats.work(seat, tasks)
        self._seats.tell_freed()

    def _fail(self, error: BaseException) -> None:
        with self._ready.changed:
            self._ready.problem = self._ready.problem or error
            self._ready.changed.notify_all()


def _task(lease: Leased[Made]) -> talk.Task:
    state = None if lease.state is None else lease.state.value
    return talk.Task(
        lease.lease, lease.epoch, lease.sample, lease.stage, min(lease.cutoff_s, 1e9), state
    )
