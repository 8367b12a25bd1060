"""A run under faults: strikes when it is time, resumes what a person would resume, notes it all."""

import random
import select
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from actors import process
from actors.chaos.guests import Guests
from actors.chaos.history import History, Watch
from actors.chaos.kinds import Fault
from actors.chaos.runs import Driven
from actors.chaos.strike import Striker
from actors.rundir import RunDir
from protocol.clock import Clock

_LOOK_S = 0.002
# Faults are never closer together than this, or nobody could tell which did what.
_APART_S = 0.15
# Somebody must have recovered first: a fault that has waited for so long strikes all the same.
_PATIENCE_S = 30.0
# What a fault is about may not be there at the moment. That is waited for until the last steps.
_LAST_STEPS = 3
# A fault that is late by this many steps waits for nobody's recovery any more.
_LATE_STEPS = 1
# Attached workers come once the run has begun. Without attached trainers it would not begin.
_GUESTS_AFTER_STEP = 1
_BEGIN_S = 60.0
# A run ends a while after its disk was full: everybody has to leave first.
_AFTERMATH_S = 15.0
# What it says then.
_FULL = ("full", "space")
_GUESTS_AGAIN_S = 2.0
_NO_PROGRESS_S = 180.0


@dataclass(frozen=True, slots=True)
class Orders:
    """What to run."""

    topology: str
    steps: int
    settings: tuple[str, ...]
    heartbeat_s: float
    remote_trainers: int = 0  # of the disturbed run; its twin has all trainers to itself


class Gave(RuntimeError):
    """The run cannot be brought to its end. The message is the finding."""


def undisturbed(run: RunDir, orders: Orders, output: Path, history: History) -> None:
    """The twin. Raises `Gave` when it fails by itself."""
    driven, watch = Driven(run, output), Watch(run, history)
    history.add("began", launch=1, resumed=False)
    at_home = ("actors.remote_trainers=0",) if orders.remote_trainers else ()
    driven.begin(orders.topology, orders.steps, (*orders.settings, *at_home))
    try:
        while not driven.reap():
            watch.look()
            if history.now() - watch.step_at > _NO_PROGRESS_S:
                raise Gave(f"the undisturbed run hangs after step {watch.step}")
            select.select([], [], [], _LOOK_S)
        watch.look()
    finally:
        driven.end_everything()
    end = driven.outcome()
    if end is None or end.end != "done":
        reason = driven.last_words() if end is None else end.reason
        raise Gave(f"the undisturbed run did not end well: {reason}")
    history.add("ended", launch=1, end=end.end, reason=end.reason)


class Disturbed:
    """One run and its faults."""

    def __init__(
        self,
        run: RunDir,
        orders: Orders,
        faults: Sequence[Fault],
        *,
        history: History,
        clock: Clock,
        directory: Path,
        workers: bool,
        seed: int,
    ) -> None:
        self._orders, self._history, self._clock = orders, history, clock
        self._driven = Driven(run, directory / "disturbed.out")
        self._watch = Watch(run, history)
        trainers = orders.remote_trainers
        self._guests = Guests(run, directory, workers=workers, trainers=trainers)
        self._with_guests, self._invite_at = bool(self._guests), 0.0
        self._striker = Striker(
            self._driven,
            self._watch,
            history,
            self._guests,
            directory / "copies",
            clock,
            orders.heartbeat_s,
            random.Random(f"damage {seed}"),  # noqa: S311 - the same damage for the same seed
        )
        self._faults = list(faults)
        self._struck_at = 0.0
        self._broke_at = float("-inf")  # when something was done that ends the run
        self._attempts = 0
        self._mend = False  # the ledger, before the run is resumed
        self._waiting: dict[int, float] = {}  # since when faults that are due have waited

    def see_through(self) -> None:
        """To its end. Raises `Gave`."""
        self._history.begin()  # the twin's time does not count
        self._history.add("began", launch=1, resumed=False)
        self._driven.begin(self._orders.topology, self._orders.steps, self._orders.settings)
        try:
            while not self._over():
                self._watch.look()
                self._striker.tick()
                self._invite()
                self._strike()
                self._resume()
                self._check_progress()
                select.select([], [], [], _LOOK_S)
            self._watch.look()
        finally:
            self._striker.close()
            self._guests.close()
            self._driven.end_everything()

    # --- Launches ---------------------------------------------------------------------------------

    def _over(self) -> bool:
        """Whether it is done. Ends that a fault has brought about are mended and resumed."""
        if not self._driven.reap():
            return False
        end = self._driven.outcome()
        how = "crashed" if end is None else end.end
        reason = self._driven.last_words() if end is None else end.reason
        self._history.add("ended", launch=self._driven.launches, end=how, reason=reason)
        if how == "done":
            return True
        if how != "failed" or not self._to_be_mended():
            raise Gave(f"the run has ended by itself: {how}: {reason}")
        # A ledger that nobody had room to write is whole.
        self._mend = self._striker.ledger.damaged and not any(word in reason for word in _FULL)
        self._striker.resume_at = self._clock.now()
        return False

    def _to_be_mended(self) -> bool:
        """Whether a fault of ours may be why the run has ended."""
        full = self._striker.full or self._clock.now() - self._striker.full_at < _AFTERMATH_S
        return full or self._striker.ledger.damaged

    def _resume(self) -> None:
        """When somebody would: the launcher is gone, the disk has room, the ledger is mended."""
        due = self._striker.resume_at
        if due is None or self._clock.now() < due or self._striker.full:
            return
        self._striker.resume_at = None
        if self._mend:
            self._striker.ledger.mend()
            self._mend = False
        self._driven.resume()
        self._history.add("began", launch=self._driven.launches, resumed=True)

    def _invite(self) -> None:
        """Somebody at another host attaches, and attaches again after having been turned out."""
        now = self._history.now()
        begun = self._watch.step >= _GUESTS_AFTER_STEP or self._orders.remote_trainers > 0
        if not self._with_guests or now < self._invite_at or not begun:
            return
        self._invite_at = now + _GUESTS_AGAIN_S
        if not self._guests.invited:
            why = self._guests.invite()
            if why and self._watch.step < _GUESTS_AFTER_STEP and now < _BEGIN_S:
                return  # nobody is there yet who could let them in
            self._with_guests = not why
            self._history.add("invited", why=why)
        elif not self._guests.here and self._striker.quiet:
            self._guests.attach()

    def _check_progress(self) -> None:
        still_s = self._history.now() - max(self._watch.step_at, self._struck_at)
        if still_s > _NO_PROGRESS_S:
            raise Gave(f"no step for {still_s:.0f} s after step {self._watch.step}")

    # --- Faults -----------------------------------------------------------------------------------

    def _strike(self) -> None:
        """The first of those that are due and for which the moment is right. One that has waited
        for long is done in any case; one with nobody to strike is given up in the last steps."""
        now = self._history.now()
        if self._striker.resume_at is not None or now - self._struck_at < _APART_S:
            return
        for fault in self._faults:
            if self._watch.step < fault.after_step or now < fault.at_s:
                continue
            since = self._waiting.setdefault(fault.number, now)
            possible = self._striker.possible(fault)
            if not possible and self._watch.step < self._orders.steps - _LAST_STEPS:
                continue
            if now - since < _PATIENCE_S and not self._may(fault, now):
                continue
            self._faults.remove(fault)
            if possible:
                self._struck_at = now
                self._broke_at = now if fault.effect == "failed" else self._broke_at
                self._attempts += 1
                if not self._striker.strike(fault, self._attempts):
                    self._faults.append(fault)
                return
            why = "nobody to strike was there"
            self._history.add("skipped", number=fault.number, attempt=0, why=why)
            return

    def _may(self, fault: Fault, now: float) -> bool:
        """Whether the moment is right: whom it is about is there, and nobody is missing if it
        wants to be alone, unless it is late."""
        if not self._striker.possible(fault):
            return False
        late = self._watch.step > fault.after_step + _LATE_STEPS
        if fault.effect == "failed" and now - self._broke_at < _AFTERMATH_S:
            return False  # one reason at a time
        return not fault.alone or late or self._recovered()

    def _recovered(self) -> bool:
        """Everybody lives, nothing is still to be undone, and a step has been committed since."""
        if not self._striker.quiet or self._watch.step_at <= self._struck_at:
            return False
        return all(row.who and process.alive(row.who) for row in self._watch.rows.values())
