"""What a shard's rounds tell the shard to do."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Apply:
    """Sum all ranks' gradients in rank order, move `param` to version `step`; then `applied`."""

    step: int
    param: str


@dataclass(frozen=True, slots=True)
class Sum:
    """Sum all ranks' sketches of `round` in rank order: an operand or a basis; then `summed`."""

    step: int
    param: str
    round: int


@dataclass(frozen=True, slots=True)
class Ask:
    """Send what the last `Sum` of `param` came to: the next round's operand, or the basis."""

    step: int
    param: str
    ranks: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Publish:
    """Send the update of `param` to `version` to `ranks`."""

    version: int
    param: str
    ranks: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Need:
    """Tell `rank` what of `step` has not arrived from it."""

    rank: int
    step: int
    params: tuple[str, ...]
    facts: bool
    sketches: tuple[str, ...] = ()  # of round 0


@dataclass(frozen=True, slots=True)
class KeepFacts:
    """Write the facts of (step, rank) into the state before anything else happens."""

    step: int
    rank: int


@dataclass(frozen=True, slots=True)
class Report:
    """Tell shard 0 (again) that this shard's part of `version` is durable."""

    version: int


@dataclass(frozen=True, slots=True)
class Commit:
    """Shard 0: leave the metrics record of `step`; other shards: note that their part is over."""

    step: int


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Write the state as it is after `step`."""

    step: int


Instruction = Apply | Sum | Ask | Publish | Need | KeepFacts | Report | Commit | Checkpoint
