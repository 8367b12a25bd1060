"""`processes.json`: what the next supervisor must know about this one's processes.

One object: actor -> pid, start time, incarnation. Beside the actors stand "supervisor" and
"forkserver/light", "forkserver/torch". A life whose process has ended keeps its row, with pid 0,
because incarnations never go back.
"""

import json
from collections.abc import Mapping
from typing import Literal

import msgspec

from actors import rundir
from actors.process import Identity
from actors.rundir import RunDir


class Row(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One process. Unknown fields are left to whoever wrote them."""

    pid: int = 0  # 0: it has ended
    started_ticks: int = 0  # clock ticks from boot to its start; with the pid, unique
    incarnation: int = 0
    restarts: int = 0
    deaths: tuple[float, ...] = ()  # of late, on the monotonic clock
    end: Literal["", "done", "failed", "stopped"] = (
        ""  # of the supervisor: how the run is being ended, once it is
    )
    reason: str = ""
    step: int = 0  # of the supervisor: the last one, once the shards have said that it is
    weights_digest: str = ""  # after it

    @property
    def who(self) -> Identity | None:
        """The process, unless it has ended."""
        return Identity(self.pid, self.started_ticks) if self.pid else None


def row(who: Identity | None, incarnation: int = 0, **facts: object) -> Row:
    """The row of a process."""
    pid, ticks = (0, 0) if who is None else (who.pid, who.ticks)
    return msgspec.convert(
        {"pid": pid, "started_ticks": ticks, "incarnation": incarnation} | facts, Row
    )


def read(run: RunDir) -> dict[str, Row]:
    """The table, empty when there is none. Rows that cannot be read are left out."""
    rows: dict[str, Row] = {}
    for name, found in (rundir.read_json(run.processes) or {}).items():
        try:
            rows[name] = msgspec.convert(found, Row)
        except msgspec.ValidationError:
            continue
    return rows


def write(run: RunDir, rows: Mapping[str, Row]) -> None:
    """Replace the table. Not synced: after a crash of the machine it is worth nothing anyway.

    Raises OSError.
    """
    text = json.dumps({name: msgspec.to_builtins(found) for name, found in rows.items()}, indent=1)
    rundir.write_atomically(run.processes, text + "\n", durable=False)
