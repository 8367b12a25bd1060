"""Actors for tests of the forkserver: nothing to import but the standard library."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from actors.seat import Seat


def describe(seat: Seat) -> int:
    json.dump(
        {
            "sid": os.getsid(0),
            "cpus": sorted(os.sched_getaffinity(0)),
            "nice": os.nice(0),
            "group": Path("/proc/self/autogroup").read_text()
            if Path("/proc/self/autogroup").exists()
            else "",
            "comm": Path("/proc/self/comm").read_text().strip(),
            "fds": sorted(int(fd) for fd in os.listdir("/proc/self/fd"))[:-1],
        },
        sys.stderr,
    )
    return 7


def stamp(seat: Seat) -> int:
    print(time.monotonic(), file=sys.stderr)
    return 0


def sleep(seat: Seat) -> int:
    signal.pause()
    return 0


def crash(seat: Seat) -> int:
    raise ValueError("on purpose")


def have_a_child(seat: Seat) -> int:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    print("child", child.pid, file=sys.stderr, flush=True)
    signal.pause()
    return 0
