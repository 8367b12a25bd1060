"""What a machine must offer to run Trireme, and what to do where it does not.

`gather` looks, `judge` decides: the second is pure, so that every verdict can be tested without a
machine that deserves it. Nothing here imports torch: its version is read from its metadata.
"""

import os
import platform
import resource
import shutil
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Literal

import msgspec

from actors import hardware
from actors.hardware import Hardware
from actors.sandbox.means import CURE, available
from actors.sandbox.terms import Means, SandboxError

Verdict = Literal["ok", "warn", "fail"]

PYTHON = (3, 11)
TORCH = "2.13.0"
GB = 1_000_000_000
_PACKAGES = (
    "click", "msgpack", "msgspec", "numpy", "nvidia-ml-py", "prometheus-client", "psutil",
    "pyarrow", "pyzmq", "rich", "safetensors", "structlog", "tokenizers", "tomli-w", "uvloop",
    "zstandard",
)  # fmt: skip
_OPEN_FILES = 1024
_PROCESSES = 512
# Room for ipc:// endpoints: a socket's path has 108 bytes, and names take their part.
_SOCKET_DIR = 50
# Frequency governors that hold the clock down until load has lasted.
_SLOW_GOVERNORS = ("powersave", "conservative")


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What `gather` saw. Sizes in bytes; -1 where something could not be read."""

    python: tuple[int, int, int]
    system: str
    missing: tuple[str, ...]  # distributions that are not installed
    torch: str  # version; "": not installed
    hardware: Hardware
    shm_free: int
    open_files: int  # -1: no limit
    processes: int  # -1: no limit
    governor: str  # "": the kernel does not tell
    rustc: str
    sandbox: Means
    disk: str  # where runs go
    disk_free: int
    cache: str
    cache_writable: bool
    temporary: str
    temporary_writable: bool
    pidfd: bool


class Check(msgspec.Struct, frozen=True):
    """One verdict."""

    name: str
    status: Verdict
    found: str
    advice: str = ""  # what to do; "" when nothing


def gather() -> Facts:
    """Look at this machine and this Python."""
    here = Path.cwd()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trireme"
    temporary = Path(tempfile.gettempdir())
    return Facts(
        python=sys.version_info[:3],
        system=f"{platform.system()} {platform.machine()}",
        missing=tuple(name for name in _PACKAGES if not _version(name)),
        torch=_version("torch"),
        hardware=hardware.probe(),
        shm_free=_free(Path("/dev/shm")),  # noqa: S108 - the shared memory file system itself
        open_files=_limit(resource.RLIMIT_NOFILE),
        processes=_limit(resource.RLIMIT_NPROC),
        governor=_text(Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")),
        rustc=shutil.which("rustc") or "",
        sandbox=_sandbox_here(),
        disk=str(here),
        disk_free=_free(here),
        cache=str(cache),
        cache_writable=_writable(cache),
        temporary=str(temporary),
        temporary_writable=_writable(temporary),
        pidfd=hasattr(os, "pidfd_open"),
    )


def judge(facts: Facts) -> tuple[Check, ...]:
    """A verdict on each of `facts`."""
    return (
        _python(facts),
        _packages(facts),
        _torch(facts),
        _kernel(facts),
        _cpus(facts),
        _governor(facts),
        _memory(facts),
        _gpus(facts),
        _shm(facts),
        _count("open files", facts.open_files, _OPEN_FILES, "ulimit -n 4096"),
        _count("processes", facts.processes, _PROCESSES, "ulimit -u 4096"),
        _disk(facts),
        _directory("cache", facts.cache, facts.cache_writable, "set XDG_CACHE_HOME"),
        _sockets(facts),
        _tool("rustc", facts.rustc, "Rust samples cannot be verified; install rustc"),
        _sandbox(facts),
    )


def _python(facts: Facts) -> Check:
    found = ".".join(map(str, facts.python))
    if facts.python[:2] < PYTHON:
        return Check("python", "fail", found, "use Python 3.11 or newer")
    return Check("python", "ok", found)


def _packages(facts: Facts) -> Check:
    if facts.missing:
        found = "missing: " + ", ".join(facts.missing)
        return Check("packages", "fail", found, "pip install -e .")
    return Check("packages", "ok", f"{len(_PACKAGES)} installed")


def _torch(facts: Facts) -> Check:
    if not facts.torch:
        return Check("torch", "fail", "not installed", f"pip install torch=={TORCH}")
    if facts.torch.partition("+")[0] != TORCH:
        advice = f"tested with {TORCH}: pip install torch=={TORCH}"
        return Check("torch", "warn", facts.torch, advice)
    return Check("torch", "ok", facts.torch)


def _kernel(facts: Facts) -> Check:
    if not facts.system.startswith("Linux") or not facts.pidfd:
        return Check("kernel", "fail", facts.system, "Linux 5.3 or newer is needed, for pidfds")
    return Check("kernel", "ok", facts.system)


def _cpus(facts: Facts) -> Check:
    machine = facts.hardware
    allowed = set(machine.allowed)
    cores = len({cpu.core for cpu in machine.cpus if cpu.id in allowed})
    found = f"{cores} cores, {len(allowed)} of {len(machine.cpus)} threads allowed"
    quota = machine.cpu_quota
    if quota:
        found += f", cgroup quota {quota:g} cores"
    if quota and quota < min(cores, 2):
        return Check("cpus", "warn", found, "raise the container's CPU quota: docker run --cpus 2")
    if cores < 2:
        return Check("cpus", "warn", found, "everything will share one core; two are better")
    return Check("cpus", "ok", found)


def _governor(facts: Facts) -> Check:
    if facts.governor in _SLOW_GOVERNORS:
        advice = "cpupower frequency-set -g performance (or schedutil)"
        return Check("cpu governor", "warn", facts.governor, advice)
    return Check("cpu governor", "ok", facts.governor or "not shown by this kernel")


def _memory(facts: Facts) -> Check:
    size = facts.hardware.memory_bytes
    if size < 2 * GB:
        return Check("memory", "fail", _gb(size), "the smallest topology needs about 2 GB")
    return Check("memory", "ok", _gb(size))


def _gpus(facts: Facts) -> Check:
    gpus = facts.hardware.gpus
    found = ", ".join(f"{gpu.name} ({_gb(gpu.memory_bytes)})" for gpu in gpus) or "none"
    if facts.hardware.notes:
        return Check("gpu", "warn", found, "; ".join(facts.hardware.notes))
    if not gpus:
        return Check("gpu", "ok", "none: trainers run on the CPU")
    return Check("gpu", "ok", found)


def _shm(facts: Facts) -> Check:
    found = f"{_gb(facts.shm_free)} free in /dev/shm"
    advice = "docker run --shm-size=2g, or mount -o remount,size=50% /dev/shm"
    if facts.shm_free < GB // 16:
        return Check("shared memory", "fail", found, advice)
    if facts.shm_free < GB:
        return Check("shared memory", "warn", f"{found}: small models only", advice)
    return Check("shared memory", "ok", found)


def _count(name: str, limit: int, enough: int, advice: str) -> Check:
    found = "unlimited" if limit < 0 else str(limit)
    return Check(
        name, "warn" if 0 <= limit < enough else "ok", found, advice * (0 <= limit < enough)
    )


def _disk(facts: Facts) -> Check:
    found = f"{_gb(facts.disk_free)} free at {facts.disk}"
    if facts.disk_free < GB // 2:
        return Check("disk", "fail", found, "free some, or run from another directory")
    if facts.disk_free < 5 * GB:
        return Check("disk", "warn", found, "large models' checkpoints need more")
    return Check("disk", "ok", found)


def _directory(name: str, path: str, writable: bool, advice: str) -> Check:
    if writable:
        return Check(name, "ok", path)
    return Check(name, "fail", f"{path} cannot be written", f"{advice}, or change its permissions")


def _sockets(facts: Facts) -> Check:
    if len(facts.temporary) > _SOCKET_DIR:
        advice = f"unix sockets have short paths: set TMPDIR to one below {_SOCKET_DIR} characters"
        return Check("socket directory", "fail", facts.temporary, advice)
    return _directory("socket directory", facts.temporary, facts.temporary_writable, "set TMPDIR")


def _tool(name: str, path: str, without: str) -> Check:
    return Check(name, "ok", path) if path else Check(name, "warn", "not found", without)


def _sandbox(facts: Facts) -> Check:
    means = facts.sandbox
    missing = means.missing("execute")
    if not missing:
        lacks = ", ".join(means.lacks)
        return Check("sandbox", "ok", means.name + (f", without hiding {lacks}" if lacks else ""))
    found = f"{means.name}: no hold on {', '.join(missing)}"
    without = "Rust cannot be verified, and completions are only compiled: "
    return Check("sandbox", "warn", found, without * bool(means.missing("compile")) + CURE)


# --- Looking --------------------------------------------------------------------------------------


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""


def _sandbox_here() -> Means:
    try:
        return available()
    except SandboxError as error:
        return Means("limits", refused={"limits": str(error)})


def _limit(which: int) -> int:
    soft, _ = resource.getrlimit(which)
    return -1 if soft == resource.RLIM_INFINITY else soft


def _free(path: Path) -> int:
    try:
        return shutil.disk_usage(path).free
    except OSError:
        return -1


def _writable(path: Path) -> bool:
    """Whether `path`, or the nearest parent that exists, can be written."""
    nearest = next((p for p in (path, *path.parents) if p.exists()), path)
    return nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _gb(size: int) -> str:
    return f"{max(size, 0) / GB:.1f} GB"
