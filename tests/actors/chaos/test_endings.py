"""When a killed process has ended is the kernel's to say."""

import subprocess
import sys

from actors import process
from actors.chaos.endings import Endings
from protocol.clock import MonotonicClock
from tests.harness import wait_until


def test_the_end_of_a_killed_process_is_noted_and_nobody_elses():
    clock = MonotonicClock()
    endings = Endings(clock)
    doomed, other = (
        subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"]) for _ in range(2)
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

        def noted() -> bool:
            found.extend(endings.found())
            return bool(found)

        wait_until(noted, 10.0, "its end to be noted")
        ((pid, at),) = found
        assert pid == doomed.pid
        assert before <= at <= clock.now()
        assert other.poll() is None
    finally:
        for child in (doomed, other):
            child.kill()
            child.wait()
