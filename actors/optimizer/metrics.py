"""The record of one committed step, from what trainers and shards said about it. Pure."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from actors.optimizer.state import Counts, Facts


class Clocked(NamedTuple):
    """What shard 0 measured about a step."""

    step_s: float  # since the commit of the step before, or since the first sign of a trainer
    optimizer_s: float  # computing in this shard
    lr: float  # of the matrices
    dense_lr: float


def step_record(
    step: int,
    facts: Mapping[int, Facts],
    counts: Counts,
    clocked: Clocked,
    weights_digest: str,
) -> dict[str, Any]:
    """One line of metrics.jsonl.

    loss is nats per counted target, bits_per_byte the same over the bytes of text behind them.
    up_bytes and down_bytes are what gradients and updates of this step took in their codecs, summed
    over trainers, whether they travelled as frames or through shared memory. data_wait_s is the
    longest that a trainer waited for its batch.
    """
    said = facts.values()
    tokens = sum(f.tokens for f in said)
    text_bytes = sum(f.text_bytes for f in said)
    loss_sum = math.fsum(f.loss_sum for f in said)
    objective_sum = math.fsum(f.objective_sum for f in said)
    return {
        "step": step,
        "loss": loss_sum / max(tokens, 1),
        "bits_per_byte": loss_sum / math.log(2) / max(text_bytes, 1),
        "tokens": tokens,
        "lr": clocked.lr,
        "step_s": round(clocked.step_s, 6),
        "data_wait_s": round(max(f.data_wait_s for f in said), 6),
        "up_bytes": counts.up_bytes,
        "down_bytes": counts.down_bytes,
        "flips": counts.flips,
        "weights_digest": weights_digest,
        "objective": objective_sum / max(tokens, 1),
        "text_bytes": text_bytes,
        "dense_lr": clocked.dense_lr,
        "optimizer_s": round(clocked.optimizer_s, 6),
        "sent_bytes": sum(f.up_bytes for f in said),
    }
