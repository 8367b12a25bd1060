"""How an actor lives on the wire.

`Mailbox` is for processes that compute: one thread of its own holds the sockets, says hello, beats
and watches for the supervisor, while the computing thread sends and receives through bounded
queues. `AsyncMailbox` (loop_async.py) is the same for processes that mostly wait.

The beat carries the computing thread's own counter. A thread for sockets goes on beating while
the one that computes hangs; the counter does not go on counting.

Not covered: answers. Nothing is acknowledged here; whoever misses something asks again.
"""

import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import FrameType, TracebackType
from typing import Any, Literal, Self

from actors.lifeline import Work
from actors.logs import Record, make_logger
from actors.loop_async import AsyncMailbox, serve
from actors.membership import Membership, Remote
from actors.seat import Seat
from actors.topology import SupervisionSpec
from protocol.clock import Clock, Deadline, MonotonicClock
from protocol.codec import Buffer
from protocol.messages import Message, Stop
from protocol.transport import Packed, Received, Sent

__all__ = ["AsyncMailbox", "Mailbox", "Remote", "serve"]

# Bounds of the two queues between the threads. Beyond them `send` waits, and of the sockets only
# "control" is listened to, so that ZeroMQ's own marks hold the senders back.
MAX_INBOX, MAX_OUTBOX = 4096, 1024
MAX_QUEUED_BYTES = 512 * 1024 * 1024
MAX_RECORDS = 2000
# How long `send` waits for room. Longer than any replacement of a peer takes.
SEND_PATIENCE_S = 30.0
# A wait shows in this rhythm that it is one: whoever does not turn is held to be stuck.
_TURN_S = 1.0
# A peer at its high-water mark is tried again after this.
RETRY_S = 0.002
CLOSE_S = 1.0


@dataclass(frozen=True, slots=True)
class _Out:
    packed: Packed
    to: str
    step: int


class Mailbox:
    """One computing thread's connection to the graph. All methods belong to that thread."""

    def __init__(
        self,
        seat: Seat,
        connect: Sequence[str] = ("control", "telemetry"),
        bind: Sequence[str] = (),
        *,
        remote: Remote | None = None,
        clock: Clock | None = None,
        supervision: SupervisionSpec | None = None,
        send_patience_s: float = SEND_PATIENCE_S,
        signals: bool = True,
        leave: Callable[[int], object] = os._exit,
    ) -> None:
        """Opens the sockets and starts the thread. Raises `EndpointError`, `Refused`.

        `signals`: ignore SIGINT and treat SIGTERM as a stop, when made in the main thread.
        """
        self._clock = clock or MonotonicClock()
        self._patience_s = send_patience_s
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
        self._changed = threading.Condition()
        self._inbox: deque[Received] = deque()
        self._inbox_bytes = 0
        self._outbox: deque[_Out] = deque()
        self._queued, self._queued_bytes = 0, 0  # of the outbox and of what is held back
        self._held: dict[tuple[str, str], deque[_Out]] = {}  # by destination; the thread's own
        self._records: deque[Record] = deque()
        self._records_lost = 0
        self._terminated = self._woken = False
        self._closing: Deadline | None = None
        self._goodbye: str | None = None
        self._ended = False
        facts = {"actor": seat.name, "incarnation": seat.incarnation}
        self.log = make_logger(self._sink, lambda: {**facts, "step": self._work.step})
        self._old_handlers = self._take_signals(signals)
        self._thread = threading.Thread(target=self._serve, name="mailbox", daemon=True)
        self._thread.start()

    # --- for the computing thread ----------------------------------------------------------------

    def receive(self, timeout_s: float) -> list[Received]:
        """What has arrived, after waiting up to `timeout_s` for the first of it. Maybe nothing."""
        before = self._work.waiting_for
        with self._changed:
            if not self._inbox and timeout_s > 0 and not self._ended:
                self._work.note(before or "messages", self._clock.now())
                self._changed.wait_for(self._has_news, timeout_s)
            self._woken = False
            if self._ended and not self._inbox:
                raise RuntimeError("this mailbox is closed, or its thread has died (see stderr)")
            taken = list(self._inbox)
            was_full = self._inbox_full()
            self._inbox.clear()
            self._inbox_bytes = 0
        self._work.note(before, self._clock.now())
        if was_full:
            self._node.wake()
        return taken

    def _has_news(self) -> bool:
        return bool(self._inbox) or self._ended or self._woken

    def wake(self) -> None:
        """End the wait in `receive`, or the next one, though nothing arrives. From any thread."""
        with self._changed:
            self._woken = True
            self._changed.notify_all()

    def send(
        self,
        channel: str,
        message: Message,
        *,
        to: str = "",
        frames: Sequence[Buffer] = (),
        step: int = 0,
    ) -> None:
        """Queue a message; frames must stay unchanged until it has left.

        Waits for room, under a deadline. Raises `Unsendable`, `DeadlinePassed`.
        """
        packed = self._node.pack(channel, message, frames)
        with self._changed:
            if self._outbox_full():
                self._wait_for_room(packed, to)
            if self._ended:
                raise RuntimeError("this mailbox is closed, or its thread has died (see stderr)")
            self._outbox.append(_Out(packed, to, step or self._work.step))
            self._queued += 1
            self._queued_bytes += packed.nbytes
        self._node.wake()
        if self._member.is_first_use(packed.kind):
            self.log.info("first message of a kind", kind=packed.kind)

    def _wait_for_room(self, packed: Packed, to: str) -> None:
        what = f"room to send {packed.kind} to {to or packed.channel}"
        deadline = Deadline.after(self._clock, self._patience_s, what)
        before = self._work.waiting_for
        while self._outbox_full() and not self._ended:
            self._work.note(what, self._clock.now())
            deadline.check()
            self._changed.wait(min(_TURN_S, deadline.left()))
        self._work.note(before, self._clock.now())

    def progress(self, waiting_for: str = "") -> None:
        """Count one unit of progress; `waiting_for` says for whom or what, "" is working."""
        self._work.note(waiting_for, self._clock.now())

    def gauge(self, name: str, value: float) -> None:
        """A figure for `status`, sent with every beat."""
        self._work.gauges[name] = value

    @property
    def stopping(self) -> Stop | None:
        """The stop that was asked for, if any."""
        return self._member.stopping

    @property
    def forsaken(self) -> Literal["", "orphaned", "replaced"]:
        """Why this actor told itself to stop, if it did: without a supervisor, or succeeded."""
        return self._member.forsaken

    @property
    def step(self) -> int:
        """What messages, log records and beats say the actor works on."""
        return self._work.step

    @step.setter
    def step(self, step: int) -> None:
        self._work.step = step

    def counters(self) -> dict[str, int]:
        """See `Node.counters`; of this moment, roughly."""
        return self._node.counters()

    def close(self, failed: str = "", *, goodbye: bool = True) -> None:
        """Leave: send what is queued, say goodbye, close the sockets. A second call does nothing.

        `failed`: why the run cannot go on without a person; "" when it can.
        """
        if self._closing is not None:
            return
        for number, handler in self._old_handlers.items():
            signal.signal(number, handler)
        self._goodbye = failed if goodbye else None
        self._closing = Deadline.after(MonotonicClock(), CLOSE_S, "sending what is queued")
        with self._changed:
            if not self._ended:
                self._node.wake()
        self._thread.join()

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

    # --- on the thread of the sockets ------------------------------------------------------------

    def _serve(self) -> None:
        try:
            while not self._finished():
                self._turn()
            if self._goodbye is not None:
                self._member.say_goodbye(self._goodbye)
        finally:
            with self._changed:
                self._ended = True
                self._node.close()
                self._changed.notify_all()

    def _turn(self) -> None:
        """Hear, decide, speak: once."""
        received = self._node.poll(self._wait_s(), ("control",) if self._inbox_full() else None)
        told = self._member.hear(received) + self._member.tick()
        if self._terminated:
            told += self._member.stop("SIGTERM")
        if told:
            with self._changed:
                self._inbox.extend(told)
                self._inbox_bytes += sum(frame.nbytes for item in told for frame in item.frames)
                self._changed.notify_all()
        for text, times in self._member.notices():
            self.log.warning("input dropped", why=text, times=times)
        self._send_records()
        self._send_queued()

    def _finished(self) -> bool:
        if self._closing is None:
            return False
        return self._closing.passed() or not (self._queued or self._records)

    def _wait_s(self) -> float:
        if self._closing is not None or self._held:
            return RETRY_S
        return self._member.wait_s()

    def _inbox_full(self) -> bool:
        return len(self._inbox) >= MAX_INBOX or self._inbox_bytes >= MAX_QUEUED_BYTES

    def _outbox_full(self) -> bool:
        return self._queued >= MAX_OUTBOX or self._queued_bytes >= MAX_QUEUED_BYTES

    def _send_queued(self) -> None:
        """Send in order per destination; a full one holds back its own messages only."""
        with self._changed:
            while self._outbox:
                out = self._outbox.popleft()
                self._held.setdefault((out.packed.channel, out.to), deque()).append(out)
        gone, gone_bytes = 0, 0
        for destination, queue in list(self._held.items()):
            while queue:
                out = queue[0]
                if self._node.send_packed(out.packed, to=out.to, step=out.step) is Sent.FULL:
                    break
                queue.popleft()
                gone += 1
                gone_bytes += out.packed.nbytes
            if not queue:
                del self._held[destination]
        if gone:
            with self._changed:
                self._queued -= gone
                self._queued_bytes -= gone_bytes
                self._changed.notify_all()

    def _sink(self, record: Record) -> None:
        """Take a log record from any thread; beyond the bound it is lost and counted."""
        if len(self._records) >= MAX_RECORDS:
            self._records_lost += 1
            return
        self._records.append(record)
        if threading.current_thread() is not self._thread:
            with self._changed:
                if not self._ended:
                    self._node.wake()

    def _send_records(self) -> None:
        while self._records:
            self._member.send_record(self._records.popleft())
        if self._records_lost:
            self._work.gauges["log_records_lost"] = float(self._records_lost)

    # --- signals ---------------------------------------------------------------------------------

    def _take_signals(self, wanted: bool) -> dict[int, Any]:
        """A terminal's Ctrl-C is the launcher's business; SIGTERM is a polite stop."""
        if not wanted or threading.current_thread() is not threading.main_thread():
            return {}
        return {
            signal.SIGINT: signal.signal(signal.SIGINT, signal.SIG_IGN),
            signal.SIGTERM: signal.signal(signal.SIGTERM, self._on_sigterm),
        }

    def _on_sigterm(self, _number: int, _frame: FrameType | None) -> None:
        # Runs between two instructions of the main thread: no locks here.
        self._terminated = True
        self._node.wake()
