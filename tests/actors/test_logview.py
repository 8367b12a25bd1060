"""Which lines are shown, and that none of them can do harm to a terminal."""

import datetime
from typing import Any

import msgspec
import pytest

from actors.logview import Line, Wanted, parse_line, parse_since, show

ZONE = datetime.timezone(datetime.timedelta(hours=2))
NOW = datetime.datetime(2026, 11, 23, 14, 5, 30, tzinfo=ZONE)


def line(**fields: Any) -> Line:
    record = {
        "timestamp": "2026-11-23T12:05:00.250000+00:00",
        "level": "info",
        "event": "hello",
        "actor": "trainer/0",
        "incarnation": 2,
        "step": 7,
        **fields,
    }
    found = parse_line(msgspec.json.encode(record))
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("90s", NOW - datetime.timedelta(seconds=90)),
        ("1.5m", NOW - datetime.timedelta(seconds=90)),
        ("2h", NOW - datetime.timedelta(hours=2)),
        ("1 d", NOW - datetime.timedelta(days=1)),
        ("9:30", NOW.replace(hour=9, minute=30, second=0)),
        ("09:30:05", NOW.replace(hour=9, minute=30, second=5)),
        ("2026-11-23", NOW.replace(hour=0, minute=0, second=0)),
        ("2026-11-23T10:00:00", NOW.replace(hour=10, minute=0, second=0)),
        ("2026-11-23T08:00:00Z", NOW.replace(hour=10, minute=0, second=0)),
        (" 2026-11-23 08:00:00+00:00 ", NOW.replace(hour=10, minute=0, second=0)),
    ],
)
def test_times_are_read_as_people_write_them(text: str, expected: datetime.datetime):
    assert parse_since(text, NOW) == expected.timestamp()


@pytest.mark.parametrize("text", ["yesterday", "5 weeks", "-5m", "25:00", "9:3", "", "2026-13-01"])
def test_other_times_are_refused_with_what_is_accepted(text: str):
    with pytest.raises(ValueError, match=r"90s, 5m, 2h or 1d"):
        parse_since(text, NOW)


@pytest.mark.parametrize(
    ("glob", "takes"),
    [
        ("*", True),
        ("trainer/0", True),
        ("trainer/*", True),
        ("trainer", True),
        ("t*", True),
        ("trainer/[01]", True),
        ("trainer/1", False),
        ("Trainer", False),
        ("rainer", False),
        ("[", False),
    ],
)
def test_an_actor_is_meant_by_glob_or_role(glob: str, takes: bool):
    assert Wanted(glob).takes(line()) is takes


@pytest.mark.parametrize(
    ("level", "wanted", "takes"),
    [
        ("info", "info", True),
        ("debug", "info", False),
        ("critical", "warning", True),
        ("notice", "error", True),
    ],
)
def test_levels_are_a_threshold_and_strange_ones_are_shown(level: str, wanted: str, takes: bool):
    assert Wanted(level=wanted).takes(line(level=level)) is takes


def test_only_later_lines_are_taken():
    at = line().at
    assert Wanted(since=at).takes(line())
    assert not Wanted(since=at + 0.001).takes(line())


def test_a_line_shows_when_who_what_and_its_own_fields():
    shown = show(
        line(loss=1.23456789, peer="loader", why="two words", n=[1, 2]), ZONE, colour=False
    )
    assert shown == (
        "14:05:00.250 info     trainer/0#2          step 7  hello"
        "  loss=1.23457  peer=loader  why='two words'  n=[1,2]"
    )


def test_an_exception_stands_on_lines_of_its_own():
    shown = show(line(exception="Traceback:\n  File x\nKeyError: 1"), ZONE, colour=False)
    assert shown.endswith("hello\nTraceback:\n  File x\nKeyError: 1")


def test_grave_lines_are_coloured_on_terminals_only():
    assert show(line(level="error"), ZONE, colour=True).startswith("\x1b[31m")
    assert "\x1b" not in show(line(level="error"), ZONE, colour=False)
    assert "\x1b" not in show(line(), ZONE, colour=True)


@pytest.mark.parametrize("field", ["event", "actor", "note", "exception"])
def test_nothing_that_was_logged_moves_the_cursor(field: str):
    shown = show(line(**{field: "a\x1b[2Jb\x07\x9bc"}), ZONE, colour=False)
    assert not any(c in shown for c in "\x1b\x07\x9b")
    assert "\\x1b" in shown


@pytest.mark.parametrize(
    "raw", [b"", b"{", b"[]", b"{}", b'{"timestamp": 3}', b'{"timestamp": "x"}', b"\xff\xfe", b"1"]
)
def test_what_is_no_record_is_none(raw: bytes):
    assert parse_line(raw) is None


def test_a_time_without_zone_is_utc():
    assert line(timestamp="2026-11-23T12:05:00.25").at == line().at
