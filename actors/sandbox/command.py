"""The command line of a jail: what `jail.py` and bubblewrap are told. Pure but for our user id."""

import math
import os
import secrets
import shutil
from pathlib import Path

import msgspec

from actors.sandbox import view
from actors.sandbox.terms import Limits, Means

# As a module, so that its compiled form is kept; a script would be compiled each time: 5 ms.
STARTER = (
    "import sys; sys.path.insert(0, {!r}); from actors.sandbox.jail import main; "
    "sys.exit(main(sys.argv[1:]))"
)
REPORT = 3  # the descriptor on which the jail reports
# Users that nobody is: below 2**31, above what containers and systemd hand out.
_FIRST_IDENTITY, _IDENTITIES = 0x7000_0000, 1 << 22
_LOCKED_BYTES = 64 << 10


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """One program to be run in a sandbox."""

    argv: tuple[str, ...]  # the program first, as an absolute path
    limits: Limits
    read_only: tuple[str, ...] = ()  # seen besides the program and what it is loaded from
    env: dict[str, str] = {}  # besides PATH, HOME, TMPDIR, LANG, LD_ORIGIN_PATH: all it has
    served: bool = False  # it lives on: its processor time is counted by the request
    probe: bool = False


def command(wanted: Wanted, means: Means, *, scratch: str, tasks_elsewhere: int) -> list[str]:
    """What to start. Raises OSError and ValueError for paths that cannot be shown.

    `scratch`: the writable directory, "" for none. `tasks_elsewhere`: what the user already runs,
    where that counts against the same limit.
    """
    inside = means.kind == "bubblewrap"
    paths = (*view.standard(), wanted.argv[0], *wanted.read_only)
    if inside or wanted.probe:
        paths += (*view.python(), os.path.join(view.package(), "actors", "sandbox"))
    seen = view.view(paths)
    words = ["--kind", "inside" if inside else means.kind]
    words += ["--parent", str(os.getpid()), "--report", str(REPORT)]
    if means.kind == "namespaces" and means.user_namespace:
        words.append("--user-namespace")
    identity = _identity(means, seen)
    if identity:
        words += ["--identity", str(identity)]
    if not inside:
        words += _seen(seen)
    if scratch:
        words += ["--scratch", scratch, str(wanted.limits.scratch_bytes)]
    words += _taken_on(wanted, scratch, tasks_elsewhere + (0 if identity else 1))
    starter = STARTER.format(view.package())
    jail = [view.interpreter(), "-I", "-S", "-c", starter, *words, "--", *wanted.argv]
    return [*_bubblewrap(means, seen, scratch, wanted.limits), *jail] if inside else jail


def _seen(seen: view.View) -> list[str]:
    words: list[str] = []
    for path in seen.binds:
        words += ["--bind", path]
    for path, target in seen.links:
        words += ["--link", path, target]
    for path in _devices():
        words += ["--device", path]
    return words


def _taken_on(wanted: Wanted, scratch: str, tasks_elsewhere: int) -> list[str]:
    """Limits and environment."""
    limits = wanted.limits
    words = ["--processes", str(limits.processes), "--threads", str(limits.tasks)]
    for name, value in _limits(wanted, tasks_elsewhere).items():
        words += ["--limit", name, str(value)]
    for name, value in _environment(wanted, scratch).items():
        words += ["--env", f"{name}={value}"]
    if wanted.probe:
        words.append("--probe")
    return words


def has_own_files(means: Means) -> bool:
    """Whether the program gets a root of its own, and a scratch in memory with it."""
    return means.kind in ("bubblewrap", "namespaces")


def _identity(means: Means, seen: view.View) -> int:
    """A user to become; 0: we stay who we are, or are nobody in particular already."""
    if os.geteuid() != 0 or means.user_namespace:
        return 0
    if not has_own_files(means) and not view.open_to_all(seen.binds):
        return 0  # a root without rights can read its files, another user could not
    return _FIRST_IDENTITY + secrets.randbelow(_IDENTITIES)


def _devices() -> tuple[str, ...]:
    return tuple(path for path in view.DEVICES if os.path.exists(path))


def _places(seen: view.View) -> tuple[str, ...]:
    """Everything that is to appear."""
    return (*seen.binds, *(path for path, _ in seen.links), *_devices())


def _limits(wanted: Wanted, tasks_elsewhere: int) -> dict[str, int]:
    limits = wanted.limits
    found = {
        "AS": limits.memory_bytes,
        "CORE": 0,
        "FSIZE": limits.scratch_bytes,
        "MEMLOCK": _LOCKED_BYTES,
        "MSGQUEUE": 0,
        "NOFILE": limits.descriptors,
        "NPROC": limits.tasks + tasks_elsewhere,
        "RTPRIO": 0,
    }
    if not wanted.served:
        found["CPU"] = math.ceil(limits.cpu_s)
    return found


def _environment(wanted: Wanted, scratch: str) -> dict[str, str]:
    place = scratch or "/"
    return {
        "PATH": "/usr/bin:/bin",
        "HOME": place,
        "TMPDIR": place,
        "LANG": "C.UTF-8",
        **origin(wanted.argv[0]),
        **wanted.env,
    }


def origin(program: str) -> dict[str, str]:
    """Tells the linker where a program lies, whose libraries may be sought from there: no /proc."""
    return {"LD_ORIGIN_PATH": os.path.dirname(os.path.realpath(program))}


def _bubblewrap(means: Means, seen: view.View, scratch: str, limits: Limits) -> list[str]:
    words = [
        shutil.which("bwrap") or "bwrap",
        "--die-with-parent",
        "--as-pid-1",
        "--cap-drop",
        "ALL",
    ]
    words += [f"--unshare-{name}" for name in ("pid", "net", "ipc", "uts", "cgroup-try")]
    if means.user_namespace:
        user, group = os.geteuid() or 65534, os.getegid() or 65534
        words += ["--unshare-user", "--uid", str(user), "--gid", str(group)]
    else:
        for capability in ("CAP_SETUID", "CAP_SETGID", "CAP_SETPCAP"):
            words += ["--cap-add", capability]
    if scratch:
        words += ["--perms", "1777", "--size", str(limits.scratch_bytes), "--tmpfs", scratch]
    # Left to itself it makes them for the user that it runs as.
    parents = {str(up) for place in _places(seen) for up in Path(place).parents}
    for path in sorted(parents - {"/"}):
        words += ["--perms", "0755", "--dir", path]
    for path in seen.binds:
        words += ["--ro-bind", path, path]
    for path, target in seen.links:
        words += ["--symlink", target, path]
    for path in _devices():
        words += ["--dev-bind", path, path]
    return [*words, "--remount-ro", "/", "--chdir", "/", "--"]
