"""When a killed process has ended is the kernel's to say."""

import subprocess
import sys
import time

from actors import process
from actors.chaos.endings import Endings
from protocol.clock import MonotonicClock


def test_the_end_of_a_killed_process_is_noted_and_nobody_elses():
    clock = MonotonicClock()
    endings = Endings(clock)
    doomed, other = (
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) for _ in range(2)
    )
    try:
        for child in (doomed, other):
            who = process.identity(child.pid)
            assert who is not None
            endings.expect(who)
        before = clock.now()
        assert list(endings.found()) == []
        doomed.kill()
        found: list[tuple[int, float]] = []
        while not found:
            assert clock.now() < before + 10.0, "its end is never noted"
            time.sleep(0.001)
            found = list(endings.found())
        ((pid, at),) = found
        assert pid == doomed.pid
        assert before <= at <= clock.now()
        assert other.poll() is None
    finally:
        for child in (doomed, other):
            child.kill()
            child.wait()
