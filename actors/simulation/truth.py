"""What must be true, whatever happens: kept by an observer that shares no rule with the actors.

one commit a step              each shard's committed step grows by one, and never goes back
contributions counted once     weights after step s are the sums foreseen for s, element by element
spans delivered once           documents are composed without gap or overlap, in order if strict
one writer of the ledger       whoever opened it last; nobody else's rows get in
no lease owned twice           a lease's number is given out once; the lease table agrees
no zombie heard                nobody believes a life after having been told of a later one
restarts rationed              no life begins before its wait is over, or once too often
checkpoints loadable           what has a final name is whole, and is what its step should be
every wait ends                see schedules.py: without faults the run finishes in bounded time
"""

import itertools
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from actors.checkpoints import Checkpoint, TensorFile
from actors.data.feed import Composition
from actors.data.ordering import Key, permutation
from actors.optimizer.layout import Layout
from actors.optimizer.state import State
from actors.parameters import Parameter, parameters
from actors.published import Array, TensorSpec, digest, weights_digest
from actors.simulation import setting as sums

if TYPE_CHECKING:
    from actors.simulation.life import Life
    from actors.simulation.world import World

# Deaths that wait for the same moment are told within this.
_SLACK_S = 0.3
# A life that ends sooner than this has not begun well, and the next one waits.
_SHORT_S = 2.0

_COUNTED = "contributions counted once"


class Violation(AssertionError):
    """Something that must never be true is true. `what` names the invariant."""

    def __init__(self, what: str, detail: str) -> None:
        super().__init__(f"{what}: {detail}")
        self.what, self.detail = what, detail


class Truth:
    """The observer."""

    def __init__(self, world: "World") -> None:
        self._world, self._setting = world, world.setting
        self._params = parameters(world.topology.model)
        self._number = {p.name: i for i, p in enumerate(self._params)}
        self._weights: dict[tuple[str, int], int] = {}  # (param, version): every element
        self._batches: dict[tuple[int, int], int] = {}
        self._absent: dict[tuple[str, int], int] = {}  # (param, version): ranks not in it, as bits
        self._committed: dict[int, int] = defaultdict(int)  # by shard
        self._writer = 0  # which life of the loader opened the ledger last
        self._composed = 0
        self._upto: dict[Key, int] = {}
        self._turn: dict[int, int] = {}
        self._before: dict[int, tuple[dict[Key, int], dict[int, int]]] = {}  # by step
        self._left_out: set[int] = set()
        self._order: dict[int, list[int]] = {}
        self._leases: set[int] = set()
        self._told: dict[Life, dict[str, int]] = {}
        self._deaths: dict[str, list[float]] = defaultdict(list)
        self.checks = 0

    def require(self, true: bool, what: str, detail: str) -> None:
        """Raise `Violation` unless `true`."""
        self.checks += 1
        if not true:
            raise Violation(what, detail)

    # --- batches ----------------------------------------------------------------------------------

    def composed(self, composition: Composition) -> None:
        """The ledger has recorded a step."""
        step = composition.step
        what = "spans delivered once"
        self.require(step == self._composed + 1, what, f"step {step} after {self._composed}")
        self._composed = step
        self._before[step] = dict(self._upto), dict(self._turn)
        row_tokens = self._setting.seq_len + 1
        at = 0
        for span in composition.packed.spans:
            row, offset = divmod(at, row_tokens)
            placed = (span.row, span.offset) == (row, offset)
            self.require(placed, what, f"step {step}: a hole before {span}")
            before = self._upto.get(span.key, 0)
            self.require(span.start == before, what, f"{span} after {before} tokens")
            if before == 0:
                self._begins(span.key)
            self._upto[span.key] = before + span.length
            at += span.length
        whole = self._setting.ranks * self._setting.rows * row_tokens
        self.require(at == whole, what, f"step {step} has {at} tokens, not {whole}")

    def opened(self, incarnation: int) -> None:
        """A loader has taken the ledger over."""
        self._writer = max(self._writer, incarnation)

    def wrote(self, incarnation: int) -> None:
        """A loader has written into the ledger."""
        detail = f"loader#{incarnation} after loader#{self._writer} had taken over"
        self.require(incarnation == self._writer, "one writer of the ledger", detail)

    def _begins(self, key: Key) -> None:
        """A document's first token is delivered: in strict order, it is its turn."""
        if self._setting.order != "strict":
            return
        epoch, sample = key
        order = self._order.get(epoch)
        if order is None:
            samples = np.arange(self._setting.samples)
            order = permutation(self._world.topology.seed, epoch, samples).tolist()
            self._order[epoch] = order
        turn, after = order.index(sample), self._turn.get(epoch, -1)
        self.require(turn > after, "spans delivered once", f"{key} is drawn out of order")
        skipped = set(order[after + 1 : turn]) - self._left_out
        self.require(not skipped, "spans delivered once", f"{skipped} passed over by {key}")
        self._turn[epoch] = turn

    def left_out(self, sample: int) -> None:
        """The loader has given a sample up."""
        self._left_out.add(sample)

    def composed_anew(self, step: int) -> None:
        """The loader forgets `step` and later ones, because a sample of theirs is gone."""
        committed = self._committed[0]
        ok = step > committed
        self.require(ok, "spans delivered once", f"step {step} forgotten, {committed} committed")
        self.recorded_upto(step - 1)
        for known in [key for key in self._batches if key[0] >= step]:
            del self._batches[known]
        for known in [key for key in self._weights if key[1] >= step]:
            del self._weights[known]

    def recorded_upto(self, step: int) -> None:
        """The ledger holds no later steps: what the host forgot is composed again."""
        if step < self._composed:
            self._upto, self._turn = self._before[step + 1]
            self._composed = step

    def offered(self, step: int, rank: int, tokens: Array) -> None:
        """A trainer has been given this batch."""
        found = sums.batch_sum(tokens)
        known = self._batches.setdefault((step, rank), found)
        detail = f"the batch of step {step}, rank {rank} has changed"
        self.require(known == found, "spans delivered once", detail)
        self.require(step <= self._composed, "spans delivered once", f"{step} is not recorded")

    # --- weights ----------------------------------------------------------------------------------

    def weight(self, name: str, version: int) -> int:
        """What every element of a parameter must be at `version`."""
        if version == 0:
            return 0
        known = self._weights.get((name, version))
        if known is None:
            before, absent = self.weight(name, version - 1), self._absent.get((name, version), 0)
            there = [rank for rank in range(self._setting.ranks) if not absent >> rank & 1]
            missing = [rank for rank in there if (version, rank) not in self._batches]
            self.require(not missing, _COUNTED, f"version {version} without ranks {missing}")
            moved = sum(
                sums.contribution(
                    version, rank, self._number[name], self._batches[version, rank], before
                )
                for rank in there
            )
            known = before + round(moved * self._setting.ranks / len(there))
            self._weights[name, version] = known
        return known

    def moved(self, state: State, index: int) -> None:
        """A shard's parameter is at a new version, or lies in memory that a new life has mapped."""
        parameter, version = state.layout.parameters[index], state.versions()[index]
        absent = state.absent(index, version)
        known = self._absent.setdefault((parameter.name, version), absent)
        ok = known == absent and (self._setting.elastic or not absent)
        self.require(ok, _COUNTED, f"{parameter.name} at {version}: absent {absent}, not {known}")
        kept = state.kept(index)
        self.tensors(state.layout, parameter, version, kept["master"])
        ok = _is(kept["mean"], version) and _is(kept["square"], version)
        if not ok:
            raise Violation(_COUNTED, f"{parameter.name}: state is not of {version}")
        self.tensors(state.layout, parameter, version, state.published(index, version)["dense"])

    def tensors(self, where: object, parameter: Parameter, version: int, array: Array) -> None:
        """These are the weights of `parameter` at `version`."""
        self.checks += 1
        expected = self.weight(parameter.name, version)
        if not _is(array, expected):
            found = array.reshape(-1)[:4]
            where = f"shard {where.shard}" if isinstance(where, Layout) else where
            raise Violation(
                _COUNTED, f"{where}, {parameter.name} at {version}: {found}, not {expected}"
            )

    def committed(self, shard: int, step: int) -> None:
        """A shard says that `step` is over."""
        before = self._committed[shard]
        if step == before:
            return
        self.require(step == before + 1, "one commit a step", f"shard {shard}: {before}, {step}")
        self._committed[shard] = step

    def resumed(self, step: int) -> None:
        """The run begins again from its files: shards go on from the checkpoint of `step`."""
        for shard in range(self._setting.shards):
            self._committed[shard] = step
        self._deaths.clear()
        if self._setting.elastic:  # other ranks may be there the next time
            for known in (self._weights, self._absent):
                for later in [key for key in known if key[1] > step]:
                    del known[later]

    def run_ended(self, end: str, reason: str) -> None:
        """The supervisor says that it is over."""
        spec, what = self._world.topology.supervision, "the run does not fail"
        if end == "failed":
            name, died, _ = reason.partition(" died ")
            often = len(self._deaths[name]) > spec.intensity
            self.require(bool(died) and often, what, reason)
            return
        self.require(end == "done", what, f"{end}: {reason}")
        steps = self._setting.steps
        for shard in range(self._setting.shards):
            step = self._committed[shard]
            self.require(step == steps, "one commit a step", f"shard {shard} ended at {step}")
        newest = self._world.disk.newest()
        self.require(newest == steps, "checkpoints loadable", f"the newest is of step {newest}")

    def digest(self, version: int) -> str:
        """The digest of all weights at `version`."""
        return weights_digest(
            digest(p, {"dense": np.full(p.shape, self.weight(p.name, version), np.float32)})
            for p in self._params
        )

    def checkpoint(self, found: Checkpoint) -> None:
        """A checkpoint has its final name."""
        what, step = "checkpoints loadable", found.step
        foreseen = self.digest(step)
        ok = found.manifest.weights_digest == foreseen
        self.require(ok, what, f"step {step}: the weights are not those of that step")
        for file in found.tensor_files():
            for parameter in self._params:
                if parameter.name in file.parameters:
                    self._kept(parameter, file, step)

    def _kept(self, parameter: Parameter, file: TensorFile, step: int) -> None:
        version = file.parameters[parameter.name].version
        ok = version in (step, step + 1)
        self.require(ok, "checkpoints loadable", f"step {step}: {parameter.name} at {version}")
        master = file.tensor(parameter.name, TensorSpec("master", "float32", parameter.shape))
        self.tensors(f"the checkpoint of step {step}", parameter, version, master)
        moved = file.tensor(parameter.name, TensorSpec("square", "float32", parameter.shape))
        ok = bool((moved == version).all())
        self.require(ok, "checkpoints loadable", f"{parameter.name}: state is not of {version}")

    def recorded(self, records: Iterable[Mapping[str, Any]], known: dict[int, str]) -> None:
        """The recorder writes metrics records down, after those it has."""
        for record in records:
            step, found = int(record["step"]), str(record["weights_digest"])
            newest = max(known, default=0)
            ok = step <= newest + 1
            self.require(ok, "one commit a step", f"record of step {step} after {newest}")
            foreseen = known.setdefault(step, self.digest(step))
            self.require(found == foreseen, "one commit a step", f"digest of step {step}")

    # --- leases and lives -------------------------------------------------------------------------

    def leased(self, lease: int, worker: str) -> None:
        """A lease has been given out."""
        new = lease not in self._leases
        self.require(new, "no lease owned twice", f"lease {lease} given again, to {worker}")
        self._leases.add(lease)

    def told_of(self, life: "Life", name: str, incarnation: int) -> None:
        """`life` knows that lives of `name` before `incarnation` are over."""
        told = self._told.setdefault(life, {})
        told[name] = max(incarnation, told.get(name, -1))

    def believed(self, life: "Life", name: str, incarnation: int) -> None:
        """`life` has let a message of that life in."""
        told = self._told.setdefault(life, {})
        newest = told.get(name, -1)
        detail = f"{life} listens to {name}#{incarnation}, and knows of #{newest}"
        self.require(incarnation >= newest, "no zombie heard", detail)
        told[name] = incarnation

    def ended(self, name: str, now: float) -> None:
        """The supervisor is told that a life is over."""
        self._deaths[name].append(now)

    def begun(self, name: str, now: float) -> None:
        """A life begins: not sooner than rationing allows."""
        spec = self._world.topology.supervision
        recent = [s for s in self._deaths[name] if s > now - spec.period_s + _SLACK_S]
        detail = f"{name} begins again after {len(recent)} deaths in {spec.period_s:g} s"
        self.require(len(recent) <= spec.intensity, "restarts rationed", detail)
        wait_s, short = 0.0, 0
        for before, at in itertools.pairwise(recent):
            short = short + 1 if at - before - wait_s < _SHORT_S - _SLACK_S else 0
            wait_s = min(spec.backoff_max_s, spec.backoff_s * 2.0 ** (short - 1)) if short else 0.0
        if wait_s:
            waited_s = now - recent[-1]
            detail = f"{name} waited {waited_s:.3f} s of {wait_s:g} s"
            self.require(waited_s >= wait_s - 1e-6, "restarts rationed", detail)


def _is(array: Array, value: int) -> bool:
    """Whether every element is that whole number."""
    return array.tolist() == np.full(array.shape, value, np.float32).tolist()
