"""A shard that is killed at any system call of a checkpoint leaves checkpoints that load.

The newest one that loads is the one before or the one that was being written, whole, and a
successor writes it again.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from actors import checkpoints
from actors.optimizer.checkpointing import Checkpoints
from tests.actors.exchange import Exchange, tiny
from tests.syscalls import Untraceable, until_call

SETTING = ("steps=6", "checkpoint.every_steps=2", "checkpoint.keep_last=2")


class AtOnce:
    """In place of the thread that writes."""

    def __init__(self, work: Callable[[], None]) -> None:
        work()

    def join(self, timeout: float | None = None) -> None:
        pass

    def is_alive(self) -> bool:
        return False


def keeper(exchange: Exchange, directory: Path) -> Checkpoints:
    """What writes checkpoints of the only shard."""
    return Checkpoints(
        exchange.topology,
        0,
        exchange.shards[0].state,
        directory,
        lambda _part: None,
        exchange,
        background=AtOnce,
    )


def write(exchange: Exchange, directory: Path, step: int) -> None:
    found = keeper(exchange, directory)
    found.due(step)
    found.tick(0.0)


def newest(directory: Path) -> int:
    """Step of the newest that loads; none that has its name may be damaged."""
    found = checkpoints.newest(directory, pytest.fail)
    return -1 if found is None else found.step


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_killed_at_every_system_call_there_is_always_one_that_loads(tmp_path: Path):
    exchange = Exchange(tiny(*SETTING))
    before = tmp_path / "before"
    before.mkdir()
    for _ in exchange.turns():
        step = exchange.shards[0].rounds.committed
        if step in (2, 4) and newest(before) < step:
            write(exchange, before, step)
    assert newest(before) == 4
    number, seen = 0, set[int]()
    while True:
        number += 1
        directory = tmp_path / str(number)
        shutil.copytree(before, directory)
        try:
            killed = until_call(number, lambda at=directory: write(exchange, at, 6))
        except Untraceable as error:
            pytest.skip(str(error))
        seen.add(newest(directory))
        write(exchange, directory, 6)  # a successor's life
        assert newest(directory) == 6
        names = {path.name for path in directory.iterdir()}
        # An old one may stay until the next is written.
        assert names - {"step-00000002"} == {"step-00000004", "step-00000006"}
        shutil.rmtree(directory)
        if not killed:
            break
    assert number > 50, "the work hardly asked the kernel for anything"
    assert seen == {4, 6}
