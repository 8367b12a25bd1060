"""The recorder: writes down what the others say, asks shard 0 what was committed, shows figures.

Nobody waits for it: telemetry that finds it absent or busy is dropped by its sender and counted.
It waits for no disk either: log lines go to the kernel without sync, metrics and rollouts are
synced about once a second beside the loop, and lines that a full disk refuses are counted and
warned of.

Not covered: what the supervisor says after telling the recorder, the last to leave, to stop.
"""

import asyncio
from dataclasses import dataclass
from pathlib import Path

from actors.logs import make_logger
from actors.loop import AsyncMailbox, serve
from actors.recorder.exporter import Exporter
from actors.recorder.recording import Recording
from actors.rundir import RunDir
from actors.seat import Seat
from protocol.clock import Clock, MonotonicClock
from protocol.messages import Metrics, MetricsRequest, StatusRequest

METRICS_S = 0.2
# An unanswered question is put again after this: the shard may have been replaced.
PATIENCE_S = 1.0
SYNC_S = 1.0
FIGURES_S = 1.0
STATUS_S = 2.0
# A full disk is warned of this often.
WARN_S = 10.0
# After a stop, telemetry still on its way is waited for until none has come for this long.
QUIET_S = 0.3


def main(seat: Seat) -> int:
    """Record until told to stop."""
    return serve(_record(seat))


async def _record(seat: Seat) -> int:
    topology = seat.topology()
    recording = Recording(RunDir(Path(seat.run_dir)))
    connect = ("control", "exchange/0")
    with AsyncMailbox(seat, connect, bind=("telemetry",)) as mailbox:
        # Its own lines take the short way: it cannot send to itself.
        facts = {"actor": seat.name, "incarnation": seat.incarnation}
        mailbox.log = make_logger(
            lambda record: recording.logs.add(seat.name, record),
            lambda: {**facts, "step": mailbox.step},
        )
        exporter = Exporter.open(topology.recorder.prometheus_port, mailbox.log)
        recorder = Recorder(mailbox, recording, exporter, MonotonicClock())
        try:
            await recorder.run()
        finally:
            exporter.close()
            recording.close()
    return 0


@dataclass(slots=True)
class _Due:
    """When each recurring thing is to be done next."""

    metrics: float = 0.0
    sync: float = 0.0
    figures: float = 0.0
    status: float = 0.0
    warning: float = 0.0


class Recorder:
    """One life of the recorder."""

    def __init__(
        self, mailbox: AsyncMailbox, recording: Recording, exporter: Exporter, clock: Clock
    ) -> None:
        self._mailbox = mailbox
        self._recording = recording
        self._exporter = exporter
        self._clock = clock
        self._due = _Due()
        self._syncing: asyncio.Task[None] | None = None
        self._warned_lost = 0
        self._told: dict[str, int] = {}

    async def run(self) -> None:
        """Hear, write, ask; until stopped and all that was said is written."""
        self._mailbox.log.info("recording")
        while self._mailbox.stopping is None:
            await self._turn(METRICS_S / 2)
        deadline = self._clock.now() + self._mailbox.stopping.within_s / 2
        while await self._turn(QUIET_S) and self._clock.now() < deadline:
            pass
        if self._syncing is not None:
            await self._syncing
        self._mailbox.log.info("recorded", **self._count())

    async def _turn(self, wait_s: float) -> int:
        """Hear once and do what is due; how many messages came."""
        received = await self._mailbox.receive(wait_s)
        answered = False
        for item in received:
            self._recording.take(item)
            answered = answered or isinstance(item.message, Metrics)
        now = self._clock.now()
        if answered:
            self._mailbox.step = self._recording.metrics.last
            self._due.metrics = min(self._due.metrics, now + METRICS_S)
        trouble = self._recording.flush()
        self._ask(now)
        self._warn(trouble, now)
        await self._keep(now)
        return len(received)

    def _ask(self, now: float) -> None:
        if now >= self._due.metrics:
            self._due.metrics = now + PATIENCE_S
            request = MetricsRequest(after=self._recording.metrics.after)
            self._mailbox.send("exchange/0", request)
        if self._exporter.on and now >= self._due.status:
            self._due.status = now + STATUS_S
            self._mailbox.send("control", StatusRequest())

    def _warn(self, trouble: str, now: float) -> None:
        """Say that a disk refuses lines, and when that is over."""
        lost = self._recording.lost_lines
        if trouble and now >= self._due.warning:
            self._due.warning = now + WARN_S
            self._mailbox.log.warning("a file takes no lines", why=trouble, lost_lines=lost)
        elif not trouble and lost > self._warned_lost:
            self._mailbox.log.warning("files take lines again", lost_lines=lost)
            self._warned_lost = lost

    async def _keep(self, now: float) -> None:
        if now >= self._due.figures:
            self._due.figures = now + FIGURES_S
            self._exporter.show(self._recording.figures())
            self._report()
        if now >= self._due.sync and (self._syncing is None or self._syncing.done()):
            self._due.sync = now + SYNC_S
            self._syncing = asyncio.create_task(asyncio.to_thread(self._recording.sync))

    def _report(self) -> None:
        """Gauges for `status`, and a line whenever something was repaired or missed."""
        count = self._count()
        for name in ("lost_lines", "missed_steps", "telemetry_lost"):
            self._mailbox.gauge(name, float(count[name]))
        if self._recording.metrics.last:
            self._mailbox.gauge("step", float(self._recording.metrics.last))
        words = {
            "missed_steps": "steps are missing from metrics.jsonl: nobody remembers them",
            "cut_steps": "metrics.jsonl was ahead of the run: later steps were cut off",
            "repaired_bytes": "metrics.jsonl ended in a torn line, which was cut off",
            "forged": "records in the name of another actor",
        }
        for name, text in words.items():
            if count[name] > self._told.get(name, 0):
                self._told[name] = count[name]
                self._mailbox.log.warning(text, count=count[name])

    def _count(self) -> dict[str, int]:
        metrics = self._recording.metrics
        return {
            "step": metrics.last,
            "lost_lines": self._recording.lost_lines,
            "missed_steps": metrics.missed,
            "telemetry_lost": self._recording.totals.telemetry_lost,
            "cut_steps": metrics.cut,
            "repaired_bytes": metrics.lines.repaired_bytes,
            "forged": self._recording.logs.forged,
        }
