"""Who lives, who should, and what to do about the difference. Pure: no process, socket or clock.

One life of an actor goes

    idle -> asked -> starting -> running -> (ended) -> idle, after the wait that rationing demands
             |  Fork    |  Forked    | first beat
             `- NotForked, which counts as a death

A life begins only after the one before it was seen to end, so no name ever has two. What is
silent, late or stuck is not believed dead but killed: first SIGUSR2, which makes it print its
stacks, then SIGKILL; its end is then an event like any other.

A run begins group by group, in the order of roles.py, each group waiting for the first beat of
the one before, and ends in the opposite order: a polite Stop, a bounded wait, SIGKILL. What no
signal ends within `_UNKILLABLE_S` is left to the launcher, and said.
"""

import signal
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from actors.identity import Identity
from actors.supervisor.events import (
    Bury,
    Committed,
    Completed,
    End,
    Ended,
    Event,
    Finish,
    Fork,
    Forked,
    Heard,
    Instruction,
    Kill,
    Left,
    Memory,
    NotForked,
    Place,
    Resumed,
    StopWanted,
    Tell,
    Tick,
)
from actors.supervisor.rationing import Rationing
from actors.supervisor.stalling import Stall
from actors.topology import SupervisionSpec
from protocol.messages import ActorState, PeerDown, PeerUp, Stop

# Between the request for stacks and SIGKILL: printing them takes a few milliseconds.
_LAST_WORDS_S = 0.2

# Before its first progress (a checkpoint is read, a model built) an actor has so many `hang_s`.
_BEGINNINGS = 5

# SIGKILL ends everything that is not stuck inside the kernel.
_UNKILLABLE_S = 20.0

# A pause of our own this long (SIGSTOP, a suspended machine) says nothing about the actors.
_OWN_PAUSE_S = 1.0


@dataclass(slots=True)
class Actor:
    """One name and its present life."""

    place: Place
    rationing: Rationing
    incarnation: int = 0
    stage: str = "idle"  # "idle", "asked", "starting", "running", "gone"
    who: Identity | None = None  # set from Forked to Ended
    due: float = 0.0  # when idle: not before
    since: float = 0.0  # when asked or starting: since when
    heard_at: float = 0.0
    progressed_at: float = 0.0
    last: Heard | None = None  # the newest beat of this life
    restarts: int = 0
    arrived: bool = False  # some life of it was heard since the run began
    present: bool = False  # this life was heard; of a stand-in: and stands in for somebody
    condemned: str = ""  # why it is being killed
    kill_at: float = 0.0  # when condemned: SIGKILL is due; inf: sent
    killed_at: float = 0.0
    told_to_stop: bool = False
    stop_by: float = float("inf")  # once told to stop: SIGKILL follows
    deaths: list[str] = field(default_factory=list[str])  # how the latest lives ended

    @property
    def name(self) -> str:
        """Of the actor."""
        return self.place.name

    @property
    def begins(self) -> bool:
        """Whether its very first life still gets ready."""
        getting_ready = self.last is None or self.last.state == "starting"
        first = not self.deaths and self.incarnation <= 1 and not self.place.remote
        return not self.arrived or (getting_ready and first)

    def state(self, *, stopping: bool) -> ActorState:
        """As `status` shows it."""
        if self.condemned or (self.stage == "idle" and self.deaths) or self.stage == "gone":
            return "lost"
        if self.stage != "running":
            return "starting"
        if self.last is not None and self.last.state == "starting":
            return "starting"  # it speaks, but has not begun its work
        return "stopping" if stopping else "running"


class Supervision:
    """The supervisor's rules. `handle` one event at a time; perform what it returns, in order."""

    def __init__(
        self,
        spec: SupervisionSpec,
        places: Iterable[Place],
        *,
        now: float,
        memories: Mapping[str, Memory] | None = None,
    ) -> None:
        self.spec = spec
        self.actors: dict[str, Actor] = {}
        self.end: End | None = None  # set once the run is being ended
        self.reason = ""
        self._patience_s = spec.stop_s
        self._finished = False
        self._last_tick = now
        self._stall = Stall(spec.stall_s, now)
        for place in sorted(places, key=lambda place: (place.start_order, place.name)):
            self._seat(place, (memories or {}).get(place.name), now)

    def _seat(self, place: Place, memory: Memory | None, now: float) -> None:
        rationing = Rationing(
            intensity=self.spec.intensity,
            period_s=self.spec.period_s,
            backoff_s=self.spec.backoff_s,
            backoff_max_s=self.spec.backoff_max_s,
            deaths=() if memory is None else memory.deaths,
        )
        actor = Actor(place, rationing)
        if memory is not None:
            actor.incarnation, actor.restarts = memory.incarnation, memory.restarts
        if memory is not None and memory.who is not None:
            # Adopted: it has a whole silence to make itself heard by us.
            actor.stage, actor.who, actor.arrived = "running", memory.who, True
            actor.heard_at = actor.progressed_at = now
        elif memory is not None:
            actor.due = min(rationing.due(), now + self.spec.backoff_max_s)
        self.actors[place.name] = actor

    # --- Events -----------------------------------------------------------------------------------

    def handle(self, event: Event, now: float) -> list[Instruction]:
        """What to do about `event`, which happened at `now`."""
        done: list[Instruction] = []
        match event:
            case Tick():
                done += self._tick(now)
            case Forked() | NotForked():
                done += self._answered(event, now)
            case Heard():
                done += self._heard(event, now)
            case Ended():
                done += self._ended(event, now)
            case Left(name=name, failed=failed):
                # In peace: its end follows.
                done += self._wind_up("failed", f"{name}: {failed}", now) if failed else []
            case Committed(step=step):
                self._stall.heard(step, now)
            case Completed(step=step):
                done += self._wind_up("done", f"step {step} is committed", now)
            case StopWanted():
                end: End = "failed" if event.failed else "stopped"
                done += self._wind_up(end, event.reason, now, at_once=event.at_once)
            case Resumed(end=end, reason=reason):
                done += self._wind_up(end, reason, now)
        return done + self._advance(now)

    def _answered(self, event: Forked | NotForked, now: float) -> list[Instruction]:
        actor = self.actors[event.name]
        if actor.stage != "asked" or event.incarnation != actor.incarnation:
            return []  # said twice
        if isinstance(event, NotForked):
            return self._lost(actor, f"could not be started: {event.reason}", now)
        actor.who, actor.stage, actor.since = event.who, "starting", now
        return []

    def _heard(self, event: Heard, now: float) -> list[Instruction]:
        actor = self.actors.get(event.name)
        if actor is None or event.incarnation != actor.incarnation or actor.who is None:
            return []
        done: list[Instruction] = []
        # Whoever waits counts its turns too: one that says it waits and does not turn is stuck.
        if actor.last is None or event.progress != actor.last.progress:
            actor.progressed_at = now
        if not actor.present and not (actor.place.remote and event.state == "starting"):
            actor.present = True
            done.append(Tell("", PeerUp(name=actor.name, incarnation=actor.incarnation)))
        actor.stage, actor.arrived = "running", True
        actor.heard_at, actor.last = now, event
        if actor.told_to_stop and event.state != "stopping":
            # It came up meanwhile, or our word was lost with the connection.
            done.append(self._stop_word(actor))
        return done

    def _ended(self, event: Ended, now: float) -> list[Instruction]:
        actor = self.actors.get(event.name)
        if actor is None or event.incarnation != actor.incarnation or actor.who is None:
            return []
        how = f"{actor.condemned} ({event.how})" if actor.condemned else event.how
        down = PeerDown(name=actor.name, incarnation=actor.incarnation, reason=how)
        return [Tell("", down), *self._lost(actor, how, now)]

    # --- Lives ------------------------------------------------------------------------------------

    def _lost(self, actor: Actor, how: str, now: float) -> list[Instruction]:
        """Its life is over, or could not begin."""
        polite = self.end is not None and how == "exit code 0"
        actor.who, actor.last, actor.condemned, actor.killed_at = None, None, "", 0.0
        actor.present = False
        if actor.place.remote and self.end is None and how == "exit code 0":
            actor.stage, actor.due = "idle", now + self.spec.backoff_s  # its guest has left
            return []
        actor.deaths = [*actor.deaths[-9:], how]
        if self.end is not None:
            actor.stage = "gone"
            return [] if polite else [Bury(actor.name, actor.incarnation, how, None)]
        wait_s = actor.rationing.died(now)
        actor.stage, actor.due = "idle", now + (wait_s or 0.0)
        buried = Bury(actor.name, actor.incarnation, how, wait_s)
        if wait_s is not None:
            return [buried]
        reason = (
            f"{actor.name} died {self.spec.intensity + 1} times within {self.spec.period_s:g} s, "
            f"the last time: {how}"
        )
        return [buried, *self._wind_up("failed", reason, now)]

    def _advance(self, now: float) -> list[Instruction]:
        """Start whose turn it is, or go on with stopping."""
        if self.end is not None:
            return self._go_on_stopping(now)
        done: list[Instruction] = []
        gate = min(
            (actor.place.start_order for actor in self.actors.values() if not actor.arrived),
            default=0,
        )
        for actor in self.actors.values():
            its_turn = actor.arrived or actor.place.start_order <= gate
            if actor.stage == "idle" and its_turn and now >= actor.due:
                assert actor.who is None
                if actor.deaths:
                    actor.restarts += 1
                actor.incarnation += 1
                actor.stage, actor.since = "asked", now
                done.append(Fork(actor.name, actor.incarnation))
        return done

    # --- Time -------------------------------------------------------------------------------------

    def _tick(self, now: float) -> list[Instruction]:
        paused_s, self._last_tick = now - self._last_tick, now
        if paused_s > max(_OWN_PAUSE_S, self.spec.silence_s / 2):
            self._stall.paused(paused_s)
            for actor in self.actors.values():
                actor.heard_at = now
                # Not from anew: on a busy machine we pause again and again, and a hang would last.
                actor.progressed_at = min(now, actor.progressed_at + paused_s)
                actor.since = min(now, actor.since + paused_s)
        done: list[Instruction] = []
        for actor in self.actors.values():
            if actor.who is None:
                continue
            if not actor.condemned and now >= actor.stop_by:
                done += self._condemn(actor, f"did not leave within {self._patience_s:g} s", now)
            elif not actor.condemned:
                done += self._judge(actor, now)
            elif now >= actor.kill_at:
                actor.kill_at, actor.killed_at = float("inf"), now
                done.append(self._kill(actor, actor.who, signal.SIGKILL))
        return done + self._stand_still(now)

    def _stand_still(self, now: float) -> list[Instruction]:
        """Nobody is to blame, and yet nothing goes on."""
        if any(actor.begins for actor in self.actors.values()):
            self._stall.begins(now)
        if self.end is not None or not self._stall.over(now):
            return []
        living = [actor for actor in self.actors.values() if actor.who is not None]
        waits = [(actor.name, actor.last.waiting_for) for actor in living if actor.last]
        reason = self._stall.reason(waits)
        stacks = [
            Kill(actor.name, actor.incarnation, actor.who, signal.SIGUSR2, reason)
            for actor in living
            if actor.who is not None
        ]
        return [*stacks, *self._wind_up("failed", reason, now)]

    def _judge(self, actor: Actor, now: float) -> list[Instruction]:
        """Whether a living actor may go on living."""
        spec = self.spec
        if actor.stage == "starting" and now - actor.since > spec.start_s:
            return self._condemn(actor, f"no beat within {spec.start_s:g} s of its start", now)
        if actor.stage != "running":
            return []
        if now - actor.heard_at > spec.silence_s:
            return self._condemn(actor, f"silent for {now - actor.heard_at:.1f} s", now)
        begun = actor.last is not None and actor.last.progress > 0
        stuck_s = now - actor.progressed_at
        if stuck_s > (1 if begun else _BEGINNINGS) * spec.hang_s:
            return self._condemn(actor, f"beats, but made no progress for {stuck_s:.0f} s", now)
        return []

    def _condemn(self, actor: Actor, why: str, now: float) -> list[Instruction]:
        assert actor.who is not None
        actor.condemned, actor.kill_at = why, now + _LAST_WORDS_S
        return [self._kill(actor, actor.who, signal.SIGUSR2)]

    def _kill(self, actor: Actor, who: Identity, number: int) -> Kill:
        return Kill(actor.name, actor.incarnation, who, number, actor.condemned)

    # --- The end ----------------------------------------------------------------------------------

    def _wind_up(
        self, end: End, reason: str, now: float, *, at_once: bool = False
    ) -> list[Instruction]:
        """Begin to stop, or learn that an ordinary stop has failed after all."""
        if self.end is None or (self.end == "stopped" and end == "failed"):
            self.end, self.reason = end, reason
        if at_once:
            self._patience_s = 0.0
            for actor in self.actors.values():
                actor.stop_by = min(actor.stop_by, now)
        return []

    def _go_on_stopping(self, now: float) -> list[Instruction]:
        """Tell the foremost group that still lives; when nothing lives any more, finish."""
        for actor in self.actors.values():
            if actor.stage == "idle":
                actor.stage = "gone"
            elif actor.stage == "asked" and now - actor.since > self.spec.start_s:
                actor.stage = "gone"  # never answered; whatever came of it is swept at the end
            elif actor.killed_at and now - actor.killed_at > _UNKILLABLE_S:
                actor.stage, actor.who, actor.condemned = "gone", None, ""
                self.reason += f"; {actor.name} cannot be killed, it is stuck in the kernel"
        living = [actor for actor in self.actors.values() if actor.stage != "gone"]
        if not living:
            return self._finish()
        group = min(actor.place.stop_order for actor in living)
        done: list[Instruction] = []
        for actor in living:
            if actor.told_to_stop or (self._patience_s and actor.place.stop_order != group):
                continue
            actor.told_to_stop = True
            actor.stop_by = now + self._patience_s
            done.append(self._stop_word(actor))
        return done

    def _finish(self) -> list[Instruction]:
        if self._finished:
            return []
        self._finished = True
        assert self.end is not None
        return [Finish(self.end, self.reason)]

    def _stop_word(self, actor: Actor) -> Tell:
        return Tell(actor.name, Stop(reason=self.reason, within_s=self._patience_s))

    # --- Views ------------------------------------------------------------------------------------

    def peers(self) -> dict[str, int]:
        """Every living actor that was heard, and its incarnation."""
        return {
            actor.name: actor.incarnation
            for actor in self.actors.values()
            if actor.stage == "running" and (actor.present or not actor.place.remote)
        }

    def lives(self, name: str, incarnation: int) -> bool:
        """Whether that is the life of an actor that we know of and that has not ended."""
        actor = self.actors.get(name)
        if actor is None or actor.incarnation != incarnation:
            return False
        return actor.who is not None

    def complete(self) -> bool:
        """Whether every actor lives and was heard."""
        return all(actor.stage == "running" for actor in self.actors.values())

    def check(self) -> None:
        """Invariants, for tests."""
        for actor in self.actors.values():
            alive = actor.stage in ("starting", "running")
            assert alive == (actor.who is not None), actor
            assert not actor.condemned or actor.who or self.end, actor
            assert actor.stage != "gone" or self.end, actor
