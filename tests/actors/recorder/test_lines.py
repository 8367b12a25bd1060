"""A line is in the file whole or not at all."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from actors.recorder import lines as lines_module
from actors.recorder.lines import LineFile, end_of_last_line, rotated


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "x.jsonl"


@pytest.fixture
def file(path: Path) -> Iterator[LineFile]:
    file = LineFile(path)
    yield file
    file.close()


def test_lines_are_in_the_file_when_append_returns(file: LineFile):
    assert file.append([b"a\n", b"b\n"])
    assert file.path.read_bytes() == b"a\nb\n"
    assert (file.written, file.dropped) == (2, 0)


def test_no_file_is_made_before_there_is_something_to_write(file: LineFile):
    assert file.append([])
    file.sync()
    assert not file.path.exists()


@pytest.mark.parametrize(
    ("before", "kept"),
    [
        (b"", b""),
        (b"a\n", b"a\n"),
        (b'a\n{"tor', b"a\n"),
        (b"torn", b""),
        (b"a\n\n", b"a\n\n"),
        (b"a\n" + b"x" * 200_000, b"a\n"),
        (b"a\n" + b"\x00" * 4096, b"a\n"),
    ],
)
def test_a_torn_end_is_cut_off_when_opened(path: Path, file: LineFile, before: bytes, kept: bytes):
    path.write_bytes(before)
    file.append([b"new\n"])
    assert path.read_bytes() == kept + b"new\n"
    assert file.repaired_bytes == len(before) - len(kept)


@pytest.mark.parametrize("size", [0, 1, 65535, 65536, 65537, 200_000])
def test_the_last_line_end_is_found_across_pieces(path: Path, size: int):
    path.write_bytes(b"head\n" + b"x" * size)
    with path.open("rb") as opened:
        assert end_of_last_line(opened.fileno(), 5 + size) == 5


def test_a_full_disk_loses_whole_lines_and_counts_them(
    file: LineFile, monkeypatch: pytest.MonkeyPatch
):
    file.append([b"first\n"])

    def full(fd: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(lines_module.os, "write", full)
        assert not file.append([b"a\n", b"b\n"])
    assert (file.dropped, file.trouble) == (2, "No space left on device")
    assert file.append([b"later\n"])
    assert file.path.read_bytes() == b"first\nlater\n"
    assert (file.written, file.dropped, file.trouble) == (2, 2, "")


def test_a_disk_that_fills_up_in_the_middle_keeps_the_whole_lines(
    file: LineFile, monkeypatch: pytest.MonkeyPatch
):
    file.append([b"first\n"])
    write = os.write

    def short(fd: int, data: bytes) -> int:
        return write(fd, data[:9])

    with monkeypatch.context() as patch:
        patch.setattr(lines_module.os, "write", short)
        assert not file.append([b"second\n", b"third\n", b"fourth\n"])
    assert file.path.read_bytes() == b"first\nsecond\n"
    assert (file.written, file.dropped) == (2, 2)
    file.append([b"later\n"])
    assert file.path.read_bytes() == b"first\nsecond\nlater\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_dev_full_is_a_full_disk():
    file = LineFile(Path("/dev/full"))
    assert not file.append([b"a\n"])
    assert (file.dropped, file.trouble) == (1, "No space left on device")
    file.close()


def test_a_directory_that_is_not_there_is_counted_not_raised(tmp_path: Path):
    file = LineFile(tmp_path / "missing" / "x.jsonl")
    assert not file.append([b"a\n"])
    assert (file.dropped, file.trouble) == (1, "No such file or directory")
    (tmp_path / "missing").mkdir()
    assert file.append([b"b\n"])
    file.close()


def test_a_file_that_was_removed_is_begun_anew(file: LineFile):
    file.append([b"a\n"])
    file.path.unlink()
    assert file.append([b"b\n"])
    assert file.path.read_bytes() == b"b\n"


def test_files_rotate_by_size_and_the_oldest_go(path: Path):
    file = LineFile(path, rotate_bytes=20, keep=2)
    for number in range(8):
        assert file.append([b"line %03d\n" % number])  # 9 bytes: two to a file
    file.close()
    parts = [rotated(path, 2), rotated(path, 1), path]
    assert [part.read_bytes().split() for part in parts] == [
        [b"line", b"002", b"line", b"003"],
        [b"line", b"004", b"line", b"005"],
        [b"line", b"006", b"line", b"007"],
    ]
    assert not rotated(path, 3).exists()


def test_a_line_longer_than_the_rotation_size_has_its_own_file(path: Path):
    file = LineFile(path, rotate_bytes=10)
    file.append([b"x" * 50 + b"\n"])
    file.append([b"y\n"])
    file.close()
    assert (path.read_bytes(), len(rotated(path, 1).read_bytes())) == (b"y\n", 51)


def test_without_leave_to_rename_one_file_grows(path: Path, monkeypatch: pytest.MonkeyPatch):
    file = LineFile(path, rotate_bytes=4)
    file.append([b"one\n"])

    def forbidden(self: Path, target: Path) -> None:
        raise PermissionError(errno.EACCES, "denied")

    monkeypatch.setattr(Path, "replace", forbidden)
    assert file.append([b"two\n"])
    file.close()
    assert path.read_bytes() == b"one\ntwo\n"


def test_truncating_forgets_what_lies_behind(file: LineFile):
    file.append([b"a\n", b"b\n"])
    file.truncate(2)
    file.append([b"c\n"])
    file.sync()
    assert file.path.read_bytes() == b"a\nc\n"


def test_a_disk_that_cannot_sync_is_remembered(file: LineFile, monkeypatch: pytest.MonkeyPatch):
    file.append([b"a\n"])

    def broken(fd: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(lines_module.os, "fsync", broken)
    file.sync()
    assert file.trouble == "Input/output error"
