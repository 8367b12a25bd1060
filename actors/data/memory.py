"""Memory of a process that runs what samples make it run: a bound on it, and giving it back."""

import ctypes
import resource


def bound(more_bytes: int) -> None:
    """From now on this process may have so much more data than it has.

    A sample that asks for more fails with MemoryError, by itself, instead of taking the machine's
    last memory and whoever the kernel picks to end for it.
    """
    with open("/proc/self/statm", encoding="ascii") as file:
        data = int(file.read().split()[5]) * resource.getpagesize()
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = data + more_bytes
    if hard == resource.RLIM_INFINITY or limit < hard:
        resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))


def give_back() -> None:
    """Return what is free to the kernel, where the C library keeps it (glibc does)."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)
