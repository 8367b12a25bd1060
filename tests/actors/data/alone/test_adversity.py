"""A loader of its own, given samples that harm, and a program that dies."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actors import process
from actors.data import Loader, LoaderError
from actors.data.alone.loader import Loader as Made
from tests.actors.data.alone.tricks import children, family, gone, name, notes, noting, striking

ROOT = Path(__file__).parents[4]
N, B = 60, 8
EVERYTHING = list(range(N))

pytestmark = pytest.mark.system


def loader(**changes: Any) -> Made:
    wanted: dict[str, Any] = {"num_workers": 2, "shuffle": True, "seed": 2, **changes}
    return Loader(range(N), B, **wanted)


def delivered(made: Made) -> list[int]:
    return [int(i) for batch in made for i in batch]


@pytest.mark.parametrize("order", ["strict", "ready"])
@pytest.mark.parametrize("how", ["kill", "segfault"])
def test_a_worker_that_dies_once_costs_nothing(tmp_path: Path, order: str, how: str):
    with loader() as made:
        expected = delivered(made)
    stage = striking(**{how: 31}, once=tmp_path / "done")
    with loader(stages=[stage], order=order) as made:
        found = delivered(made)
        assert made.status()["replaced"] == 1
        assert made.status()["refused"] == {}
    assert sorted(found) == EVERYTHING
    assert order == "ready" or found == expected


@pytest.mark.parametrize("order", ["strict", "ready"])
def test_a_sample_that_ends_every_worker_is_left_out_by_name_after_three(
    order: str, caplog: pytest.LogCaptureFixture
):
    with loader(stages=[striking(kill=31)], order=order, max_bad_share=0.5) as made:
        for _ in range(2):
            assert sorted(delivered(made)) == [i for i in EVERYTHING if i != 31]
        assert made.status()["replaced"] == 3
        assert made.state_dict()["left_out"] == {"31": "quarantined"}
    assert "sample 31 is left out: quarantined: 3 workers; the last: worker" in caplog.text
    assert "killed by SIGKILL" in caplog.text


def test_the_sample_to_blame_is_found_among_results_not_yet_sent():
    # Samples this small travel by the dozen: those before the poison are done and unsent.
    with Loader(range(2000), 50, stages=[striking(kill=777)], num_workers=1) as made:
        assert sorted(delivered(made)) == [i for i in range(2000) if i != 777]
        assert made.state_dict()["left_out"] == {"777": "quarantined"}


@pytest.mark.parametrize("order", ["strict", "ready"])
def test_a_sample_that_never_returns_is_tried_again_and_left_out(order: str):
    with loader(stages=[striking(hang=7)], order=order, timeout_s=0.4, max_bad_share=0.5) as made:
        assert sorted(delivered(made)) == [i for i in EVERYTHING if i != 7]
        assert made.status()["replaced"] >= 1  # the others hang until they are seen to


def test_a_sample_that_hangs_once_comes_late_but_comes(tmp_path: Path):
    stage = striking(hang=7, once=tmp_path / "done")
    with loader(stages=[stage], timeout_s=0.4) as made:
        assert sorted(delivered(made)) == EVERYTHING


def test_what_a_stage_raises_is_counted_by_kind_and_the_sample_named(
    caplog: pytest.LogCaptureFixture,
):
    with loader(stages=[striking(fail=3, eat=4)], max_bad_share=0.5) as made:
        assert sorted(delivered(made)) == [i for i in EVERYTHING if i not in (3, 4)]
        assert made.status()["refused"] == {"ValueError": 1, "does not fit in memory": 1}
        assert made.status()["replaced"] == 0
    assert "sample 3 is left out: ValueError: sample 3 is not to my taste" in caplog.text


def test_too_many_bad_samples_stop_the_loader_with_the_reason():
    def broken(i: int) -> int:
        raise KeyError(f"no field {i}")

    with (
        loader(stages=[broken]) as made,
        pytest.raises(LoaderError, match=r"KeyError.*no field.*max_bad_share"),
    ):
        delivered(made)


def test_a_single_bad_sample_in_a_small_data_set_is_borne_and_nothing_but_bad_ones_is_not():
    with Loader(range(5), 2, stages=[striking(fail=3)], num_workers=1) as made:
        assert delivered(made) == [0, 1, 2, 4]
    with (
        Loader([3], 2, stages=[striking(fail=3)], num_workers=1) as made,
        pytest.raises(LoaderError, match="1 of 1 samples"),
    ):
        delivered(made)


def test_samples_beyond_the_limit_and_of_types_that_cannot_travel_are_left_out():
    def odd(i: int) -> Any:
        return {0: np.zeros(1 << 20), 1: object()}.get(i, i)

    with Loader(range(3, 20), 5, stages=[odd], num_workers=2, max_sample_bytes=1 << 16) as made:
        assert delivered(made) == list(range(3, 20))
    with Loader(
        [1, 0, *range(3, 40)], 40, stages=[odd], num_workers=2, max_sample_bytes=1 << 16,
        max_bad_share=0.1,
    ) as made:  # fmt: skip
        assert delivered(made) == list(range(3, 40))
        assert made.status()["refused"] == {"TooLarge": 1, "Untransferable": 1}


def test_samples_of_which_nothing_is_made_are_left_out_by_name(caplog: pytest.LogCaptureFixture):
    def picky(i: int) -> int | None:
        return None if i in (3, 5) else i

    def onward(i: int) -> int:
        return i + 0

    for stages in ([picky], [picky, onward]):
        with loader(stages=stages, max_bad_share=0.5) as made:
            assert sorted(delivered(made)) == [i for i in EVERYTHING if i not in (3, 5)]
            assert made.status()["refused"] == {"Nothing": 2}
    assert "sample 3 is left out: Nothing: picky returned nothing" in caplog.text


def test_samples_of_a_gigabyte_are_left_out_and_their_worker_lives():
    def huge(i: int) -> Any:
        return np.zeros(1 << 30, np.uint8) if i == 3 else i  # pages nobody has touched

    with loader(stages=[huge], max_sample_bytes=1 << 20, max_bad_share=0.5) as made:
        assert sorted(delivered(made)) == [i for i in EVERYTHING if i != 3]
        assert made.status()["refused"] == {"TooLarge": 1}
    with loader(stages=[huge], worker_memory_bytes=1 << 29, max_bad_share=0.5) as made:
        assert sorted(delivered(made)) == [i for i in EVERYTHING if i != 3]
        assert made.status()["refused"] == {"does not fit in memory": 1}
        assert made.status()["replaced"] == 0


def test_with_waiting_samples_about_the_one_that_kills_is_found():
    from actors.data import waiting

    def wait(i: int) -> int:
        time.sleep(0.02)
        if i == 17:
            os.kill(os.getpid(), signal.SIGKILL)
        return i

    with Loader(
        range(40), 8, stages=[waiting(wait, parallel=8)], num_workers=2, max_bad_share=0.5
    ) as made:
        assert sorted(delivered(made)) == [i for i in range(40) if i != 17]
        assert made.state_dict()["left_out"] == {"17": "quarantined"}


def test_a_late_result_of_a_sample_given_to_another_is_dropped(tmp_path: Path):
    # The first worker is frozen while it works on a sample, so that one goes to another worker;
    # when it thaws, its results are nobody's any more.
    path = tmp_path / "notes"

    def slow(i: int) -> int:
        time.sleep(0.01)
        return i

    frozen: list[int] = []
    with loader(stages=[noting(path, "work"), slow], timeout_s=0.6, order="ready") as made:
        found: list[int] = []
        for batch in made:
            found += [int(i) for i in batch]
            if not frozen:
                frozen.append(notes(path)[-1][2])
                os.kill(frozen[0], signal.SIGSTOP)
    assert sorted(found) == EVERYTHING


def test_the_keeper_may_die_too():
    with loader() as made:
        iterator = iter(made)
        found = [int(i) for i in next(iterator)]
        (its,) = (pid for pid in children(os.getpid()) if name(pid) == "trireme-keeper")
        os.kill(its, signal.SIGKILL)
        found += [int(i) for batch in iterator for i in batch]
    assert sorted(found) == EVERYTHING


PROGRAM = """
import os, sys, time
from actors.data import Loader

def slow(i):
    time.sleep(0.01)
    return i

loader = Loader(range(100000), 4, stages=[slow], num_workers=2)
for k, batch in enumerate(loader):
    if k == 3:
        print("ready", flush=True)
    if {wait}:
        time.sleep(0.05)
"""


def begun(wait: bool) -> subprocess.Popen[str]:
    program = subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(wait=wait)],
        cwd=ROOT,
        env=process.environment(),
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert program.stdout is not None
    assert program.stdout.readline() == "ready\n"
    return program


def test_a_program_that_is_killed_leaves_no_process_and_no_memory_behind():
    program = begun(wait=True)
    pids = family(program.pid)
    assert sorted(map(name, pids)) == ["trireme-data-0", "trireme-data-1", "trireme-keeper"]
    # What they share has no name in any directory, so it goes with the last of them.
    maps = "".join(Path(f"/proc/{pid}/maps").read_text() for pid in (program.pid, *pids))
    assert "/memfd:trireme-samples" in maps
    assert "/dev/shm/" not in maps
    program.kill()
    program.communicate()
    assert gone(pids)


def test_a_signal_to_the_whole_group_does_not_take_the_workers_before_the_program():
    program = begun(wait=True)
    pids = family(program.pid)
    os.killpg(program.pid, signal.SIGTERM)
    for pid in pids:  # a scheduler may know them all
        try:
            os.kill(pid, signal.SIGTERM)
        except ProcessLookupError:
            assert program.poll() is not None
    program.communicate()
    assert program.returncode == -signal.SIGTERM
    assert gone(pids)


HEEDFUL = """
import json, signal, sys
from actors.data import Loader

stopping = []
signal.signal(signal.SIGTERM, lambda *_: stopping.append(1))
loader = Loader(range(400), 4, num_workers=2)
batches = iter(loader)
print("ready", flush=True)
seen = []
while not stopping:
    seen += [int(i) for i in next(batches)][:2]
    signal.sigtimedwait([], 0.02)
# Two batches more, as for a checkpoint at the end of a step, and the state.
more = [int(i) for _ in range(2) for i in next(batches)]
print(json.dumps([len(seen) // 2, more, loader.state_dict()["batches"]]))
"""


def test_a_program_told_to_stop_still_gets_batches_for_its_last_step():
    program = subprocess.Popen(
        [sys.executable, "-c", HEEDFUL], cwd=ROOT, env=process.environment(),
        stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert program.stdout is not None
    assert program.stdout.readline() == "ready\n"
    time.sleep(0.3)
    for pid in family(program.pid):
        os.kill(pid, signal.SIGTERM)
    os.killpg(program.pid, signal.SIGTERM)
    out, _ = program.communicate(timeout=20)
    steps, more, batches = json.loads(out)
    assert more == list(range(4 * steps, 4 * steps + 8))
    assert batches == steps + 2


def test_a_forgotten_loader_ends_its_processes():
    made = loader()
    next(iter(made))
    pids = family(os.getpid())
    assert pids
    del made
    assert gone(pids)


@pytest.mark.parametrize("order", ["strict", "ready"])
@pytest.mark.slow
def test_deliveries_stay_exact_through_two_hundred_kills(tmp_path: Path, order: Any):
    def work(i: int) -> int:
        time.sleep(0.002)
        return i

    path, n = tmp_path / "ledger.sqlite", 4000
    killed, found = 0, list[int]()
    with Loader(
        range(n), 10, stages=[work], num_workers=3, shuffle=True, order=order, ledger=path,
        max_deaths=50, prefetch_batches=2,
    ) as made:  # fmt: skip
        while killed < 200:
            for k, batch in enumerate(made):
                found += [int(i) for i in batch]
                if killed < 200 and k % 4 == 0:
                    victims = [pid for pid in family(os.getpid()) if "data" in name_or(pid)]
                    os.kill(victims[killed % len(victims)], signal.SIGKILL)
                    killed += 1
        epochs = made.epoch
    assert sorted(found) == sorted(list(range(n)) * epochs)
    assert recorded(path) == found


def name_or(pid: int) -> str:
    try:
        return name(pid)
    except OSError:
        return ""


def recorded(path: Path) -> list[int]:
    import contextlib
    import sqlite3

    with contextlib.closing(sqlite3.connect(path)) as db:
        query = "SELECT sample FROM delivered ORDER BY epoch, step, offset"
        return [sample for (sample,) in db.execute(query)]
