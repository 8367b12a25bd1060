"""Where a loader stands: which samples of the epoch have been delivered, and which are left out.

A position is a set, not a number: it says the same whatever the order, the number of workers or of
ranks. It travels as plain values (JSON will do), the set as compressed bits in the epoch's order,
where they are nearly all ones and then all zeros: a million samples take a few hundred bytes.
"""

import base64
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from actors.data.alone.batching import Plan

FORMAT = 2
_FIELDS = (
    *("format", "samples", "seed", "shuffle", "rank", "ranks"),
    *("epoch", "batches", "over", "settled", "left_out"),
)


class StateError(ValueError):
    """A state that this loader cannot go on from: says why."""


@dataclass(slots=True)
class Position:
    """Where one rank, or all of them together, stand."""

    settled: NDArray[np.bool_]  # by sample
    over: NDArray[np.bool_]  # by sample: settled or left out when these ranks shared the epoch out
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
        self.over[:] = False


def beginning(samples: int) -> Position:
    """Before the first of so many samples."""
    return Position(np.zeros(samples, np.bool_), np.zeros(samples, np.bool_))


def to_dict(position: Position, plan: Plan) -> dict[str, Any]:
    """Plain values that `from_dicts` understands."""
    order = plan.order(position.epoch)
    return {
        "format": FORMAT,
        "samples": plan.samples,
        "seed": plan.seed,
        "shuffle": plan.shuffle,
        "rank": plan.rank,
        "ranks": plan.ranks,
        "epoch": position.epoch,
        "batches": position.batches,
        "over": _packed(position.over[order]),
        "settled": _packed(position.settled[order]),
        "left_out": {str(sample): kind for sample, kind in sorted(position.left_out.items())},
    }


def from_dicts(states: Iterable[Mapping[str, Any]], plan: Plan) -> Position:
    """The position of the rank's own state, or that which the states of all ranks of an earlier
    run make together.

    Raises `StateError` when they are not of this data set, seed and moment, or not all there.
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
    _check_ranks(found, plan)
    own = next((state for state in found if _is_own(state, plan)), None)
    first = own or found[0]
    position = beginning(plan.samples)
    position.epoch, position.batches = first["epoch"], first["batches"]
    order = plan.order(position.epoch)
    for state in found:
        left_out = cast("Mapping[str, str]", state["left_out"])
        position.left_out.update((int(sample), kind) for sample, kind in left_out.items())
    for state in found if own is None else [own]:
        position.settled[order] |= _unpacked(state["settled"], plan.samples)
    if own is not None:
        position.over[order] = _unpacked(own["over"], plan.samples)
    else:
        position.over |= position.settled
        position.over[list(position.left_out)] = True
    return position


def _is_own(state: Mapping[str, Any], plan: Plan) -> bool:
    """Is it of this rank of as many?"""
    return (state["rank"], state["ranks"]) == (plan.rank, plan.ranks)


def _check_ranks(states: Sequence[Mapping[str, Any]], plan: Plan) -> None:
    """One rank's state tells nothing of what the others delivered."""
    ranks = sorted(state["rank"] for state in states)
    before = states[0]["ranks"]
    is_own = len(states) == 1 and _is_own(states[0], plan)
    is_all = ranks == list(range(before)) and all(state["ranks"] == before for state in states)
    if is_own or is_all:
        return
    of = ", ".join(f"{state['rank']} of {state['ranks']}" for state in states)
    everybody = f"the states of all {before} ranks" if before > 1 else "one state"
    own = f", or that of rank {plan.rank} alone" if before == plan.ranks > 1 else ""
    raise StateError(
        f"this loader is rank {plan.rank} of {plan.ranks}, and was given the state of rank {of}; "
        f"accepted: {everybody}{own}"
    )


def _packed(bits: NDArray[np.bool_]) -> str:
    return base64.b85encode(zlib.compress(np.packbits(bits).tobytes(), 6)).decode()


def _unpacked(text: str, count: int) -> NDArray[np.bool_]:
    try:
        packed = zlib.decompress(base64.b85decode(text))
    except (ValueError, zlib.error) as error:
        raise StateError(f"a state is damaged: {error}") from error
    bits = np.unpackbits(np.frombuffer(packed, np.uint8))[:count].astype(np.bool_)
    if len(bits) != count:
        raise StateError("a state is damaged: it ends too soon")
    return bits


def _checked(state: Mapping[str, Any], plan: Plan) -> Mapping[str, Any]:
    if state.get("format", FORMAT) != FORMAT:
        raise StateError(f"a state of format {state['format']}; this release reads {FORMAT}")
    missing = [name for name in _FIELDS if name not in state]
    if missing:
        raise StateError(
            f"this is no state of a loader: {', '.join(missing)} missing; accepted: what "
            "state_dict() returned"
        )
    here = {"samples": plan.samples, "seed": plan.seed, "shuffle": plan.shuffle}
    for name, value in here.items():
        if state[name] != value:
            raise StateError(
                f"the state was taken with {name} = {state[name]}, this loader has {value}; "
                "accepted: a loader of the same data set, seed and shuffle"
            )
    return state
