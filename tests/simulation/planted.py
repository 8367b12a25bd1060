"""Bugs to be planted into the deciders, one at a time: the simulator has to find each.

Each is a mistake somebody could make, applied to the real class for the length of a `with`. The
text before the dash is what the finder should be told; the rest says what is broken.
"""

import contextlib
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import Any
from unittest import mock

from actors.data.database import Database
from actors.data.feed import Composition, Shape
from actors.data.leases import LeaseTable
from actors.data.ledger import Ledger
from actors.optimizer.rounds import ShardRounds
from actors.optimizer.state import Facts, State
from actors.optimizer.writer import ShardWriter
from actors.snapshots import Snapshot, SnapshotCollector
from actors.supervisor.events import Instruction, Memory, Place
from actors.supervisor.supervision import Actor, Supervision
from actors.trainer.rounds import TrainerRounds
from protocol.gate import Gate


@dataclass(frozen=True, slots=True)
class Bug:
    """One mistake: the attributes of a class that it replaces."""

    name: str
    owner: type
    mistakes: Mapping[str, Callable[..., Any]]

    @contextlib.contextmanager
    def planted(self) -> Generator[None]:
        """While it is in the code."""
        with contextlib.ExitStack() as stack:
            for attribute, mistake in self.mistakes.items():
                stack.enter_context(mock.patch.object(self.owner, attribute, mistake))
            yield


# --- rounds ---------------------------------------------------------------------------------------


def takes_what_was_counted(self: ShardRounds, step: int, rank: int, param: str) -> bool:
    known = param in self.versions and 0 <= rank < self.setting.ranks
    return known and self.versions[param] <= step <= self.versions[param] + 1


def moves_before_the_commit(self: ShardRounds, step: int) -> bool:
    known = not self.leading or len(self.facts_of.get(step, ())) == self.setting.ranks
    return step <= self.complete + 1 and known


def says_it_once(self: ShardRounds, now: float) -> list[Any]:
    del self, now
    return []


def waits_in_silence(self: TrainerRounds, now: float) -> list[Any]:
    del self, now
    return []


def aligns_nothing(self: SnapshotCollector[Any]) -> None:
    del self


def mixes_versions(self: SnapshotCollector[Any]) -> Snapshot[Any] | None:
    if self.missing:
        return None
    merged = {name: value for got in self._got for name, value in got.items()}
    return Snapshot(min(self._version), merged)


# --- state and checkpoints ------------------------------------------------------------------------


def keeps_facts_in_its_head(self: State, step: int, rank: int, facts: Facts) -> None:
    self.__dict__.setdefault("_head", {})[step, rank] = facts


def knows_what_is_in_its_head(self: State, step: int) -> dict[int, Facts]:
    head: dict[tuple[int, int], Facts] = self.__dict__.setdefault("_head", {})
    return {rank: facts for (of, rank), facts in head.items() if of == step}


def writes_in_place_first(
    self: State, index: int, version: int, tensors: Mapping[str, Any]
) -> None:
    for name, place in self._kept[index].items():
        self._store(place, tensors[name])
    self._set(self._meta[index], 0, version)


def copies_too_late(self: ShardWriter, index: int) -> None:
    del self, index


# --- data -----------------------------------------------------------------------------------------


def lets_predecessors_write(self: Database) -> None:
    del self


def writes_a_step_behind(
    self: Ledger, composition: Composition, shape: Shape, *, forget_before: int = 0
) -> None:
    before: list[Any] = self.__dict__.setdefault("_behind", [])
    if before:
        REAL_COMMIT(self, *before.pop(), forget_before=forget_before)
    before.append((composition, shape))


REAL_COMMIT = Ledger.commit
REAL_REQUEST = LeaseTable.request


def renews_for_whoever_speaks(self: LeaseTable, name: str, credit: int, now: float) -> bool:
    worker = self.workers.get(name)
    if worker is not None:
        worker.head_since = now
    return REAL_REQUEST(self, name, credit, now)


def counts_leases_from_zero(
    self: LeaseTable, *, lease_s: float, limit: int, max_deaths: int, first_lease: int = 0
) -> None:
    del first_lease
    REAL_TABLE(self, lease_s=lease_s, limit=limit, max_deaths=max_deaths)


REAL_TABLE = LeaseTable.__init__


# --- lives ----------------------------------------------------------------------------------------


def believes_everybody(self: Gate, *arguments: Any, **named: Any) -> Any:
    self._newest.clear()
    return REAL_JUDGE(self, *arguments, **named)


REAL_JUDGE = Gate.judge


def forgets_deaths(self: Supervision, place: Place, memory: Memory | None, now: float) -> None:
    if memory is not None:
        memory = Memory(memory.incarnation, memory.who, memory.restarts)
    REAL_SEAT(self, place, memory, now)


REAL_SEAT = Supervision._seat


def replaces_the_living(self: Supervision, actor: Actor, why: str, now: float) -> list[Instruction]:
    return self._lost(actor, why, now)


BUGS = (
    Bug(
        "a gradient that was counted is counted again",
        ShardRounds,
        {"takes_gradient": takes_what_was_counted},
    ),
    Bug(
        "facts are acknowledged before they are kept",
        State,
        {"put_facts": keeps_facts_in_its_head, "facts": knows_what_is_in_its_head},
    ),
    Bug(
        "a step begins before the last is committed",
        ShardRounds,
        {"_may_move_to": moves_before_the_commit},
    ),
    Bug("a shard says only once that its part is done", ShardRounds, {"tick": says_it_once}),
    Bug("a trainer never asks for what it lacks", TrainerRounds, {"tick": waits_in_silence}),
    Bug(
        "a snapshot mixes versions",
        SnapshotCollector,
        {"_align": aligns_nothing, "result": mixes_versions},
    ),
    Bug("weights change before the redo record is valid", State, {"update": writes_in_place_first}),
    Bug(
        "a checkpoint copies what has changed meanwhile", ShardWriter, {"preserve": copies_too_late}
    ),
    Bug(
        "a replaced loader may write the ledger",
        Database,
        {"_check_owner": lets_predecessors_write},
    ),
    Bug("a batch is handed out before it is recorded", Ledger, {"commit": writes_a_step_behind}),
    Bug(
        "a lease is renewed by whoever still speaks",
        LeaseTable,
        {"request": renews_for_whoever_speaks},
    ),
    Bug("leases are numbered anew in each life", LeaseTable, {"__init__": counts_leases_from_zero}),
    Bug("nobody looks at incarnations", Gate, {"judge": believes_everybody}),
    Bug("a new supervisor forgets who died", Supervision, {"_seat": forgets_deaths}),
    Bug(
        "a frozen actor is replaced before its end is seen",
        Supervision,
        {"_condemn": replaces_the_living},
    ),
)
