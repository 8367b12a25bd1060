"""Wrong usage, wrong configuration and hostile disks: words, an exit code, and nothing left."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.harness import ROOT, python
from tests.system.conftest import SMALL, Run

pytestmark = pytest.mark.system


def call(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    environment = dict(os.environ, PYTHONPATH=str(ROOT))
    return subprocess.run(
        python(str(ROOT / "run.py"), *arguments),
        check=False,
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--topology", "konfig_b"], ["konfig_b", "config_b", "local"]),
        (["--topology", "local", "--set", "model.dims=3"], ["model.dims", "dim"]),
        (["--topology", "local", "--set", "model.dim=wide"], ["model.dim", "integer"]),
        (["--topology", "local", "--set", "actors.trainers=0"], ["actors.trainers", "1"]),
        (["--topology", "local", "--set", "model.heads=3"], ["heads"]),
        (["--topology", "local", "--set", "steps"], ["steps"]),
        (["--topology", "local", "--steps", "0"], ["steps"]),
        (["--topology", "local", "--steps", "many"], ["steps"]),
        (["--topology", "config_b", "--require-hardware"], ["--require-hardware", "GPU"]),
        (["--topology", "local", "--hardware", "absent.xml"], ["absent.xml"]),
        (["--resume", "--run", "absent"], ["absent", "--run"]),
        (["sail"], ["sail"]),
        (["status", "--run", "absent"], ["absent", "not a run directory"]),
        (["stop", "--run", "absent"], ["not a run directory"]),
        (["kill", "trainer/0", "--run", "absent"], ["not a run directory"]),
        (["kill", "--run", "absent"], ["ACTOR"]),
        (["--no-such-option"], ["--no-such-option"]),
    ],
)
def test_wrong_usage_ends_with_two_and_says_what_would_be_right(
    tmp_path: Path, arguments: list[str], words: list[str]
):
    done = call(*arguments, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("what", ["absent", "empty", "nothing of the kind"])
def test_data_that_is_not_there_is_named(tmp_path: Path, what: str):
    if what == "empty":
        (tmp_path / "corpus").mkdir()
    elif what == "nothing of the kind":
        (tmp_path / "corpus").mkdir()
        (tmp_path / "corpus" / "notes.txt").write_text("x = 1\n")
    source = f'data.sources=[{{kind="directory", path="{tmp_path / "corpus"}"}}]'
    done = call("--topology", "local", "--set", source, "--run", str(tmp_path / "run"))
    assert done.returncode == 2, done.stderr
    assert str(tmp_path / "corpus") in done.stderr
    assert "data.sources" in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_source_that_nobody_may_read_is_named(tmp_path: Path):
    if os.getuid() == 0:
        pytest.skip("root may read everything; nothing to refuse")
    (tmp_path / "corpus").mkdir(mode=0o000)
    source = f'data.sources=[{{kind="directory", path="{tmp_path / "corpus"}"}}]'
    assert call("--topology", "local", "--set", source).returncode == 2


def test_help_is_quick_and_shows_every_command():
    done = call("--help")
    assert done.returncode == 0
    for name in ("run", "plan", "status", "logs", "stop", "kill", "doctor"):
        assert f"\n  {name} " in done.stdout
    assert "--require-hardware" in call("run", "--help").stdout


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Makes small file systems: `disk("size=1m")`."""
    mount = shutil.which("mount")
    if os.getuid() != 0 or mount is None:
        pytest.skip("mounting takes root")
    mounted: list[Path] = []

    def make(options: str) -> Path:
        path = tmp_path / f"disk{len(mounted)}"
        path.mkdir()
        done = subprocess.run(
            [mount, "-t", "tmpfs", "-o", options, "tmpfs", str(path)],
            check=False,
            capture_output=True,
        )
        if done.returncode:
            pytest.skip(f"mounting is not possible here: {done.stderr.decode()}")
        mounted.append(path)
        return path

    yield make
    for path in mounted:
        subprocess.run(["umount", "-l", str(path)], check=False)


def test_a_read_only_place_is_refused(disk: Callable[[str], Path]):
    place = disk("size=1m")
    subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
    done = call("--topology", "local", "--run", str(place / "run"))
    assert done.returncode == 2, done.stderr
    assert "cannot be written: Read-only file system" in done.stderr


def test_a_full_disk_is_refused(disk: Callable[[str], Path]):
    place = disk("size=64k")
    (place / "ballast").write_bytes(bytes(60_000))
    done = call("--topology", "local", "--run", str(place / "run"))
    assert done.returncode == 2, done.stderr
    assert "cannot be written: No space left on device" in done.stderr


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_disk_that_fills_up_ends_the_run_with_words(
    start: Callable[..., Run], disk: Callable[[str], Path]
):
    """Metrics, logs and checkpoints find no room; the last line says so and nothing is left."""
    place = disk("size=4m")
    run = start("--steps", "60", settings=(*SMALL, "checkpoint.every_steps=2"), path=place / "run")
    run.until(lambda: run.step() >= 1, 120, "the first step")
    with (place / "ballast").open("wb", buffering=0) as ballast:
        try:
            while True:
                ballast.write(bytes(4096))
        except OSError:
            pass
    assert run.finish(120) == 1, run.story()
    assert "Traceback" not in run.err
    assert any(word in run.last_line for word in ("space", "written")), run.last_line
    assert run.leftovers() == []
