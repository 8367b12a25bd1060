"""What became of the dead: how each ended, in words, and a report for those who ended too early."""

import asyncio
import datetime
import signal
from collections import deque
from dataclasses import replace

import msgspec
import structlog

from actors import process
from actors.forkserver import Exited
from actors.process import Identity
from actors.rundir import RunDir
from actors.supervisor import oom, reports
from actors.supervisor.events import Bury
from actors.supervisor.lives import End
from protocol.messages import Beat

# The recorder writes what it had in hand within this; then the report is made.
_SETTLE_S = 0.3
# Characters of a last line that go into the reason of a death.
_LAST_WORDS = 200


class Graves:
    """Belongs to the running event loop."""

    def __init__(self, run: RunDir, log: structlog.stdlib.BoundLogger) -> None:
        self._run = run
        self._log = log
        self._oom_kills = oom.oom_kills()
        self._ends: deque[tuple[End, bool, float]] = deque(maxlen=64)
        self._printed: dict[str, int] = {}  # size of each actor's stderr at its last end
        # What each used, as its forkserver says, which may be after its end was noticed.
        self._used: deque[Exited] = deque(maxlen=64)
        self._pending: dict[tuple[str, int], tuple[reports.Death, asyncio.TimerHandle]] = {}

    def how(self, end: End) -> str:
        """How that life ended, in words. Must be asked once for each end, when it is seen."""
        out_of_memory = False
        if end.code == -signal.SIGKILL:
            kills = oom.oom_kills()
            out_of_memory, self._oom_kills = kills > self._oom_kills, kills
        self._ends.append((end, out_of_memory, process.age_s(end.who)))
        words = process.words(end.code)
        if out_of_memory:
            return f"{words}, out of memory"
        said = self._last_words(end.name) if end.code is not None and end.code > 0 else ""
        return f"{words}: {said}" if said else words

    def _last_words(self, name: str) -> str:
        """The last line it printed, when it printed anything since we looked last."""
        path = self._run.stderr_of(name)
        try:
            size = path.stat().st_size
        except OSError:
            return ""
        before, self._printed[name] = self._printed.get(name, 0), size
        lines = [line.strip() for line in reports.tail(path) if line.strip()]
        return lines[-1][:_LAST_WORDS] if lines and size > before else ""

    def reported(self, report: Exited) -> None:
        """A forkserver says what a life used."""
        self._used.append(report)

    def bury(self, bury: Bury, beat: Beat | None) -> None:
        """Log a death now, and report it in full once its last words have arrived."""
        found = [
            known
            for known in self._ends
            if (known[0].name, known[0].incarnation) == (bury.name, bury.incarnation)
        ]
        nobody = End(bury.name, bury.incarnation, Identity(0, 0), None)
        end, out_of_memory, lived_s = found[-1] if found else (nobody, False, 0.0)
        self._log.warning(
            "actor died",
            who=bury.name,
            life=bury.incarnation,
            pid=end.who.pid,
            how=bury.why,
            restart_in_s=bury.restart_in_s,
            known_s=round(end.known_s, 4),
        )
        death = reports.Death(
            timestamp=datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds"),
            actor=bury.name,
            incarnation=bury.incarnation,
            pid=end.who.pid,
            how=bury.why,
            out_of_memory=out_of_memory,
            lived_s=round(lived_s, 3),
            max_rss_bytes=end.max_rss_bytes,
            cpu_s=round(end.cpu_s, 3),
            restart_in_s=bury.restart_in_s,
            last_beat=None if beat is None else msgspec.to_builtins(beat),
        )
        timer = asyncio.get_running_loop().call_later(_SETTLE_S, self._report, death)
        self._pending[death.actor, death.incarnation] = (death, timer)

    def close(self) -> None:
        """Write what is pending."""
        for death, timer in list(self._pending.values()):
            timer.cancel()
            self._report(death)

    def _report(self, death: reports.Death) -> None:
        self._pending.pop((death.actor, death.incarnation), None)
        for used in self._used:
            if (used.life.name, used.life.incarnation) == (death.actor, death.incarnation):
                death = replace(death, max_rss_bytes=used.max_rss_bytes, cpu_s=round(used.cpu_s, 3))
        try:
            reports.write(self._run, death)
        except OSError as error:
            self._log.error("death report not written", who=death.actor, why=str(error))
