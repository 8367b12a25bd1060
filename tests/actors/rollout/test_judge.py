"""The judge outlives every death of its scorer and never turns a broken machine into a reward."""

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from actors import process
from actors.rollout import judge as judging
from actors.rollout.judge import Judge, ScorerUnavailable
from actors.sandbox import means
from actors.sandbox.terms import Means
from tests.actors.sandbox.cells import CELLS, needed

PROMPT = "def total(items):\n"
GOOD = "    return sum(items)\n"
# A scorer that says it is ready and then, at each request, does `{}`.
MISBEHAVING = """
import json, os, resource, signal, sys, time
sys.stdout.write('"ready"\\n'); sys.stdout.flush()
for line in sys.stdin:
    {}
"""


@pytest.fixture
def causes() -> list[str]:
    return []


@pytest.fixture
def judge(causes: list[str]) -> Iterator[Judge]:
    with Judge(causes.append) as judge:
        yield judge
    assert children() == []


def children() -> list[str]:
    listed = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return [pid for pid in listed if b"scorer" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def misbehaving(does: str, causes: list[str], wall_s: float = 5.0) -> Judge:
    return Judge(causes.append, command=("-c", MISBEHAVING.format(does)), wall_s=wall_s)


def scorer(judge: Judge) -> process.Identity:
    assert judge._scorer is not None
    who = process.identity(judge._scorer.pid)
    assert who is not None
    return who


def test_one_scorer_gives_many_verdicts(judge: Judge, causes: list[str]):
    assert judge.score(PROMPT, GOOD, finished=True).reward == 1.0
    first = scorer(judge)
    assert judge.score(PROMPT, "    pass\n", finished=True).reason == "trivial"
    assert judge.score(PROMPT, "    x = '☃" + chr(0xD800), finished=True).reason == "not UTF-8"
    assert judge.score(PROMPT, "y" * 200_000, finished=True).reason == "too large"
    assert (scorer(judge), causes) == (first, [])


@pytest.mark.parametrize("cell", sorted(CELLS))
def test_it_scores_under_every_means(
    cell: str, judge: Judge, causes: list[str], monkeypatch: pytest.MonkeyPatch
):
    using = needed(cell)
    monkeypatch.setattr(means, "available", lambda: using)
    assert judge.score(PROMPT, GOOD, finished=True).reward == 1.0
    assert judge.score(PROMPT, "    return (\n", finished=True).reason == "does not parse"
    assert (causes, judge.sandbox().startswith(using.name)) == ([], True)


def test_nothing_is_executed(judge: Judge, tmp_path: Path):
    mark = tmp_path / "executed"
    verdict = judge.score("", f"open({str(mark)!r}, 'w').close()\n", finished=True)
    assert verdict.reward == 1.0
    assert not mark.exists()


def test_the_limits_are_in_force(judge: Judge):
    judge.score(PROMPT, GOOD, finished=True)
    limits = Path(f"/proc/{scorer(judge).pid}/limits").read_text()
    found = {line[:26].strip(): line[26:47].strip() for line in limits.splitlines()}
    assert found["Max file size"] == "0"
    assert found["Max open files"] == "16"
    assert int(found["Max address space"]) <= 1 << 30


def test_a_killed_scorer_is_replaced_and_the_completion_keeps_its_reward(
    judge: Judge, causes: list[str]
):
    judge.score(PROMPT, GOOD, finished=True)
    process.send_signal(scorer(judge), signal.SIGKILL)
    assert judge.score(PROMPT, GOOD, finished=True).reward == 1.0
    assert causes == ["killed by SIGKILL"]


@pytest.mark.parametrize(
    ("does", "cause"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", "killed by SIGSEGV"),
        ("sys.exit(3)", "exit code 3"),
        ("print('not json', flush=True)", "it answered something that is no JSON"),
        ("print('{}', flush=True)", "its answer is no verdict"),
        ("print('x' * 100_000, flush=True)", "its answer is longer than 65536 bytes"),
    ],
)
def test_a_text_that_kills_two_scorers_scores_zero_with_the_cause(
    does: str, cause: str, causes: list[str]
):
    with misbehaving(does, causes) as judge:
        verdict = judge.score(PROMPT, GOOD, finished=True)
    assert (verdict.reason, verdict.reward, verdict.detail) == ("scorer died", 0.0, cause)
    assert causes == [cause, cause]
    assert judge.deaths == 2


def test_a_scorer_that_hangs_is_killed_at_the_deadline(causes: list[str]):
    with misbehaving("time.sleep(100)", causes, wall_s=0.3) as judge:
        verdict = judge.score(PROMPT, GOOD, finished=True)
        assert judge._scorer is None
    assert verdict.detail == "no answer within 0.3 s"


def test_a_scorer_that_does_not_read_is_killed_at_the_deadline(causes: list[str]):
    with Judge(
        causes.append,
        command=("-c", "import time; print('\"ready\"', flush=True); time.sleep(100)"),
        wall_s=0.3,
    ) as judge:
        verdict = judge.score(PROMPT, "x" * 500_000, finished=True)
    assert verdict.reason == "scorer died"


def test_endless_computing_ends_by_the_processor_limit(
    causes: list[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(judging, "CPU_S", 0.2)
    with misbehaving("while True: pass", causes, wall_s=60.0) as judge:
        verdict = judge.score(PROMPT, GOOD, finished=True)
    assert verdict.detail == "used up 0.2 s of processor time"


@pytest.mark.parametrize(
    "does",
    [
        "open('/etc/passwd')",
        "__import__('socket').socket().connect(('127.0.0.1', 1))",
        "[os.fork() for _ in iter(int, 1)]",
        "kept = bytearray(1 << 40)",
    ],
)
def test_a_text_that_took_the_scorer_over_would_be_contained_and_score_zero(
    does: str, causes: list[str]
):
    if means.available().missing("execute"):
        pytest.skip(f"only {means.available().name} here")
    with misbehaving(does, causes) as judge:
        verdict = judge.score(PROMPT, GOOD, finished=True)
    assert (verdict.reason, verdict.reward, verdict.detail) == ("scorer died", 0.0, "exit code 1")


def test_a_machine_with_too_little_for_a_sandbox_is_an_infrastructure_error(
    causes: list[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(means, "available", lambda: Means("limits"))
    with Judge(causes.append) as judge:
        assert judge.sandbox() == "resource limits only"
        with pytest.raises(ScorerUnavailable, match="install bubblewrap"):
            judge.score(PROMPT, GOOD, finished=True)
    assert causes == []


@pytest.mark.parametrize(
    ("command", "cause"),
    [
        (("-c", "import sys; sys.exit(7)"), "exit code 7"),
        (("-c", "print(1, flush=True)"), "it spoke before it was ready"),
    ],
)
def test_a_scorer_that_cannot_start_is_an_infrastructure_error(
    command: tuple[str, ...], cause: str, causes: list[str]
):
    with Judge(causes.append, command=command) as judge:
        with pytest.raises(ScorerUnavailable, match=cause):
            judge.score(PROMPT, GOOD, finished=True)
        assert judge._scorer is None
    assert causes == [cause] * 3


def test_an_interpreter_that_is_missing_is_an_infrastructure_error(
    causes: list[str], monkeypatch: pytest.MonkeyPatch
):
    judge = Judge(causes.append)
    monkeypatch.setattr(judge, "_command", ("/nonexistent/python",))
    with pytest.raises(ScorerUnavailable, match="No such file"):
        judge.score(PROMPT, GOOD, finished=True)


def test_the_scorer_ends_when_its_parent_does(tmp_path: Path):
    """SIGKILL of the parent leaves nothing behind."""
    program = (
        "import os, sys\n"
        "from actors.rollout.judge import Judge\n"
        "judge = Judge(print)\n"
        f"judge.score({PROMPT!r}, {GOOD!r}, finished=True)\n"
        "print(judge._scorer.pid, flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    code, out, _ = process.call(
        process.python("-c", program), timeout_s=30, env=process.environment()
    )
    assert code == -signal.SIGKILL
    pid = int(out)
    for _ in range(200):
        if b"scorer" not in words_of(pid):
            return
        threading.Event().wait(0.05)
    pytest.fail(f"process {pid} is left")


def words_of(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
