"""Temporary directories: gone with their owner, and those of dead owners with the next one made."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Generator
from pathlib import Path

import pytest

from actors import temporary

OWNER = """
import sys, time
from actors import temporary
with temporary.directory("test") as path:
    (path / "inside").write_text("x")
    print(path, flush=True)
    time.sleep(600)
"""


@pytest.fixture(autouse=True)
def own_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    temporary._remove_forsaken.cache_clear()
    return tmp_path


@contextlib.contextmanager
def owner() -> Generator[tuple["subprocess.Popen[str]", Path]]:
    """A process that holds a directory."""
    with subprocess.Popen(
        [sys.executable, "-c", OWNER], stdout=subprocess.PIPE, text=True
    ) as child:
        try:
            assert child.stdout is not None
            yield child, Path(child.stdout.readline().strip())
        finally:
            child.kill()


def test_it_is_private_and_gone_afterwards(own_tmp: Path):
    with temporary.directory("test") as path:
        assert path.parent == own_tmp
        assert path.stat().st_mode & 0o777 == 0o700
        (path / "below").mkdir()
        (path / "below" / "file").write_text("x")
    assert list(own_tmp.iterdir()) == []


def test_those_of_the_killed_go_and_those_of_the_living_stay(own_tmp: Path):
    with owner() as (killed, forsaken), owner() as (_, held):
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        assert forsaken.exists()
        (own_tmp / "trireme-other-x").mkdir()
        with temporary.directory("test") as mine:
            names = {path.name for path in own_tmp.iterdir()}
            assert names == {held.name, mine.name, "trireme-other-x"}
            assert (held / "inside").exists()


def test_links_and_files_of_such_names_are_left_alone(own_tmp: Path):
    elsewhere = own_tmp / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "precious").write_text("x")
    (own_tmp / "trireme-test-link").symlink_to(elsewhere)
    (own_tmp / "trireme-test-file").write_text("x")
    with temporary.directory("test"):
        pass
    assert (elsewhere / "precious").exists()
    assert (own_tmp / "trireme-test-file").exists()


def test_a_directory_that_is_taken_away_while_it_is_made_is_made_again(
    monkeypatch: pytest.MonkeyPatch,
):
    real, taken = tempfile.mkdtemp, []

    def mkdtemp(prefix: str) -> str:
        path = real(prefix=prefix)
        if len(taken) < 3:
            taken.append(path)
            os.rmdir(path)
        return path

    monkeypatch.setattr(tempfile, "mkdtemp", mkdtemp)
    with temporary.directory("test") as path:
        assert path.is_dir()
        assert str(path) not in taken
    assert len(taken) == 3
