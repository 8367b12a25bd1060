"""The control endpoint: what actors and operators say to the supervisor, and what it answers."""

import fnmatch
import json
import os
import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING

from actors import process
from actors.door import refusal
from actors.process import Identity
from actors.supervisor import reports, status
from actors.supervisor.events import Committed, Completed, Heard, Left, StopWanted
from protocol.keys import AllowList
from protocol.messages import (
    Answer,
    Beat,
    Goodbye,
    Guests,
    Hello,
    Invitation,
    InviteRequest,
    KillRequest,
    Role,
    RunDone,
    Status,
    StatusRequest,
    StopRequest,
    Welcome,
)
from protocol.transport import Received

if TYPE_CHECKING:
    from actors.supervisor.process import Supervisor

# Operators that may wait for an invitation at one time, and how long each does.
_MAX_INVITED = 16
_INVITATION_S = 30.0


@dataclass(frozen=True, slots=True)
class _Invited:
    """An operator who waits for an invitation."""

    operator: str
    host: str  # who is to admit the guest
    until: float


class Desk:
    """Answers the mail. What it means is the decider's business."""

    def __init__(self, supervisor: "Supervisor") -> None:
        self._home = supervisor
        self._invited: dict[str, _Invited] = {}  # by the key that is to be let in

    def hear(self, received: Received) -> None:
        """One message."""
        home, name, life = self._home, received.sender, received.incarnation
        match received.message:
            case Hello() as hello:
                self._alive(received, hello, Heard(name, life, hello.host, "starting"))
            case Beat() as beat:
                self._beat(received, beat)
            case Goodbye() | RunDone() | Guests() | Invitation():
                if home.supervision.lives(name, life):
                    self._told(received)
            case _:
                self._operate(received)

    # --- Actors -----------------------------------------------------------------------------------

    def _told(self, received: Received) -> None:
        """News of an actor that lives; nobody else's word ends a run."""
        home, name, life = self._home, received.sender, received.incarnation
        match received.message:
            case Goodbye(failed=failed):
                home.handle(Left(name, life, failed))
            case RunDone(step=step, weights_digest=digest):
                home.completed = (step, digest)
                home.handle(Completed(step, digest))
            case Guests(guests=guests):
                home.guests = guests
            case Invitation() as invitation:
                self._relay(name, invitation)
            case _:
                pass

    def _beat(self, received: Received, beat: Beat) -> None:
        heard = Heard(
            received.sender,
            received.incarnation,
            host=beat.host,
            state=beat.state,
            progress=beat.progress,
            waiting_for=beat.waiting_for,
            waiting_s=beat.waiting_s,
            rss_bytes=beat.rss_bytes,
        )
        if not self._alive(received, beat, heard):
            return
        self._home.beats[received.sender] = beat
        if received.sender == "optimizer_shard/0" and "step" in beat.gauges:
            self._home.handle(Committed(int(beat.gauges["step"])))

    def _alive(self, received: Received, said: Hello | Beat, heard: Heard) -> bool:
        """Believe it if it is who the table says, and answer, so that it knows that we live."""
        home = self._home
        if not home.heard(heard, Identity(said.pid, said.started_ticks)):
            return False
        welcome = Welcome(peers=home.supervision.peers())
        home.mailbox.send("control", welcome, to=received.sender)
        return True

    # --- Operators --------------------------------------------------------------------------------

    def _operate(self, received: Received) -> None:
        home, operator = self._home, received.sender
        match received.message:
            case StatusRequest():
                self._answer(operator, Status(document=json.dumps(self.status())))
            case StopRequest(reason=reason):
                home.handle(StopWanted(reason or "stopped by an operator"))
                self._answer(operator, Answer(ok=True, text="stopping"))
            case KillRequest() as kill:
                self._kill(operator, kill)
            case InviteRequest() as invite:
                self._invite(operator, invite)
            case _:
                home.log.warning("nobody answers this", kind=received.envelope.kind, to=operator)

    def _answer(self, operator: str, message: Status | Answer | Invitation) -> None:
        self._home.mailbox.send("control", message, to=operator)

    def status(self) -> dict[str, object]:
        """The document of `run.py status --json`."""
        home = self._home
        return status.document(
            run=str(home.run.path),
            host=os.uname().nodename,
            now=home.clock.now(),
            supervision=home.supervision,
            seated=home.seated,
            beats=home.beats,
            guests=home.guests,
            metrics=status.newest_metrics(reports.tail(home.run.metrics, 4)),
            supervisor={
                "pid": home.me.pid,
                "host": os.uname().nodename,
                "incarnation": home.incarnation,
                "restarts": home.incarnation - home.first_incarnation,
                "rss_bytes": process.rss_bytes(home.me.pid),
                "heartbeat_age_s": 0.0,
                "waiting": None,
                "gauges": dict(home.mailbox.counters()),
            },
        )

    def _kill(self, operator: str, kill: KillRequest) -> None:
        home = self._home
        try:
            number = signal.Signals(kill.signal)
        except ValueError:
            self._answer(operator, Answer(ok=False, text=f"there is no signal {kill.signal}"))
            return
        living = {a.name: a.who for a in home.supervision.actors.values() if a.who is not None}
        hit = fnmatch.filter([*living, "supervisor"], kill.pattern)
        if not hit:
            names = ", ".join(sorted([*living, "supervisor"]))
            text = f"no living actor matches {kill.pattern!r}; there are: {names}"
            self._answer(operator, Answer(ok=False, text=text))
            return
        home.log.warning("killed by an operator", who=hit, signal=number.name)
        self._answer(operator, Answer(ok=True, text=f"{number.name} sent to {', '.join(hit)}"))
        for name in hit:
            who = living.get(name)
            if who is not None:
                process.send_signal(who, number)
        if "supervisor" in hit:
            # Last, and after the answer has had time to leave.
            home.soon(0.05, lambda: os.kill(os.getpid(), number))

    def _invite(self, operator: str, invite: InviteRequest) -> None:
        home = self._home
        host, refused = self._host_for(invite.role, invite.label)
        actor = home.supervision.actors.get(host)
        if not refused and (actor is None or actor.stage != "running"):
            refused = f"the {host} is not running"
        now = home.clock.now()
        self._invited = {key: one for key, one in self._invited.items() if now < one.until}
        if not refused and len(self._invited) >= _MAX_INVITED:
            refused = f"{_MAX_INVITED} others wait for an invitation; ask again in a moment"
        if refused:
            self._answer(operator, refusal(invite, refused))
            return
        self._invited[invite.public_key] = _Invited(operator, host, now + _INVITATION_S)
        home.mailbox.send("control", invite, to=host)

    def _host_for(self, role: Role, label: str) -> tuple[str, str]:
        """Who admits that guest, or why nobody does: trainers get a rank that nobody else has."""
        if role != "trainer":
            return "loader", ""
        ranks = self._home.topology.actors.remote_ranks
        given = AllowList(self._home.run.keys / "allowed").ranks()
        for rank in ranks:
            if given.get(rank, label) == label:
                return f"trainer/{rank}", ""
        if not ranks:
            return "", (
                "all trainers of this run are its own; start one with --set actors.trainers=2 "
                "--set actors.remote_trainers=1, say"
            )
        whose = ", ".join(f"trainer/{rank} is {given[rank]}'s" for rank in ranks)
        return "", f"no rank is free: {whose}; `run.py revoke LABEL --role trainer` makes one free"

    def _relay(self, host: str, invitation: Invitation) -> None:
        """To the operator who asked for this key, if that still waits."""
        waits = self._invited.get(invitation.public_key)
        if waits is None or waits.host != host:
            return
        del self._invited[invitation.public_key]
        if self._home.clock.now() < waits.until:
            self._answer(waits.operator, invitation)
