"""`AsyncMailbox`: an actor's place on the wire for processes that wait more than they compute.

ZeroMQ's descriptors are watched by the event loop directly; `zmq.asyncio` is not used, since a
cancelled receive there may lose a message. Here messages are taken off the sockets by callbacks
and only ever leave the inbox by being returned.
"""

import asyncio
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from types import TracebackType
from typing import Any, Self

from actors.lifeline import Work
from actors.logs import Record, make_logger
from actors.membership import Membership, Remote
from actors.seat import Seat
from actors.topology import SupervisionSpec
from protocol.clock import Clock, MonotonicClock
from protocol.codec import Buffer
from protocol.keys import ServerCurve
from protocol.messages import Message, Stop
from protocol.transport import Received, Sent

# While more than this waits to be read only "control" is listened to; the rest waits in ZeroMQ,
# whose own marks then hold the senders back.
MAX_INBOX = 4096


def serve(main: Coroutine[Any, Any, int]) -> int:
    """Run an actor's coroutine on uvloop to its end; its result is the process's exit code."""
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)


class AsyncMailbox:
    """Belongs to the running event loop. A supervisor's own has no lifeline: it connects none."""

    def __init__(
        self,
        seat: Seat,
        connect: Sequence[str] = ("control", "telemetry"),
        bind: Sequence[str] = (),
        *,
        remote: Remote | None = None,
        clock: Clock | None = None,
        supervision: SupervisionSpec | None = None,
        signals: bool = True,
        leave: Callable[[int], object] = os._exit,
    ) -> None:
        """Opens the sockets and starts to beat. Raises `EndpointError`, `Refused`."""
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._clock = clock or MonotonicClock()
        self._work = Work()
        self._member = Membership(
            seat,
            self._work,
            self._clock,
            connect=connect,
            bind=bind,
            remote=remote,
            supervision=supervision,
            leave=leave,
        )
        self._node = self._member.node
        self._inbox: deque[Received] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._watched: list[int] = []
        self._only: tuple[str, ...] | None = None
        self._turn_due = False
        self._closed = False
        facts = {"actor": seat.name, "incarnation": seat.incarnation}
        self.log = make_logger(self._sink, lambda: {**facts, "step": self._work.step})
        self._signals = signals and threading.current_thread() is threading.main_thread()
        if self._signals:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            self._loop.add_signal_handler(signal.SIGTERM, self._on_sigterm)
        self._watch(None)
        self._timer = self._loop.call_later(0, self._on_timer)
        self._soon()

    # --- for the actor ---------------------------------------------------------------------------

    async def receive(self, timeout_s: float) -> list[Received]:
        """What has arrived, after waiting up to `timeout_s` for the first of it. Maybe nothing.

        May be cancelled at any moment without losing a message. One caller at a time.
        """
        if not self._inbox and timeout_s > 0 and not self._closed:
            assert self._waiter is None, "two tasks wait for one mailbox"
            self._waiter = waiter = self._loop.create_future()
            timer = self._loop.call_later(timeout_s, _resolve, waiter)
            try:
                await waiter
            finally:
                timer.cancel()
                self._waiter = None
        else:
            await asyncio.sleep(0)  # a full inbox must not keep the loop from its timers
        taken = list(self._inbox)
        self._inbox.clear()
        self._work.note(self._work.waiting_for, self._clock.now())
        if self._only is not None:
            self._watch(None)
            self._soon()
        return taken

    def send(
        self,
        channel: str,
        message: Message,
        *,
        to: str = "",
        frames: Sequence[Buffer] = (),
        step: int = 0,
    ) -> Sent:
        """Send now, or say why not. Never waits. Raises `Unsendable`."""
        assert threading.get_ident() == self._thread, "send from the event loop's thread"
        sent = self._node.send(channel, message, to=to, frames=frames, step=step)
        self._soon()  # sending may have consumed the announcement of input
        if sent is Sent.SENT and self._member.is_first_use(type(message).__name__):
            self.log.info("first message of a kind", kind=type(message).__name__)
        return sent

    def progress(self, waiting_for: str = "") -> None:
        """Count one unit of progress; `waiting_for` says for whom or what, "" is working."""
        self._work.note(waiting_for, self._clock.now())

    def stand_in(self, host: str) -> None:
        """From now on this actor stands in for one of that host; "": for one that is to come, so
        that its beats say "starting".
        """
        self._work.guest = host

    def gauge(self, name: str, value: float) -> None:
        """A figure for `status`, sent with every beat."""
        self._work.gauges[name] = value

    @property
    def stopping(self) -> Stop | None:
        """The stop that was asked for, if any."""
        return self._member.stopping

    @property
    def step(self) -> int:
        """What log records and beats say the actor works on."""
        return self._work.step

    @step.setter
    def step(self, step: int) -> None:
        self._work.step = step

    def counters(self) -> dict[str, int]:
        """See `Node.counters`."""
        return self._node.counters()

    def bind(self, channel: str, endpoint: str, curve: ServerCurve | None = None) -> str:
        """Listen on one more channel; returns where. Raises `EndpointError`."""
        actual = self._node.bind(channel, endpoint, curve)
        self._watch(self._only)
        self._soon()
        return actual

    def knows(self, channel: str, peer: str) -> bool:
        """Can `send` reach `peer` on a channel bound here?"""
        return self._node.knows(channel, peer)

    def refuse_older(self, name: str, incarnation: int) -> None:
        """See `Node.refuse_older`."""
        self._node.refuse_older(name, incarnation)

    def close(self, failed: str = "", *, goodbye: bool = True) -> None:
        """Leave: say goodbye, then close the sockets. A second call does nothing.

        `failed`: why the run cannot go on without a person; "" when it can.
        """
        if self._closed:
            return
        self._closed = True
        self._timer.cancel()
        self._watch(())
        if self._signals:
            self._loop.remove_signal_handler(signal.SIGTERM)
        if goodbye:
            self._member.say_goodbye(failed)
        self._node.close()
        if self._waiter is not None:
            _resolve(self._waiter)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        """An actor that fails says why in the log and no goodbye: it is to be restarted."""
        if isinstance(error, Exception):
            self.log.error("actor failed", exc_info=error)
        self.close(goodbye=kind is None)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.__exit__(kind, error, traceback)

    # --- on the event loop -----------------------------------------------------------------------

    def _watch(self, only: tuple[str, ...] | None) -> None:
        """Watch the sockets of these channels (None: of all) and no others."""
        for fd in self._watched:
            self._loop.remove_reader(fd)
        self._only = only
        self._watched = [] if self._closed else self._node.filenos(only)
        for fd in self._watched:
            self._loop.add_reader(fd, self._turn)

    def _soon(self) -> None:
        if not self._turn_due and not self._closed:
            self._turn_due = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        """Take a bounded batch off the sockets; come back if there may be more."""
        self._turn_due = False
        if self._closed:
            return
        self._deliver(self._member.hear(self._node.drain(self._only)))
        for text, times in self._member.notices():
            self.log.warning("input dropped", why=text, times=times)
        if len(self._inbox) > MAX_INBOX and self._only is None:
            self._watch(("control",))
        if self._node.pending:
            self._soon()

    def _deliver(self, received: list[Received]) -> None:
        self._inbox.extend(received)
        if self._inbox and self._waiter is not None:
            _resolve(self._waiter)

    def _on_timer(self) -> None:
        self._turn()  # answers that wait count before silence is judged
        self._deliver(self._member.tick())
        self._soon()
        self._timer = self._loop.call_later(self._member.wait_s(), self._on_timer)

    def _on_sigterm(self) -> None:
        self._deliver(self._member.stop("SIGTERM"))

    def _sink(self, record: Record) -> None:
        if self._closed:
            return
        if threading.get_ident() == self._thread:
            self._member.send_record(record)
            self._soon()
        else:
            self._loop.call_soon_threadsafe(self._sink, record)


def _resolve(waiter: "asyncio.Future[None]") -> None:
    if not waiter.done():
        waiter.set_result(None)
