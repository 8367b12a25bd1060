"""Carries faults out on a run, and what must follow later: thawing, healing, resuming."""

import random
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from actors import process
from actors.chaos import damage, means, threads
from actors.chaos.endings import Endings
from actors.chaos.guests import Guests
from actors.chaos.history import History, Watch
from actors.chaos.kinds import Fault
from actors.chaos.means import MemoryGroup
from actors.chaos.runs import Driven
from actors.process import Identity
from protocol.clock import Clock

# A worker that may grow by this much has a moment left.
_SPARE_BYTES = 1 << 19
# How long a thread is tried to be caught with the interpreter's lock, or without it.
_CATCH_S = 6.0
_SIGNALS = {
    "kill": 9,
    "several": 9,
    "term": 15,
    "segfault": 11,
    "freeze": 19,
    "nap": 19,
    "stun": 19,
}
_SUDDEN = ("kill", "several", "segfault")


@dataclass(slots=True)
class _Held:
    """A thread that is being caught, or held."""

    fault: Fault
    who: Identity
    holder: threads.Holder
    noted: bool = False


@dataclass(slots=True)
class Striker:
    """Everything that is done to one run."""

    driven: Driven
    watch: Watch
    history: History
    guests: Guests
    copies: Path
    clock: Clock
    heartbeat_s: float
    chance: random.Random
    ledger: damage.Ledger = field(init=False)
    endings: Endings = field(init=False)
    full: bool = False  # the disk is, because of us
    full_at: float = float("-inf")  # when it last was
    resume_at: float | None = None  # the launcher is gone; somebody will start it then
    _later: list[tuple[float, Callable[[], object]]] = field(
        default_factory=list[tuple[float, Callable[[], object]]]
    )
    _held: list["_Held"] = field(default_factory=list["_Held"])
    _groups: list[MemoryGroup] = field(default_factory=list[MemoryGroup])

    def __post_init__(self) -> None:
        self.ledger = damage.Ledger(self.driven.run, self.copies)
        self.endings = Endings(self.clock)

    # --- Time -------------------------------------------------------------------------------------

    def tick(self) -> None:
        """Do what is due."""
        now = self.clock.now()
        self.ledger.outlived(self.watch.step)
        for pid, at in self.endings.found():
            self.history.add("gone", at=at, pid=pid)
        due = [act for at, act in self._later if at <= now]
        self._later = [(at, act) for at, act in self._later if at > now]
        for act in due:
            act()
        for held in list(self._held):
            self._look_at(held)

    def _soon(self, s: float, act: Callable[[], object]) -> None:
        self._later.append((self.clock.now() + s, act))

    @property
    def quiet(self) -> bool:
        """Whether nothing is still to be undone."""
        return not self._later and not self._held and self.resume_at is None

    def close(self) -> None:
        """Undo what is still done."""
        for _, act in self._later:
            act()
        self._later = []
        for held in self._held:
            held.holder.release()
        for group in self._groups:
            group.close()

    # --- Faults -----------------------------------------------------------------------------------

    def whom(self, fault: Fault) -> list[tuple[str, Identity]] | None:
        """Those to be struck, alive; None while one of them is not."""
        found: list[tuple[str, Identity]] = []
        for name in fault.targets:
            who = self.watch.rows[name].who if name in self.watch.rows else None
            if who is None or not process.alive(who):
                return None
            found.append((name, who))
        return found

    def possible(self, fault: Fault) -> bool:
        """Whether there is now what this fault is about."""
        match fault.kind:
            case "link" | "mute" | "guests":
                return self.guests.here
            case "disk":
                return not self.full
            case "checkpoint":
                return len(damage.newest_checkpoints(self.driven.run)) > 1
            case "machine":
                return bool(damage.newest_checkpoints(self.driven.run))
            case "ledger":
                return not self.ledger.damaged and self.whom(_LOADER) is not None
            case _:
                return self.whom(fault) is not None

    def strike(self, fault: Fault, attempt: int) -> bool:
        """Do it; False when it went wrong. `possible` has been asked."""
        whom = self.whom(fault) or []
        event = self.history.add(
            "fault",
            number=fault.number,
            attempt=attempt,
            kind=fault.kind,
            targets=list(fault.targets),
            pids=[who.pid for _, who in whom],
            incarnations=[self.watch.rows[name].incarnation for name, _ in whom],
            lasts_s=fault.lasts_s,
        )
        try:
            event["how"] = self._all(fault) if not fault.targets else self._some(fault, whom)
        except OSError as error:  # it has died of something else meanwhile
            self.history.add("skipped", number=fault.number, attempt=attempt, why=str(error))
            return False
        event["did_s"] = round(self.history.now() - event["t"], 4)
        return True

    def _some(self, fault: Fault, whom: list[tuple[str, Identity]]) -> str:
        """To one actor, or to several at once. Raises OSError."""
        _, first = whom[0]
        if fault.kind in _SIGNALS:
            for _, who in whom:
                if fault.kind in _SUDDEN:
                    self.endings.expect(who)
                process.send_signal(who, _SIGNALS[fault.kind])
            if fault.kind in ("freeze", "nap", "stun"):
                self._soon(fault.lasts_s, lambda: self._thaw(fault, first))
            return ""
        match fault.kind:
            case "exit":
                threads.Stopped(first.pid).exit(3)
            case "gil" | "hang":
                self._catch(fault, first)
            case "memory":
                group = means.memory_group(f"trireme-chaos-{fault.number}")
                if group is None:
                    raise OSError("no control group can be made any more")
                self._groups.append(group)
                group.squeeze(first.pid, _SPARE_BYTES)
            case "starve":
                means.starve(first.pid, _SPARE_BYTES)
            case _:
                raise AssertionError(fault)
        return ""

    def _thaw(self, fault: Fault, who: Identity) -> None:
        if process.send_signal(who, signal.SIGCONT):
            self.history.add("healed", number=fault.number)

    def _catch(self, fault: Fault, who: Identity) -> None:
        """In a thread of its own: it may take a while, and has to look on until the end."""
        holder = threads.Holder(
            who.pid,
            lock=fault.kind == "gil",
            watch_s=1.2 * self.heartbeat_s,
            within_s=_CATCH_S,
            clock=self.clock,
        )
        self._held.append(_Held(fault, who, holder))

    def _look_at(self, held: "_Held") -> None:
        """Has it been caught, and is it over?"""
        number, holder = held.fault.number, held.holder
        if holder.caught and not held.noted:
            held.noted = True
            self.history.add("caught", number=number)
        if holder.is_alive():
            return
        self._held.remove(held)
        if not holder.caught:
            # It computes too little to be caught with the lock in its hands, or is dead by now.
            why = holder.problem or "never caught like that; all of it is stopped instead"
            process.send_signal(held.who, signal.SIGSTOP)
            self.history.add("instead", number=number, why=why)

    # --- Faults of the whole run ------------------------------------------------------------------

    def _all(self, fault: Fault) -> str:
        match fault.kind:
            case "link" | "mute":
                (self.guests.cut if fault.kind == "link" else self.guests.mute)()
                self._soon(fault.lasts_s, lambda: self._heal(fault))
            case "guests":
                self.guests.lose()
                self._soon(fault.lasts_s, lambda: self._come_back(fault))
            case "disk":
                self.full = True
                damage.fill(self.driven.run.path)
                self._soon(fault.lasts_s, lambda: self._free_disk(fault))
            case "ledger":
                return self._damage_ledger()
            case "launcher":
                self._behead()
                self.resume_at = self.clock.now() + fault.lasts_s
            case "machine" | "checkpoint":
                return self._lose_machine(damaged=fault.kind == "checkpoint")
            case _:
                raise AssertionError(fault)
        return ""

    def _heal(self, fault: Fault) -> None:
        self.guests.heal()
        self.history.add("healed", number=fault.number)

    def _come_back(self, fault: Fault) -> None:
        self.guests.attach()
        self.history.add("healed", number=fault.number)

    def _free_disk(self, fault: Fault) -> None:
        damage.empty(self.driven.run.path)
        self.full, self.full_at = False, self.clock.now()
        self.history.add("healed", number=fault.number)

    def _damage_ledger(self) -> str:
        """Under a loader that stands still; then it dies, and its successor reads what is there."""
        whom = self.whom(_LOADER)
        assert whom is not None
        _, who = whom[0]
        process.send_signal(who, signal.SIGSTOP)
        where = self.ledger.damage(self.chance, self.watch.step)
        process.send_signal(who, signal.SIGKILL)
        return where

    def _behead(self) -> None:
        launcher, self.driven.launcher = self.driven.launcher, None
        supervisor = self.watch.rows["supervisor"].who
        for who in (launcher, supervisor):
            if who is not None:
                process.send_signal(who, signal.SIGKILL)

    def _lose_machine(self, *, damaged: bool) -> str:
        self.driven.end_everything()
        self.driven.forget_memory()
        self.resume_at = self.clock.now()
        return damage.damage_checkpoint(self.driven.run, self.chance) if damaged else ""


_LOADER = Fault(-1, "kill", ("loader",), 0)
