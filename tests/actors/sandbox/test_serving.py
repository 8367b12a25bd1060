"""A sandboxed program that answers lines: cheap to ask, ended for what it does wrong."""

import os
import statistics
import time
from collections.abc import Iterator

import pytest

from actors import process
from actors.sandbox import view
from actors.sandbox.serving import Gone, Served
from actors.sandbox.terms import Limits, Means, NotStarted
from tests.actors.sandbox.cells import CELLS, needed

pytestmark = pytest.mark.system

ECHO = "import sys\nfor line in sys.stdin.buffer: sys.stdout.buffer.write(line), sys.stdout.flush()"
# Answers the first line; with the second it does `{}`.
THEN = (
    "import os, sys, time\nsys.stdin.readline(); print('one', flush=True)\nsys.stdin.readline()\n"
)


@pytest.fixture(params=sorted(CELLS))
def using(request: pytest.FixtureRequest) -> Means:
    return needed(request.param)


def served(program: str, using: Means | None = None, limits: Limits | None = None) -> Served:
    return Served(
        [view.interpreter(), "-I", "-S", "-c", program],
        read_only=view.python(),
        using=using,
        limits=limits or Limits(),
    )


@pytest.fixture
def echo(using: Means) -> Iterator[Served]:
    with served(ECHO, using) as program:
        yield program


def test_lines_of_any_length_come_back(echo: Served):
    for line in (b"", b"x", b"y" * 500_000, bytes(range(1, 10)), "☃".encode()):
        assert echo.ask(line + b"\n") == line
    first = echo.pid
    assert echo.ask(b"again\n") == b"again"
    assert echo.pid == first


def test_a_request_costs_next_to_nothing(echo: Served):
    echo.ask(b"warm\n")
    took: list[float] = []
    for _ in range(200):
        began = time.perf_counter()
        echo.ask(b"x" * 1000 + b"\n")
        took.append(time.perf_counter() - began)
    assert statistics.median(took) < 0.02  # 0.0001 where nothing else runs


def test_the_pid_is_the_program_s(echo: Served):
    assert process.identity(echo.pid) is not None
    os.kill(echo.pid, 9)
    with pytest.raises(Gone, match="killed by SIGKILL"):
        echo.ask(b"x\n")
    with pytest.raises(Gone, match="closed"):
        echo.ask(b"x\n")


@pytest.mark.parametrize(
    ("does", "limits", "cause"),
    [
        ("sys.exit(3)", Limits(), "exit code 3"),
        ("os.abort()", Limits(), "killed by SIGABRT"),
        ("time.sleep(60)", Limits(wall_s=0.3), "no answer within 0.3 s"),
        ("os.kill(os.getpid(), 19)", Limits(wall_s=0.3), "no answer within 0.3 s"),
        ("while True: os.write(2, b'x' * 999)", Limits(wall_s=0.3), "no answer within 0.3 s"),
        (
            "while True: pass",
            Limits(wall_s=60.0, cpu_s=0.3),
            "used up 0.3 s of processor time",
        ),
        (
            "while True: os.write(1, b'x' * 999)",
            Limits(output_bytes=5000),
            "its answer is longer than 5000 bytes",
        ),
        ("os.close(1); os.close(0); time.sleep(60)", Limits(wall_s=0.3), "no answer within 0.3 s"),
        ("bytearray(1 << 40)", Limits(), "exit code 1"),
    ],
)
def test_what_it_does_wrong_is_named(does: str, limits: Limits, cause: str):
    with served(THEN + does, limits=limits) as program:
        assert program.ask(b"1\n") == b"one"
        with pytest.raises(Gone, match=cause):
            program.ask(b"2\n")
        assert process.identity(program.pid) is None


def test_one_that_does_not_read_is_ended():
    program = served("import time; print('early', flush=True); time.sleep(60)")
    with program, pytest.raises(Gone, match="before it had read"):
        program.ask(b"x" * 500_000 + b"\n")
    program = served("import time; time.sleep(60)", limits=Limits(wall_s=0.3))
    with program, pytest.raises(Gone, match=r"no answer within 0\.3 s"):
        program.ask(b"x" * 500_000 + b"\n")


def test_processor_time_counts_anew_with_each_request():
    burn = "import sys, time\nfor line in sys.stdin:\n    end = time.process_time() + 0.25\n"
    burn += "    while time.process_time() < end: pass\n    print('done', flush=True)"
    with served(burn, limits=Limits(wall_s=60.0, cpu_s=0.4)) as program:
        assert [program.ask(b"x\n") for _ in range(3)] == [b"done"] * 3


def test_its_last_words_are_kept():
    program = served("import sys\nsys.stdin.readline()\nraise RuntimeError('a reason')")
    with program, pytest.raises(Gone, match="exit code 1"):
        program.ask(b"x\n")
    assert program.last_words.endswith("RuntimeError: a reason")


def test_what_cannot_be_executed_is_said_at_the_start(using: Means):
    with pytest.raises(NotStarted, match=r"/etc/ld\.so\.cache"):
        Served(["/etc/ld.so.cache"], using=using)
