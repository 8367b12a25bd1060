"""Asking a running supervisor: one request, one answer, within seconds or words why not."""

import os

from actors import process
from actors.rundir import RunDir
from actors.supervisor import table
from protocol.channels import endpoint
from protocol.clock import Clock, Deadline, MonotonicClock
from protocol.errors import EndpointError
from protocol.messages import Message
from protocol.transport import Node


class Unanswered(RuntimeError):
    """Nobody answered: says whether anybody is there at all."""


def ask(
    run: RunDir, request: Message, *, timeout_s: float = 5.0, clock: Clock | None = None
) -> Message:
    """The supervisor's answer. Raises `Unanswered`."""
    clock = clock or MonotonicClock()
    if not lives(run):
        raise Unanswered(f"{run.path} is not running: it has no supervisor")
    me = process.myself()
    within = Deadline.after(clock, timeout_s, "the supervisor's answer")
    try:
        with Node(f"operator/{os.getpid()}", "operator", me.ticks, clock) as node:
            node.connect("control", endpoint(run.socket_dir, "control"))
            node.send("control", request)
            while not within.passed():
                for received in node.poll(within.left()):
                    if received.role == "supervisor":
                        return received.message
    except EndpointError as error:
        raise Unanswered(f"{run.path} cannot be asked: {error}") from error
    raise Unanswered(
        f"the supervisor of {run.path} has not answered for {timeout_s:g} s; it may be starting"
    )


def lives(run: RunDir) -> bool:
    """Whether the run has a supervisor now."""
    who = table.read(run).get("supervisor", table.Row()).who
    return who is not None and process.alive(who)
