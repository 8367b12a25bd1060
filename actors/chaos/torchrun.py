"""What the usual launcher needs to go on after a killed worker, measured the same way.

Two workers that import torch and then write the time every 10 ms; no process group, which is the
best case: with gloo at its defaults torchrun does not recover at all. One is killed, a few times;
how long until both write again.
"""

import os
import select
import signal
from pathlib import Path
from typing import Any

from actors import process
from actors.chaos.figures import spread
from actors.chaos.runs import descendants
from actors.process import Identity
from protocol.clock import Clock, Deadline

_WORKERS, _KILLS = 2, 3
_START_S, _LOOK_S = 60.0, 0.005
_SCRIPT = """
import os, select, sys
import torch
mark = os.path.join(sys.argv[1], "%s-%d" % (os.environ["RANK"], os.getpid()))
torch.zeros(1)
while True:
    with open(mark, "w") as file:
        file.write("1")
    select.select([], [], [], 0.01)
"""


def measure(directory: Path, clock: Clock) -> dict[str, Any]:
    """Seconds from SIGKILL until both workers work again; or why that is not known."""
    directory.mkdir(parents=True)
    script = directory / "worker.py"
    script.write_text(_SCRIPT, encoding="utf-8")
    marks = directory / "marks"
    marks.mkdir()
    workers = (f"--nproc-per-node={_WORKERS}", f"--max-restarts={_KILLS + 1}")
    wanted = process.python("-m", "torch.distributed.run", "--standalone", *workers)
    who = process.start(
        [*wanted, str(script), str(marks)],
        output=directory / "torchrun.out",
        env=process.environment(),
    )
    times: list[float | None] = []
    try:
        _both_work(marks, set(), clock)
        for _ in range(_KILLS):
            before = _pids(marks)
            living = [process.identity(pid) for pid in sorted(before)]
            began = clock.now()
            process.send_signal(next(filter(None, living)), signal.SIGKILL)
            _both_work(marks, before, clock)
            times.append(round(clock.now() - began, 3))
    except TimeoutError as error:
        return {"recovery": spread(times), "problem": str(error)}
    finally:
        _end(who)
    return {"recovery": spread(times)}


def _both_work(marks: Path, before: set[int], clock: Clock) -> None:
    """Until every rank has written under a pid that is new. Raises `TimeoutError`."""
    within = Deadline.after(clock, _START_S, "torchrun's workers")
    while len(_pids(marks) - before) < _WORKERS:
        if within.passed():
            raise TimeoutError(f"its workers did not work within {_START_S:g} s")
        select.select([], [], [], _LOOK_S)


def _pids(marks: Path) -> set[int]:
    return {int(name.partition("-")[2]) for name in os.listdir(marks)}


def _end(who: Identity) -> None:
    """It first, or it would start others."""
    workers = descendants(who)
    for one in [who, *workers]:
        process.send_signal(one, signal.SIGKILL)
    for _ in process.reap(who.pid):
        pass
