"""The judge convicts whoever lost, repeated or left behind anything, and nobody else."""

import hashlib
import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from actors.chaos.judge import Evidence, judge

STEPS = 4
ROW = 10
DAMAGED = "checkpoints/step-00000002/dense-0.safetensors"


def event(t: float, what: str, **facts: Any) -> dict[str, Any]:
    return {"t": t, "event": what, **facts}


def life(t: float, what: str, name: str, incarnation: int, pid: int) -> dict[str, Any]:
    return event(t, what, name=name, incarnation=incarnation, pid=pid)


def fault(t: float, number: int, kind: str, **facts: Any) -> dict[str, Any]:
    targets = facts.pop("targets", [])
    pids = facts.pop("pids", [])
    return event(
        t, "fault", number=number, attempt=number, kind=kind, targets=targets, pids=pids, **facts
    )


STORY = (
    event(0.0, "began", launch=1, resumed=False),
    life(0.1, "life", "loader", 1, 10),
    life(0.2, "life", "trainer/0", 1, 11),
    event(1.0, "step", step=1),
    fault(1.5, 0, "kill", targets=["trainer/0"], pids=[11]),
    life(1.6, "death", "trainer/0", 1, 11),
    life(1.7, "life", "trainer/0", 2, 12),
    event(2.0, "step", step=2),
    fault(2.1, 1, "nap", targets=["loader"], pids=[10]),
    event(3.0, "step", step=3),
    event(4.0, "step", step=4),
    event(4.5, "ended", launch=1, end="done", reason="step 4 is committed"),
)
SPANS = [
    # epoch, sample, start, length, step, rank, row, offset
    (0, 0, 0, 10, 1, 0, 0, 0),
    (0, 1, 0, 4, 2, 0, 0, 0),
    (0, 1, 4, 6, 2, 0, 0, 4),
    (0, 1, 10, 10, 3, 0, 0, 0),
    (0, 2, 0, 10, 4, 0, 0, 0),
]


def write_run(path: Path) -> Path:
    path.mkdir()
    (path / "logs").mkdir()
    records = [
        {"step": step, "loss": 1.0 / step, "weights_digest": f"{step:064x}"}
        for step in range(1, STEPS + 1)
    ]
    write_metrics(path, records)
    write_ledger(path, SPANS)
    checkpoint = path / "checkpoints" / f"step-{STEPS:08d}"
    checkpoint.mkdir(parents=True)
    (checkpoint / "dense-0.safetensors").write_bytes(b"weights")
    sums = {"dense-0.safetensors": hashlib.sha256(b"weights").hexdigest()}
    (checkpoint / "manifest.json").write_text(json.dumps({"step": STEPS, "files": sums}))
    return path


def write_metrics(path: Path, records: list[dict[str, Any]]) -> None:
    (path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def write_ledger(path: Path, spans: list[tuple[int, ...]], quarantined: tuple[Any, ...] = ()):
    (path / "ledger.sqlite").unlink(missing_ok=True)
    with closing(sqlite3.connect(path / "ledger.sqlite")) as database:
        columns = "epoch, sample, start, length, step, rank, row, offset"
        database.execute(f"CREATE TABLE delivered ({columns})")
        database.execute("CREATE TABLE quarantined (sample, reason, deaths)")
        database.executemany("INSERT INTO delivered VALUES (?,?,?,?,?,?,?,?)", spans)
        if quarantined:
            database.execute("INSERT INTO quarantined VALUES (?,?,?)", quarantined)
        database.commit()


@pytest.fixture
def evidence(tmp_path: Path) -> Evidence:
    return Evidence(
        disturbed=write_run(tmp_path / "run"),
        twin=write_run(tmp_path / "twin"),
        steps=STEPS,
        faults=2,
        strict=True,
        events=STORY,
        leftovers=(),
    )


def broken(evidence: Evidence) -> list[str]:
    return [finding.name for finding in judge(evidence) if not finding.ok]


def test_a_run_that_lost_nothing_is_acquitted(evidence: Evidence):
    assert broken(evidence) == []
    assert all(finding.name for finding in judge(evidence))


def change_metrics(change: Callable[[list[dict[str, Any]]], Any]) -> Callable[[Path], None]:
    def damage(run: Path) -> None:
        records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        change(records)
        write_metrics(run, records)

    return damage


def with_spans(*spans: tuple[int, ...]) -> Callable[[Path], None]:
    return lambda run: write_ledger(run, list(spans))


def give_up_a_sample(run: Path) -> None:
    write_ledger(run, SPANS, (5, "3 workers; the last: killed", 3))


def to_checkpoint(name: str, do: Callable[[Path], object]) -> Callable[[Path], None]:
    def damage(run: Path) -> None:
        do(next(run.glob(f"checkpoints/*/{name}")))

    return damage


ONCE = "every step committed once, in order"
WEIGHTS = "weights equal the twin's after every step"
LEDGER = "the ledger is the twin's, row by row"
SPAN = "no span lost or repeated"
CHECKPOINTS = "checkpoints whole, the last step's among them"


@pytest.mark.parametrize(
    ("damage", "findings"),
    [
        (change_metrics(lambda r: r.pop(1)), {ONCE, WEIGHTS, "losses equal the twin's"}),
        (change_metrics(lambda r: r.insert(1, r[0])), {ONCE, WEIGHTS, "losses equal the twin's"}),
        (change_metrics(lambda r: r[2].update(weights_digest="0" * 64)), {WEIGHTS}),
        (change_metrics(lambda r: r[2].update(loss=7.0)), {"losses equal the twin's"}),
        (with_spans(*SPANS[:2], *SPANS[3:]), {LEDGER, SPAN}),
        (with_spans(*SPANS, (0, 1, 4, 6, 4, 0, 1, 0)), {LEDGER, SPAN}),
        (with_spans(*SPANS[:4], (0, 3, 0, 10, 4, 0, 0, 0)), {LEDGER}),
        (with_spans(*SPANS[:4], (0, 2, 0, 9, 4, 0, 0, 0)), {LEDGER, SPAN}),
        (with_spans(*SPANS[:4], (0, 2, 0, 10, 4, 0, 0, 1)), {LEDGER, SPAN}),
        (with_spans(), {LEDGER, SPAN}),
        (give_up_a_sample, {"no sample given up because of faults"}),
        (to_checkpoint("dense*", lambda path: path.write_bytes(b"weighty")), {CHECKPOINTS}),
        (to_checkpoint("dense*", Path.unlink), {CHECKPOINTS}),
        (to_checkpoint("manifest*", Path.unlink), {CHECKPOINTS}),
    ],
)
def test_what_is_wrong_with_files_is_found(
    evidence: Evidence, damage: Callable[[Path], None], findings: set[str]
):
    damage(evidence.disturbed)
    assert set(broken(evidence)) == findings


def test_checkpoints_that_were_put_aside_are_nobodys_fault(evidence: Evidence):
    aside = evidence.disturbed / "checkpoints" / "step-00000002.damaged"
    aside.mkdir()
    (aside / "manifest.json").write_text("{")
    assert broken(evidence) == []


HAPPENED = "every fault of the schedule happened"
ONE_LIFE = "one life of a name at a time"
REPLACED = "whoever was struck was replaced"
ENDED = "the run ended when and as it had to"


@pytest.mark.parametrize(
    ("story", "findings"),
    [
        (STORY[:4] + STORY[7:], {HAPPENED}),
        ((*STORY, event(1.55, "skipped", number=0, attempt=0, why="gone")), {HAPPENED}),
        (STORY[:5] + STORY[7:], {REPLACED}),
        (STORY[:6] + STORY[7:], {REPLACED}),
        ((*STORY[:6], life(1.7, "life", "trainer/0", 0, 12), *STORY[7:]), {ONE_LIFE}),
        (STORY[:5] + STORY[6:], {ONE_LIFE, REPLACED}),
        (STORY[:-1], {ENDED}),
        ((*STORY[:-1], event(4.5, "ended", launch=1, end="failed", reason="x")), {ENDED}),
        (
            (
                *STORY[:7],
                event(1.8, "ended", launch=1, end="failed", reason="loader: no idea"),
                event(1.9, "began", launch=2, resumed=True),
                *STORY[7:],
            ),
            {ENDED},
        ),
    ],
)
def test_what_is_wrong_with_the_story_is_found(
    evidence: Evidence, story: tuple[dict[str, Any], ...], findings: set[str]
):
    assert set(broken(replace(evidence, events=story))) == findings


def test_a_run_may_end_over_a_full_disk_if_it_says_so(evidence: Evidence):
    def story(reason: str) -> tuple[dict[str, Any], ...]:
        return (
            *STORY[:7],
            fault(1.75, 2, "disk"),
            event(1.8, "ended", launch=1, end="failed", reason=reason),
            event(1.9, "began", launch=2, resumed=True),
            *STORY[7:],
        )

    said = replace(evidence, events=story("the disk is full; free space on it"), faults=3)
    assert broken(said) == []
    assert broken(replace(said, events=story("a bug"))) == [ENDED]


def test_a_damaged_checkpoint_must_be_named(evidence: Evidence):
    story = (*STORY[:7], fault(1.75, 2, "checkpoint", how=DAMAGED), *STORY[7:])
    judged = replace(evidence, events=story, faults=3)
    assert broken(judged) == [ENDED]
    line = {"event": "checkpoint skipped", "why": f"/run/{DAMAGED} is damaged"}
    log = evidence.disturbed / "logs" / "optimizer_shard.0.jsonl"
    log.write_text(json.dumps(line) + "\n")
    assert broken(judged) == []


def test_leftovers_are_named(evidence: Evidence):
    found = judge(replace(evidence, leftovers=("process 77", "shared memory trireme-1")))
    assert [finding.detail for finding in found if not finding.ok] == [
        "process 77, shared memory trireme-1"
    ]


def test_ready_order_may_differ_but_not_lose(evidence: Evidence):
    swapped = [*SPANS[:4], (0, 9, 0, 10, 4, 0, 0, 0)]
    write_ledger(evidence.disturbed, swapped)
    assert broken(replace(evidence, strict=False)) == []
    write_ledger(evidence.disturbed, swapped[1:])
    assert broken(replace(evidence, strict=False)) == [SPAN]
    write_ledger(evidence.disturbed, [*swapped[:2], *swapped[3:]])
    assert broken(replace(evidence, strict=False)) == [SPAN]
