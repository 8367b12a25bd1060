"""From the topology: what workers are told, what a step is, what batches depend on."""

from dataclasses import dataclass

import msgspec

from actors.data.cutoffs import NEVER_S
from actors.data.feed import Shape
from actors.data.stages import stage_names
from actors.data.tokenizer import digest_of
from actors.topology import Topology
from protocol.messages import DataPlan


@dataclass(frozen=True, slots=True)
class Terms:
    """What workers are told and held to."""

    plan: DataPlan
    tokenizer: bytes
    vocab_size: int
    lease_s: float


def shape_of(topology: Topology) -> Shape:
    """What one step of this run consists of."""
    return Shape(
        ranks=topology.actors.trainers,
        rows=topology.train.rows_per_trainer * topology.train.accumulation,
        row_tokens=topology.model.seq_len + 1,
        steps=topology.steps,
        lookahead=topology.data.lookahead_batches,
    )


def terms_of(topology: Topology, tokenizer: bytes) -> Terms:
    """What data workers are told."""
    data = topology.data
    plan = DataPlan(
        tokenizer_digest=digest_of(tokenizer),
        stages=stage_names(data),
        # Without slow workers a hand-over would only move the work to another fast one.
        cutoff_s=data.cutoff_ms / 1000 if topology.actors.slow_workers else NEVER_S,
        max_sample_bytes=data.max_sample_bytes,
        heartbeat_s=topology.supervision.heartbeat_s,
        options={
            "credit": data.credit,
            "seed": topology.seed,
            "augment_share": data.augment_share,
        },
    )
    return Terms(plan, tokenizer, topology.model.vocab_size, data.lease_s)


def facts_of(topology: Topology, tokenizer: bytes) -> dict[str, str]:
    """What the composition of batches depends on: a ledger begun under other facts is refused."""
    shape = shape_of(topology)
    return {
        "seed": str(topology.seed),
        "data.sources": msgspec.json.encode(topology.data.sources).decode(),
        "data.order": topology.data.order,
        "data.held_out_share": repr(topology.data.held_out_share),
        "actors.trainers": str(shape.ranks),
        "rows of each trainer in a step": str(shape.rows),
        "model.seq_len": str(shape.row_tokens - 1),
        "tokenizer.json": digest_of(tokenizer),
    }
