"""How large a simulated run is, and what its samples and gradients amount to.

Everything is small and checkable: a document's tokens follow from its key, a gradient is a whole
number that follows from step, rank, batch and weights, and an update adds it. So the weights after
any step are known beforehand, to the bit.
"""

import random
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import msgspec
import numpy as np

from actors.data.ordering import Key, Order
from actors.data.packing import Tokens
from actors.optimizer.layout import Layout, state_layout
from actors.parameters import Parameter
from actors.published import Array
from actors.topology import (
    ActorCounts,
    CheckpointSpec,
    DataSpec,
    HardwareWanted,
    ModelSpec,
    OptimizerGroup,
    OptimizerSpec,
    ScheduleSpec,
    SupervisionSpec,
    Topology,
    TrainSpec,
)

# Of the simulated runs: short enough for a run of seconds to meet every timeout.
SUPERVISION = SupervisionSpec(
    heartbeat_s=0.5,
    silence_s=2.0,
    hang_s=5.0,
    start_s=4.0,
    intensity=6,
    period_s=15.0,
    backoff_s=0.05,
    backoff_max_s=1.0,
    stop_s=4.0,
    orphan_grace_s=4.0,
    gone_s=0.05,
)
VOCAB = 4096
# Gradients are whole numbers below this; float32 holds sums of a few hundred of them exactly.
_PRIME = 1021
# Four dense parameters: no layers at all.
_MODEL = ModelSpec(dim=2, layers=0, heads=1, loops=1, ffn_dim=64, vocab_size=4, seq_len=8)


@dataclass(frozen=True, slots=True)
class Setting:
    """One simulated run."""

    seed: int
    ranks: int = 2  # a power of two, so that the mean of whole numbers is exact
    shards: int = 2
    fast: int = 2
    slow: int = 1
    remote: int = 0
    rollouts: int = 0
    order: Order = "strict"
    steps: int = 6
    every: int = 2
    samples: int = 24
    rows: int = 2
    seq_len: int = 12
    slots: bool = True  # gradients lie in shared memory; False: they travel as frames
    poison: int = -1  # a sample that kills whoever works on it
    refused: int = -1  # a sample that nobody can use
    elastic: bool = False  # steps go on without ranks that are gone
    stage_s: float = 0.01
    step_s: float = 0.2

    @classmethod
    def drawn(cls, seed: int) -> "Setting":
        """The run of that seed."""
        chance = random.Random(f"setting {seed}")  # noqa: S311 - replayed by its seed
        samples = chance.randint(8, 30)
        return cls(
            seed=seed,
            ranks=chance.choice((1, 2, 2, 2, 4)),
            shards=chance.choice((1, 2, 2, 3)),
            fast=chance.randint(1, 3),
            slow=chance.randint(0, 1),
            remote=chance.choice((0, 0, 1, 2)),
            rollouts=chance.choice((0, 1)),
            order=chance.choice(("strict", "strict", "ready")),
            steps=chance.randint(4, 7),
            every=chance.choice((2, 3)),
            samples=samples,
            rows=chance.choice((1, 2)),
            seq_len=chance.choice((8, 12, 20)),
            slots=chance.random() < 0.5,
            poison=chance.randrange(samples) if chance.random() < 0.2 else -1,
            refused=chance.randrange(samples) if chance.random() < 0.3 else -1,
            stage_s=chance.choice((0.003, 0.01, 0.03)),
            step_s=chance.choice((0.05, 0.2, 0.4)),
            elastic=chance.random() < 0.25,
        )

    def calm_s(self) -> float:
        """About how long the run takes when nothing goes wrong: that is when trouble matters."""
        return 0.8 + self.steps * (1.2 * self.step_s + 0.15)

    def topology(self) -> Topology:
        """What the run's actors are configured with."""
        return _topology(self)

    def document(self, key: Key) -> Tokens:
        """What a worker makes of a sample."""
        epoch, sample = key
        length = 3 + (sample * 37 + self.seed) % 29
        first = (sample * 131 + epoch * 7) % (VOCAB - 64)
        return np.arange(first, first + length, dtype=np.int32)


@lru_cache(maxsize=64)
def _topology(setting: Setting) -> Topology:
    group = OptimizerGroup(kind="adamw", lr=0.1)
    return Topology(
        name="simulated",
        hardware=HardwareWanted(),
        actors=ActorCounts(
            trainers=setting.ranks,
            optimizer_shards=setting.shards,
            rollouts=setting.rollouts,
            fast_workers=setting.fast,
            slow_workers=setting.slow,
        ),
        model=msgspec.structs.replace(_MODEL, seq_len=setting.seq_len),
        train=TrainSpec(rows_per_trainer=setting.rows),
        optimizer=OptimizerSpec(matrices=group, dense=group),
        schedule=ScheduleSpec(stable=setting.steps),
        steps=setting.steps,
        elastic=setting.elastic,
        seed=setting.seed % 2**31,
        data=DataSpec(
            order=setting.order,
            cutoff_ms=1500 * setting.stage_s,
            lease_s=3.0,
            credit=3,
            lookahead_batches=2,
            held_out_share=0.0,
            max_deaths_per_sample=3,
        ),
        supervision=SUPERVISION,
        checkpoint=CheckpointSpec(every_steps=setting.every, keep_last=2),
    )


@lru_cache(maxsize=256)
def layout(topology: Topology, shard: int) -> Layout:
    """The layout of a shard's state, computed once."""
    return state_layout(topology, shard)


# --- sums that can be checked ---------------------------------------------------------------------


def batch_sum(tokens: Array) -> int:
    """One number for what lies in a batch."""
    return zlib.crc32(np.ascontiguousarray(tokens, np.int32).data)


def contribution(step: int, rank: int, param: int, batch: int, weight: float) -> int:
    """The gradient that `rank` must arrive at: every element of it has this value."""
    return (batch + 31 * step + 101 * rank + 7 * param + int(weight)) % _PRIME


def update(
    topology: Topology,
    parameter: Parameter,
    kept: Mapping[str, Array],
    gradient: Array,
    step: int,
    device: str = "cpu",
) -> dict[str, Array]:
    """In place of `updates.updated`: adds the ranks' whole numbers, and remembers the step."""
    del parameter, device
    ranks = topology.actors.trainers
    return {
        # Of an elastic run's ranks some may be missing: then it is no whole number by itself.
        "master": kept["master"] + np.rint(gradient * np.float32(ranks)),
        "mean": kept["mean"] + np.float32(1),
        "square": np.full_like(kept["square"], step),
    }
