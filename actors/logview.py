"""Log lines as people ask for them: which ones, and how they look. Pure: text in, text out."""

import datetime
import re
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, cast

import msgspec

LEVELS = ("debug", "info", "warning", "error", "critical")
_COLOURS = {"debug": 2, "warning": 33, "error": 31, "critical": 35}  # SGR codes
_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_AGO = re.compile(r"(\d+(?:\.\d+)?)\s*([smhd])")
_CLOCK = re.compile(r"\d{1,2}:\d{2}(:\d{2}(\.\d{1,6})?)?")
# Shown in the head of a line, hence not again in its tail.
_HEAD_FIELDS = frozenset({"timestamp", "level", "event", "actor", "incarnation", "step"})


@dataclass(frozen=True, slots=True)
class Line:
    """One record of a log file."""

    at: float  # seconds since 1970, UTC
    raw: bytes  # as it lies in the file, without its line feed
    record: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which lines to show."""

    actor: str = "*"  # a glob over names; a bare role stands for all of its actors
    level: str = "debug"  # this one and graver
    since: float = 0.0  # seconds since 1970

    def takes(self, line: Line) -> bool:
        """Whether to show this line."""
        level = line.record.get("level", "info")
        grave = level not in LEVELS or LEVELS.index(level) >= LEVELS.index(self.level)
        return grave and line.at >= self.since and self.takes_actor(line.record.get("actor", ""))

    def takes_actor(self, name: str) -> bool:
        """Whether lines of this actor may be shown."""
        return fnmatchcase(name, self.actor) or fnmatchcase(name.partition("/")[0], self.actor)


def parse_line(raw: bytes) -> Line | None:
    """A record from a log file; None when it is none (a line torn by a crash, say)."""
    try:
        record = msgspec.json.decode(raw)
        at = datetime.datetime.fromisoformat(record["timestamp"])
    except (msgspec.DecodeError, UnicodeDecodeError, ValueError, TypeError, KeyError):
        return None
    if at.tzinfo is None:
        at = at.replace(tzinfo=datetime.UTC)
    return Line(at.timestamp(), raw, cast("dict[str, Any]", record))


def parse_since(text: str, now: datetime.datetime) -> float:
    """Seconds since 1970 of "90s", "5m", "2h", "1d" ago, "14:05[:30]" today, or an ISO time.

    Times without a zone are in the zone of `now`. Raises `ValueError` that says what is accepted.
    """
    text = text.strip()
    if ago := _AGO.fullmatch(text):
        seconds = float(ago[1]) * _UNITS_S[ago[2]]
        return now.timestamp() - seconds
    try:
        if _CLOCK.fullmatch(text):
            clock = datetime.time.fromisoformat(text if text[1] != ":" else f"0{text}")
            return datetime.datetime.combine(now.date(), clock, now.tzinfo).timestamp()
        found = datetime.datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(
            f"{text!r} is no time: write 90s, 5m, 2h or 1d (ago), 14:05 or 14:05:30 (today), "
            f"or 2026-11-23T14:05:30"
        ) from None
    return (found if found.tzinfo else found.replace(tzinfo=now.tzinfo)).timestamp()


def show(line: Line, zone: datetime.tzinfo | None, *, colour: bool) -> str:
    """The line for people: time, level, actor, step, what happened, and its own fields."""
    record = line.record
    level = _one_line(str(record.get("level", "info")))
    at = datetime.datetime.fromtimestamp(line.at, zone)
    actor = _one_line(str(record.get("actor", "?")))
    if record.get("incarnation"):
        actor += f"#{_value(record['incarnation'])}"
    step = f"step {_value(record['step'])}  " if record.get("step") else ""
    head = f"{at:%H:%M:%S}.{at.microsecond // 1000:03d} {level:<8} {actor:<20} {step}"
    text = head + _one_line(str(record.get("event", "")))
    for key, value in record.items():
        if key not in _HEAD_FIELDS and key != "exception":
            text += f"  {_one_line(key)}={_value(value)}"
    if record.get("exception"):
        shown = "\n".join(map(_printable, str(record["exception"]).splitlines()))
        text += "\n" + shown
    code = _COLOURS.get(level)
    return f"\x1b[{code}m{text}\x1b[0m" if colour and code else text


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    shown = _one_line(text)
    return repr(shown) if isinstance(value, str) and (" " in shown or not shown) else shown


def _one_line(text: str) -> str:
    return _printable(text.replace("\r", "").replace("\n", "\\n"))


def _printable(text: str) -> str:
    """Text that cannot move a terminal's cursor, whoever wrote it."""
    return "".join(c if c.isprintable() or c == "\t" else f"\\x{ord(c):02x}" for c in text)
