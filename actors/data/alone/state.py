"""Where a loader stands: which samples of the epoch have been delivered, and which are left out.

A position is a set, not a number: it says the same whatever the order, the number of workers or of
ranks. It travels as plain values (JSON will do), the set as compressed bits in the epoch's order,
where they are nearly all ones and then all zeros: a million samples take a few hundred bytes.
"""

import base64
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from actors.data.alone.batching import Plan

FORMAT = 1
_FIELDS = ("format", "samples", "seed", "shuffle", "epoch", "batches", "settled", "left_out")


class StateError(ValueError):
    """A state that this loader cannot go on from: says why."""


@dataclass(slots=True)
class Position:
    """Where one rank, or all of them together, stand."""

    settled: NDArray[np.bool_]  # by sample
    epoch: int = 0
    batches: int = 0  # of this epoch, delivered here
    left_out: dict[int, str] = field(default_factory=dict[int, str])

    def delivered(self, samples: Iterable[int]) -> None:
        """A batch was taken."""
        self.settled[np.fromiter(samples, np.int64)] = True
        self.batches += 1

    def next_epoch(self) -> None:
        """All of this one has been delivered, or nobody wants the rest."""
        self.epoch += 1
        self.batches = 0
        self.settled[:] = False


def to_dict(position: Position, plan: Plan) -> dict[str, Any]:
    """Plain values that `from_dicts` understands."""
    in_turn = position.settled[plan.order(position.epoch)]
    packed = zlib.compress(np.packbits(in_turn).tobytes(), 6)
    return {
        "format": FORMAT,
        "samples": plan.samples,
        "seed": plan.seed,
        "shuffle": plan.shuffle,
        "epoch": position.epoch,
        "batches": position.batches,
        "settled": base64.b85encode(packed).decode(),
        "left_out": {str(sample): kind for sample, kind in sorted(position.left_out.items())},
    }


def from_dicts(states: Iterable[Mapping[str, Any]], plan: Plan) -> Position:
    """The position that the states of all ranks of an earlier run make together.

    Raises `StateError` when they are not of this data set, seed and moment.
    """
    found = [_checked(state, plan) for state in states]
    if not found:
        raise StateError("there is no state to go on from; accepted: one, or one of each rank")
    if len({state["epoch"] for state in found}) > 1:
        epochs = ", ".join(str(state["epoch"]) for state in found)
        raise StateError(
            f"the states are of different epochs ({epochs}); accepted: those that all ranks took "
            "after the same step"
        )
    first = found[0]
    position = Position(np.zeros(plan.samples, np.bool_), first["epoch"], first["batches"])
    order = plan.order(position.epoch)
    for state in found:
        try:
            packed = zlib.decompress(base64.b85decode(state["settled"]))
        except (ValueError, zlib.error) as error:
            raise StateError(f"a state is damaged: {error}") from error
        bits = np.unpackbits(np.frombuffer(packed, np.uint8))[: plan.samples].astype(np.bool_)
        if len(bits) != plan.samples:
            raise StateError("a state is damaged: it ends too soon")
        position.settled[order] |= bits
        left_out = cast("Mapping[str, str]", state["left_out"])
        position.left_out.update((int(sample), kind) for sample, kind in left_out.items())
    return position


def _checked(state: Mapping[str, Any], plan: Plan) -> Mapping[str, Any]:
    missing = [name for name in _FIELDS if name not in state]
    if missing:
        raise StateError(
            f"this is no state of a loader: {', '.join(missing)} missing; accepted: what "
            "state_dict() returned"
        )
    if state["format"] != FORMAT:
        raise StateError(f"a state of format {state['format']}; this release reads {FORMAT}")
    here = {"samples": plan.samples, "seed": plan.seed, "shuffle": plan.shuffle}
    for name, value in here.items():
        if state[name] != value:
            raise StateError(
                f"the state was taken with {name} = {state[name]}, this loader has {value}; "
                "accepted: a loader of the same data set, seed and shuffle"
            )
    return state
