"""Which paths a program sees, and under which links.

A path is given as people write it. Symbolic links on the way become symbolic links inside; what is
bound is only ever a real path, so no link can be turned into a door after the check.
"""

import functools
import os
import sys
from pathlib import Path

import msgspec

# What a dynamically linked program is loaded from. No secrets live there.
LOADER = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache", "/nix/store")
DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
SCRATCH = "/tmp"  # noqa: S108 - inside, where everybody else's is not
_MAX_LINKS = 40


class View(msgspec.Struct, frozen=True):
    """What is seen: real paths, and links among them."""

    binds: tuple[str, ...]  # none within another
    links: tuple[tuple[str, str], ...]  # (path, target)

    def covers(self, path: str) -> bool:
        """Whether a real path is among those bound."""
        return any(_within(path, bound) for bound in self.binds)


@functools.lru_cache(maxsize=64)
def view(paths: tuple[str, ...]) -> View:
    """What has to be bound and linked so that each of `paths` opens as it does outside.

    Raises OSError for one that does not exist, ValueError for one that is not absolute or is `/`.
    """
    links: dict[str, str] = {}
    found = {_follow(path, links) for path in paths}
    binds = tuple(
        sorted(
            path
            for path in found
            if not any(other != path and _within(path, other) for other in found)
        )
    )
    outside = {
        path: target
        for path, target in links.items()
        if not any(_within(path, bound) for bound in binds)
    }
    return View(binds, tuple(sorted(outside.items())))


def standard() -> tuple[str, ...]:
    """Those of `LOADER` that this machine has."""
    return tuple(path for path in LOADER if os.path.lexists(path))


@functools.cache
def python() -> tuple[str, ...]:
    """What our interpreter needs: itself, its standard library, its shared library."""
    paths = [interpreter(), os.path.dirname(os.path.realpath(os.__file__))]
    with open("/proc/self/maps", encoding="utf-8", errors="replace") as file:
        mapped = {line.split(maxsplit=5)[-1].strip() for line in file if "libpython" in line}
    return (*paths, *sorted(path for path in mapped if path.startswith("/")))


def interpreter() -> str:
    """Our interpreter, behind all links and virtual environments."""
    return os.path.realpath(sys.executable)


def package() -> str:
    """The directory that holds `actors`."""
    return str(Path(__file__).resolve().parents[2])


def open_to_all(paths: tuple[str, ...]) -> bool:
    """Whether a user that is nobody could open these real paths."""
    for path in paths:
        for step in (*map(str, Path(path).parents), path):
            wanted = 0o5 if os.path.isdir(step) and step == path else 0o1
            if not os.path.isdir(step):
                wanted = 0o4
            if os.stat(step).st_mode & wanted != wanted:
                return False
    return True


def _within(path: str, parent: str) -> bool:
    return path == parent or path.startswith(parent + "/")


def _follow(path: str, links: dict[str, str]) -> str:
    """The real path; the links on the way are noted."""
    if not path.startswith("/"):
        raise ValueError(f"a path for the sandbox must be absolute, got {path!r}")
    todo = [part for part in reversed(path.split("/")) if part not in ("", ".")]
    at, hops = "", 0
    while todo:
        part = todo.pop()
        if part == "..":
            at = os.path.dirname(at).rstrip("/")
            continue
        here = f"{at}/{part}"
        if not os.path.islink(here):
            at = here
            continue
        hops += 1
        if hops > _MAX_LINKS:
            raise OSError(f"{path}: too many symbolic links")
        target = os.readlink(here)
        links[here] = target
        if target.startswith("/"):
            at = ""
        todo += [piece for piece in reversed(target.split("/")) if piece not in ("", ".")]
    if not at:
        raise ValueError("the whole file system cannot be shown to a sandboxed program")
    os.stat(at)
    return at
