"""Calls of the Linux kernel that Python has no names for. Part of the jail: imports little.

Every function raises OSError with the call's name.
"""

import ctypes
import os
import struct

_libc = ctypes.CDLL(None, use_errno=True)
_MACHINE = os.uname().machine

NEW_NS, NEW_CGROUP, NEW_UTS, NEW_IPC = 0x00020000, 0x02000000, 0x04000000, 0x08000000
NEW_USER, NEW_PID, NEW_NET = 0x10000000, 0x20000000, 0x40000000

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MS_BIND, MS_REC, MS_PRIVATE = 0x1000, 0x4000, 0x40000
_MNT_DETACH = 2

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_NAME, PR_CAPBSET_DROP = 1, 4, 15, 24
PR_SET_SECUREBITS, PR_SET_CHILD_SUBREAPER = 28, 36
_PR_SET_NO_NEW_PRIVS, _PR_GET_NO_NEW_PRIVS, _PR_GET_SECUREBITS = 38, 39, 27
_PR_GET_SECCOMP, _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 21, 22, 2
# Root is no longer special, a change of user id drops capabilities, and neither can be undone.
_SECURE = 0x01 | 0x02 | 0x08 | 0x20 | 0x40 | 0x80

_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_CAPGET = {"x86_64": 125, "aarch64": 90}
_CAPSET = {"x86_64": 126, "aarch64": 91}
_MOUNT_SETATTR = 442
_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446
_AT_RECURSIVE = 0x8000
_LINUX_CAPABILITY_VERSION_3 = 0x20080522
_LAST_CAPABILITY = 40


def _failed(what: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, f"{what}: {os.strerror(number)}")


def _call(what: str, number: int, *arguments: "int | bytes | None") -> int:
    given = [ctypes.c_long(a) if isinstance(a, int) else ctypes.c_char_p(a) for a in arguments]
    result = _libc.syscall(ctypes.c_long(number), *given)
    if result < 0:
        raise _failed(what)
    return result


def _number(what: str, numbers: "dict[str, int]") -> int:
    if _MACHINE not in numbers:
        raise OSError(38, f"{what}: its number is not known for {_MACHINE}")
    return numbers[_MACHINE]


def prctl(option: int, value: int = 0, more: int = 0) -> int:
    """`prctl(2)` with number arguments."""
    result = _libc.prctl(option, ctypes.c_ulong(value), ctypes.c_ulong(more), 0, 0)
    if result < 0:
        raise _failed(f"prctl({option})")
    return result


def default_signal(number: int) -> None:
    """The kernel's own way with that signal, which Python had changed."""
    _libc.signal(number, None)


# --- Namespaces and mounts ------------------------------------------------------------------------


def unshare(flags: int) -> None:
    """`unshare(2)`."""
    if _libc.unshare(ctypes.c_int(flags)) != 0:
        raise _failed("unshare")


def mount(source: str, target: str, kind: str = "", flags: int = 0, data: str = "") -> None:
    """`mount(2)`."""
    if (
        _libc.mount(
            source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), data.encode()
        )
        != 0
    ):
        raise _failed(f"mount {source} on {target}")


def detach(target: str) -> None:
    """Unmount a tree, as far as our namespace goes."""
    if _libc.umount2(target.encode(), _MNT_DETACH) != 0:
        raise _failed(f"umount {target}")


def protect(target: str, flags: int, *, recursive: bool = True) -> None:
    """Add `MS_RDONLY`, `MS_NOSUID`, `MS_NODEV`, `MS_NOEXEC` to a mount, or to all below. 5.12+."""
    attributes = struct.pack("=QQQQ", flags, 0, 0, 0)  # the four have the same values here
    at = _AT_RECURSIVE if recursive else 0
    _call(f"mount_setattr {target}", _MOUNT_SETATTR, -100, target.encode(), at, attributes, 32)


def pivot_root(new: str, old: str) -> None:
    """`pivot_root(2)`."""
    number = _number("pivot_root", _PIVOT_ROOT)
    _call("pivot_root", number, new.encode(), old.encode())


# --- Rights ---------------------------------------------------------------------------------------


def capabilities() -> int:
    """Those we have or could take up: a set of bits."""
    header = struct.pack("=Ii", _LINUX_CAPABILITY_VERSION_3, 0)
    data = ctypes.create_string_buffer(24)
    got = _libc.syscall(ctypes.c_long(_number("capget", _CAPGET)), header, data)
    if got != 0:
        raise _failed("capget")
    words = struct.unpack("=6I", data.raw)  # effective, permitted, inheritable; low, then high
    return words[0] | words[1] | (words[3] | words[4]) << 32


def lock_capabilities() -> None:
    """Close the ways to new capabilities, as far as we may. Before the user id changes."""
    try:
        prctl(PR_SET_SECUREBITS, _SECURE)
        for capability in range(_LAST_CAPABILITY + 1):
            prctl(PR_CAPBSET_DROP, capability)
    except OSError:  # for lack of CAP_SETPCAP; who is not root cannot gain any from exec anyway
        return


def drop_capabilities() -> None:
    """Give up every capability."""
    header = struct.pack("=Ii", _LINUX_CAPABILITY_VERSION_3, 0)
    _call("capset", _number("capset", _CAPSET), header, bytes(24))


def forgo_privileges() -> None:
    """From now on no program executed has more rights than we."""
    prctl(_PR_SET_NO_NEW_PRIVS, 1)


def privileges_forgone() -> bool:
    """Whether that has been done."""
    return prctl(_PR_GET_NO_NEW_PRIVS) == 1


def root_is_ordinary() -> bool:
    """Whether user id 0 means nothing when a program is executed."""
    return prctl(_PR_GET_SECUREBITS) & _SECURE == _SECURE


def filtered() -> bool:
    """Whether a filter of system calls is in force."""
    return prctl(_PR_GET_SECCOMP) == _SECCOMP_MODE_FILTER


def set_filter(program: bytes) -> None:
    """Have the kernel ask this BPF program (8 bytes an instruction) about every system call."""
    code = ctypes.create_string_buffer(program, len(program))
    head = struct.pack("=H6xQ", len(program) // 8, ctypes.addressof(code))
    if _libc.prctl(_PR_SET_SECCOMP, ctypes.c_ulong(_SECCOMP_MODE_FILTER), head, 0, 0) != 0:
        raise _failed("seccomp")


# --- Landlock -------------------------------------------------------------------------------------

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR, _TRUNCATE, _IOCTL_DEV = 1, 2, 4, 8, 1 << 14, 1 << 15
# Rights of a plain file; the others make sense for directories only, and are refused elsewhere.
_FILE_RIGHTS = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV
_LOOK = _EXECUTE | _READ_FILE | _READ_DIR
# Rights that each version of the interface knows.
_RIGHTS = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 5: (1 << 16) - 1}


def landlock_version() -> int:
    """Of the kernel's Landlock; raises OSError where it has none."""
    return _call("landlock", _LANDLOCK_CREATE, None, 0, 1)


def landlock(readable: "list[str]", writable: "list[str]", devices: "list[str]") -> None:
    """From now on only these paths can be opened; no socket used, where the kernel can refuse it.

    Names and facts of other files stay visible. Needs `forgo_privileges` first.
    """
    version = landlock_version()
    rights = _RIGHTS[max(known for known in _RIGHTS if known <= version)]
    net = 3 if version >= 4 else 0  # bind and connect
    scoped = 3 if version >= 6 else 0  # abstract sockets and signals
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    attributes = struct.pack("=QQQ", rights, net, scoped)[:size]
    rules = _call("landlock_create_ruleset", _LANDLOCK_CREATE, attributes, size, 0)
    for path in readable:
        _allow(rules, path, _LOOK)
    for path in devices:
        _allow(rules, path, _READ_FILE | _WRITE_FILE)
    for path in writable:
        _allow(rules, path, rights & ~_IOCTL_DEV)
    _call("landlock_restrict_self", _LANDLOCK_RESTRICT, rules, 0)
    os.close(rules)


def _allow(rules: int, path: str, rights: int) -> None:
    if not os.path.isdir(path):
        rights &= _FILE_RIGHTS
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    rule = struct.pack("=Qi", rights, fd)
    _call(f"landlock_add_rule {path}", _LANDLOCK_ADD, rules, 1, rule, 0)
    os.close(fd)
