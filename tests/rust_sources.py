"""Rust for tests and benchmarks: the sources of Debian's package rust-src, unpacked.

Where the package is installed, or a directory is named in TRIREME_RUST_SOURCES, nothing is
downloaded. Otherwise apt fetches the package (18 MB) as it would to install it, and only the files
asked for are unpacked from it; nothing is installed.
"""

import glob
import os
import shutil
import subprocess
from pathlib import Path

PACKAGE = "rust-src"
NAMED = "TRIREME_RUST_SOURCES"
_INSTALLED = "/usr/src/rustc-*"
_DOWNLOAD_S, _UNPACK_S = 120.0, 120.0


class NoSources(Exception):
    """They cannot be had here: says why."""


def rust_sources(into: Path, below: str = "") -> Path:
    """A directory with Rust's own sources: the compiler's repository, or what lies `below`.

    Raises `NoSources`.
    """
    named = os.environ.get(NAMED, "")
    found = [named] if named else sorted(glob.glob(_INSTALLED))
    if found:
        path = Path(found[-1], below)
        if not path.is_dir():
            raise NoSources(f"{path} is not there")
        return path
    missing = [tool for tool in ("apt-get", "dpkg-deb", "tar") if shutil.which(tool) is None]
    if missing:
        raise NoSources(f"{PACKAGE} is not installed, and there is no {', '.join(missing)}")
    return _unpacked(_downloaded(into), into, below)


def _downloaded(into: Path) -> Path:
    into.mkdir(parents=True, exist_ok=True)
    command = ["apt-get", "download", "-q", "-o", "APT::Sandbox::User=root", PACKAGE]
    try:
        done = subprocess.run(
            command, cwd=into, capture_output=True, text=True, timeout=_DOWNLOAD_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise NoSources(f"apt has not fetched {PACKAGE} in {_DOWNLOAD_S:g} s") from None
    found = sorted(into.glob(f"{PACKAGE}_*.deb"))
    if done.returncode or not found:
        why = done.stderr.strip().splitlines()
        raise NoSources(f"apt cannot fetch {PACKAGE}: {why[-1] if why else done.returncode}")
    return found[-1]


def _unpacked(package: Path, into: Path, below: str) -> Path:
    pattern = f"./usr/src/rustc-*/{below}".rstrip("/")
    unpack = ["tar", "-x", "-C", str(into), "--wildcards", pattern]
    with subprocess.Popen(
        ["dpkg-deb", "--fsys-tarfile", str(package)], stdout=subprocess.PIPE
    ) as deb:
        done = subprocess.run(
            unpack, stdin=deb.stdout, capture_output=True, text=True, timeout=_UNPACK_S, check=False
        )
        if deb.stdout is not None:
            deb.stdout.close()
    roots = sorted(into.glob("usr/src/rustc-*"))
    if done.returncode or not roots:
        raise NoSources(f"{package.name} cannot be unpacked: {done.stderr.strip()[:200]}")
    return roots[-1] / below
