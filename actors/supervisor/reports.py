"""Death reports: what a person wants to know about a process that ended when it should not have.

    logs/death-ACTOR-INCARNATION.json    how it ended, what it used, its last beat, its last words

Not covered: log lines that were still in the dead process, or on their way to the recorder.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors import rundir
from actors.rundir import RunDir

# Lines of log and of stderr a report carries.
LAST_LINES = 50
# As much of a file's end as those lines may take.
_TAIL_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Death:
    """What is known when it is noticed."""

    timestamp: str
    actor: str
    incarnation: int
    pid: int
    how: str
    out_of_memory: bool
    lived_s: float
    max_rss_bytes: int
    cpu_s: float
    restart_in_s: float | None  # None: it is not restarted
    last_beat: dict[str, Any] | None


def write(run: RunDir, death: Death) -> Path:
    """Write the report, with the tails of the actor's log and stderr. Raises OSError."""
    path = run.death_of(death.actor, death.incarnation)
    document = {
        **{name: getattr(death, name) for name in Death.__slots__},
        "log": [_parsed(line) for line in tail(run.log_of(death.actor))],
        "stderr": tail(run.stderr_of(death.actor)),
    }
    rundir.write_atomically(path, json.dumps(document, indent=1) + "\n", durable=False)
    return path


def tail(path: Path, lines: int = LAST_LINES) -> list[str]:
    """The last lines of a text file; none when it is absent."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _TAIL_BYTES))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return []
    return text.splitlines()[-lines:]


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return line  # the tail may begin within a line
