"""How a loader ends: closed, forgotten, among forks and other loaders, and when its thread ends."""

import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

from actors.data import Loader, LoaderError
from actors.data.alone import keeper
from actors.data.alone.loader import Loader as Made
from tests.actors.data.alone.tricks import family, gone, name

pytestmark = pytest.mark.system


def loader(**changes: Any) -> Made:
    wanted: dict[str, Any] = {"num_workers": 1, "max_workers": 1, **changes}
    return Loader(range(60), 8, **wanted)


def test_loaders_close_in_any_order_whatever_was_forked_between():
    older, newer = loader(), loader()
    next(iter(older))
    pids = family(os.getpid())
    next(iter(newer))  # its keeper and workers have copies of all the older one's descriptors
    closing = threading.Thread(target=older.close, daemon=True)
    closing.start()
    closing.join(20)
    assert not closing.is_alive()
    assert gone(pids)
    newer.close()


def test_a_keeper_that_does_not_go_is_ended(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(keeper, "_PATIENCE_S", 0.1)
    made = loader()
    next(iter(made))
    pids = family(os.getpid())
    (its,) = (pid for pid in pids if name(pid) == "trireme-keeper")
    os.kill(its, signal.SIGSTOP)
    made.close()
    assert gone(pids)


class Ended(BaseException):
    """Not an Exception."""


@pytest.mark.parametrize("kind", [SystemExit, Ended])
def test_whatever_ends_the_thread_is_heard_of(kind: type[BaseException]):
    def collate(_samples: list[Any]) -> Any:
        raise kind("enough")

    with loader(collate_fn=collate) as made:
        for _ in range(2):
            with pytest.raises(kind, match="enough"):
                next(iter(made))


def test_a_fork_of_the_program_that_iterates_is_told_and_harms_nothing(tmp_path: Path):
    with loader(ledger=tmp_path / "ledger.sqlite") as made:
        iterator = iter(made)
        found = next(iterator).tolist()
        pid = os.fork()
        if not pid:
            said = 0
            try:
                for act in (lambda: next(iterator), lambda: iter(made)):
                    with pytest.raises(LoaderError, match="make a loader in each process"):
                        act()
                    said += 1
                made.close()
            finally:
                os._exit(said)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 2
        found += [i for batch in iterator for i in batch.tolist()]
    assert found == list(range(60))
