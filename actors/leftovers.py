"""What a run must not leave behind: processes, shared memory, sockets. And how it is removed."""

import contextlib
import os
import select
import signal

from actors import process
from actors.data.database import newest_life
from actors.process import Identity
from actors.rundir import RunDir, RunDirError
from actors.supervisor import segments, table
from protocol.clock import Deadline, MonotonicClock


def living(run: RunDir) -> list[Identity]:
    """Every process of the run but ourselves."""
    me = process.myself()
    return [who for who in process.of_run(run.run_id) if who != me]


def end_all(run: RunDir) -> list[Identity]:
    """SIGKILL to every process of the run but ourselves; returns those that were still there."""
    left = living(run)
    for who in left:
        process.send_signal(who, signal.SIGKILL)
    return left


def clear_last(run: RunDir, within_s: float = 5.0) -> bool:
    """The last process of a run that nobody supervises takes its memory and sockets away.

    Of several that leave at the same time, the one with the highest pid waits for the others, so
    that exactly one does it. False when that is not us, or when there is a supervisor after all.
    """
    me = process.myself()
    within = Deadline.after(MonotonicClock(), within_s, "the others of a forsaken run to leave")
    while others := living(run):
        if any(who.pid > me.pid for who in others) or within.passed():
            return False
        select.select([], [], [], 0.02)
    lock = process.try_lock(run.supervisor_lock)
    if lock is None:
        return False
    segments.remove(run.run_id)
    with contextlib.suppress(RunDirError):  # nobody is there who could be told
        run.remove_socket_dir()
    os.close(lock)
    return True


def clear(run: RunDir) -> None:
    """End and remove what an earlier launch of this run left, so that the next begins anew.

    Incarnations go on counting, so that whoever of the past still speaks is refused. The table of
    processes is not synced: after a crash of the machine it may be old, or gone. What a loader's
    life did is remembered on other hosts and in the ledger, which knows its last owner for certain.
    Raises OSError, and `RunDirError` when somebody else holds the name of the socket directory.
    """
    end_all(run)
    segments.remove(run.run_id)
    run.remove_socket_dir()
    run.outcome.unlink(missing_ok=True)
    lives = {name: row.incarnation for name, row in table.read(run).items()}
    lives["loader"] = max(lives.get("loader", 0), newest_life(run.ledger))
    table.write(run, {name: table.row(None, incarnation) for name, incarnation in lives.items()})
