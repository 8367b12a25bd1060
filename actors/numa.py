"""Memory near the cores that use it: a preference for one NUMA node, and where pages really lie.

A process that has been pinned to cores gets its pages from their node as it touches them, as long
as there are any; the preference says the same for what it touches while it runs elsewhere (before
it was pinned, or when it floats over several nodes) and for the programs it starts. It is a
preference: a full node is no reason to fail.

What a process has from its forkserver stays where it is. `where` counts pages by node.
"""

import ctypes
import errno
import os
import platform
import re
from pathlib import Path

_SET, _GET = {"x86_64": (238, 239), "aarch64": (237, 236)}.get(platform.machine(), (0, 0))
_PREFERRED = 1
_BITS = 1024  # of a node mask: as many as Linux has nodes at most
_WORD = 8 * ctypes.sizeof(ctypes.c_ulong)
_PAGES = re.compile(r" N(\d+)=(\d+)")
_PAGE_KB = re.compile(r" kernelpagesize_kB=(\d+)")


def prefer(node: int) -> str:
    """From now on this thread, and who it starts, gets memory of `node` if there is any.

    "" when that is so, otherwise why it is not: an old kernel, or a container that forbids it.
    """
    if not _SET:
        return f"not known how on {platform.machine()}"
    if not 0 <= node < _BITS:
        return f"there is no node {node}"
    mask = (ctypes.c_ulong * (_BITS // _WORD))()
    mask[node // _WORD] = 1 << node % _WORD
    return _call(_SET, _PREFERRED, mask, ctypes.c_ulong(_BITS + 1))


def preferred() -> int:
    """The node this thread prefers; -1: none."""
    mode, mask = ctypes.c_int(0), (ctypes.c_ulong * (_BITS // _WORD))()
    ended = ctypes.c_ulong(_BITS + 1)
    if not _GET or _call(_GET, ctypes.byref(mode), mask, ended, None, ctypes.c_ulong(0)):
        return -1
    if mode.value != _PREFERRED:
        return -1
    nodes = [i for i in range(_BITS) if mask[i // _WORD] >> i % _WORD & 1]
    return nodes[0] if nodes else -1


def _call(number: int, *arguments: object) -> str:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(ctypes.c_long(number), *arguments) == 0:
        return ""
    code = ctypes.get_errno()
    return f"{errno.errorcode.get(code, code)}: {os.strerror(code)}"


def nodes() -> int:
    """How many nodes this machine has."""
    return max(1, len(list(Path("/sys/devices/system/node").glob("node[0-9]*"))))


def where(pid: int) -> dict[int, int]:
    """Bytes of a process's memory by node; {} for one that is gone, or where nobody counts."""
    found: dict[int, int] = {}
    try:
        lines = Path(f"/proc/{pid}/numa_maps").read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError):
        return found
    for line in lines:
        size = _PAGE_KB.search(line)
        page = 1024 * int(size[1]) if size else 4096
        for node, pages in _PAGES.findall(line):
            found[int(node)] = found.get(int(node), 0) + page * int(pages)
    return found
