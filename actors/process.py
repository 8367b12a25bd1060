"""Operating-system processes: starting them, knowing them, noticing their end. Linux only.

A process is known by its pid *and* its start time (`Identity`): pids are reused, the pair is not.
Ends are noticed through pidfds, which sit in a poller beside the sockets and work for processes
that are not our children.

The only file that imports subprocess.
"""

import contextlib
import fcntl
import os
import resource
import signal
import struct
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from actors.identity import Identity as Identity
from actors.ourselves import become_subreaper as become_subreaper
from actors.ourselves import die_with_parent as die_with_parent
from actors.ourselves import set_name as set_name
from actors.ourselves import try_lock as try_lock

# Set in the environment of every process of a run, so that what is left of a run can be found
# even when every table is lost: /proc/PID/environ keeps what a process was executed with, and a
# forked child shows its parent's.
RUN_MARK = "TRIREME_RUN"

# A launcher that was told twice to stop says so to its supervisor; SIGTERM comes to both of them
# when a scheduler tells all processes of a job.
NOT_TO_WAIT = signal.SIGUSR1

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_DEFAULT_SIGNALS = [
    getattr(signal, f"SIG{name}") for name in ("INT", "TERM", "HUP", "PIPE", "CHLD", "USR1", "USR2")
]
_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Ended:
    """How a process ended."""

    pid: int
    code: int  # exit code, or minus the signal that killed it
    max_rss_bytes: int = 0
    cpu_s: float = 0.0


# --- Knowing --------------------------------------------------------------------------------------


def identity(pid: int) -> Identity | None:
    """Who has this pid now; None when nobody does."""
    fields = _stat(pid)
    return None if fields is None else Identity(pid, int(fields[19]))


def myself() -> Identity:
    """This process."""
    me = identity(os.getpid())
    assert me is not None, "/proc is not mounted"
    return me


def alive(who: Identity) -> bool:
    """Whether that very process still runs. A zombie has ended, once its last thread has."""
    fields = _stat(who.pid)
    if fields is None or int(fields[19]) != who.ticks:
        return False
    return fields[0] not in ("Z", "X") or int(fields[17]) > 1


def age_s(who: Identity) -> float:
    """Seconds since its start, by the machine's clock."""
    with open("/proc/uptime", encoding="ascii") as file:
        up_s = float(file.read().split()[0])
    return max(0.0, up_s - who.ticks / _TICKS_PER_S)


def rss_bytes(pid: int) -> int:
    """Resident memory; 0 when the process is gone."""
    try:
        with open(f"/proc/{pid}/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * _PAGE
    except (OSError, IndexError):
        return 0


def cpu_s(pid: int) -> float:
    """Processor time of all its threads so far; 0 when it is gone."""
    fields = _stat(pid)
    return 0.0 if fields is None else (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


def parent(pid: int) -> int:
    """Pid of its parent; 0 when it is gone."""
    fields = _stat(pid)
    return 0 if fields is None else int(fields[1])


def leads_session(pid: int) -> bool:
    """Whether it has a session of its own, as every actor and forkserver has."""
    try:
        return os.getsid(pid) == pid
    except ProcessLookupError:
        return False


def give_way(nice: int, autogroup: Path = Path("/proc/self/autogroup")) -> None:
    """Let others of this host come first, by that much of niceness.

    Where the kernel groups processes by session, niceness counts within the group only, and an
    actor is a session: so the group gets the same.
    """
    with contextlib.suppress(PermissionError):  # only raising it is everyone's right
        os.nice(nice)
    with contextlib.suppress(OSError):  # a kernel without groups, or one that is asked too often
        autogroup.write_text(str(os.nice(0)))


def of_run(run_id: str) -> list[Identity]:
    """Every living process that carries this run's mark, this one included when it does."""
    mark = f"{RUN_MARK}={run_id}".encode()
    found: list[Identity] = []
    for entry in os.listdir("/proc"):
        if not entry.isdecimal():
            continue
        try:
            environ = Path(f"/proc/{entry}/environ").read_bytes()
        except OSError:  # another user's, or gone meanwhile
            continue
        if mark in environ.split(b"\0"):
            who = identity(int(entry))
            if who is not None and alive(who):
                found.append(who)
    return found


def thread_count() -> int:
    """Threads of this process, those of C libraries included."""
    return len(os.listdir("/proc/self/task"))


def tasks_of_user() -> int:
    """Threads of all processes that run as our user: what RLIMIT_NPROC is compared with."""
    total = 0
    for entry in os.listdir("/proc"):
        if not entry.isdecimal():
            continue
        with contextlib.suppress(OSError):  # gone meanwhile
            if os.stat(f"/proc/{entry}").st_uid == os.getuid():
                total += len(os.listdir(f"/proc/{entry}/task"))
    return total


def _stat(pid: int) -> list[str] | None:
    """Fields of /proc/PID/stat from the third (state) on; the name before may hold anything."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()
    except OSError:  # ENOENT, or ESRCH while it is being torn down
        return None


# --- Starting -------------------------------------------------------------------------------------


def python(*args: str) -> list[str]:
    """Command line of our interpreter."""
    return [sys.executable, *args]


def environment(run_id: str = "", **settings: str) -> dict[str, str]:
    """Our environment for a child: finds our packages from any directory, marked with the run."""
    root = str(Path(__file__).resolve().parent.parent)
    paths = [root, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    found = dict(os.environ, PYTHONPATH=os.pathsep.join(dict.fromkeys(paths)), **settings)
    if run_id:
        found[RUN_MARK] = run_id
    return found


def start(
    command: list[str],
    *,
    output: Path,
    env: Mapping[str, str],
    stdin: int | None = None,
    cpus: Collection[int] = (),
    held: Collection[int] = (),
) -> Identity:
    """Start a program in a session of its own, its output appended to a file. Raises OSError.

    The caller must `reap` it, unless it dies first. No file descriptor is inherited besides the
    standard ones (Python opens all others close-on-exec); `stdin` is one of ours it may have.
    `cpus`: where it may run, when that differs from where we may. `held`: signals that wait until
    it unblocks them, once it can handle them.
    """
    append = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    first = (
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)
        if stdin is None
        else (os.POSIX_SPAWN_DUP2, stdin, 0)
    )
    ours = os.sched_getaffinity(0)
    if cpus:
        os.sched_setaffinity(0, cpus)  # inherited; posix_spawn has no attribute for it
    try:
        pid = os.posix_spawn(
            command[0],
            command,
            env,
            setsid=True,
            setsigmask=tuple(held),
            setsigdef=_DEFAULT_SIGNALS,
            file_actions=(
                first,
                (os.POSIX_SPAWN_OPEN, 1, os.fspath(output), append, 0o600),
                (os.POSIX_SPAWN_DUP2, 1, 2),
            ),
        )
    finally:
        if cpus:
            os.sched_setaffinity(0, ours)
    who = identity(pid)  # ours to reap, so it cannot have vanished
    assert who is not None
    return who


def start_wired(
    command: Sequence[str], *, env: Mapping[str, str], wires: Sequence[int]
) -> Identity:
    """Start a program in a session of its own whose descriptors 0, 1, 2 .. are these of ours.

    It inherits no other. The caller must `reap` it. Raises OSError.
    """
    # Copies beyond all targets: a wire may have the number that another is to get.
    copies: list[int] = []
    try:
        for fd in wires:
            copies += [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, len(wires))]
        pid = os.posix_spawn(
            command[0],
            list(command),
            env,
            setsid=True,
            setsigmask=(),
            setsigdef=_DEFAULT_SIGNALS,
            file_actions=[(os.POSIX_SPAWN_DUP2, fd, to) for to, fd in enumerate(copies)],
        )
    finally:
        for fd in copies:
            os.close(fd)
    who = identity(pid)  # ours to reap, so it cannot have vanished
    assert who is not None
    return who


def call(
    command: Sequence[str], *, timeout_s: float, env: Mapping[str, str] | None = None
) -> tuple[int, str, str]:
    """Run a program to its end: exit code, stdout, stderr. Raises OSError and TimeoutError."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=timeout_s, env=env
        )
    except subprocess.TimeoutExpired as error:
        raise TimeoutError(f"{command[0]} did not end within {timeout_s:g} s") from error
    return done.returncode, done.stdout, done.stderr


# --- Ending ---------------------------------------------------------------------------------------


def pidfd(who: Identity) -> int | None:
    """A descriptor that turns readable when that process ends; None when it already has.

    Raises OSError when descriptors run out.
    """
    try:
        fd = os.pidfd_open(who.pid)
    except ProcessLookupError:
        return None
    if alive(who):  # checked after opening: the pid may have been reused before
        return fd
    os.close(fd)
    return None


def send_signal(who: Identity, number: int) -> bool:
    """Signal that very process. False when it is gone."""
    fd = pidfd(who)
    if fd is None:
        return False
    try:
        signal.pidfd_send_signal(fd, number)
    except ProcessLookupError:
        return False
    finally:
        os.close(fd)
    return True


def reap(pid: int | None = None) -> Iterator[Ended]:
    """Children that have ended (or just `pid`, when it is ours and has), without waiting for any.

    What an ended child had started in its own process group is killed with it.
    """
    which = (os.P_ALL, 0) if pid is None else (os.P_PID, pid)
    while True:
        try:
            found = os.waitid(*which, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if found is None:
                return
            # Before it is reaped: until then its number cannot become another group's.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(found.si_pid, signal.SIGKILL)
            _, status, usage = os.wait4(found.si_pid, 0)
        except ChildProcessError:
            return
        yield _ended(found.si_pid, status, usage)


def exit_code(fd: int) -> int | None:
    """Exit code, or minus the signal, of an ended process that need not be our child.

    Asks the pidfd, which kernels since 6.15 answer; None from older ones.
    """
    # struct pidfd_info of linux/pidfd.h: mask, cgroupid, pid .. fsgid (11 x u32), exit_code
    size, exit_bit = 64, 1 << 3
    info = bytearray(struct.pack("=Q", exit_bit).ljust(size, b"\0"))
    request = (3 << 30) | (size << 16) | (0xFF << 8) | 11  # _IOWR(PIDFS_IOCTL_MAGIC, 11, ...)
    try:
        fcntl.ioctl(fd, request, info)
    except OSError:
        return None
    mask, status = struct.unpack_from("=Q", info)[0], struct.unpack_from("=i", info, 60)[0]
    return os.waitstatus_to_exitcode(status) if mask & exit_bit else None


def words(code: int | None) -> str:
    """An exit code as people say it: "killed by SIGKILL", "exit code 3"."""
    if code is None:
        return "ended, nobody saw how"
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"


def _ended(pid: int, status: int, usage: resource.struct_rusage) -> Ended:
    return Ended(
        pid=pid,
        code=os.waitstatus_to_exitcode(status),
        max_rss_bytes=usage.ru_maxrss * 1024,
        cpu_s=usage.ru_utime + usage.ru_stime,
    )
