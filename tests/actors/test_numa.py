"""Memory policies of this process, and where its pages lie."""

import mmap
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest

from actors import forkserver, numa

T = TypeVar("T")


def on_a_thread(call: Callable[[], T]) -> T:
    """Policies are a thread's own: the test's is left alone."""
    found: list[T] = []
    thread = threading.Thread(target=lambda: found.append(call()))
    thread.start()
    thread.join()
    return found[0]


def test_a_thread_prefers_the_node_it_was_told_to():
    why = on_a_thread(lambda: numa.prefer(0))
    if why:
        pytest.skip(f"memory policies cannot be set here: {why}")

    def both() -> tuple[int, str, int]:
        return numa.preferred(), numa.prefer(0), numa.preferred()

    assert on_a_thread(both) == (-1, "", 0)
    assert numa.preferred() == -1


def test_a_node_that_is_not_there_is_said_in_words():
    missing = numa.nodes() + 7
    assert on_a_thread(lambda: numa.prefer(missing)) != ""
    assert "no node -1" in numa.prefer(-1)
    assert on_a_thread(numa.preferred) == -1


def test_pages_are_counted_by_node():
    if not Path("/proc/self/numa_maps").exists():
        pytest.skip("this kernel does not count pages by node")
    before = sum(numa.where(os.getpid()).values())
    size = 64 << 20
    with mmap.mmap(-1, size) as memory:
        memory.write(b"x" * size)
        found = numa.where(os.getpid())
    assert sum(found.values()) - before > 0.9 * size
    assert set(found) <= set(range(numa.nodes()))
    assert numa.where(1 << 30) == {}


def test_huge_pages_count_as_what_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    maps = tmp_path / "numa_maps"
    maps.write_text(
        "7f00 default anon=3 dirty=3 N0=2 N1=1 kernelpagesize_kB=4\n"
        "7f01 prefer:1 huge anon=2 N1=2 kernelpagesize_kB=2048\n"
        "7f02 default file=/lib/libc.so.6\n"
    )

    def instead(_name: str) -> Path:
        return maps

    monkeypatch.setattr(numa, "Path", instead)
    assert numa.where(5) == {0: 8192, 1: 4096 + 2 * 2048 * 1024}


def test_an_actor_stays_near_its_node_where_there_are_several(monkeypatch: pytest.MonkeyPatch):
    if on_a_thread(lambda: numa.prefer(0)):
        pytest.skip("memory policies cannot be set here")

    def after(nodes: int) -> int:
        monkeypatch.setattr(numa, "nodes", lambda: nodes)
        forkserver._stay_near(0)
        return numa.preferred()

    assert on_a_thread(lambda: after(1)) == -1
    assert on_a_thread(lambda: after(2)) == 0
