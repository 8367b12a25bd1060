"""The verdict on a disturbed run, from what it and its undisturbed twin have left behind.

Shares no code with what it judges: files are read with json, sqlite3 and hashlib alone, and what
they must say is written down here once more, from the architecture. An import rule holds this.
"""

import hashlib
import json
import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Kinds whose victim's life must end, and after whose damage a reason in words must name the thing.
_ENDS = frozenset(
    ("kill", "several", "freeze", "stun", "term", "exit", "segfault", "gil", "hang", "memory")
)
_NAMES = {"ledger": ("ledger",), "disk": ("space", "disk", "written")}
_SHOWN = 3
# Whoever dies in the last moments of a run need not have come back.
_LAST_S = 1.0

Event = Mapping[str, Any]
Span = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that must hold, and whether it does."""

    name: str
    ok: bool
    detail: str


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is judged."""

    disturbed: Path
    twin: Path
    steps: int
    faults: int  # that were to happen
    strict: bool  # samples in the order of the seed: both ledgers are then the same
    events: Sequence[Event]
    leftovers: Sequence[str]


def judge(evidence: Evidence) -> list[Finding]:
    """Everything that must hold."""
    return [*_records(evidence), *_ledgers(evidence), *_files(evidence), *_story(evidence)]


# --- Steps and weights ----------------------------------------------------------------------------


def _records(evidence: Evidence) -> Iterator[Finding]:
    ours, theirs = (_metrics(path) for path in (evidence.disturbed, evidence.twin))
    steps = [record["step"] for record in ours]
    once = steps == list(range(1, evidence.steps + 1))
    yield Finding("every step committed once, in order", once, f"{len(steps)} records")
    pairs = list(zip(ours, theirs, strict=False))
    unequal = [a["step"] for a, b in pairs if a["weights_digest"] != b["weights_digest"]]
    same = not unequal and len(ours) == len(theirs) == evidence.steps
    detail = f"first different at step {unequal[0]}" if unequal else f"{len(pairs)} digests equal"
    yield Finding("weights equal the twin's after every step", same, detail)
    yield Finding("losses equal the twin's", _column(ours, "loss") == _column(theirs, "loss"), "")


def _metrics(run: Path) -> list[dict[str, Any]]:
    try:
        lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    return [json.loads(line) for line in lines]


def _column(records: Iterable[Mapping[str, Any]], name: str) -> list[Any]:
    return [record.get(name) for record in records]


# --- The ledger -----------------------------------------------------------------------------------


def _ledgers(evidence: Evidence) -> Iterator[Finding]:
    columns = "epoch, sample, start, length, step, rank, row, offset"
    query = f"SELECT {columns} FROM delivered WHERE step <= ? ORDER BY {columns}"  # noqa: S608
    ours, theirs = (
        [tuple(row) for row in _rows(path, query, evidence.steps)]
        for path in (evidence.disturbed, evidence.twin)
    )
    if evidence.strict:
        odd = set(ours) ^ set(theirs)
        detail = f"{len(ours)} spans" if not odd else f"{len(odd)} differ: {sorted(odd)[:_SHOWN]}"
        yield Finding("the ledger is the twin's, row by row", not odd and bool(ours), detail)
    problems = [*_gaps_in_samples(ours), *_gaps_in_rows(ours, evidence.steps)]
    yield Finding("no span lost or repeated", not problems, "; ".join(problems[:_SHOWN]))
    query = "SELECT sample, reason FROM quarantined WHERE ? ORDER BY sample"
    ours, theirs = (_rows(path, query, 1) for path in (evidence.disturbed, evidence.twin))
    known = {sample for sample, _ in theirs}
    more = [f"{sample}: {why}" for sample, why in ours if sample not in known]
    yield Finding("no sample given up because of faults", not more, "; ".join(more[:_SHOWN]))


def _rows(run: Path, query: str, bound: int) -> list[tuple[Any, ...]]:
    path = run / "ledger.sqlite"
    if not path.exists():
        return []
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        return connection.execute(query, (bound,)).fetchall()


def _gaps_in_samples(spans: Iterable[Span]) -> Iterator[str]:
    """A sample's spans follow each other from its beginning."""
    upto: dict[tuple[int, int], int] = defaultdict(int)
    for epoch, sample, start, length, step, *_ in sorted(spans):
        if start != upto[epoch, sample]:
            yield f"sample {sample} of epoch {epoch}: {start} after {upto[epoch, sample]} ({step=})"
        upto[epoch, sample] = start + length


def _gaps_in_rows(spans: Iterable[Span], steps: int) -> Iterator[str]:
    """A row is filled from its beginning to its end; all are as long, and every step has all."""
    filled: dict[tuple[int, ...], list[tuple[int, int]]] = defaultdict(list)
    for _, _, _, length, step, rank, row, offset in spans:
        filled[step, rank, row].append((offset, length))
    lengths = set[int]()
    for place, parts in filled.items():
        at = 0
        for offset, length in sorted(parts):
            if offset != at:
                yield f"step, rank, row {place}: {offset} after {at}"
            at = offset + length
        lengths.add(at)
    if len(lengths) > 1:
        yield f"rows of {sorted(lengths)} tokens"
    wanted = {place[1:] for place in filled}
    for step in range(1, steps + 1):
        missing = {place for place in wanted if (step, *place) not in filled}
        if missing or not wanted:
            yield f"step {step} lacks {len(missing)} rows"


# --- Files ----------------------------------------------------------------------------------------


def _files(evidence: Evidence) -> Iterator[Finding]:
    whole = damaged = 0
    newest = -1
    for path in sorted((evidence.disturbed / "checkpoints").glob("step-*/manifest.json")):
        if not path.parent.name.removeprefix("step-").isdecimal():
            continue  # put aside by the run itself
        manifest = json.loads(path.read_text(encoding="utf-8"))
        sums = {name: _sha256(path.parent / name) for name in manifest["files"]}
        if sums == manifest["files"]:
            whole, newest = whole + 1, max(newest, int(manifest["step"]))
        else:
            damaged += 1
    ok = whole > 0 and not damaged and newest == evidence.steps
    detail = f"{whole} whole, {damaged} damaged, the newest of step {newest}"
    yield Finding("checkpoints whole, the last step's among them", ok, detail)
    left = ", ".join(evidence.leftovers[:_SHOWN])
    yield Finding("nothing left behind", not evidence.leftovers, left)


def _sha256(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return ""


# --- What happened --------------------------------------------------------------------------------


def _story(evidence: Evidence) -> Iterator[Finding]:
    events = evidence.events
    skipped = {event["attempt"] for event in events if event["event"] == "skipped"}
    faults = [e for e in events if e["event"] == "fault" and e["attempt"] not in skipped]
    ok = len(faults) == evidence.faults
    detail = f"{len(faults)} of {evidence.faults}"
    yield Finding("every fault of the schedule happened", ok, detail)
    problems = list(_lives(events))
    yield Finding("one life of a name at a time", not problems, "; ".join(problems[:_SHOWN]))
    problems = [problem for fault in faults for problem in _missed(fault, events)]
    detail = "; ".join(problems[:_SHOWN]) or f"{len(faults)} faults"
    yield Finding("whoever was struck was replaced", not problems, detail)
    problems = list(_ends(events, faults, evidence.disturbed))
    yield Finding("the run ended when and as it had to", not problems, "; ".join(problems[:_SHOWN]))


def _lives(events: Sequence[Event]) -> Iterator[str]:
    living: dict[str, int] = {}
    newest: dict[str, int] = defaultdict(int)
    for event in events:
        name = str(event.get("name"))
        if event["event"] == "life":
            if name in living:
                yield f"{name} began twice: pid {living[name]} and {event['pid']}"
            if event["incarnation"] < newest[name]:
                yield f"{name}: life {event['incarnation']} after {newest[name]}"
            living[name], newest[name] = event["pid"], event["incarnation"]
        elif event["event"] == "death":
            living.pop(name, None)
        elif event["event"] == "began":
            living.clear()


def _missed(fault: Event, events: Sequence[Event]) -> Iterator[str]:
    """Those whose end was not seen, or who have no successor though the run went on."""
    if fault["kind"] not in _ENDS:
        return
    over = max((e["t"] for e in events if e["event"] == "step"), default=0.0)
    for name, pid in zip(fault["targets"], fault["pids"], strict=True):
        later = [e for e in events if e["t"] >= fault["t"] and e.get("name") == name]
        seen = [e for e in later if e["event"] == "death" and e["pid"] == pid]
        again = [e for e in later if e["event"] == "life" and e["pid"] != pid]
        restarted = any(e["event"] == "began" and e["t"] >= fault["t"] for e in events)
        if not seen and not restarted:
            yield f"nobody noticed that {name} was struck ({fault['kind']}, {fault['t']:.1f} s)"
        elif not again and not restarted and seen[0]["t"] < over - _LAST_S:
            yield f"{name} was not replaced after {fault['t']:.1f} s"


def _ends(events: Sequence[Event], faults: Sequence[Event], run: Path) -> Iterator[str]:
    ends = [event for event in events if event["event"] == "ended"]
    if not ends or ends[-1]["end"] != "done":
        yield "it was not brought to its end"
    for end in ends[:-1]:
        before = [f["kind"] for f in faults if f["t"] <= end["t"] and f["kind"] in _NAMES]
        words = [word for kind in before for word in _NAMES[kind]]
        if end["end"] != "failed" or not any(word in end["reason"] for word in words):
            yield f"it ended as {end['end']}: {end['reason'][:200]}"
    for fault in faults:
        if fault["kind"] == "checkpoint" and fault.get("how"):
            step = fault["how"].split("/")[1]
            if not any(step in line and "skip" in line for line in _log_lines(run)):
                yield f"nobody said that {fault['how']} is damaged"


def _log_lines(run: Path) -> Iterator[str]:
    for path in sorted((run / "logs").glob("optimizer_shard.*.jsonl")):
        yield from path.read_text(encoding="utf-8", errors="replace").splitlines()
