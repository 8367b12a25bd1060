"""Each actor's lines go to its own file, whoever tries to write into another's."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from actors.recorder import logbook as logbook_module
from actors.recorder.logbook import MAX_LINE_BYTES, LogBook


@pytest.fixture
def book(tmp_path: Path) -> Iterator[LogBook]:
    book = LogBook(tmp_path)
    yield book
    book.close()


def lines(book: LogBook, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (book.directory / name).read_text().splitlines()]


def names(book: LogBook) -> list[str]:
    return sorted(path.name for path in book.directory.iterdir())


def say(event: str, **fields: Any) -> dict[str, Any]:
    return {"timestamp": "2026-11-23T08:00:00.000000Z", "level": "info", "event": event, **fields}


def test_records_are_sorted_by_actor_over_incarnations(book: LogBook):
    book.add("trainer/0", say("a", actor="trainer/0", incarnation=1))
    book.add("loader", say("b", actor="loader"))
    book.add("trainer/0", say("c", actor="trainer/0", incarnation=2))
    assert book.flush() == ""
    assert names(book) == ["loader.jsonl", "trainer.0.jsonl"]
    assert [one["event"] for one in lines(book, "trainer.0.jsonl")] == ["a", "c"]
    assert book.levels["info"] == 3


def test_an_actor_that_claims_to_be_another_is_written_under_its_own_name(book: LogBook):
    book.add("trainer/0", say("a", actor="loader"))
    book.flush()
    assert (names(book), book.forged) == (["trainer.0.jsonl"], 1)
    assert lines(book, "trainer.0.jsonl")[0]["actor"] == "trainer/0"


def test_the_loader_speaks_for_remote_workers_only(book: LogBook):
    book.add("loader", say("a", actor="data_worker/far-0"))
    book.add("loader", say("b", actor="supervisor"))
    book.flush()
    assert names(book) == ["data_worker.far-0.jsonl", "loader.jsonl"]


@pytest.mark.parametrize(
    "actor", ["data_worker/../../etc/passwd", "data_worker/", "data_worker/a/b", "data_worker/\n"]
)
def test_no_name_leads_out_of_the_directory(book: LogBook, actor: str):
    book.add("loader", say("a", actor=actor))
    book.flush()
    assert (names(book), book.forged) == ([], 1)


def test_a_huge_record_is_cut_and_says_so(book: LogBook):
    book.add("loader", say("x" * 5000, dump="y" * MAX_LINE_BYTES, step=7))
    book.flush()
    (line,) = lines(book, "loader.jsonl")
    assert (line["event"], line["step"], line["actor"]) == ("x" * 1000, 7, "loader")
    assert line["cut_bytes"] > MAX_LINE_BYTES
    assert "dump" not in line


def test_more_actors_than_descriptors_still_all_have_their_lines(
    book: LogBook, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(logbook_module, "MAX_OPEN", 3)
    for turn in range(2):
        for index in range(10):
            book.add(f"data_worker/{index}", say(f"turn {turn}"))
        book.flush()
    assert len(book._files) == 3
    assert all(len(lines(book, f"data_worker.{index}.jsonl")) == 2 for index in range(10))


def test_a_disk_that_refuses_is_counted_and_named(tmp_path: Path):
    book = LogBook(tmp_path / "missing")
    book.add("loader", say("a"))
    book.add("trainer/0", say("b"))
    assert book.flush() == "No such file or directory"
    assert book.dropped == 2
    book.close()
    assert book.dropped == 2


def test_closing_writes_what_was_added(book: LogBook):
    book.add("loader", say("a"))
    book.close()
    assert names(book) == ["loader.jsonl"]
