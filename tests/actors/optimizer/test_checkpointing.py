"""Checkpoints of shards: in the background, complete or not there, and resumed bit for bit."""

import errno
import random
import shutil
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actors import checkpoints
from actors.checkpoints import CLOSING, CheckpointError, published_parameters
from actors.optimizer import writer
from actors.optimizer.checkpointing import RunFailed
from actors.optimizer.restore import to_go_on_from
from actors.parameters import parameters
from actors.published import Array
from actors.topology import Topology
from tests.actors.exchange import Exchange, tiny

STEPS = 6


def setting(*overrides: str, shards: int = 2) -> Topology:
    return tiny(
        f"steps={STEPS}",
        "actors.trainers=2",
        f"actors.optimizer_shards={shards}",
        "checkpoint.every_steps=2",
        *overrides,
    )


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@pytest.fixture(scope="module")
def digests() -> list[str]:
    exchange = Exchange(setting())
    exchange.run()
    return [record["weights_digest"] for record in exchange.records()]


def digests_of(exchange: Exchange) -> list[str]:
    return [record["weights_digest"] for record in exchange.records()]


def test_checkpoints_appear_and_only_the_newest_stay(tmp_path: Path, digests: list[str]):
    exchange = Exchange(setting(), directory=tmp_path)
    for _ in exchange.turns():
        exchange.settle()
    exchange.settle()
    assert names(tmp_path) == ["step-00000004", "step-00000006"]
    found = checkpoints.newest(tmp_path, pytest.fail)
    assert found is not None
    assert found.step == found.manifest.committed == STEPS
    assert found.manifest.weights_digest == digests[-1]
    assert [record["step"] for record in found.metrics()] == [1, 2, 3, 4, 5, 6]
    assert names(found.path) == sorted([*found.manifest.files, "manifest.json"])


@pytest.mark.parametrize(("before", "after"), [(1, 1), (2, 1), (1, 3), (3, 2)])
def test_resuming_is_as_if_nothing_had_happened(
    tmp_path: Path, digests: list[str], before: int, after: int
):
    first = Exchange(setting("steps=4", shards=before), directory=tmp_path)
    first.run()
    first.settle()
    second = Exchange(setting(shards=after), directory=tmp_path)
    second.run()
    assert digests_of(second) == digests


def test_compressed_states_are_resumed_bit_for_bit(tmp_path: Path):
    small = ("optimizer.matrices.kind=muon8bit", "optimizer.matrices.neuron_beta2=0.9")
    dense = ("optimizer.dense.kind=adamw8bit",)
    undisturbed = Exchange(setting(*small, *dense)).run()
    first = Exchange(setting(*small, *dense, "steps=4", shards=1), directory=tmp_path)
    first.run()
    first.settle()
    assert Exchange(setting(*small, *dense), directory=tmp_path).run() == undisturbed
    with pytest.raises(CheckpointError, match="another model or optimizer"):
        Exchange(setting(), directory=tmp_path)


@pytest.mark.parametrize("seed", range(8))
def test_a_stop_in_the_middle_of_a_step_loses_nothing(
    tmp_path: Path, digests: list[str], seed: int
):
    """Stopped at any moment, again and again, with any number of shards each time."""
    draw = random.Random(seed)
    for _ in range(3):
        shards = draw.choice([1, 2, 3])
        exchange = Exchange(
            setting("checkpoint.every_steps=100", shards=shards), directory=tmp_path
        )
        for _ in range(draw.randrange(1, 5)):
            exchange.turn()
        exchange.clock.advance(0.1)
        for trainer in exchange.trainers[: draw.randrange(3)]:
            trainer.tick()
            if trainer.may_compute:
                trainer.compute()
        letters = exchange.office.letters
        kept = draw.randrange(len(letters) + 1)
        exchange.deliver(kept)
        letters.clear()  # what the stop cuts off
        exchange.stop()
        assert not (tmp_path / CLOSING).exists()
    last = Exchange(setting(), directory=tmp_path)
    last.run()
    assert digests_of(last) == digests


def test_a_stop_right_after_a_checkpoint_writes_none(tmp_path: Path):
    exchange = Exchange(setting(), directory=tmp_path)
    while exchange.shards[0].rounds.committed < 2:
        exchange.turn()
    exchange.settle()
    assert exchange.keepers[0].exists(2)
    saved = exchange.keepers[0].saved
    for shard in exchange.shards:
        assert shard.rounds.complete == saved
    exchange.stop()
    assert names(tmp_path) == ["step-00000002"]


def test_a_checkpoint_shows_one_moment_while_training_goes_on(
    tmp_path: Path, digests: list[str], monkeypatch: pytest.MonkeyPatch
):
    """The thread is held back until the state has moved on by a step."""
    gate = threading.Event()
    write = writer.write_tensors

    def slow(path: Path, specs: Any, arrays: Iterable[Array], metadata: Any) -> str:
        assert gate.wait(30)
        return write(path, specs, arrays, metadata)

    monkeypatch.setattr(writer, "write_tensors", slow)
    exchange = Exchange(setting("checkpoint.every_steps=3"), directory=tmp_path)
    while exchange.shards[0].rounds.committed < 5:
        exchange.turn()
    gate.set()
    exchange.settle()
    found = checkpoints.newest(tmp_path, pytest.fail)
    assert found is not None
    assert found.manifest.weights_digest == digests[2]
    shutil.rmtree(tmp_path / "step-00000006", ignore_errors=True)
    again = Exchange(setting(), directory=tmp_path)
    again.run()
    assert digests_of(again) == digests


def test_a_full_disk_costs_a_checkpoint_but_not_the_run(
    tmp_path: Path, digests: list[str], monkeypatch: pytest.MonkeyPatch
):
    write, full = writer.write_tensors, [False]

    def maybe(path: Path, specs: Any, arrays: Any, metadata: Any) -> str:
        if full[0] and path.name.startswith("matrices"):
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, specs, arrays, metadata)

    monkeypatch.setattr(writer, "write_tensors", maybe)
    exchange = Exchange(setting(), directory=tmp_path)
    for _ in exchange.turns():
        exchange.settle()
        full[0] = 2 <= exchange.shards[0].rounds.committed < 5
    exchange.settle()
    assert digests_of(exchange) == digests
    warned = [fields for event, fields in exchange.events if event == "checkpoint given up"]
    assert [fields["step"] for fields in warned] == [4]
    assert "No space left on device" in str(warned[0]["why"])
    assert names(tmp_path) == ["step-00000002", "step-00000006"]


def test_a_disk_that_gives_back_other_bytes_costs_a_checkpoint_but_not_the_run(
    tmp_path: Path, digests: list[str], monkeypatch: pytest.MonkeyPatch
):
    write, lies = writer.write_tensors, [False]

    def forgets(path: Path, specs: Any, arrays: Any, metadata: Any) -> str:
        sha = write(path, specs, arrays, metadata)
        if lies[0]:
            data = bytearray(path.read_bytes())
            data[-1] ^= 1
            path.write_bytes(data)
        return sha

    monkeypatch.setattr(writer, "write_tensors", forgets)
    exchange = Exchange(setting(), directory=tmp_path)
    for _ in exchange.turns():
        exchange.settle()
        lies[0] = 2 <= exchange.shards[0].rounds.committed < 5
    exchange.settle()
    assert digests_of(exchange) == digests
    said = [fields["why"] for event, fields in exchange.events if event == "checkpoint given up"]
    assert said
    assert all("reads back otherwise" in str(why) for why in said)
    for path in checkpoints.listing(tmp_path):
        checkpoints.verify(path)


def test_the_last_checkpoint_is_tried_again_and_then_the_run_ends_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def full(path: Path, specs: Any, arrays: Any, metadata: Any) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    exchange = Exchange(setting(shards=1), directory=tmp_path)
    while exchange.shards[0].rounds.committed < STEPS - 1:
        exchange.turn()
    exchange.settle()
    write = writer.write_tensors
    monkeypatch.setattr(writer, "write_tensors", full)
    while not exchange.shards[0].rounds.finished:
        exchange.turn()
    settle_often(exchange, 5)
    assert exchange.keepers[0].saved == 4
    monkeypatch.setattr(writer, "write_tensors", write)
    exchange.clock.advance(3.0)
    exchange.settle()
    exchange.settle()
    assert exchange.keepers[0].saved == STEPS

    shutil.rmtree(tmp_path / "step-00000006")
    monkeypatch.setattr(writer, "write_tensors", full)
    exchange.keepers[0].due(STEPS)
    with pytest.raises(RunFailed, match="free some space"):
        settle_often(exchange, 40)


def settle_often(exchange: Exchange, times: int) -> None:
    for _ in range(times):
        exchange.clock.advance(3.0)
        exchange.settle()


def test_a_replaced_shard_writes_its_part_again(tmp_path: Path, digests: list[str]):
    exchange = Exchange(setting("steps=2"), directory=tmp_path)
    exchange.run()
    exchange.keepers[0]._writer.poll(10)  # its result is lost with it
    exchange.office.letters.clear()
    exchange.shards[0] = exchange.new_shard(0)
    exchange.shards[1] = exchange.new_shard(1)
    for _ in range(5):
        exchange.turn()
        exchange.settle()
    assert names(tmp_path) == ["step-00000002"]
    found = checkpoints.newest(tmp_path, pytest.fail)
    assert found is not None
    assert found.manifest.weights_digest == digests[1]


def test_published_weights_are_read_without_the_shards(tmp_path: Path, digests: list[str]):
    exchange = Exchange(setting(), directory=tmp_path)
    exchange.run()
    exchange.settle()
    found = checkpoints.newest(tmp_path, pytest.fail)
    assert found is not None
    params = parameters(exchange.topology.model)
    weights = published_parameters(found, params)
    state = exchange.shards[0].state
    for index, place in enumerate(state.layout.places):
        for name, array in state.published(index, STEPS).items():
            assert np.array_equal(weights[place.parameter.name][name], array)


def test_a_run_goes_on_from_a_whole_checkpoint_and_never_from_nothing_instead(tmp_path: Path):
    assert to_go_on_from(tmp_path, pytest.fail) is None
    exchange = Exchange(setting("checkpoint.keep_last=2"), directory=tmp_path)
    exchange.run()
    exchange.settle()
    newest, other = checkpoints.listing(tmp_path)
    skipped: list[str] = []
    (newest / "manifest.json").write_text("{}")
    found = to_go_on_from(tmp_path, skipped.append)
    assert found is not None
    assert (found.path, len(skipped)) == (other, 1)
    (other / "manifest.json").write_text("{}")
    with pytest.raises(CheckpointError, match=rf"no whole checkpoint, {other.name} and all"):
        to_go_on_from(tmp_path, skipped.append)
    assert checkpoints.listing(tmp_path) == [other]


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("seed=7", "made with seed 0"),
        ("model.layers=2", "another model"),
        ("model.dim=64", "another model"),
        ("optimizer.matrices.kind=adamw", "another model or optimizer"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused_with_the_reason(
    tmp_path: Path, override: str, says: str
):
    exchange = Exchange(setting(shards=1), directory=tmp_path)
    exchange.run()
    exchange.settle()
    with pytest.raises(CheckpointError, match=says):
        Exchange(setting(override, shards=1), directory=tmp_path)
