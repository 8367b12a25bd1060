"""The jail: a small program that shuts itself in and becomes the program it was told to run.

    python -I -S -c STARTER FLAGS -- PROGRAM ARGUMENTS     (`command.py` writes both)

Up to three processes take part. The *keeper* makes the namespaces, which only its children enter,
and waits. The *first* of the new process namespace builds the root, and when the program has ended
it ends too, which kills whatever the program left. The *program* gives up its rights and is
executed. Under bubblewrap, that is the keeper; without namespaces, keeper and first are one.

All are tied to their parent's life. What happens is reported in lines of text on a socket whose
other end sees who speaks, and which the program does not inherit.

Every word of this command line comes from our own process, none from the program.
"""

import os
import resource

from actors.sandbox import filters, kernel

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

# Values of each flag. Those that may be repeated are lists of lists.
_VALUES = {
    "--kind": 1,  # namespaces, inside (of bubblewrap), landlock, limits
    "--parent": 1,  # pid of who must be our parent
    "--report": 1,  # descriptor
    "--user-namespace": 0,
    "--identity": 1,  # user and group id to become
    "--bind": 1,  # path that is seen, read-only
    "--link": 2,  # symbolic link that is seen: path, target
    "--device": 1,  # device file that is seen
    "--scratch": 2,  # path that can be written, its size
    "--limit": 2,  # name in `resource` without RLIMIT_, value
    "--processes": 1,
    "--threads": 1,
    "--env": 1,  # NAME=VALUE
    "--probe": 0,  # say what holds instead of executing anything
}
# A directory that is always there. What mounting on it hides is seen again below old/.
_BASE = "/tmp"  # noqa: S108
_SIGPIPE, _SIGXFSZ, _SIGKILL = 13, 25, 9
_MAX_MESSAGE = 400
_MAX_DESCRIPTORS = 1 << 20
_NOBODY = 65534
_MS = 1000


class Order:
    """The command line, read."""

    def __init__(self, words: "list[str]") -> None:
        self._flags: dict[str, list[list[str]]] = {}
        at = 0
        while words[at] != "--":
            flag, count = words[at], _VALUES[words[at]]
            self._flags.setdefault(flag, []).append(words[at + 1 : at + 1 + count])
            at += 1 + count
        self.program = words[at + 1 :]
        self.kind = self.one("--kind")
        self.report = int(self.one("--report"))
        self.probe: Callable[..., None] | None = None
        if self.has("--probe"):
            # Now, while files can still be read; and only then, since it takes a millisecond.
            from actors.sandbox import probe

            self.probe = probe.report
        self.has_namespaces = self.kind in ("namespaces", "inside")

    def has(self, flag: str) -> bool:
        """Whether it was given."""
        return flag in self._flags

    def one(self, flag: str) -> str:
        """The value of a flag with one value."""
        return self._flags[flag][0][0]

    def all(self, flag: str) -> "list[list[str]]":
        """The values of each time it was given."""
        return self._flags.get(flag, [])

    def paths(self, flag: str) -> "list[str]":
        """The values of a flag with one value each, given any number of times."""
        return [values[0] for values in self.all(flag)]

    def say(self, *words: object) -> None:
        """Tell our parent."""
        os.write(self.report, " ".join(map(str, words)).encode()[:_MAX_MESSAGE])


def main(words: "list[str]") -> int:
    """The jail's life. Returns only from the keeper and the first process, never as the program."""
    order = Order(words)
    os.set_inheritable(order.report, False)
    os.closerange(order.report + 1, _MAX_DESCRIPTORS)  # whatever our starter's starter left open
    stage = "keeper"
    try:
        kernel.prctl(kernel.PR_SET_PDEATHSIG, _SIGKILL)
        if order.kind != "inside" and os.getppid() != int(order.one("--parent")):
            return 1
        if order.kind == "namespaces":
            return _keep(order)
        stage = "first"
        return _first(order)
    except OSError as error:
        order.say("failed", stage, error.strerror or error)
        return 1


# --- The keeper -----------------------------------------------------------------------------------


def _keep(order: Order) -> int:
    user, group = os.geteuid(), os.getegid()
    flags = kernel.NEW_NS | kernel.NEW_PID | kernel.NEW_NET | kernel.NEW_IPC | kernel.NEW_UTS
    if order.has("--user-namespace"):
        kernel.unshare(kernel.NEW_USER)
        _map_ids(user, group)
    kernel.unshare(flags | kernel.NEW_CGROUP)
    alive, held = os.pipe()  # its other end closes when we die
    child = os.fork()
    if child == 0:
        os.close(held)
        _leave(_guarded(order, "first", _first_of_keeper, alive))
    os.close(alive)
    os.waitpid(child, 0)
    return 0


def _map_ids(user: int, group: int) -> None:
    """Keep our ids in the new user namespace; root's becomes nobody's there."""
    _write("/proc/self/setgroups", "deny")
    _write("/proc/self/uid_map", f"{user or _NOBODY} {user} 1")
    _write("/proc/self/gid_map", f"{group or _NOBODY} {group} 1")


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY)
    try:
        os.write(fd, text.encode())
    except OSError as error:
        raise OSError(error.errno, f"{path}: {os.strerror(error.errno or 0)}") from None
    finally:
        os.close(fd)


def _guarded(order: Order, stage: str, act: "Callable[[Order, int], int]", value: int) -> int:
    """Run the code of a forked child, whose errors must not fall through to its parent's."""
    try:
        return act(order, value)
    except OSError as error:
        order.say("failed", stage, error.strerror or error)
        return 1


def _leave(code: int) -> None:
    """End a forked child, at once and without its parent's clean-up."""
    os._exit(code)


# --- The first process of the namespace -----------------------------------------------------------


def _first_of_keeper(order: Order, alive: int) -> int:
    kernel.prctl(kernel.PR_SET_PDEATHSIG, _SIGKILL)
    os.set_blocking(alive, False)
    try:
        if os.read(alive, 1) == b"":  # the keeper died before that
            return 1
    except BlockingIOError:
        pass
    _build_root(order)
    return _first(order)


def _first(order: Order) -> int:
    """Start the program, wait for its end and report it."""
    if order.has_namespaces:
        order.say("first")
    else:
        kernel.prctl(kernel.PR_SET_CHILD_SUBREAPER, 1)
    kernel.prctl(kernel.PR_SET_DUMPABLE, 0)  # nobody may look into us
    us = os.getpid()
    executed, held = os.pipe()  # its other end closes when the program is executed
    program = os.fork()
    if program == 0:
        _leave(_guarded(order, "program", _become, us))
    os.close(held)
    os.read(executed, 1)
    order.say("executed")
    if order.has_namespaces:
        kernel.drop_capabilities()
    ended, status, usage = os.wait4(-1, 0)
    while ended != program:  # an orphan
        ended, status, usage = os.wait4(-1, 0)
    cpu_ms = int((usage.ru_utime + usage.ru_stime) * _MS)
    order.say("ended", status, usage.ru_maxrss * 1024, cpu_ms)
    if not order.has_namespaces:
        _kill_children()
    return 0


def _kill_children() -> None:
    """End everything the program has left. Orphans become ours, so none is missed."""
    while True:
        try:
            with open(f"/proc/self/task/{os.getpid()}/children", encoding="ascii") as file:
                left = file.read().split()
            for pid in left:
                os.kill(int(pid), _SIGKILL)
            os.wait4(-1, 0)
        except (ChildProcessError, FileNotFoundError):
            return


def _build_root(order: Order) -> None:
    """Replace the root by an empty one, in memory, in which only the named paths exist."""
    kernel.mount("none", "/", flags=kernel.MS_REC | kernel.MS_PRIVATE)
    private = kernel.MS_NOSUID | kernel.MS_NODEV
    kernel.mount("tmpfs", _BASE, "tmpfs", private, "mode=755,size=1m")
    os.mkdir(_BASE + "/old")
    os.mkdir(_BASE + "/new")
    kernel.pivot_root(_BASE, _BASE + "/old")
    os.chdir("/")
    kernel.mount("/new", "/new", flags=kernel.MS_BIND)  # a mount of its own, to pivot to
    guard = private | kernel.MS_RDONLY
    for path, size in order.all("--scratch"):
        _place("/new" + path, directory=True)
        options = f"mode=777,size={size},nr_inodes=4096"
        kernel.mount("tmpfs", "/new" + path, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, options)
    for path in order.paths("--bind"):
        _place("/new" + path, directory=os.path.isdir("/old" + path))
        kernel.mount("/old" + path, "/new" + path, flags=kernel.MS_BIND | kernel.MS_REC)
        kernel.protect("/new" + path, guard)
    for path in order.paths("--device"):
        _place("/new" + path, directory=False)
        kernel.mount("/old" + path, "/new" + path, flags=kernel.MS_BIND)
        kernel.protect("/new" + path, kernel.MS_NOSUID | kernel.MS_NOEXEC)
    for path, target in order.all("--link"):
        os.makedirs(os.path.dirname("/new" + path), mode=0o755, exist_ok=True)
        os.symlink(target, "/new" + path)
    kernel.protect("/new", guard, recursive=False)
    os.chdir("/new")
    kernel.pivot_root(".", ".")  # the old root now lies on top of the new one
    kernel.detach(".")
    os.chdir("/")


def _place(path: str, *, directory: bool) -> None:
    """Something to mount on."""
    os.makedirs(path if directory else os.path.dirname(path), mode=0o755, exist_ok=True)
    if not directory and not os.path.lexists(path):
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o444))


# --- The program ----------------------------------------------------------------------------------


def _become(order: Order, first: int) -> int:
    """Give up rights, take on limits, execute. Returns only what a probe does."""
    os.setsid()
    os.umask(0o077)
    os.chdir(order.all("--scratch")[0][0] if order.has("--scratch") else "/")
    kernel.lock_capabilities()
    _change_identity(order)
    # Only now: a change of identity clears it.
    kernel.prctl(kernel.PR_SET_PDEATHSIG, _SIGKILL)
    if os.getppid() != first:
        return 1
    for name, value in order.all("--limit"):
        which = getattr(resource, "RLIMIT_" + name)
        _, most = resource.getrlimit(which)
        wanted = int(value) if most == resource.RLIM_INFINITY else min(int(value), most)
        # One second after SIGXCPU, which can be handled, comes SIGKILL, which cannot.
        hard = wanted + 1 if name == "CPU" and wanted != most else wanted
        resource.setrlimit(which, (wanted, hard))
    for number in (_SIGPIPE, _SIGXFSZ):
        kernel.default_signal(number)
    kernel.forgo_privileges()
    if order.kind != "limits":
        _confine(order)
    if order.probe is not None:
        order.probe(order.say, int(order.one("--parent")))
        return 0
    order.say("ready")
    env = dict(setting.split("=", 1) for setting in order.paths("--env"))
    try:
        os.execve(order.program[0], order.program, env)  # noqa: S606 - what all this is for
    except OSError as error:
        raise OSError(error.errno, f"{order.program[0]}: {error.strerror}") from None


def _change_identity(order: Order) -> None:
    """Become a user that is nobody else, where we are root."""
    if order.has("--identity"):
        identity = int(order.one("--identity"))
        os.setgroups([])
        for wanted in (identity, _NOBODY):  # a container may know only the first few
            try:
                os.setresgid(wanted, wanted, wanted)
                os.setresuid(wanted, wanted, wanted)
                break
            except OSError:
                if wanted == _NOBODY:
                    raise
    kernel.drop_capabilities()


def _confine(order: Order) -> None:
    """Landlock, where the paths must be guarded by it, and the filter of system calls."""
    if order.kind == "landlock":
        writable = [path for path, _ in order.all("--scratch")]
        kernel.landlock(order.paths("--bind"), writable, order.paths("--device"))
    machine = os.uname().machine
    if filters.supported(machine):
        program = filters.build(
            machine,
            processes=int(order.one("--processes")) > 1,
            threads=int(order.one("--threads")) > 1,
            confined_to=0 if order.has_namespaces else os.getpid(),
        )
        kernel.set_filter(program)
