"""The supervisor's command line and its lock.

    python -m actors.supervisor RUN_DIR

Ends with 0 when the run is done, 3 when it failed, 130 when it was stopped; outcome.json says why.
75: there is another one. Anything else is a crash, after which it is started again.
"""

import argparse
import contextlib
import faulthandler
import os
import signal
import sys
from pathlib import Path
from typing import Any

from actors import leftovers, outcome, process, rundir, topology
from actors.loop_async import serve
from actors.rundir import RunDirError
from actors.supervisor import segments
from actors.supervisor.process import EXIT_CODES, Supervisor, Surroundings
from protocol.clock import MonotonicClock
from protocol.errors import ProtocolError

# Another one holds the lock.
EXIT_TAKEN = 75


def run_supervisor(path: Path, around: Surroundings | None = None) -> int:
    """Supervise the run in that directory to its end; returns the exit code."""
    process.set_name("supervisor")
    # All its stacks, before the launcher kills it for its silence; into its stderr, as the rest.
    faulthandler.register(signal.SIGUSR2, file=2)
    run = rundir.open_(path)
    lock = process.try_lock(run.supervisor_lock)
    if lock is None:
        sys.stderr.write(f"{path} has a supervisor already\n")
        return EXIT_TAKEN
    try:
        supervisor = Supervisor(run, _count_life(lock), around or Surroundings(), MonotonicClock())
        return serve(supervisor.supervise())
    except (RunDirError, topology.TopologyError, ProtocolError) as error:
        # Not a crash: the next supervisor would meet the same.
        leftovers.end_all(run)
        outcome.write(run, outcome.Outcome(end="failed", reason=str(error)))
        segments.remove(run.run_id)
        return EXIT_CODES["failed"]
    finally:
        if run.outcome.exists():
            with contextlib.suppress(RunDirError):  # the launcher says it
                run.remove_socket_dir()
        os.close(lock)


def _count_life(lock: int) -> int:
    """Our incarnation: one more than the locked file says. It never goes back."""
    text = os.pread(lock, 20, 0).strip()
    incarnation = int(text) + 1 if text.isdigit() else 1
    os.pwrite(lock, f"{incarnation:<19}\n".encode(), 0)
    return incarnation


def main(arguments: list[str] | None = None, around: Surroundings | None = None) -> None:
    """Command line of the launcher."""
    parser = argparse.ArgumentParser(prog="actors.supervisor.process")
    parser.add_argument("run_dir", type=Path)
    wanted: Any = parser.parse_args(arguments)
    sys.exit(run_supervisor(wanted.run_dir, around))


if __name__ == "__main__":
    main()
