"""The rules of the house, checked by the tools a person would call."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOP_LEVEL = {
    "pyproject.toml",
    "actors",
    "protocol",
    "kernels",
    "deploy",
    "tests",
    "run.py",
    "README.md",
    "CHANGELOG.md",
    "LICENSE",
}
# Longest file that still reads in one sitting.
MAX_LINES = 400
# Every message in the order data flows: the one file that is better long than split.
THE_WIRE = "protocol/messages.py"


def tracked() -> list[Path]:
    """Files of the repository, or of the unpacked source where there is no git."""
    git = shutil.which("git")
    if git and (ROOT / ".git").exists():
        names = subprocess.run(
            [git, "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True
        )
        return [ROOT / name for name in names.stdout.splitlines() if (ROOT / name).exists()]
    return [
        p
        for p in ROOT.rglob("*")
        if p.is_file() and not p.relative_to(ROOT).parts[0].startswith(".")
    ]


def check(*command: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_formatting_is_ruffs() -> None:
    check("ruff", "format", "--check", ".")


def test_ruff_finds_nothing() -> None:
    check("ruff", "check", ".")


def test_imports_follow_the_layers() -> None:
    code = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_types_hold_strictly() -> None:
    check("pyright", "--pythonpath", sys.executable)


def test_the_top_level_is_the_users_layout() -> None:
    names = {path.relative_to(ROOT).parts[0] for path in tracked()}
    assert {name for name in names if not name.startswith(".")} <= TOP_LEVEL


def test_every_file_reads_in_one_sitting() -> None:
    long = {
        str(path.relative_to(ROOT)): lines
        for path in tracked()
        if path.suffix == ".py" and (lines := len(path.read_text().splitlines())) > MAX_LINES
    }
    long.pop(THE_WIRE, None)
    assert long == {}


def test_nothing_is_ever_unpickled() -> None:
    banned = ("import pick" + "le", "recv_py" + "obj", "weights_only=" + "False")
    guilty = [
        f"{path.relative_to(ROOT)}: {word}"
        for path in tracked()
        if path.suffix == ".py"
        for word in banned
        if word in path.read_text()
    ]
    assert guilty == []
