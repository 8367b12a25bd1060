"""What sandboxed programs can read and write: what was named, and a place of their own."""

from pathlib import Path

import pytest

from actors.sandbox.terms import MB, Limits, Means
from tests.actors.sandbox import attacks
from tests.actors.sandbox.cells import CELLS, needed, python

pytestmark = pytest.mark.system


@pytest.fixture(params=sorted(CELLS))
def using(request: pytest.FixtureRequest) -> Means:
    return needed(request.param)


@pytest.fixture
def shown(tmp_path: Path) -> Path:
    """A directory that everybody may write to, with a file in it."""
    directory = tmp_path / "shown"
    directory.mkdir()
    (directory / "text").write_text("hello")
    for path in (directory, directory / "text"):
        path.chmod(0o777)
    return directory


def test_nothing_of_the_host_can_be_read(using: Means, tmp_path: Path):
    ledger = tmp_path / "ledger.sqlite"
    ledger.write_text("the run's own")
    outcome = python(attacks.READ, using, str(ledger))
    assert (outcome.stdout, outcome.status) == (b"ended\n", "ok")


def test_what_is_shown_is_seen_and_its_links_lead_nowhere_else(
    using: Means, shown: Path, tmp_path: Path
):
    (tmp_path / "hidden").write_text("secret")
    (shown / "door").symlink_to(tmp_path / "hidden")
    (tmp_path / "alias").symlink_to(shown)
    program = (
        "import sys\nprint(open(sys.argv[1] + '/text').read(), flush=True)\n"
        "print(open(sys.argv[1] + '/door').read())"
    )
    outcome = python(program, using, str(tmp_path / "alias"), read_only=[str(tmp_path / "alias")])
    assert (outcome.stdout, outcome.status) == (b"hello\n", "exit")
    assert b"secret" not in outcome.stderr


def test_nothing_can_be_written_and_no_device_replaced(using: Means, shown: Path):
    outcome = python(attacks.WRITE, using, str(shown), read_only=[str(shown)])
    assert (outcome.stdout, outcome.stderr) == (b"ended\n", b"")
    assert (shown / "text").read_text() == "hello"
    assert [path.name for path in shown.iterdir()] == ["text"]
    assert Path("/dev/null").is_char_device()


def test_a_huge_file_is_stopped(using: Means):
    outcome = python(attacks.HUGE_FILE, using, limits=Limits(wall_s=20.0, scratch_bytes=MB))
    assert outcome.status in ("output", "exit")
    assert python(attacks.HUGE_FILE, using).status == "exit"  # without a scratch: not even made


def test_many_files_fill_only_the_private_place(using: Means):
    if using.kind == "landlock":
        pytest.skip("there the private place is a directory of the host: files are bounded singly")
    program = (
        "made = 0\ntry:\n    while True:\n"
        "        open(str(made), 'wb').write(bytes(1 << 16)); made += 1\n"
        "except OSError: print(made)"
    )
    outcome = python(program, using, limits=Limits(wall_s=20.0, scratch_bytes=MB))
    assert 10 <= int(outcome.stdout) <= 16


def test_a_private_place_can_be_written_and_is_gone_afterwards(using: Means):
    program = (
        "import os, tempfile\nopen('note', 'w').write('mine')\n"
        "print(os.getcwd(), open(os.environ['TMPDIR'] + '/note').read())"
    )
    outcome = python(program, using, limits=Limits(scratch_bytes=MB))
    place, note = outcome.stdout.decode().split()
    assert note == "mine"
    assert not Path(place, "note").exists()


def test_paths_below_the_private_place_are_shown_too(using: Means, shown: Path):
    """The tests' own directory lies in /tmp, and so may a user's corpus."""
    program = "import sys\nprint(open(sys.argv[1] + '/text').read())"
    limits = Limits(scratch_bytes=MB)
    outcome = python(program, using, str(shown), read_only=[str(shown)], limits=limits)
    assert outcome.stdout == b"hello\n"
