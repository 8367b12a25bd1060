"""A loader in somebody's own script: order, resuming, and that it gives what a list would."""

import gc
import itertools
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actors.data import Loader, waiting
from actors.data.alone.state import StateError
from tests.actors.data.alone import tricks
from tests.actors.data.alone.tricks import pair

N, B = 103, 8


def jitter(value: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    """Draws from everything a stage may draw from."""
    drawn = [rng.random(), random.random(), float(np.random.rand())]
    return {**value, "x": value["x"] + np.float32(drawn[0]), "drawn": drawn}


def loader(**changes: Any) -> Loader:
    wanted: dict[str, Any] = {
        "stages": [pair], "shuffle": True, "seed": 5, "num_workers": 2, **changes
    }  # fmt: skip
    return Loader(range(N), B, **wanted)


def flat(batches: list[list[int]]) -> list[int]:
    return list(itertools.chain.from_iterable(batches))


def plain(batch: Any) -> Any:
    return {name: np.asarray(value).tolist() for name, value in batch.items()}


def samples_of(made: Loader, batches: int = 10**9) -> list[list[int]]:
    """Sample numbers of the batches of one epoch, or of its first few."""
    found: list[list[int]] = []
    iterator = iter(made)
    while len(found) < batches and (batch := next(iterator, None)) is not None:
        found.append(batch["i"].tolist())
        assert list(made.samples) == found[-1]
    return found


@pytest.mark.parametrize("order", ["strict", "ready"])
def test_every_sample_of_every_epoch_comes_once_the_last_ones_included(order: str):
    with loader(order=order) as made:
        for _ in range(3):
            batches = samples_of(made)
            assert [len(batch) for batch in batches] == [B] * (N // B) + [N % B]
            assert sorted(flat(batches)) == list(range(N))
            assert len(batches) == len(made)


def test_strict_batches_do_not_depend_on_the_number_of_workers():
    found: list[Any] = []
    for workers in (1, 3):
        with loader(num_workers=workers, stages=[pair, jitter]) as made:
            found.append([plain(batch) for _ in range(2) for batch in made])
    assert found[0] == found[1]
    epochs = found[0][: len(found[0]) // 2], found[0][len(found[0]) // 2 :]
    assert epochs[0] != epochs[1]


def test_without_shuffling_samples_come_in_their_own_order():
    with loader(shuffle=False) as made:
        assert flat(samples_of(made)) == list(range(N))


def test_a_last_batch_that_is_not_full_can_be_dropped():
    with loader(drop_last=True) as made:
        batches = samples_of(made)
        assert [len(batch) for batch in batches] == [B] * (N // B)
        assert len(made) == N // B
        assert len(samples_of(made)) == N // B


@pytest.mark.parametrize("order", ["strict", "ready"])
@pytest.mark.parametrize("at", [0, 1, 6, N // B - 2])
def test_a_resumed_epoch_goes_on_where_it_was_twice_and_with_other_workers(order: str, at: int):
    with loader(order=order) as made:
        first = samples_of(made, at)
        state = made.state_dict()
    with loader(order=order, num_workers=3) as made:
        made.load_state_dict(state)
        second = samples_of(made, 2)
        state = made.state_dict()
    with loader(order=order, num_workers=1) as made:
        made.load_state_dict(state)
        third = samples_of(made)
        after = samples_of(made)
    assert sorted(flat(first + second + third)) == list(range(N))
    if order == "strict":
        with loader() as made:
            assert first + second + third == samples_of(made)
            assert after == samples_of(made)


@pytest.mark.parametrize("order", ["strict", "ready"])
def test_after_a_state_from_the_end_of_an_epoch_nothing_is_left_of_it(order: str):
    with loader(order=order) as made:
        iterator = iter(made)
        for _ in range(len(made)):
            next(iterator)
        at_last_batch = made.state_dict()
        assert next(iterator, None) is None
        after_it = made.state_dict()
        second = samples_of(made)
    with loader(order=order) as made:
        made.load_state_dict(at_last_batch)
        assert samples_of(made) == []
        assert made.epoch == 1
        made.load_state_dict(after_it)
        found = samples_of(made)
        assert sorted(flat(found)) == list(range(N))
        assert order == "ready" or found == second


def test_a_state_is_plain_and_small():
    import json

    with Loader(range(200_000), 100, shuffle=True, num_workers=2) as made:
        samples = iter(made)
        for _ in range(300):
            next(samples)
        text = json.dumps(made.state_dict())
    assert len(text) < 1000
    with Loader(range(200_000), 100, shuffle=True, num_workers=1) as made:
        made.load_state_dict(json.loads(text))
        next(iter(made))
        assert made.state_dict()["batches"] == 301


def test_a_state_loaded_under_an_iterator_counts_for_it():
    with loader() as made:
        iterator = iter(made)
        expected = [next(iterator)["i"].tolist() for _ in range(6)]
        with loader() as other:
            samples_of(other, 3)
            made.load_state_dict(other.state_dict())
        assert [next(iterator)["i"].tolist() for _ in range(3)] == expected[3:]


def test_an_epoch_that_is_broken_off_is_followed_by_the_next_one():
    with loader() as made:
        samples_of(made, 3)
        second = samples_of(made)
        assert made.epoch == 2
    with loader() as made:
        samples_of(made)
        assert samples_of(made) == second


def test_an_epoch_that_is_over_stays_over():
    with loader() as made:
        iterator = iter(made)
        while next(iterator, None) is not None:
            pass
        assert next(iterator, None) is None


@pytest.mark.parametrize("order", ["strict", "ready"])
def test_ranks_share_an_epoch_and_resume_as_any_other_number_of_ranks(order: str):
    states: list[Any] = []
    seen: list[int] = []
    for rank in range(3):
        with loader(rank=rank, ranks=3, order=order) as made:
            seen += flat(samples_of(made, 2))
            states.append(made.state_dict())
    assert len(seen) == len(set(seen)) == 3 * 2 * B
    rest: list[int] = []
    counts: list[int] = []
    for rank in range(2):
        with loader(rank=rank, ranks=2, order=order) as made:
            made.load_state_dict(states)
            batches = samples_of(made)
            counts.append(len(flat(batches)))
            rest += flat(batches)
    assert sorted(seen + rest) == list(range(N))
    assert abs(counts[0] - counts[1]) <= 1


@pytest.mark.parametrize("order", ["strict", "ready"])
def test_each_rank_goes_on_from_its_own_state_and_after_closing(order: str):
    calm: list[int] = []
    for rank in range(2):
        with loader(rank=rank, ranks=2) as made:
            calm += flat(samples_of(made))
    seen: list[int] = []
    for rank in range(2):
        with loader(rank=rank, ranks=2, order=order) as made:
            seen += flat(samples_of(made, 2 + rank))
            state = made.state_dict()
        with loader(rank=rank, ranks=2, order=order) as made:
            made.load_state_dict(state)
            iterator = iter(made)
            seen += next(iterator)["i"].tolist()
            made.close()
            seen += flat([batch["i"].tolist() for batch in iterator])
    assert sorted(seen) == list(range(N))
    assert order == "ready" or seen == calm


def test_a_closed_loader_goes_on_with_new_workers():
    with loader() as calm:
        expected = samples_of(calm)
    made = loader()
    iterator = iter(made)
    found = [next(iterator)["i"].tolist() for _ in range(4)]
    made.close()
    found += [batch["i"].tolist() for batch in iterator]
    made.close()
    assert found == expected


def test_states_of_something_else_are_refused_in_words():
    with loader() as made:
        state = made.state_dict()
        for wrong, why in (
            ({**state, "samples": 7}, "samples = 7"),
            ({**state, "seed": 6}, "seed = 6"),
            ({**state, "format": 9}, "format 9"),
            ({"step": 3}, "no state of a loader"),
            ({**state, "settled": "?"}, "damaged"),
            ([state, {**state, "epoch": 3}], "different epochs"),
            ([], "no state"),
        ):
            with pytest.raises(StateError, match=why):
                made.load_state_dict(wrong)


def test_ready_batches_are_the_same_again_after_an_older_state(tmp_path: Path):
    path = tmp_path / "ledger.sqlite"
    with loader(order="ready", ledger=path) as made:
        samples_of(made, 3)
        state = made.state_dict()
        expected = [*samples_of_rest(made, 5)]
    with loader(order="ready", ledger=path, num_workers=1) as made:
        made.load_state_dict(state)
        found = samples_of(made)
    assert found[:5] == expected
    assert len(flat(found)) == N - 3 * B


def samples_of_rest(made: Loader, batches: int) -> list[list[int]]:
    """Go on with an iterator that exists."""
    state = made.state_dict()
    made.load_state_dict(state)
    return samples_of(made, batches)


def test_waits_overlap_in_threads_and_in_event_loops():
    import asyncio
    import time

    def sleep(i: int) -> int:
        time.sleep(0.2)
        return i

    async def async_sleep(i: int) -> int:
        await asyncio.sleep(0.2)
        return i

    for stage in (waiting(sleep, parallel=50), async_sleep):
        with Loader(range(100), 10, stages=[stage], num_workers=1, prefetch_batches=10) as made:
            began = time.monotonic()
            assert np.concatenate(list(made)).tolist() == list(range(100))
            assert time.monotonic() - began < 2.0


def test_a_slow_sample_is_handed_over_and_nothing_is_done_twice(tmp_path: Path):
    path = tmp_path / "notes"

    def cost(i: int) -> int:
        tricks.busy(0.12 if i % 11 == 5 else 0.002)
        return i

    stages = [cost, tricks.noting(path, "first"), cost, tricks.noting(path, "second")]
    with Loader(range(110), 5, stages=stages, num_workers=2, order="ready") as made:
        assert sorted(np.concatenate(list(made)).tolist()) == list(range(110))
        assert 0.001 < made.status()["cutoff_s"] < 0.05
        assert made.status()["handed_over"] > 0
    done = [(name, sample) for name, sample, _ in tricks.notes(path)]
    assert len(done) == len(set(done)) == 220


@pytest.mark.parametrize("slow", [3, 4])
def test_what_is_done_does_not_lie_behind_a_slow_sample(tmp_path: Path, slow: int):
    over = tmp_path / "over"

    def stage(i: int) -> int:
        while i == slow and not over.exists():
            tricks.busy(0.01)
        return i

    with Loader(range(9), 3, stages=[stage], num_workers=1, max_workers=1) as made:
        batches = iter(made)
        assert next(batches).tolist() == [0, 1, 2]  # or the test hangs
        over.touch()
        assert [batch.tolist() for batch in batches] == [[3, 4, 5], [6, 7, 8]]


def test_arrays_come_without_a_copy_and_give_their_memory_back():
    def image(i: int) -> np.ndarray[Any, Any]:
        return np.full((256, 1024), i % 251, np.uint8)

    with Loader(
        range(400), 4, stages=[image], num_workers=2, collate_fn=list, memory_bytes=32 << 20
    ) as made:
        kept = None
        for k, batch in enumerate(made):
            assert [int(array[0, 0]) for array in batch] == [(4 * k + j) % 251 for j in range(4)]
            assert all(array.base is not None for array in batch)
            batch[0][:] = 7
            kept = batch[1] if k == 3 else kept
        assert kept is not None
        assert (kept == 13).all()
    gc.collect()


def test_more_than_the_shared_memory_holds_arrives_all_the_same():
    def image(i: int) -> np.ndarray[Any, Any]:
        return np.full((64, 4096), i, np.uint16)

    with Loader(
        range(60), 20, stages=[image], num_workers=2, max_workers=2, memory_bytes=1 << 20
    ) as made:
        found = [batch[:, 5, 5].tolist() for batch in made]
    assert flat(found) == list(range(60))


def test_torch_tensors_and_collate_functions_are_at_home():
    torch = pytest.importorskip("torch")
    from torch.utils.data import TensorDataset, default_collate

    data = TensorDataset(torch.arange(20.0).reshape(10, 2), torch.arange(10))
    for collate_fn in (None, default_collate):
        with Loader(data, 4, num_workers=1, collate_fn=collate_fn) as made:
            first = next(iter(made))
        assert torch.equal(first[0], torch.arange(8.0).reshape(4, 2))
        assert first[1].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"batch_size": 0}, "batch_size is 0; accepted: 1 or more"),
        ({"num_workers": 0}, "num_workers is 0"),
        ({"order": "fast"}, '"strict" or "ready"'),
        ({"rank": 2, "ranks": 2}, "rank is 2 of 2"),
        ({"stages": ["nowhere:f"]}, "names no function"),
        ({"max_bad_share": 2}, "max_bad_share is 2"),
        ({"dataset": []}, "the data set is empty"),
    ],
)
def test_what_cannot_be_is_refused_at_once(wrong: dict[str, Any], why: str):
    everything: dict[str, Any] = {"dataset": range(3), **wrong}
    with pytest.raises(ValueError, match=why):
        Loader(**everything)


def test_samples_that_do_not_fit_together_are_named():
    with (
        Loader(range(8), 4, stages=[np.zeros], num_workers=1) as made,
        pytest.raises(ValueError, match=r"shapes \(0,\), \(1,\)"),
    ):
        list(made)
