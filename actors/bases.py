"""Which matrix gets a new basis at which step, and how bases are found, kept and sent.

Shards and trainers agree on all of it beforehand: schedules, GUM's draws and the random numbers of
sketches are functions of the topology. See kernels/optimizers/projection.py for the exchange.
"""

import hashlib
from collections.abc import Mapping

from torch import Tensor

from actors import subspace
from actors.codecs import to_numpy, to_torch
from actors.optimizer_tables import OptimizerGroup
from actors.parameters import Parameter, parameters
from actors.published import Array
from actors.topology import Topology
from kernels.optimizers import draws, gum, projection, refresh_schedule
from kernels.optimizers.quantised_state import load, store
from kernels.optimizers.state import Kind, Storage

_KINDS: dict[str, Kind] = {
    "float32": "float32",
    "float16": "float16",
    "int8": "linear",
    "int4": "int4",
}


class BasisSchedule:
    """The schedule of one run's projections. Asked about other parameters it says no."""

    def __init__(self, topology: Topology) -> None:
        self._seed, self._group = topology.seed, topology.optimizer.matrices
        matrices = [p for p in parameters(topology.model) if p.group == "matrices"]
        chosen = matrices if self._group.projection != "none" else []
        self._named = {p.name: p for p in chosen}
        self._index = {p.name: index for index, p in enumerate(chosen)}

    @property
    def names(self) -> tuple[str, ...]:
        """Parameters whose gradients are projected, in order."""
        return tuple(self._index)

    @property
    def begins_random(self) -> bool:
        """Whether there is a basis before the first refresh."""
        return not self._at_start

    def refreshes(self, step: int, name: str) -> bool:
        """Whether `name` gets a new basis before the gradient of `step` is projected."""
        return name in self._index and refresh_schedule.refreshes(
            step, *self._place(name), at_start=self._at_start
        )

    def refreshing(self, step: int) -> frozenset[str]:
        """All parameters that get a new basis at `step`."""
        return frozenset(name for name in self._index if self.refreshes(step, name))

    def version(self, step: int, name: str) -> int:
        """Version of the basis that the gradient of `step` is projected with; 0: none or random."""
        if name not in self._index:
            return 0
        return refresh_schedule.basis_version(step, *self._place(name), at_start=self._at_start)

    def rounds(self, step: int, name: str) -> int:
        """Rounds of sketches at `step`: none without a refresh."""
        return 2 * (self._group.power_iterations + 1) if self.refreshes(step, name) else 0

    def sends_remainder(self, step: int, name: str) -> bool:
        """Whether GUM sends what the basis misses, in the period that `step` is of."""
        if self._group.projection != "gum" or name not in self._index:
            return False
        index, count, period = self._place(name)
        since = step - refresh_schedule.phase(index, count, period)
        return gum.draws_remainder(self._seed, name, since, period, self._group.remainder)

    def first_round(self, step: int, name: str, device: str) -> projection.Round:
        """What every rank is asked first, without being asked."""
        shape = self._named[name].shape
        key = draws.key(self._seed, "sketch", name, step)
        return projection.first_round(shape, self.plan(name), key, device=device)

    def plan(self, name: str) -> projection.RefreshPlan:
        """How a basis of `name` is found."""
        rank = subspace.rank_of(self._group, self._named[name].shape)
        return projection.RefreshPlan(
            rank, subspace.OVERSAMPLE, power_iterations=self._group.power_iterations
        )

    def random_basis(self, parameter: Parameter) -> dict[str, Array]:
        """The basis before the first refresh as it is kept; {} where there is none."""
        if parameter.name not in self._index or self._at_start:
            return {}
        rank = subspace.rank_of(self._group, parameter.shape)
        key = draws.key(self._seed, "basis", parameter.name)
        return numpied(kept_basis(self._group, projection.random_basis(parameter.shape, rank, key)))

    @property
    def _at_start(self) -> bool:
        return self._group.first_basis == "gradient"

    def _place(self, name: str) -> tuple[int, int, int]:
        return self._index[name], len(self._index), self._group.refresh_every


def storage_of(group: OptimizerGroup) -> Storage:
    """How bases are kept."""
    return Storage(_KINDS[group.basis], subspace.BLOCK)


def kept_basis(group: OptimizerGroup, basis: Tensor) -> dict[str, Tensor]:
    """The tensors that keep `basis`."""
    return store(subspace.BASIS, basis, storage_of(group))


def basis_of(group: OptimizerGroup, kept: Mapping[str, Tensor], shape: tuple[int, ...]) -> Tensor:
    """The basis as it is kept, rounding included: what projects, there and back."""
    return load(kept, subspace.BASIS, storage_of(group), subspace.basis_shape(group, shape))


def basis_digest(tensors: Mapping[str, Array]) -> str:
    """SHA-256 over the bytes of a kept basis, in the order of names."""
    sha = hashlib.sha256()
    for _, array in sorted(tensors.items()):
        sha.update(array.tobytes())
    return sha.hexdigest()


def numpied(tensors: Mapping[str, Tensor]) -> dict[str, Array]:
    """Tensors as arrays."""
    return {name: to_numpy(tensor) for name, tensor in tensors.items()}


def torched(arrays: Mapping[str, Array], device: str) -> dict[str, Tensor]:
    """Arrays as private tensors."""
    return {name: to_torch(array, device) for name, array in arrays.items()}
