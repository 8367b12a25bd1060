"""What keeps an actor tied to its supervisor: the deciding half of the mailboxes.

Every heartbeat the actor says what it is doing; the supervisor answers each beat. Silence for
`orphan_grace_s` means that there is no supervisor any more, and being replaced by a later life
means that nobody wants our work: in both cases the actor tells itself to stop, and an actor that
does not manage to is ended from here. No sockets, no clock: time is handed in.

Not covered: an actor whose computing thread hangs under a living supervisor. Its progress counter
stands still in its beats, and the supervisor sees that.
"""

from dataclasses import dataclass, field
from typing import Literal

from actors.topology import SupervisionSpec
from protocol.messages import ActorState, PeerDown, PeerUp, Stop, Welcome


@dataclass(frozen=True, slots=True)
class SayHello:
    """A supervisor we have not met wants to know us."""


@dataclass(frozen=True, slots=True)
class SayBeat:
    """The heartbeat is due."""


@dataclass(frozen=True, slots=True)
class TellStop:
    """Deliver this to the actor as if the supervisor had sent it."""

    stop: Stop


@dataclass(frozen=True, slots=True)
class RefuseOlder:
    """Lives of `name` before `incarnation` are over."""

    name: str
    incarnation: int


@dataclass(frozen=True, slots=True)
class LeaveNow:
    """The actor was told to stop and has not; nobody else will end it."""

    reason: str


Instruction = SayHello | SayBeat | TellStop | RefuseOlder | LeaveNow


@dataclass(slots=True)
class Work:
    """What the computing thread says about itself. Written there, read by the beat."""

    progress: int = 0
    waiting_for: str = ""
    waiting_since: float = 0.0
    begun: bool = False
    step: int = 0
    # Of a stand-in: the host that it stands in for; "": nobody yet. None: it is who it says.
    guest: str | None = None
    gauges: dict[str, float] = field(default_factory=dict[str, float])

    def note(self, waiting_for: str, now: float) -> None:
        """One more unit of progress, and what is waited for from now on ("": nothing)."""
        if waiting_for != self.waiting_for:
            self.waiting_since = now
            self.waiting_for = waiting_for
        self.progress += 1
        self.begun = True

    def waiting_s(self, now: float) -> float:
        """Seconds the present wait has lasted; 0 when working."""
        return max(0.0, now - self.waiting_since) if self.waiting_for else 0.0


class Lifeline:
    """One actor's view of its supervisor."""

    def __init__(self, name: str, incarnation: int, spec: SupervisionSpec, now: float) -> None:
        self.stopping: Stop | None = None
        # Why this actor told itself to stop: nobody has answered, or a later life has its name.
        self.forsaken: Literal["", "orphaned", "replaced"] = ""
        self._name = name
        self._incarnation = incarnation
        self._spec = spec
        self._heard_at = now
        self._beat_at = now
        self._ticked_at = now
        self._supervisor = -1  # incarnation of the one that answered last
        self._peers: dict[str, int] = {}
        self._forsaken_at: float | None = None

    def state(self, begun: bool) -> ActorState:
        """What the beat calls this actor."""
        if self.stopping is not None:
            return "stopping"
        return "running" if begun else "starting"

    def due(self) -> float:
        """When `tick` wants to be called next."""
        return self._beat_at

    def hear(
        self, message: object, incarnation: int, now: float
    ) -> tuple[list[Instruction], Literal["deliver", "keep"]]:
        """The supervisor's life `incarnation` said `message` on "control".

        Returns what to do, and whether the actor itself should see the message. Answers to beats
        are kept back unless they bring news: a busy actor would find hundreds of them.
        """
        self._heard_at = now
        todo: list[Instruction] = []
        if incarnation != self._supervisor:
            if self._supervisor >= 0:
                todo.append(SayHello())
            self._supervisor = incarnation
        news = True
        match message:
            case Welcome(peers=peers):
                news = peers != self._peers
                if news:
                    todo += [RefuseOlder(*peer) for peer in peers.items()]
                    self._peers = peers
                todo += self._replaced(peers.get(self._name, 0), now)
            case PeerUp(name=name, incarnation=theirs):
                todo.append(RefuseOlder(name, theirs))
                todo += self._replaced(theirs if name == self._name else 0, now)
            case PeerDown(name=name, incarnation=theirs) if name != self._name:
                todo.append(RefuseOlder(name, theirs + 1))
            case Stop():
                self.stopping = self.stopping or message
            case _:
                pass
        return todo, "deliver" if news else "keep"

    def ask_to_stop(self, reason: str) -> list[Instruction]:
        """Somebody outside of the graph asks: a SIGTERM."""
        return self._stop(reason)

    def tick(self, now: float) -> list[Instruction]:
        """What is due by now."""
        # A process that was itself suspended has not been forsaken: it just did not listen.
        absent_s = now - self._ticked_at - 4 * self._spec.heartbeat_s
        if absent_s > 0:
            self._heard_at = min(now, self._heard_at + absent_s)
        self._ticked_at = now
        todo: list[Instruction] = []
        if now >= self._beat_at:
            todo.append(SayBeat())
            self._beat_at = now + self._spec.heartbeat_s
        silent_s = now - self._heard_at
        if silent_s > self._spec.orphan_grace_s and self._forsaken_at is None:
            self._forsaken_at, self.forsaken = now, "orphaned"
            todo += self._stop(f"no supervisor has answered for {silent_s:.1f} s")
        if self._forsaken_at is not None and now > self._forsaken_at + self._spec.stop_s:
            todo.append(LeaveNow(self.stopping.reason if self.stopping else "no supervisor"))
        return todo

    def _replaced(self, newest: int, now: float) -> list[Instruction]:
        if newest <= self._incarnation or self._forsaken_at is not None:
            return []
        self._forsaken_at, self.forsaken = now, "replaced"
        return self._stop(f"replaced: incarnation {newest} of {self._name} lives")

    def _stop(self, reason: str) -> list[Instruction]:
        if self.stopping is not None:
            return []
        self.stopping = Stop(reason=reason, within_s=self._spec.stop_s)
        return [TellStop(self.stopping)]
