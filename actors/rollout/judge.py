"""The judge: asks the scorer child for verdicts and outlives it.

A scorer that dies over a text is replaced and asked once more; the second death is the text's own
doing and scores zero. A scorer that cannot even start is the machine's fault: that is
`ScorerUnavailable`, never a reward.
"""

import json
import os
import select
import signal
from collections.abc import Callable, Sequence
from typing import Any

from actors import process
from actors.rollout.scoring import Verdict
from protocol.clock import Clock, Deadline, MonotonicClock

# A request's whole time by the wall clock. Far above its processor limit (2 s), since rollouts run
# at low priority and wait for their turn.
WALL_S = 30.0
# An interpreter starts in a tenth of a second; on a machine that swaps, in many.
START_S = 60.0
EXIT_S = 0.2  # from the end of its stdin to its own
STARTS = 3  # attempts before the scorer counts as unavailable
MAX_ANSWER_BYTES = 1 << 16

SCORER = ("-m", "actors.rollout.scorer")


class ScorerUnavailable(Exception):
    """No scorer process can be started: says why. The completions at hand stay without a score."""


class _Died(Exception):
    """The scorer ended or fell silent: says how."""


class Judge:
    """One scorer process, started when first needed. Not thread-safe: one thread asks and waits.

    `on_death(cause)` hears of every death, so that it can be logged with its circumstances.
    """

    def __init__(
        self,
        on_death: Callable[[str], None],
        *,
        command: Sequence[str] = SCORER,
        run_id: str = "",
        wall_s: float = WALL_S,
        clock: Clock | None = None,
    ) -> None:
        self.deaths = 0
        self._on_death = on_death
        self._command = process.python(*command)
        self._env = process.environment(run_id)
        self._wall_s = wall_s
        self._clock = clock or MonotonicClock()
        self._helper: process.Helper | None = None
        self._received = b""

    def __enter__(self) -> "Judge":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def score(self, prompt: str, completion: str, *, finished: bool) -> Verdict:
        """The verdict on one completion (`scoring.score`). Raises `ScorerUnavailable`."""
        request = {"prompt": prompt, "completion": completion, "finished": finished}
        line = json.dumps(request).encode() + b"\n"
        cause = ""
        for _ in range(2):
            self._ensure()
            try:
                return _verdict(self._ask(line, self._wall_s))
            except _Died as error:
                cause = str(error)
                self._bury(cause)
        return Verdict("scorer died", detail=cause)

    def close(self) -> None:
        """End the scorer, if any."""
        if self._helper is not None:
            self._end()

    def _ensure(self) -> None:
        """Have a scorer that has said it is ready."""
        cause = ""
        for _ in range(STARTS):
            if self._helper is not None:
                return
            try:
                self._helper = process.start_helper(self._command, env=self._env)
                os.set_blocking(self._helper.to, False)
                if self._ask(b"", START_S) == "ready":
                    return
                cause = "it spoke before it was ready"
            except _Died as error:
                cause = str(error)
            except OSError as error:
                cause = error.strerror or str(error)
            self._bury(cause)
        raise ScorerUnavailable(f"the scorer does not start: {cause}")

    def _ask(self, line: bytes, within_s: float) -> Any:
        """Send a line and wait for one. Raises `_Died`."""
        helper = self._helper
        assert helper is not None
        poller = select.poll()
        poller.register(helper.back, select.POLLIN)
        if line:
            poller.register(helper.to, select.POLLOUT)
        deadline = Deadline.after(self._clock, within_s, "the scorer's answer")
        while b"\n" not in self._received:
            ready = dict(poller.poll(deadline.left() * 1000))
            if not ready:
                raise _Died(f"no answer within {within_s:g} s")
            if helper.to in ready and line:
                line = self._send(helper.to, line)
                if not line:
                    poller.unregister(helper.to)
            if helper.back in ready:
                self._take(helper.back)
        answer, _, self._received = self._received.partition(b"\n")
        try:
            return json.loads(answer)
        except ValueError:
            raise _Died("it answered something that is no JSON") from None

    def _send(self, fd: int, line: bytes) -> bytes:
        """What is still to be sent of `line`."""
        try:
            return line[os.write(fd, line) :]
        except BlockingIOError:
            return line
        except OSError:  # EPIPE: it is gone, and reaping it tells how
            raise _Died(self._how_it_ended()) from None

    def _take(self, fd: int) -> None:
        piece = os.read(fd, MAX_ANSWER_BYTES)
        if not piece:
            raise _Died(self._how_it_ended())
        self._received += piece
        if len(self._received) > MAX_ANSWER_BYTES:
            raise _Died(f"its answer is longer than {MAX_ANSWER_BYTES} bytes")

    def _bury(self, cause: str) -> None:
        self.deaths += 1
        self._on_death(cause)
        if self._helper is not None:
            self._end()

    def _end(self) -> None:
        """Close the pipes, which ends a healthy scorer; see to it that it has ended."""
        helper = self._helper
        assert helper is not None
        os.close(helper.to)
        os.close(helper.back)
        self._how_it_ended()
        self._helper, self._received = None, b""

    def _how_it_ended(self) -> str:
        """Kill the scorer unless it ends by itself at once, and reap it."""
        assert self._helper is not None
        who = self._helper.who
        fd = process.pidfd(who)
        if fd is not None:  # closed pipes and a live process: it is on its way out, or it hangs
            if not _readable(fd, EXIT_S):
                process.send_signal(who, signal.SIGKILL)
                _readable(fd, START_S)
            os.close(fd)
        ended = next(process.reap(who.pid), None)
        return "it is gone" if ended is None else process.words(ended.code)


def _readable(fd: int, within_s: float) -> bool:
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    return bool(poller.poll(within_s * 1000))


def _verdict(answer: Any) -> Verdict:
    try:
        return Verdict(
            reason=answer["reason"],
            compiled=bool(answer["compiled"]),
            kept=int(answer["kept"]),
            detail=str(answer["detail"]),
        )
    except (KeyError, TypeError, ValueError):
        raise _Died("its answer is no verdict") from None
