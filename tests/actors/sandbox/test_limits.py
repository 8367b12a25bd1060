"""Memory, time and output of sandboxed programs are bounded, and the outcome says by what."""

import os

import pytest

from actors.sandbox.means import require
from actors.sandbox.running import run
from actors.sandbox.terms import MB, Limits, Means, NotStarted
from tests.actors.sandbox import attacks
from tests.actors.sandbox.cells import CELLS, QUICK, needed, python

pytestmark = pytest.mark.system


@pytest.fixture(params=sorted(CELLS))
def using(request: pytest.FixtureRequest) -> Means:
    return needed(request.param)


@pytest.fixture
def best() -> Means:
    """For limits that are the same under all means."""
    return require("execute")


@pytest.mark.parametrize(
    "program",
    [
        "kept = []\nwhile True: kept.append(bytearray(1 << 20))",
        "bytearray(1 << 33)",
        "import mmap\nkept = []\nwhile True: kept.append(mmap.mmap(-1, 1 << 24))",
        "x = 'x'\nwhile True: x += x",
    ],
)
def test_all_memory_cannot_be_had(program: str, best: Means):
    outcome = python(program, best)
    assert outcome.status in ("memory", "exit")
    assert outcome.peak_memory < QUICK.memory_bytes
    if b"MemoryError" in outcome.stderr:
        assert outcome.status == "memory"


def test_memory_that_no_limit_counts_cannot_be_had(using: Means):
    assert python(attacks.UNCOUNTED, using).stdout == b"ended\n"


def test_threads_are_counted(using: Means):
    assert python(attacks.THREADS, using).stdout == b"0\n"
    if os.geteuid() == 0 and (using.user_namespace or using.kind == "landlock"):
        pytest.skip("the kernel does not count threads of root; only memory bounds them there")
    outcome = python(attacks.THREADS, using, limits=Limits(threads=6))
    assert 3 <= int(outcome.stdout) <= 6


@pytest.mark.parametrize(
    "program",
    [
        "import time\nwhile True: time.sleep(1)",
        attacks.DEAF,
        "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)",
        "import os\nos.read(0, 1), os.close(1), os.close(2)\nwhile True: pass",
    ],
)
def test_what_never_ends_is_ended(program: str, using: Means):
    outcome = python(program, using, limits=Limits(wall_s=0.4))
    assert (outcome.status, outcome.detail) == ("timeout", "used up 0.4 s of time")
    assert outcome.seconds < 10.0


@pytest.mark.parametrize("signals", ["", "import signal\nsignal.signal(24, signal.SIG_IGN)"])
def test_processor_time_is_counted(signals: str, best: Means):
    limits = Limits(wall_s=60.0, cpu_s=1.0)
    outcome = python(f"{signals}\nwhile True: pass", best, limits=limits)
    assert (outcome.status, outcome.detail) == ("timeout", "used up 1 s of processor time")
    assert outcome.cpu_s < 3.0


@pytest.mark.parametrize("stream", [1, 2])
def test_a_flood_of_output_is_cut_off(stream: int, using: Means):
    program = f"import os\nwhile True: os.write({stream}, b'x' * 65536)"
    outcome = python(program, using, limits=Limits(wall_s=20.0, output_bytes=100_000))
    assert outcome.status == "output"
    assert len((outcome.stdout, outcome.stderr)[stream - 1]) == 100_000


def test_a_trickle_does_not_put_off_the_end(best: Means):
    program = "import os, time\nwhile True: os.write(2, b'x'); time.sleep(0.001)"
    outcome = python(program, best, limits=Limits(wall_s=0.4))
    assert (outcome.status, outcome.seconds < 10.0) == ("timeout", True)


@pytest.mark.parametrize(
    ("program", "status", "code", "detail"),
    [
        ("print('x', end='')", "ok", 0, ""),
        ("raise SystemExit(7)", "exit", 7, "exit code 7"),
        ("import os\nos.abort()", "signal", -6, "killed by SIGABRT"),
        ("import os\nos.kill(os.getpid(), 11)", "signal", -11, "killed by SIGSEGV"),
    ],
)
def test_the_end_is_named(program: str, status: str, code: int, detail: str, using: Means):
    outcome = python(program, using)
    assert (outcome.status, outcome.code, outcome.detail) == (status, code, detail)


def test_input_of_any_size_reaches_it_or_is_dropped(using: Means):
    text = os.urandom(3 * MB)
    program = "import sys\nprint(len(sys.stdin.buffer.read()))"
    assert python(program, using, stdin=text).stdout == b"3145728\n"
    assert python("pass", using, stdin=text).status == "ok"


def test_what_cannot_be_executed_is_no_outcome(using: Means):
    for argv in (["/nonexistent/program"], ["/etc/ld.so.cache"], ["/usr/lib"]):
        with pytest.raises(NotStarted, match=argv[0]):
            run(argv, using=using)
    with pytest.raises(ValueError, match="absolute"):
        run(["true"], using=using)
    with pytest.raises(ValueError, match="whole file system"):
        run(["/bin/true"], read_only=["/"], using=using)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"wall_s": 0.0}, "wall_s must be positive"),
        ({"processes": 0}, "processes must be positive"),
        ({"memory_bytes": MB}, "memory_bytes must be at least"),
        ({"scratch_bytes": -1}, "scratch_bytes must not be negative"),
        ({"descriptors": 3}, "descriptors must be at least 8"),
    ],
)
def test_limits_that_make_no_sense_are_refused(wrong: dict[str, float], words: str):
    with pytest.raises(ValueError, match=words):
        Limits(**wrong)  # pyright: ignore[reportArgumentType]
