"""The filter of system calls: a BPF program in bytes. Pure. Part of the jail: imports little.

What is refused is what a program that computes never needs: everything that administers the
machine, makes namespaces, looks into other processes, opens sockets, raises limits, holds memory
that no limit counts, or reaches the kernel around this filter (io_uring). Calls newer than this
list do not exist (ENOSYS), so that none slips through unread.
"""

import struct

EPERM, ENOSYS = 1, 38
_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_AUDIT = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
# futex_requeue, of Linux 6.7: the newest call that was thought about.
_NEWEST = 456

# Numbers on x86_64 and aarch64; -1: not there.
_DENIED = {
    "acct": (163, 89), "add_key": (248, 217), "adjtimex": (159, 171), "bpf": (321, 280),
    "chroot": (161, 51), "clock_adjtime": (305, 266), "clock_settime": (227, 112),
    "delete_module": (176, 106), "fanotify_init": (300, 262), "fanotify_mark": (301, 263),
    "finit_module": (313, 273), "fsconfig": (431, 431), "fsmount": (432, 432),
    "fsopen": (430, 430), "fspick": (433, 433), "init_module": (175, 105),
    "io_uring_enter": (426, 426), "io_uring_register": (427, 427), "io_uring_setup": (425, 425),
    "ioperm": (173, -1), "iopl": (172, -1), "kcmp": (312, 272), "kexec_file_load": (320, 294),
    "kexec_load": (246, 104), "keyctl": (250, 219), "lookup_dcookie": (212, 18),
    "memfd_create": (319, 279), "memfd_secret": (447, 447), "migrate_pages": (256, 238),
    "mknod": (133, -1), "mknodat": (259, 33), "modify_ldt": (154, -1), "mount": (165, 40),
    "mount_setattr": (442, 442), "move_mount": (429, 429), "move_pages": (279, 239),
    "mq_open": (240, 180), "msgget": (68, 186), "name_to_handle_at": (303, 264),
    "nfsservctl": (180, 42), "open_by_handle_at": (304, 265), "open_tree": (428, 428),
    "perf_event_open": (298, 241), "pidfd_getfd": (438, 438), "pidfd_open": (434, 434),
    "pidfd_send_signal": (424, 424), "pivot_root": (155, 41), "process_madvise": (440, 440),
    "process_mrelease": (448, 448), "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271), "ptrace": (101, 117), "quotactl": (179, 60),
    "quotactl_fd": (443, 443), "reboot": (169, 142), "request_key": (249, 218),
    "semget": (64, 190), "setdomainname": (171, 162), "sethostname": (170, 161),
    "setns": (308, 268), "setrlimit": (160, 164), "settimeofday": (164, 170), "shmat": (30, 196),
    "shmget": (29, 194), "socket": (41, 198), "swapoff": (168, 225), "swapon": (167, 224),
    "syslog": (103, 116), "umount2": (166, 39), "unshare": (272, 97), "uselib": (134, -1),
    "userfaultfd": (323, 282), "vhangup": (153, 58),
}  # fmt: skip
# What Landlock leaves open among one user's processes and files, where no namespace hides them.
_CONFINED = {
    "chmod": (90, -1), "chown": (92, -1), "fchmod": (91, 52), "fchmodat": (268, 53),
    "fchmodat2": (452, 452), "fchown": (93, 55), "fchownat": (260, 54), "fremovexattr": (199, 16),
    "fsetxattr": (190, 7), "futimesat": (261, -1), "ioprio_set": (251, 30), "lchown": (94, -1),
    "lremovexattr": (198, 15), "lsetxattr": (189, 6), "removexattr": (197, 14),
    "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240), "sched_setaffinity": (203, 122),
    "sched_setattr": (314, 274), "sched_setparam": (142, 118), "sched_setscheduler": (144, 119),
    "setpriority": (141, 140), "setxattr": (188, 5), "tkill": (200, 130), "utime": (132, -1),
    "utimensat": (280, 88), "utimes": (235, -1),
}  # fmt: skip
_FORKS = {"fork": (57, -1), "vfork": (58, -1)}
_CLONE, _CLONE3, _PRLIMIT, _IOCTL, _FCNTL = (56, 220), (435, 435), (302, 261), (16, 29), (72, 25)
_PRCTL = (157, 167)
_KILLS = ((62, 129), (234, 131))  # kill, tgkill: the process is the first argument of both
_NEW_NAMESPACES = 0x7E020080
_CLONE_THREAD = 0x00010000
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C  # put words into a terminal's mouth
_PR_SET_PDEATHSIG = 1  # outlive whoever started it
_F_SETOWN, _F_SETOWN_EX = 8, 15  # have the kernel signal somebody

# BPF: load a word of (nr, arch, instruction pointer, six arguments); jump; return.
_LOAD, _EQUAL, _ABOVE, _ANY, _RETURN = 0x20, 0x15, 0x25, 0x45, 0x06
_NR, _ARCH = 0, 4


def supported(machine: str) -> bool:
    """Whether the numbers of this machine's system calls are known."""
    return machine in _AUDIT


def build(machine: str, *, processes: bool, threads: bool, confined_to: int = 0) -> bytes:
    """The filter.

    `processes`, `threads`: whether new ones may be made. `confined_to`: the pid of a program that
    has no namespace of its own, which may signal only itself; 0: it has one.
    """
    column = ("x86_64", "aarch64").index(machine)
    denied = dict(_DENIED)
    if not processes:
        denied |= _FORKS
    if confined_to:
        denied |= _CONFINED
    program = [
        _op(_LOAD, _ARCH),
        _op(_EQUAL, _AUDIT[machine], 1, 0),
        _op(_RETURN, _KILL),
        _op(_LOAD, _NR),
        _op(_ABOVE, _NEWEST, 0, 1),  # x32, whose numbers begin with a high bit, among them
        _op(_RETURN, _ERRNO | ENOSYS),
    ]
    for numbers in denied.values():
        if numbers[column] >= 0:
            program += [_op(_EQUAL, numbers[column], 0, 1), _op(_RETURN, _ERRNO | EPERM)]
    # clone3 hides its flags behind a pointer: the C library uses clone instead.
    program += [_op(_EQUAL, _CLONE3[column], 0, 1), _op(_RETURN, _ERRNO | ENOSYS)]
    program += _when(_CLONE[column], _cloning(processes=processes, threads=threads))
    program += _when(_PRLIMIT[column], [*_unless(2, 0), *_unless(2, 0, high=True)])
    program += _when(_IOCTL[column], _refused(1, _TIOCSTI, _TIOCLINUX))
    program += _when(_PRCTL[column], _refused(0, _PR_SET_PDEATHSIG))
    if confined_to:
        program += _when(_FCNTL[column], _refused(1, _F_SETOWN, _F_SETOWN_EX))
        for numbers in _KILLS:
            program += _when(numbers[column], _unless(0, confined_to))
    program.append(_op(_RETURN, _ALLOW))
    return b"".join(program)


def _op(code: int, value: int, when: int = 0, otherwise: int = 0) -> bytes:
    """One instruction; `when` and `otherwise` are how many to skip after a comparison."""
    return struct.pack("=HBBI", code, when, otherwise, value)


def _when(number: int, block: "list[bytes]") -> "list[bytes]":
    """Run `block`, and allow what passes it, for that system call only."""
    block = [*block, _op(_RETURN, _ALLOW)]
    return [_op(_EQUAL, number, 0, len(block)), *block]


def _load(argument: int, *, high: bool = False) -> bytes:
    return _op(_LOAD, 16 + 8 * argument + (4 if high else 0))  # little-endian, both machines


def _unless(argument: int, value: int, *, high: bool = False) -> "list[bytes]":
    """Refuse unless that half of an argument has that value."""
    return [
        _load(argument, high=high),
        _op(_EQUAL, value, 1, 0),
        _op(_RETURN, _ERRNO | EPERM),
    ]


def _refused(argument: int, *values: int) -> "list[bytes]":
    """Refuse these values of an argument's low half."""
    block = [_load(argument)]
    for value in values:
        block += [_op(_EQUAL, value, 0, 1), _op(_RETURN, _ERRNO | EPERM)]
    return block


def _cloning(*, processes: bool, threads: bool) -> "list[bytes]":
    refuse = _op(_RETURN, _ERRNO | EPERM)
    if not threads:
        return [refuse]
    block = [_load(0), _op(_ANY, _NEW_NAMESPACES, 0, 1), refuse]
    if not processes:
        block += [_op(_ANY, _CLONE_THREAD, 1, 0), refuse]
    return block
