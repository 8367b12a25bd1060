"""The document that `run.py status --json` prints. Pure."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from actors.supervisor.places import Seated
from actors.supervisor.supervision import Actor, Supervision
from protocol.messages import Beat, Guest


def state_of_run(supervision: Supervision) -> str:
    """ "starting", "running" or "stopping"; a run that has ended has no supervisor to ask."""
    if supervision.end is not None:
        return "stopping"
    arrived = all(actor.arrived for actor in supervision.actors.values())
    return "running" if arrived else "starting"


def document(
    *,
    run: str,
    host: str,
    now: float,
    supervision: Supervision,
    seated: Sequence[Seated],
    beats: Mapping[str, Beat],
    guests: Sequence[Guest],
    metrics: Mapping[str, Any],
    supervisor: Mapping[str, Any],
) -> dict[str, Any]:
    """All of it. `metrics`: the newest line of metrics.jsonl; `supervisor`: our own figures;
    `guests`: what the loader says of workers of other hosts."""
    stopping = supervision.end is not None
    actors: list[dict[str, Any]] = []
    for place in seated:
        actor = supervision.actors.get(place.name)
        if actor is not None:
            facts = _actor(actor, beats.get(place.name), now, stopping=stopping, host=host)
        elif place.role == "supervisor":
            facts = {"state": "stopping" if stopping else "running", **supervisor}
        else:
            continue
        where = {"cpus": list(place.cpus), "numa_node": place.numa_node, "device": place.device}
        pool = {"pool": place.pool} if place.pool else {}
        actors.append({"name": place.name, "role": place.role, **pool, **facts, **where})
    actors += [_guest(guest) for guest in guests]
    loader = beats.get("loader")
    gauges = {} if loader is None else loader.gauges
    return {
        "run": run,
        "state": state_of_run(supervision),
        **figures(metrics),
        "actors": actors,
        "queues": {name: int(gauges.get(name, 0)) for name in ("fast", "slow", "batches")},
    }


def figures(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """What the newest record of metrics.jsonl says, None where it does not."""
    step_s = metrics.get("step_s") or 0.0
    return {
        "step": metrics.get("step", 0),
        "loss": metrics.get("loss"),
        "bits_per_byte": metrics.get("bits_per_byte"),
        "tokens_per_s": metrics["tokens"] / step_s if step_s and "tokens" in metrics else None,
        "wire": {
            "up_bytes_per_step": metrics.get("up_bytes", 0),
            "down_bytes_per_step": metrics.get("down_bytes", 0),
        },
    }


def _actor(
    actor: Actor, beat: Beat | None, now: float, *, stopping: bool, host: str
) -> dict[str, Any]:
    who = actor.who
    alive = who is not None and actor.last is not None
    waiting = None
    if alive and beat is not None and beat.waiting_for:
        waiting = {"for": beat.waiting_for, "s": round(beat.waiting_s, 3)}
    return {
        "pid": who.pid if who is not None else 0,
        "host": host if beat is None else beat.host,
        "state": actor.state(stopping=stopping),
        "incarnation": actor.incarnation,
        "restarts": actor.restarts,
        "rss_bytes": beat.rss_bytes if alive and beat is not None else 0,
        "heartbeat_age_s": round(now - actor.heard_at, 3) if alive else None,
        "waiting": waiting,
        "gauges": dict(beat.gauges) if alive and beat is not None else {},
    }


def _guest(guest: Guest) -> dict[str, Any]:
    return {
        "name": guest.name,
        "role": "data_worker",
        "pool": guest.pool,
        "pid": None,  # means nothing here
        "host": guest.host,
        "state": "running",
        "incarnation": guest.incarnation,
        "restarts": 0,
        "rss_bytes": 0,
        "heartbeat_age_s": guest.silent_s,
        "waiting": None,
        "gauges": {"leased": float(guest.leased), "delivered": float(guest.delivered)},
        "cpus": [],
        "numa_node": None,
        "device": "cpu",
    }


def newest_metrics(lines: Sequence[str]) -> dict[str, Any]:
    """The last complete record among the last lines of metrics.jsonl."""
    for line in reversed(lines):
        try:
            found = json.loads(line)
        except ValueError:
            continue  # half written, or half cut off
        if isinstance(found, dict):
            return found  # pyright: ignore[reportUnknownVariableType]
    return {}
