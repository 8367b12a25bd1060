"""What a recorder does with what it hears: which file a message goes to, and what is counted."""

import datetime
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from actors.rates import Rate, Rates
from actors.recorder.lines import LineFile
from actors.recorder.logbook import LogBook
from actors.recorder.metrics import MetricsFile, tail
from actors.rundir import RunDir
from protocol.messages import LogRecord, Metrics, RolloutReport, Status
from protocol.transport import Received

ROLLOUTS_ROTATE_BYTES = 64 << 20
# Enough of rollouts.jsonl to go on counting the versions of late where the last recorder stopped.
ROLLOUTS_TAIL_BYTES = 1 << 18


class _Counted(msgspec.Struct):
    """What must be known of a line of rollouts.jsonl to count it again."""

    version: int
    rewards: list[float]


class ActorSeen(msgspec.Struct, frozen=True):
    """An actor as `status --json` shows it; fields not named here are left unread."""

    name: str
    role: str
    state: str
    restarts: int = 0
    rss_bytes: int | None = None
    heartbeat_age_s: float | None = None


class StatusSeen(msgspec.Struct, frozen=True):
    """As much of `status --json` as the dashboard shows."""

    actors: list[ActorSeen] = []
    queues: dict[str, float | None] = {}


@dataclass(slots=True)
class Totals:
    """Sums over this recorder's life."""

    tokens: int = 0
    up_bytes: int = 0
    down_bytes: int = 0
    completions: int = 0
    reports: int = 0
    telemetry_lost: int = 0  # gaps in what a sender has numbered


@dataclass(frozen=True, slots=True)
class Figures:
    """Everything the dashboard shows, at one moment. Never changed, so threads may read it."""

    metrics: Mapping[str, Any] = field(default_factory=dict[str, Any])
    status: StatusSeen = field(default_factory=StatusSeen)
    levels: Mapping[str, int] = field(default_factory=dict[str, int])
    rollout: tuple[int, Rate] | None = None
    counts: Mapping[str, int] = field(default_factory=dict[str, int])


class Recording:
    """The files of one run, and what has been written to them."""

    def __init__(self, run: RunDir) -> None:
        self.logs = LogBook(run.logs)
        self.metrics = MetricsFile(run.metrics)
        self.totals = Totals()
        self.rates = Rates()
        self._rollouts = LineFile(run.rollouts, rotate_bytes=ROLLOUTS_ROTATE_BYTES, keep=2)
        self._status = StatusSeen()
        self._heard: dict[str, tuple[int, int]] = {}  # sender -> incarnation, seq
        for line in tail(run.rollouts, ROLLOUTS_TAIL_BYTES):
            self._count_again(line)

    def take(self, received: Received) -> None:
        """Act on one message. Log lines are kept back until `flush`."""
        if received.channel == "telemetry":
            self._count_lost(received)
        match received.message:
            case LogRecord(record=record):
                self.logs.add(received.sender, record)
            case RolloutReport() as report:
                self._take_report(received.sender, report)
            case Metrics(records=records):
                taken = self.metrics.take(records)
                for record in records[len(records) - taken :]:
                    self._sum_up(record)
            case Status(document=document):
                self._status = _read_status(document) or self._status
            case _:
                pass

    def flush(self) -> str:
        """Write log lines; why some file does not take its lines, or ""."""
        trouble = self.logs.flush()
        return trouble or self.metrics.lines.trouble or self._rollouts.trouble

    def sync(self) -> None:
        """Have the disk hold metrics and rollouts. May block for as long as the disk likes."""
        self.metrics.lines.sync()
        self._rollouts.sync()

    def close(self) -> None:
        """Write what is left, sync and close all files."""
        self.logs.close()
        self.sync()
        self.metrics.lines.close()
        self._rollouts.close()

    @property
    def lost_lines(self) -> int:
        """Lines that no disk holds. Metrics refused are asked for again, so they do not count."""
        return self.logs.dropped + self._rollouts.dropped

    def figures(self) -> Figures:
        """Of this moment."""
        totals = self.totals
        return Figures(
            metrics=self.metrics.newest,
            status=self._status,
            levels=dict(self.logs.levels),
            rollout=self.rates.newest(),
            counts={
                "tokens": totals.tokens,
                "up_bytes": totals.up_bytes,
                "down_bytes": totals.down_bytes,
                "completions": totals.completions,
                "telemetry_lost": totals.telemetry_lost,
                "lines_lost": self.lost_lines,
                "steps_missed": self.metrics.missed,
            },
        )

    def _count_lost(self, received: Received) -> None:
        """A gap is a loss, except before the first message of a sender we hear of: what it said to
        our predecessor was not lost.
        """
        now = (received.incarnation, received.envelope.seq)
        before = self._heard.get(received.sender)
        if before is not None:
            expected = before[1] + 1 if before[0] == now[0] else 0
            self.totals.telemetry_lost += max(0, now[1] - expected)
        self._heard[received.sender] = now

    def _take_report(self, sender: str, report: RolloutReport) -> None:
        good = sum(reward > 0 for reward in report.rewards)
        rate = self.rates.add(report.version, good, len(report.rewards))
        self.totals.completions += len(report.rewards)
        self.totals.reports += 1
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds")
        line = {
            "timestamp": now,
            "actor": sender,
            **msgspec.to_builtins(report),
            # Over all groups of this version so far, with a 95 % interval.
            "version_completions": rate.total,
            "compile_rate": rate.value,
            "compile_rate_low": rate.low,
            "compile_rate_high": rate.high,
        }
        self._rollouts.append([msgspec.json.encode(line) + b"\n"])

    def _count_again(self, line: bytes) -> None:
        try:
            counted = msgspec.json.decode(line, type=_Counted)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return
        good = sum(reward > 0 for reward in counted.rewards)
        self.rates.add(counted.version, good, len(counted.rewards))

    def _sum_up(self, record: Mapping[str, Any]) -> None:
        self.totals.tokens += _whole(record.get("tokens"))
        self.totals.up_bytes += _whole(record.get("up_bytes"))
        self.totals.down_bytes += _whole(record.get("down_bytes"))


def _whole(value: object) -> int:
    return value if isinstance(value, int) else 0


def _read_status(document: str) -> StatusSeen | None:
    try:
        return msgspec.json.decode(document, type=StatusSeen)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
