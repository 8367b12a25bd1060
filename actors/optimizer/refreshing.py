"""Finding new bases from all ranks' sketches, without ever seeing a gradient.

Everything is a function of the sketches, so a shard that died over it does it again, to the same
bits. Nothing of it is state until the update that uses the basis has been carried out.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

from actors import subspace
from actors.bases import BasisSchedule, basis_digest, kept_basis, numpied
from actors.codecs import to_numpy, to_torch
from actors.optimizer.weighing import weighted_sum
from actors.parameters import Parameter
from actors.published import Array
from actors.topology import Topology
from kernels.optimizers.finite import NotFinite
from kernels.optimizers.projection import Round, next_round
from protocol import messages as m
from protocol.errors import Malformed
from protocol.tensors import Frames


class Sketched(NamedTuple):
    """One rank's product, of a gradient that is a mean over `tokens` targets."""

    tokens: int
    product: Array


class Refreshing:
    """The bases that one shard is looking for."""

    def __init__(self, topology: Topology, device: str) -> None:
        self._group = topology.optimizer.matrices
        self.schedule, self._device = BasisSchedule(topology), device
        self._given: dict[str, dict[int, Sketched]] = {}
        self._rounds: dict[str, Round] = {}
        self._bases: dict[str, dict[str, Array]] = {}
        self._bytes: dict[str, int] = {}

    def take(self, parameter: Parameter, rank: int, number: int, sketched: Sketched) -> None:
        """A rank's sketch came. Raises `Malformed`."""
        name, product = parameter.name, sketched.product
        sides = (min(parameter.shape), max(parameter.shape))
        shape = (sides[number % 2], self.schedule.plan(name).columns(parameter.shape))
        if product.dtype != "float32" or product.shape != shape or sketched.tokens < 0:
            raise Malformed(f"sketch of {name}: {product.dtype} {product.shape}, expected {shape}")
        self._given.setdefault(name, {})[rank] = sketched

    def sum(self, step: int, parameter: Parameter, number: int) -> None:
        """All ranks' sketches of that round are here. Raises `NotFinite` where one is not."""
        name = parameter.name
        given = self._given.pop(name)
        asked = self._rounds.get(name)
        if asked is None or asked.number != number:
            assert number == 0
            asked = self.schedule.first_round(step, name, self._device)
        ordered = [given[rank] for rank in sorted(given)]
        summed = weighted_sum([s.tokens for s in ordered], (s.product for s in ordered))
        try:
            answer = next_round(asked, to_torch(summed, self._device), self.schedule.plan(name))
        except NotFinite as error:
            raise NotFinite(f"no basis can be found for {name} at step {step}: {error}") from error
        if isinstance(answer, Tensor):
            self._bases[name] = numpied(kept_basis(self._group, answer))
        else:
            self._rounds[name] = answer
        sent = sum(array.nbytes for array in self._answer(name))
        self._count(name, sum(s.product.nbytes for s in ordered), sent * len(ordered))

    def answer(self, step: int, parameter: Parameter) -> tuple[m.Message, Sequence[memoryview]]:
        """What everybody is to hear after the last `sum`."""
        name, out = parameter.name, Frames()
        if name in self._bases:
            basis = basis_ref(self._bases[name], step, out)
            return m.NewBasis(step=step, param=name, basis=basis), out.parts
        tensors = (out.add(self._answer(name)[0]),)
        number = self._rounds[name].number
        return m.SketchRequest(step=step, param=name, round=number, tensors=tensors), out.parts

    def basis(self, name: str) -> Mapping[str, Array] | None:
        """The basis that was found for the step under way, as it is kept."""
        return self._bases.get(name)

    def forget(self, name: str) -> tuple[int, int]:
        """The step is over for this parameter. Bytes that its sketches took, up and down."""
        for table in (self._given, self._rounds, self._bases):
            table.pop(name, None)
        up, down = self._bytes.pop(f"{name} up", 0), self._bytes.pop(f"{name} down", 0)
        return up, down

    def _answer(self, name: str) -> list[Array]:
        found = self._bases.get(name)
        return list(found.values()) if found else [to_numpy(self._rounds[name].operand)]

    def _count(self, name: str, up: int, down: int) -> None:
        for way, more in (("up", up), ("down", down)):
            self._bytes[f"{name} {way}"] = self._bytes.get(f"{name} {way}", 0) + more


def basis_ref(kept: Mapping[str, Array], version: int, out: Frames) -> m.BasisRef:
    """A basis as it is kept, as frames: what lies in the segment may be replaced meanwhile."""
    tensors = {name: array.copy() for name, array in kept.items() if name != subspace.VERSION}
    return m.BasisRef(
        version=version,
        digest=basis_digest(tensors),
        tensors=tuple(out.add(array) for array in tensors.values()),
    )
