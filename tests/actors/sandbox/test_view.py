"""Paths that a program sees, links among them, and filters of system calls: pure parts."""

import os
import struct
from pathlib import Path

import pytest

from actors.sandbox import command, filters, view
from actors.sandbox.terms import HOLDS, MB, Limits, Means


def test_a_path_through_links_is_bound_where_it_lies_and_linked_as_it_was(tmp_path: Path):
    real = tmp_path / "v1" / "lib"
    real.mkdir(parents=True)
    (tmp_path / "current").symlink_to("v1")
    (tmp_path / "absolute").symlink_to(tmp_path / "current" / "lib")
    found = view.view((str(tmp_path / "absolute"),))
    assert found.binds == (str(real),)
    assert found.links == (
        (str(tmp_path / "absolute"), str(tmp_path / "current" / "lib")),
        (str(tmp_path / "current"), "v1"),
    )


def test_what_lies_within_something_bound_is_not_bound_again(tmp_path: Path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "link").symlink_to("b")
    (tmp_path / "ab").mkdir()
    names = ("a", "a/b", "a/link", "ab", "a/../ab/.")
    found = view.view(tuple(str(tmp_path / name) for name in names))
    assert found.binds == (str(tmp_path / "a"), str(tmp_path / "ab"))
    assert found.links == ()
    assert found.covers(str(tmp_path / "a" / "b"))
    assert not found.covers(str(tmp_path / "abc"))


@pytest.mark.parametrize("path", ["relative", "", "/", "/..", "/usr/.."])
def test_paths_that_would_show_too_much_or_mean_nothing_are_refused(path: str):
    with pytest.raises(ValueError, match=r"absolute|whole file system"):
        view.view((path,))


def test_links_to_the_root_and_endless_ones_are_refused(tmp_path: Path):
    (tmp_path / "root").symlink_to("/")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(ValueError, match="whole file system"):
        view.view((str(tmp_path / "root"),))
    with pytest.raises(OSError, match="too many"):
        view.view((str(tmp_path / "loop"),))
    with pytest.raises(FileNotFoundError):
        view.view((str(tmp_path / "none"),))


def test_what_another_user_could_open(tmp_path: Path):
    closed = tmp_path / "closed"
    closed.mkdir()
    (closed / "file").touch()
    (closed / "file").chmod(0o644)
    assert view.open_to_all(("/usr/lib", "/usr/bin/env"))
    closed.chmod(0o700)
    assert not view.open_to_all((str(closed / "file"),))


def test_the_interpreter_is_found_behind_its_virtual_environment():
    paths = view.python()
    assert os.access(paths[0], os.X_OK)
    assert not os.path.islink(paths[0])
    assert Path(paths[1], "os.py").exists()


def test_the_command_line_names_everything_and_hides_no_flag_in_an_argument():
    wanted = command.Wanted(
        argv=("/bin/true", "--kind", "limits"), limits=Limits(scratch_bytes=MB), env={"A": "b=c"}
    )
    words = command.command(wanted, Means("namespaces", True, HOLDS), scratch="/tmp",
                            tasks_elsewhere=0)  # fmt: skip
    end = words.index("--")
    assert words[end + 1 :] == ["/bin/true", "--kind", "limits"]
    assert words[words.index("--kind") + 1] == "namespaces"
    assert "A=b=c" in words[:end]
    assert words[words.index("--scratch") + 1 : words.index("--scratch") + 3] == ["/tmp", str(MB)]


def answer(program: bytes, number: int, *arguments: int, arch: int = 0xC000003E) -> str:
    """What a kernel with this filter says to a system call: a small BPF machine."""
    data = struct.pack("=iIQ6Q", number, arch, 0, *(arguments + (0,) * 6)[:6])
    code = list(struct.iter_unpack("=HBBI", program))
    at, held = 0, 0
    while True:
        operation, when, otherwise, value = code[at]
        at += 1
        if operation == 0x20:
            held = struct.unpack_from("=I", data, value)[0]
        elif operation == 0x06:
            kind = {0x7FFF0000: "allow", 0x80000000: "kill"}.get(value)
            return kind or f"errno {value & 0xFFFF}"
        else:
            true = {0x15: held == value, 0x25: held > value, 0x45: bool(held & value)}[operation]
            at += when if true else otherwise


@pytest.mark.parametrize(
    ("call", "alone", "threads", "several"),
    [
        ((0,), "allow", "allow", "allow"),  # read
        ((59,), "allow", "allow", "allow"),  # execve
        ((41, 2, 1, 0), "errno 1", "errno 1", "errno 1"),  # socket
        ((57,), "errno 1", "errno 1", "allow"),  # fork
        ((56, 0x3D0F00), "errno 1", "allow", "allow"),  # clone as pthread_create calls it
        ((56, 0x11), "errno 1", "errno 1", "allow"),  # clone as fork calls it
        ((56, 0x10000000 | 0x3D0F00), "errno 1", "errno 1", "errno 1"),  # with a user namespace
        ((435,), "errno 38", "errno 38", "errno 38"),  # clone3
        ((302, 0, 9, 0), "allow", "allow", "allow"),  # prlimit64 that asks
        ((302, 0, 9, 0x7FFF12345678), "errno 1", "errno 1", "errno 1"),  # .. that sets
        ((302, 0, 9, 0x7FFF00000000), "errno 1", "errno 1", "errno 1"),
        ((16, 0, 0x5412), "errno 1", "errno 1", "errno 1"),  # TIOCSTI
        ((16, 0, 0x5401), "allow", "allow", "allow"),
        ((457,), "errno 38", "errno 38", "errno 38"),  # newer than the list
        ((0x40000000 + 39,), "errno 38", "errno 38", "errno 38"),  # x32
        ((62, 77, 9), "allow", "allow", "allow"),  # kill: the namespace bounds it
    ],
)
def test_the_filter_answers(call: tuple[int, ...], alone: str, threads: str, several: str):
    wanted = {(False, False): alone, (False, True): threads, (True, True): several}
    for (processes, many), expected in wanted.items():
        program = filters.build("x86_64", processes=processes, threads=many)
        assert answer(program, *call) == expected


def test_a_program_without_a_namespace_signals_and_changes_nobody_else():
    program = filters.build("x86_64", processes=False, threads=True, confined_to=77)
    assert answer(program, 62, 77, 9) == "allow"
    assert answer(program, 234, 77, 78, 6) == "allow"
    for pid in (76, 1, 0, (1 << 64) - 1, (1 << 32) - 1):
        assert answer(program, 62, pid, 9) == "errno 1"
    for number in (90, 92, 141, 188, 203, 280):  # chmod, chown, setpriority, setxattr, ...
        assert answer(program, number) == "errno 1"
    assert answer(program, 72, 0, 8, 1) == "errno 1"  # fcntl F_SETOWN
    assert answer(program, 72, 0, 3) == "allow"


def test_another_machine_s_calls_end_the_program():
    assert answer(filters.build("x86_64", processes=False, threads=False), 0, arch=3) == "kill"
    program = filters.build("aarch64", processes=False, threads=False)
    assert answer(program, 63, arch=0xC00000B7) == "allow"  # read
    assert answer(program, 198, arch=0xC00000B7) == "errno 1"  # socket
    assert not filters.supported("riscv64")
