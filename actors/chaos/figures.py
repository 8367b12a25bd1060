"""What a disturbed run's history amounts to: how soon faults were noticed, how soon work went on.

    ended_s       from a deadly signal to the kernel's word that the victim has ended
    detected_s    from the fault to the supervisor's (the launcher's) knowledge of it
    useful_s      from the fault to the first message of the victim's successor
    step_s        from the fault to the next committed step

The first message is taken from the successor's own log, whose clock is the machine's.
"""

import datetime
import json
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

Event = Mapping[str, Any]
Figures = dict[str, Any]

# Kinds after which the victim's life ends at once, and those that must first be found out.
SUDDEN = ("kill", "several", "segfault", "exit")
SILENT = ("freeze", "gil")
# Nobody needs to notice these.
_UNNOTICED = ("nap", "starve")
_TORCH = ("trainer", "optimizer_shard", "rollout")


def per_fault(events: Sequence[Event], run: Path, epoch: datetime.datetime) -> list[dict[str, Any]]:
    """One row for each victim of each fault, in order of time."""
    said = first_messages(run, epoch)
    noticed = known(run, epoch)
    steps = [event["t"] for event in events if event["event"] == "step"]
    rows: list[dict[str, Any]] = []
    skipped = {event["attempt"] for event in events if event["event"] == "skipped"}
    for fault in events:
        if fault["event"] != "fault" or fault["attempt"] in skipped:
            continue
        targets = fault["targets"] or [""]
        pids = fault["pids"] or [0]
        for name, pid in zip(targets, pids, strict=True):
            at = _began(events, fault)
            row: dict[str, Any] = {key: fault.get(key) for key in ("number", "kind", "t", "how")}
            row["target"] = name
            row["how"] = fault.get("how") or _instead(events, fault["number"])
            row["healed_t"] = _next(events, at, lambda e, n=fault["number"]: _is_healed(e, n))
            if fault["kind"] not in _UNNOTICED and name:
                row["ended_s"] = _minus(_ended(events, pid, at), at)
                row["detected_s"] = _minus(_detected(events, noticed, name, pid, at), at)
                row["useful_s"] = _minus(_useful(events, said, name, pid, at), at)
            row["step_s"] = _minus(min((t for t in steps if t > at), default=None), at)
            rows.append(row)
    return rows


def summary(
    rows: Iterable[Mapping[str, Any]], events: Sequence[Event], twin: Sequence[Event]
) -> Figures:
    """Medians and extremes, and the throughput that was kept."""
    rows = list(rows)
    kept, ours_s, theirs_s = _throughput(events, twin)
    return {
        "detection": {
            "sudden_death": spread(_of(rows, SUDDEN, "detected_s", _supervised)),
            "until_it_has_ended": spread(_of(rows, SUDDEN, "ended_s", _supervised)),
            "frozen_or_lock_held": spread(_of(rows, SILENT, "detected_s")),
            "hang": spread(_of(rows, ("hang",), "detected_s")),
        },
        "first_message_after_death": {
            "without_torch": spread(_of(rows, SUDDEN, "useful_s", _light)),
            "trainer_and_shard": spread(_of(rows, SUDDEN, "useful_s", _heavy)),
            "supervisor": spread(_of(rows, SUDDEN, "useful_s", lambda n: n == "supervisor")),
        },
        "next_step_after_fault": spread([row["step_s"] for row in rows if row["step_s"]]),
        "throughput_kept": kept,
        "disturbed_s": ours_s,
        "undisturbed_s": theirs_s,
        "launches": sum(event["event"] == "began" for event in events),
        "deaths": sum(event["event"] == "death" for event in events),
    }


def spread(values: Iterable[float | None]) -> Figures | None:
    """How many, their median and extremes; None when there are none."""
    found = sorted(value for value in values if value is not None)
    if not found:
        return None
    return {
        "count": len(found),
        "min_s": round(found[0], 4),
        "median_s": round(statistics.median(found), 4),
        "max_s": round(found[-1], 4),
    }


# --- What logs say --------------------------------------------------------------------------------


def first_messages(run: Path, epoch: datetime.datetime) -> dict[tuple[str, int], float]:
    """(name, incarnation) -> when that life first said something useful, in seconds since epoch."""
    found: dict[tuple[str, int], float] = {}
    for record in _log_records(run, "*"):
        useful = record.get("event") in ("first message of a kind", "supervisor started")
        life = str(record.get("actor")), int(record.get("incarnation", 0))
        if useful and life not in found:
            found[life] = _seconds(record, epoch)
    return found


def known(run: Path, epoch: datetime.datetime) -> dict[str, list[float]]:
    """When the supervisor had found out that somebody was dead, silent or stuck. How somebody
    died comes a little after the fact itself; `known_s` is that little."""
    found: dict[str, list[float]] = defaultdict(list)
    for record in _log_records(run, "supervisor"):
        whom = {"killing": "target", "actor died": "who"}.get(str(record.get("event")))
        if whom is not None:
            at = _seconds(record, epoch) - float(record.get("known_s", 0.0))
            found[str(record.get(whom))].append(at)
    return found


def _log_records(run: Path, name: str) -> Iterable[dict[str, Any]]:
    for path in sorted((run / "logs").glob(f"{name}.jsonl")):
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                yield json.loads(line)
            except ValueError:
                continue  # its writer was killed over it


def _seconds(record: Mapping[str, Any], epoch: datetime.datetime) -> float:
    at = datetime.datetime.fromisoformat(record["timestamp"])
    return (at - epoch).total_seconds()


# --- Times ----------------------------------------------------------------------------------------


def _detected(
    events: Sequence[Event], noticed: Mapping[str, Sequence[float]], name: str, pid: int, at: float
) -> float | None:
    gone = _next(events, at, lambda e: _is(e, "death", name) and e["pid"] == pid)
    told = min((t for t in noticed.get(name, ()) if t >= at), default=None)
    known = [t for t in (gone, told) if t is not None]
    return min(known, default=None)


def _ended(events: Sequence[Event], pid: int, at: float) -> float | None:
    return _next(events, at, lambda e: e["event"] == "gone" and e["pid"] == pid)


def _useful(
    events: Sequence[Event], said: Mapping[tuple[str, int], float], name: str, pid: int, at: float
) -> float | None:
    for event in events:
        if event["t"] >= at and _is(event, "life", name) and event["pid"] != pid:
            return said.get((name, event["incarnation"]))
    return None


def _next(events: Sequence[Event], at: float, fits: Callable[[Event], bool]) -> float | None:
    return min((e["t"] for e in events if e["t"] >= at and fits(e)), default=None)


def _is(event: Event, what: str, name: str) -> bool:
    return event["event"] == what and event.get("name") == name


def _is_healed(event: Event, number: int) -> bool:
    return event["event"] == "healed" and event.get("number") == number


def _began(events: Sequence[Event], fault: Event) -> float:
    """When it took effect: threads have to be caught first."""
    known = ("caught", "instead")
    found = [e["t"] for e in events if e["event"] in known and e["number"] == fault["number"]]
    return min(found, default=fault["t"])


def _instead(events: Sequence[Event], number: int) -> str:
    """What was done in its place."""
    found = [e for e in events if e["event"] == "instead" and e["number"] == number]
    return str(found[0]["why"]) if found else ""


def _minus(at: float | None, since: float) -> float | None:
    return None if at is None or at < since else round(at - since, 4)


def _throughput(
    ours: Sequence[Event], theirs: Sequence[Event]
) -> tuple[float | None, float, float]:
    """Share of the twin's rate, and the seconds between first and last step of both."""
    spans: list[float] = []
    for events in (ours, theirs):
        steps = [event["t"] for event in events if event["event"] == "step"]
        spans.append(steps[-1] - steps[0] if len(steps) > 1 else 0.0)
    kept = round(spans[1] / spans[0], 4) if all(spans) else None
    return kept, round(spans[0], 2), round(spans[1], 2)


def _of(
    rows: Iterable[Mapping[str, Any]],
    kinds: Iterable[str],
    what: str,
    whose: Callable[[str], bool] = bool,
) -> list[float | None]:
    chosen = set(kinds)
    return [row.get(what) for row in rows if row["kind"] in chosen and whose(row["target"])]


def _supervised(name: str) -> bool:
    """Whose end the supervisor sees itself."""
    return bool(name) and name != "supervisor" and not name.startswith("forkserver/")


def _light(name: str) -> bool:
    return name.partition("/")[0] in ("loader", "recorder", "data_worker")


def _heavy(name: str) -> bool:
    return name.partition("/")[0] in _TORCH[:2]
