"""The run directory: what is refused, and that small files are whole."""

import os
import shutil
import stat
from pathlib import Path

import pytest

from actors import rundir
from actors.rundir import RunDir, RunDirError


def test_a_new_run_directory_can_be_opened_again(tmp_path: Path):
    made = rundir.create(tmp_path / "runs" / "one")
    assert rundir.open_(made.path) == made
    assert made.logs.is_dir()
    assert stat.S_IMODE(made.keys.stat().st_mode) == 0o700


def test_a_used_one_is_not_made_again(tmp_path: Path):
    rundir.create(tmp_path / "one")
    with pytest.raises(
        RunDirError, match=r"already in use; add --resume .* another one with --run"
    ):
        rundir.create(tmp_path / "one")


def test_a_directory_with_somebody_elses_files_is_left_alone(tmp_path: Path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(RunDirError, match="already in use"):
        rundir.create(tmp_path)


def test_an_empty_directory_may_become_one(tmp_path: Path):
    assert rundir.create(tmp_path).path == tmp_path


@pytest.mark.parametrize("text", ["999\n", "", "topology"])
def test_another_format_is_refused_by_name(tmp_path: Path, text: str):
    run = rundir.create(tmp_path / "one")
    (run.path / "format").write_text(text)
    with pytest.raises(RunDirError, match=r"has format .* reads format 1"):
        rundir.open_(run.path)


def test_what_is_no_run_directory_is_said_to_be_none(tmp_path: Path):
    with pytest.raises(RunDirError, match="not a run directory: name one with --run"):
        rundir.open_(tmp_path)
    with pytest.raises(RunDirError, match="nothing is there"):
        rundir.open_(tmp_path / "absent")
    (tmp_path / "file").write_text("")
    with pytest.raises(RunDirError, match="not a run directory"):
        rundir.open_(tmp_path / "file")


def test_an_unwritable_place_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunDirError, match=r"cannot be written: Not a directory"):
        rundir.create(tmp_path / "file" / "one")


def test_a_full_disk_is_said_to_be_full():
    """/dev/full answers every write with ENOSPC, as a full disk does."""
    run = RunDir(Path("/dev/full"))
    with pytest.raises(RunDirError, match="cannot be written"):
        rundir.writable(run)


def test_the_run_id_belongs_to_the_real_directory(tmp_path: Path):
    run = rundir.create(tmp_path / "one")
    (tmp_path / "latest").symlink_to("one")
    assert RunDir(tmp_path / "latest").run_id == run.run_id
    assert RunDir(tmp_path / "two").run_id != run.run_id


def test_socket_paths_fit_into_the_kernels_field(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(deep))
    run = RunDir(tmp_path / "one")
    assert len(os.fsencode(run.socket_dir)) <= 64


def test_sockets_are_found_with_another_tmpdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = rundir.create(tmp_path / "one")
    before = run.socket_dir
    monkeypatch.setattr("tempfile.tempdir", "/var/tmp")
    assert rundir.open_(run.path).socket_dir == before


def test_a_copied_run_has_sockets_of_its_own(tmp_path: Path):
    run = rundir.create(tmp_path / "one")
    shutil.copytree(run.path, tmp_path / "two")
    copy = rundir.open_(tmp_path / "two")
    assert copy.socket_dir != run.socket_dir


def test_a_socket_directory_that_others_may_enter_is_refused(tmp_path: Path):
    run = RunDir(tmp_path / "one")
    try:
        path = run.make_socket_dir()
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
        assert run.make_socket_dir() == path
        path.chmod(0o755)
        with pytest.raises(RunDirError, match="open to others"):
            run.make_socket_dir()
    finally:
        run.remove_socket_dir()
    assert not run.socket_dir.exists()


def test_a_socket_directory_that_is_a_link_is_refused(tmp_path: Path):
    run = RunDir(tmp_path / "one")
    run.socket_dir.symlink_to(tmp_path)
    try:
        with pytest.raises(RunDirError, match="not a directory of yours"):
            run.make_socket_dir()
    finally:
        run.socket_dir.unlink()


def test_a_link_in_the_place_of_the_socket_directory_is_not_followed_to_be_emptied(tmp_path: Path):
    run = rundir.create(tmp_path / "run")
    behind = tmp_path / "behind"
    behind.mkdir()
    (behind / "precious").touch()
    run.socket_dir.symlink_to(behind)
    try:
        with pytest.raises(RunDirError, match="not a directory of yours"):
            run.remove_socket_dir()
        assert (behind / "precious").exists()
    finally:
        run.socket_dir.unlink()


def test_latest_follows_the_newest_run_but_never_replaces_a_real_directory(tmp_path: Path):
    first, second = RunDir(tmp_path / "a"), RunDir(tmp_path / "b")
    rundir.point_latest_at(first)
    rundir.point_latest_at(second)
    assert os.readlink(tmp_path / "latest") == "b"
    (tmp_path / "latest").unlink()
    (tmp_path / "latest").mkdir()
    rundir.point_latest_at(first)
    assert not (tmp_path / "latest").is_symlink()


def test_a_small_file_is_replaced_whole_and_nothing_else_is_left(tmp_path: Path):
    path = tmp_path / "table.json"
    rundir.write_atomically(path, '{"a": 1}')
    rundir.write_atomically(path, '{"a": 2}', durable=False)
    assert rundir.read_json(path) == {"a": 2}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("text", ["", "{", "[1]", "\ufffd"])
def test_a_damaged_small_file_reads_as_none(tmp_path: Path, text: str):
    (tmp_path / "x.json").write_text(text)
    assert rundir.read_json(tmp_path / "x.json") is None
