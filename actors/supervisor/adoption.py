"""What a new supervisor makes of what its predecessor left: pure, given the table and the children.

Three sources, from the weakest to the strongest: processes.json, which may be a moment old; what
the forkservers say of their children; and the mark that every process of a run carries, which
finds those that nobody knows of.
"""

from collections.abc import Iterable, Mapping

from actors.forkserver import Life
from actors.process import Identity
from actors.supervisor.events import Memory
from actors.supervisor.table import Row


def forkservers(rows: Mapping[str, Row]) -> dict[str, Identity]:
    """Those the table knows, by preload."""
    return {
        name.partition("/")[2]: row.who
        for name, row in rows.items()
        if name.startswith("forkserver/") and row.who is not None
    }


def memories(rows: Mapping[str, Row], children: Iterable[Life]) -> dict[str, Memory]:
    """What is known of each actor."""
    known = {
        name: Memory(row.incarnation, row.who, row.restarts, row.deaths)
        for name, row in rows.items()
    }
    for life in children:
        before = known.get(life.name, Memory(0, None))
        if life.incarnation >= before.incarnation:
            known[life.name] = Memory(life.incarnation, life.who, before.restarts, before.deaths)
    return known
