"""Figures of a history, and the page that shows them."""

import datetime
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from actors.chaos import figures
from actors.chaos.kinds import BY_NAME
from actors.chaos.page import page
from tests.actors.chaos.test_judge import STORY, event, fault, life

EPOCH = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)


def said(run: Path, name: str, t: float, what: str, **facts: Any) -> None:
    at = (EPOCH + datetime.timedelta(seconds=t)).isoformat()
    record = {"timestamp": at, "actor": name, "event": what, **facts}
    path = run / "logs" / f"{name.replace('/', '.')}.jsonl"
    path.parent.mkdir(exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(record) + "\n")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    said(tmp_path, "trainer/0", 0.3, "first message of a kind", incarnation=1)
    said(tmp_path, "trainer/0", 1.9, "first message of a kind", incarnation=2)
    said(tmp_path, "trainer/0", 2.9, "first message of a kind", incarnation=2)
    with (tmp_path / "logs" / "trainer.0.jsonl").open("a") as file:
        file.write('{"half')
    return tmp_path


def test_times_count_from_the_fault(run: Path):
    rows = figures.per_fault(STORY, run, EPOCH)
    killed, napped = rows
    assert (killed["target"], killed["detected_s"], killed["useful_s"]) == ("trainer/0", 0.1, 0.4)
    assert killed["step_s"] == 0.5
    assert "detected_s" not in napped
    assert napped["step_s"] == 0.9


def test_who_is_condemned_has_been_noticed(run: Path):
    said(run, "supervisor", 2.5, "killing", target="loader", incarnation=1)
    story = (
        *STORY[:8],
        fault(2.1, 1, "freeze", targets=["loader"], pids=[10]),
        life(2.9, "death", "loader", 1, 10),
        life(3.0, "life", "loader", 2, 20),
        *STORY[9:],
    )
    frozen = figures.per_fault(story, run, EPOCH)[1]
    assert frozen["detected_s"] == 0.4
    assert frozen["useful_s"] is None  # it has said nothing
    found = figures.summary(figures.per_fault(story, run, EPOCH), story, STORY)
    assert found["detection"]["frozen_or_lock_held"]["median_s"] == 0.4
    assert found["detection"]["sudden_death"]["count"] == 1


def test_a_death_is_noticed_when_the_supervisor_says_so_not_when_its_table_is_written(run: Path):
    said(run, "supervisor", 1.52, "actor died", who="trainer/0", life=1, known_s=0.015)
    killed, _ = figures.per_fault(STORY, run, EPOCH)
    assert killed["detected_s"] == 0.005


def test_what_a_kill_takes_by_itself_is_told_apart(run: Path):
    story = (*STORY, event(1.55, "gone", pid=11), event(1.52, "gone", pid=99))
    rows = figures.per_fault(story, run, EPOCH)
    assert rows[0]["ended_s"] == 0.05
    found = figures.summary(rows, story, STORY)
    assert found["detection"]["until_it_has_ended"] == {
        "count": 1, "min_s": 0.05, "median_s": 0.05, "max_s": 0.05,
    }  # fmt: skip


def test_a_thread_counts_from_when_it_was_caught(run: Path):
    story = (
        *STORY[:4],
        fault(1.1, 0, "gil", targets=["trainer/0"], pids=[11]),
        event(1.5, "caught", number=0),
        *STORY[5:],
    )
    assert figures.per_fault(story, run, EPOCH)[0]["detected_s"] == 0.1


def test_what_was_not_done_has_no_figures(run: Path):
    story = (*STORY, event(1.5, "skipped", number=0, attempt=0, why="it was dead"))
    assert [row["number"] for row in figures.per_fault(story, run, EPOCH)] == [1]


def test_throughput_is_that_of_the_steps(run: Path):
    twin = [event(10.0 + 0.5 * step, "step", step=step) for step in range(4)]
    found = figures.summary([], STORY, twin)
    assert found["throughput_kept"] == 0.5
    assert (found["disturbed_s"], found["undisturbed_s"]) == (3.0, 1.5)
    assert figures.summary([], [], [])["throughput_kept"] is None


def test_a_spread_has_a_median():
    assert figures.spread([None]) is None
    assert figures.spread([3.0, None, 1.0, 2.0]) == {
        "count": 3,
        "min_s": 1.0,
        "median_s": 2.0,
        "max_s": 3.0,
    }


class Checked(HTMLParser):
    """Every element that is opened is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_shows_every_fault_and_needs_nothing_else(run: Path):
    rows = figures.per_fault(STORY, run, EPOCH)
    rows[0]["how"] = "<script>&"
    report = {
        "passed": False,
        "when": "2026-01-01",
        "topology": "local",
        "asked": {"seed": 1, "kills": 2, "steps": 4},
        "findings": [{"name": "nothing lost", "ok": False, "detail": "1 < 2"}],
        "figures": figures.summary(rows, STORY, STORY),
        "torchrun": {"recovery": figures.spread([3.0])},
        "not_possible": {"disk": "no mount"},
        "faults": rows,
    }
    shown = page(report, STORY)
    checked = Checked()
    checked.feed(shown)
    assert checked.open == []
    assert checked.seen.count("circle") == 2
    assert {"svg", "table", "h1"} <= set(checked.seen)
    assert "script" not in checked.seen
    assert "http" not in shown
    assert "&lt;script&gt;&amp;" in shown
    assert "FAILED" in shown
    assert "1 &lt; 2" in shown
    assert BY_NAME["disk"].what in shown
    assert "loader" in shown
