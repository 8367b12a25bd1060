"""What a machine offers is found by trying, and too little is refused in words."""

from pathlib import Path

import msgspec
import pytest

from actors.sandbox import means
from actors.sandbox.running import run
from actors.sandbox.terms import HOLDS, NEEDS, Limits, Means, TooLittle
from tests.actors.sandbox import attacks
from tests.actors.sandbox.cells import python

LIMITS_ONLY = Means("limits", False, NEEDS["parse"], {"files": "/etc/passwd could be read"})


@pytest.fixture
def nothing_but_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(means, "available", lambda: LIMITS_ONLY)


@pytest.mark.system
def test_the_best_that_works_is_taken_and_every_fact_was_tried():
    found = means.available()
    assert {*found.holds, *found.lacks} == set(HOLDS)
    assert {"memory", "cpu", "time", "output"} <= set(found.holds)
    assert means.available() is found  # tried once in a process


@pytest.mark.system
def test_a_trial_notices_what_does_not_hold():
    """Under limits alone the same attempts succeed: the trial can fail."""
    found = means.examine(Means("limits"))
    assert not isinstance(found, str), found
    holds, lacks = found
    assert {"files", "names", "network", "signals", "calls"} <= set(lacks)
    assert lacks["files"] == "/etc/passwd could be read"
    assert "memory" in holds


@pytest.mark.system
def test_the_attacks_succeed_without_a_sandbox(tmp_path: Path):
    everything = msgspec.structs.replace(LIMITS_ONLY, holds=HOLDS)
    (tmp_path / "file").write_text("mine")
    read = python(attacks.READ, everything, str(tmp_path / "file"))
    assert {"/etc/passwd", str(tmp_path / "file")} <= set(read.stdout.decode().split())
    knock = python(attacks.KNOCK, everything, "1", str(tmp_path / "none"), "none")
    assert "family-2" in knock.stdout.decode().split()


def test_too_little_is_refused_with_what_why_and_how(nothing_but_limits: None):
    assert means.require("parse") is LIMITS_ONLY
    with pytest.raises(TooLittle, match=r"level 'compile'.*resource limits only cannot") as refusal:
        means.require("compile")
    for words in ("files (/etc/passwd could be read)", "network (not held)", "install bubblewrap"):
        assert words in str(refusal.value)
    with pytest.raises(TooLittle):
        run(["/bin/true"])


def test_why_better_means_are_not_to_be_had_is_said():
    found = msgspec.structs.replace(LIMITS_ONLY, refused={"bubblewrap": "not installed"})
    with pytest.raises(TooLittle, match="bubblewrap: not installed"):
        means.require("execute", found)


def test_several_processes_need_a_namespace():
    landlock = Means("landlock", False, HOLDS)
    assert means.require("execute", landlock, Limits()) is landlock
    with pytest.raises(TooLittle, match="may start 2 processes"):
        means.require("execute", landlock, Limits(processes=2))


def test_without_bubblewrap_the_next_is_tried(monkeypatch: pytest.MonkeyPatch):
    tried: list[Means] = []

    def examine(candidate: Means) -> object:
        tried.append(candidate)
        return (HOLDS, {}) if candidate.kind == "landlock" else f"no {candidate.kind}"

    monkeypatch.setattr(means, "examine", examine)
    found = means.available.__wrapped__()
    assert found.kind == "landlock"
    assert found.refused["bubblewrap, user namespace"] == "no bubblewrap"
    assert [one.kind for one in tried][-2:] == ["namespaces", "landlock"]


def test_a_machine_on_which_nothing_starts_says_so(monkeypatch: pytest.MonkeyPatch):
    def examine(candidate: Means) -> str:
        return f"no {candidate.kind}"

    monkeypatch.setattr(means, "examine", examine)
    with pytest.raises(means.NotStarted, match="limits: no limits"):
        means.available.__wrapped__()
