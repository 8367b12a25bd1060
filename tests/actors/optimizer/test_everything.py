"""All techniques at once: killed, stopped and resumed, a run keeps its digests."""

import random
from pathlib import Path

import pytest

from actors import checkpoints
from actors.optimizer.layout import kept_tensors
from actors.parameters import parameters
from tests.actors.exchange import Exchange, Letter, PostOffice, tiny
from tests.actors.optimizer.test_codecs_in_exchange import digests_of, plain

COMMON = (
    "actors.trainers=2",
    "actors.optimizer_shards=2",
    "steps=6",
    "checkpoint.every_steps=3",
    "model.ffn_dim=192",
    "model.streams=2",
    "model.predict_tokens=2",
    "model.activation_checkpointing=true",
    "train.accumulation=2",
    "train.precision=nvfp4",
    "train.filter=loss",
    "optimizer.matrices.kind=muon8bit",
    "optimizer.dense.kind=foam",
    "optimizer.dense.level=3",
    "optimizer.dense_codec=int8",
    "optimizer.dense_updates=two_bit",
    "optimizer.fire_at=[4]",
)
GALORE = (
    *COMMON,
    "optimizer.codec=int4_rotated",
    "optimizer.matrices.projection=galore",
    "optimizer.matrices.rank=24",
    "optimizer.matrices.refresh_every=2",
    "optimizer.matrices.moments=rotate",
)
GUM = (
    *COMMON,
    "optimizer.codec=int8",
    "optimizer.matrices.projection=gum",
    "optimizer.matrices.rank=8",
    "optimizer.matrices.refresh_every=2",
    "optimizer.matrices.neuron_beta2=0.9",
)
FEEDBACK = (*COMMON, "optimizer.codec=ternary_rotated", "optimizer.matrices.neuron_beta2=0.9")
EVERY = pytest.mark.parametrize(
    "settings", [GALORE, GUM, FEEDBACK], ids=["galore", "gum", "feedback"]
)


@EVERY
def test_everything_on_equals_one_process(settings: tuple[str, ...]):
    assert digests_of(Exchange(tiny(*settings))) == plain(*settings)


@EVERY
def test_kill_stop_and_resume_keep_every_digest(tmp_path: Path, settings: tuple[str, ...]):
    """Anybody dies at any moment, letters get lost, the run is stopped in the middle of a step,
    resumed by other shards, and stopped and resumed again.
    """
    draw = random.Random(0)
    topology = tiny(*settings)
    found: dict[int, str] = {}
    for shards in (2, 1, 2):
        cut = tiny(*settings, f"actors.optimizer_shards={shards}")
        exchange = Exchange(cut, PostOffice(tamper=lossy(draw)), directory=tmp_path)
        further = draw.randint(2, 3)
        begun = exchange.shards[0].rounds.committed
        # Checkpoints are written by a thread: how far a life came when it was stopped may differ.
        until = topology.steps if shards == 2 and begun else min(begun + further, topology.steps)
        disturb(exchange, draw, until)
        exchange.office.tamper = lambda letter: [letter]
        if until < topology.steps:
            exchange.stop()
        for record in exchange.records():
            assert (
                found.setdefault(record["step"], record["weights_digest"])
                == (record["weights_digest"])
            )
    assert [found[step] for step in sorted(found)] == plain(*settings)


@EVERY
def test_a_checkpoint_holds_everything(tmp_path: Path, settings: tuple[str, ...]):
    """Masters, moments, bases, codes and scales, and what every rank's codecs remember."""
    topology = tiny(*settings)
    exchange = Exchange(topology, directory=tmp_path)
    exchange.run()
    exchange.settle()
    newest = checkpoints.newest(tmp_path, pytest.fail)
    assert newest is not None
    names: set[str] = set()
    for file in newest.tensor_files():
        names |= set(file._file.keys())
    for parameter in parameters(topology.model):
        for spec in kept_tensors(topology.optimizer, parameter):
            assert checkpoints.tensor_name(parameter.name, spec.name) in names
    remembered = {name for name in names if ":memory." in name}
    assert bool(remembered) == (settings is FEEDBACK)
    assert bool({name for name in names if ":basis" in name}) == (settings is not FEEDBACK)
    assert {name.split(":memory.")[1][0] for name in remembered} <= {"0", "1"}


def lossy(draw: random.Random):
    def tamper(letter: Letter) -> list[Letter]:
        return [letter] * draw.choices([0, 1, 2], [0.03, 0.94, 0.03])[0]

    return tamper


def disturb(exchange: Exchange, draw: random.Random, until: int) -> None:
    """Go on until that step is committed, with deaths."""
    for _ in range(20_000):
        exchange.clock.advance(0.02)
        for actor in (*exchange.trainers, *exchange.shards):
            actor.tick()
        for keeper in exchange.keepers.values():
            keeper.tick(exchange.clock.now())
        for trainer in exchange.trainers:
            if trainer.may_compute:
                trainer.compute()
        exchange.deliver(draw.randint(1, 60))
        if draw.random() < 0.02:
            index = draw.randrange(len(exchange.shards))
            exchange.shards[index] = exchange.new_shard(index)
        if draw.random() < 0.02:
            rank = draw.randrange(2)
            exchange.trainers[rank].close()
            exchange.trainers[rank] = exchange.new_trainer(rank)
        if exchange.shards[0].rounds.committed >= until:
            return
    raise AssertionError([shard.rounds.waiting_for() for shard in exchange.shards])
