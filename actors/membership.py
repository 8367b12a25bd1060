"""What both mailboxes do: open the sockets, keep the lifeline, send beats and log records.

Belongs to whichever thread or event loop owns the sockets.
"""

import faulthandler
import os
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from actors import lifeline, process
from actors.lifeline import Lifeline, Work
from actors.logs import Record
from actors.seat import Seat
from actors.topology import SupervisionSpec
from protocol import messages as m
from protocol.channels import endpoint
from protocol.clock import Clock
from protocol.errors import Unsendable
from protocol.keys import ClientCurve
from protocol.messages import WIRE_VERSION, Envelope, Stop
from protocol.transport import Node, Received, Sent

# Messages by which an actor is of use to others. The first of each kind in a life is logged: that
# is how long a replacement took, for people and for tests/benchmarks/recovery.py.
USEFUL = frozenset(
    kind.__name__
    for kind in (
        m.LeaseRequest,  # a worker is ready for work
        m.Lease,
        m.SampleReady,
        m.Batch,
        m.Prompts,
        m.PromptRequest,  # a rollout has weights and is ready for prompts
        m.Codes,
        m.Gradient,
        m.Update,
        m.Metrics,
        m.RolloutReport,
    )
)

# Dropped input is logged this often at most, however much of it there is.
NOTICES_S = 1.0
# What a process that nobody wants any more exits with (EX_TEMPFAIL: somebody may start another).
EXIT_FORSAKEN = 75


@dataclass(frozen=True, slots=True)
class Remote:
    """Who lets us in on another host: the loader, or the stand-in of our rank.

    A stand-in is to us what a supervisor is to others. The handshake has `patience_s`.
    """

    endpoint: str
    curve: ClientCurve = field(repr=False)
    patience_s: float = 8.0
    channel: str = "remote"

    @property
    def supervises(self) -> bool:
        """Whether beats go there."""
        return self.channel not in ("remote", "standby")


class Membership:
    """One life of an actor as its supervisor sees it."""

    def __init__(
        self,
        seat: Seat,
        work: Work,
        clock: Clock,
        *,
        connect: Sequence[str],
        bind: Sequence[str],
        remote: Remote | None,
        supervision: SupervisionSpec | None,
        leave: Callable[[int], object],
    ) -> None:
        """Opens all sockets. Raises `EndpointError`, and `Refused` by a remote loader."""
        self.node = Node(seat.name, seat.role, seat.incarnation, clock, io_cpus=seat.cpus)
        self.stopping: Stop | None = None
        self._seat, self._work, self._clock, self._leave = seat, work, clock, leave
        self._lifeline: Lifeline | None = None
        away = "" if remote is None else remote.channel
        self._tie = away if remote is not None and remote.supervises else "control"
        self._records_go = "telemetry" if "telemetry" in connect else away
        self._unsaid = set(USEFUL)
        self._noticed_at = -NOTICES_S
        self._me = process.myself()
        self._host = socket.gethostname()
        if not faulthandler.is_enabled():
            faulthandler.enable()
        try:
            for name in bind:
                self.node.bind(name, endpoint(seat.socket_dir, name))
            for name in connect:
                self.node.connect(name, endpoint(seat.socket_dir, name))
            if remote is not None:
                self.node.connect(remote.channel, remote.endpoint, remote.curve)
                self.node.handshake(remote.channel, remote.patience_s)
            if "control" in connect or self._tie == away:
                spec = supervision or seat.topology().supervision
                self._lifeline = Lifeline(seat.name, seat.incarnation, spec, clock.now())
                self._say_hello()
        except BaseException:
            self.node.close(0)
            raise

    @property
    def forsaken(self) -> Literal["", "orphaned", "replaced"]:
        """Why this actor told itself to stop, if it did."""
        return "" if self._lifeline is None else self._lifeline.forsaken

    def hear(self, received: list[Received]) -> list[Received]:
        """Act on what the supervisor says; returns what the actor itself should see."""
        if self._lifeline is None:
            return received
        now = self._clock.now()
        delivered: list[Received] = []
        for item in received:
            if item.channel != self._tie:  # on which nobody but the binder answers
                delivered.append(item)
                continue
            todo, fate = self._lifeline.hear(item.message, item.incarnation, now)
            delivered += self._perform(todo)
            if fate == "deliver":
                delivered.append(item)
        self.stopping = self._lifeline.stopping
        return delivered

    def tick(self) -> list[Received]:
        """Do what is due; returns what the actor should see: a stop from its own lifeline."""
        if self._lifeline is None:
            return []
        return self._perform(self._lifeline.tick(self._clock.now()))

    def wait_s(self) -> float:
        """Seconds until `tick` has something to do."""
        return 1.0 if self._lifeline is None else max(0.0, self._lifeline.due() - self._clock.now())

    def stop(self, reason: str) -> list[Received]:
        """The process was asked to leave from outside of the graph."""
        if self._lifeline is not None:
            return self._perform(self._lifeline.ask_to_stop(reason))
        if self.stopping is not None:
            return []
        return self._tell_stop(Stop(reason=reason, within_s=SupervisionSpec().stop_s))

    def is_first_use(self, kind: str) -> bool:
        """Whether this life says something useful of this kind for the first time."""
        if kind not in self._unsaid:
            return False
        self._unsaid.remove(kind)
        return True

    def notices(self) -> list[tuple[str, int]]:
        """Why input was dropped lately, in words, each with its count; due once in a while."""
        now = self._clock.now()
        if now - self._noticed_at < NOTICES_S:
            return []
        found = self.node.take_notices()
        if found:
            self._noticed_at = now
        return found

    def say_goodbye(self, failed: str) -> None:
        """Leave on purpose."""
        if self._lifeline is not None:
            self.node.send(self._tie, m.Goodbye(failed=failed))

    def send_record(self, record: Record) -> None:
        """Hand a log record on. It may be lost; the loss is counted."""
        try:
            if self._records_go == "telemetry":
                self.node.send("telemetry", m.LogRecord(record=record), step=self._work.step)
            elif self._records_go:
                self.node.send(self._records_go, m.WorkerLog(records=(record,)))
                if record["level"] in {"warning", "error", "critical"}:
                    # For the person on this host, who does not see the run's log.
                    sys.stderr.write(f"{record['event']}: {record.get('why', '')}\n")
        except Unsendable as error:  # a bug in logs.plain_record: say so where it can be seen
            sys.stderr.write(f"log record lost: {error}\n")

    def _perform(self, todo: list[lifeline.Instruction]) -> list[Received]:
        told: list[Received] = []
        for instruction in todo:
            match instruction:
                case lifeline.SayHello():
                    self._say_hello()
                case lifeline.SayBeat():
                    self._say_beat()
                case lifeline.RefuseOlder(name=name, incarnation=incarnation):
                    self.node.refuse_older(name, incarnation)
                case lifeline.TellStop(stop=stop):
                    told += self._tell_stop(stop)
                case lifeline.LeaveNow(reason=reason):
                    sys.stderr.write(f"{self._seat.name} leaves without finishing: {reason}\n")
                    sys.stderr.flush()
                    self._leave(EXIT_FORSAKEN)
        return told

    def _tell_stop(self, stop: Stop) -> list[Received]:
        self.stopping = stop
        seat = self._seat
        said = Envelope(WIRE_VERSION, "Stop", seat.name, seat.incarnation, 0, 0)
        return [Received(self._tie, seat.name, seat.role, seat.incarnation, said, stop, ())]

    def _say_hello(self) -> None:
        hello = m.Hello(
            role=self._seat.role, pid=self._me.pid, started_ticks=self._me.ticks, host=self._host
        )
        self.node.send(self._tie, hello, step=self._work.step)

    def _say_beat(self) -> Sent:
        assert self._lifeline is not None
        work, counters = self._work, self.node.counters()
        lost = {
            name: float(counters[name])
            for name in ("dropped_telemetry", "malformed", "forbidden", "zombies", "no_peer")
            if name in counters
        }
        beat = m.Beat(
            role=self._seat.role,
            pid=self._me.pid,
            started_ticks=self._me.ticks,
            host=work.guest or self._host,
            state=self._lifeline.state(work.begun and work.guest != ""),
            progress=work.progress,
            waiting_for=work.waiting_for,
            waiting_s=work.waiting_s(self._clock.now()),
            rss_bytes=process.rss_bytes(os.getpid()),
            gauges=lost | work.gauges.copy(),
        )
        return self.node.send(self._tie, beat, step=work.step)
