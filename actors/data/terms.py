"""From the topology: what workers are told, what a step is, what batches depend on."""

from dataclasses import dataclass

import msgspec

from actors.data.cutoffs import NEVER_S
from actors.data.feed import Shape
from actors.data.sample import Options
from actors.data.stages import stage_names
from actors.data.tokenizer import Encoder, digest_of
from actors.topology import DataSpec, Topology
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
            "fim_share": data.fim_share,
            "verify": data.verify,
            "verify_every_n": data.verify_every_n,
            "licences": list(data.licences),
            "licence_field": data.licence_field,
        },
    )
    return Terms(plan, tokenizer, topology.model.vocab_size, data.lease_s)


def options_of(plan: DataPlan, encoder: Encoder | None) -> Options:
    """What stages are told, out of what workers are."""
    said = plan.options
    return Options(
        max_sample_bytes=plan.max_sample_bytes,
        encoder=encoder,
        seed=int(said.get("seed", 0)),
        augment_share=float(said.get("augment_share", 0.0)),
        fim_share=float(said.get("fim_share", 0.0)),
        verify=bool(said.get("verify", False)),
        verify_every_n=int(said.get("verify_every_n", 1)),
        licences=tuple(str(name) for name in said.get("licences", ())),
        licence_field=str(said.get("licence_field", "")),
    )


def facts_of(topology: Topology, tokenizer: bytes) -> dict[str, str]:
    """What the composition of batches depends on: a ledger begun under other facts is refused.

    Not among them: how many trainers there are and how many rows each has (see `Batches`).
    """
    return {
        "seed": str(topology.seed),
        "data.sources": msgspec.json.encode(topology.data.sources).decode(),
        "data.order": topology.data.order,
        "data.held_out_share": repr(topology.data.held_out_share),
        "what is done to samples": _treatment(topology.data),
        "model.seq_len": str(topology.model.seq_len),
        "tokenizer.json": digest_of(tokenizer),
    }


def _treatment(data: DataSpec) -> str:
    """Everything that decides what a sample becomes, or whether it is used."""
    keys = (
        "verify", "verify_every_n", "augment_share", "fim_share", "stages", "licences",
        "licence_field", "near_duplicates", "max_sample_bytes", "worker_memory_mb",
    )  # fmt: skip
    return msgspec.json.encode({key: getattr(data, key) for key in keys}).decode()
