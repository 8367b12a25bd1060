"""What happened, in order: every event of a disturbed run with its time, also on disk.

    began      a launcher was started, or started again       {launch, resumed}
    ended      it has ended                                   {launch, end, reason}
    life       a process is there                             {name, incarnation, pid}
    death      the supervisor has seen one end, or another
               stands in its place                            {name, incarnation, pid}
    gone       the kernel says that one who was killed ended  {pid}
    step       a step is committed                            {step}
    invited    workers elsewhere may come; or why not         {why}
    fault      something was done to the run                  {number, attempt, kind, targets, ...}
    healed     and undone, where it was for a while           {number}
    caught     a thread stands still as wanted                {number}
    instead    something else was done in its place           {number, why}
    skipped    it could not be done after all                 {number, attempt, why}

Times are seconds since the run was started; `epoch` says when that was, for comparing with logs.
"""

import datetime
import json
from pathlib import Path
from typing import Any

from actors.progress import Tail
from actors.rundir import RunDir
from actors.supervisor import table
from actors.supervisor.table import Row
from protocol.clock import Clock

Event = dict[str, Any]


class History:
    """Grows at its end only."""

    def __init__(self, path: Path, clock: Clock) -> None:
        self.events: list[Event] = []
        self._clock = clock
        self._file = path.open("w", encoding="utf-8")
        self.begin()

    def begin(self) -> None:
        """Times count from now. Nothing has happened yet."""
        self._began = self._clock.now()
        self.epoch = datetime.datetime.now(datetime.UTC)

    def now(self) -> float:
        """Seconds since it began."""
        return self._clock.now() - self._began

    def add(self, what: str, *, at: float | None = None, **facts: Any) -> Event:
        """Something has just happened, or at a moment of the clock."""
        t = self.now() if at is None else at - self._began
        event = {"t": round(t, 4), "event": what, **facts}
        self.events.append(event)
        self._file.write(json.dumps(event) + "\n")
        return event

    def close(self) -> None:
        """Nothing more happens. What was learned of an event later is written with it."""
        self._file.seek(0)
        self._file.truncate()
        self._file.writelines(json.dumps(event) + "\n" for event in self.events)
        self._file.close()


class Watch:
    """Notes lives, deaths and steps of a run. To be asked to `look` every few milliseconds."""

    def __init__(self, run: RunDir, history: History) -> None:
        self._run, self._history = run, history
        self._seen: tuple[int, int] = (0, 0)  # of the process table: inode, mtime
        self._tail = Tail(run, skip_present=False)
        self.rows: dict[str, Row] = {}
        self.step = 0
        self.step_at = 0.0

    def look(self) -> None:
        """Note what is new."""
        self._look_at_table()
        for record in self._tail.new():
            self.step, self.step_at = int(record["step"]), self._history.now()
            self._history.add("step", step=self.step)

    def _look_at_table(self) -> None:
        try:
            found = self._run.processes.stat()
        except OSError:
            return
        if (found.st_ino, found.st_mtime_ns) == self._seen:
            return
        self._seen = (found.st_ino, found.st_mtime_ns)
        rows = table.read(self._run)
        if not rows:
            return
        # A forkserver that is gone has no row until there is another one.
        for name in {**self.rows, **rows}:
            before, row = self.rows.get(name, Row()), rows.get(name, Row())
            if before.pid and before.who != row.who:
                self._note("death", name, before)
            if row.pid and before.who != row.who:
                self._note("life", name, row)
        self.rows = rows

    def _note(self, what: str, name: str, row: Row) -> None:
        self._history.add(what, name=name, incarnation=row.incarnation, pid=row.pid)
