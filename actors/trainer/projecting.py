"""A rank's side of projections: bases, what of a gradient travels, sketches for new bases.

A gradient is projected use by use while the backward pass makes it (`gathering`), so it never
exists at full size; with two exceptions: in the step in which its basis is sought it is held until
the basis is known, and GUM now and then sends what the basis misses, which takes the whole.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
from torch import Tensor

from actors import subspace
from actors.bases import BasisSchedule, basis_digest, basis_of, torched
from actors.codecs import to_numpy, to_torch
from actors.parameters import Parameter, parameters
from actors.published import Array
from actors.topology import Topology
from kernels.optimizers import gum
from kernels.optimizers.projection import Round, contribution, project
from protocol import messages as m
from protocol.errors import Malformed
from protocol.tensors import Attached, read


class Projecting:
    """The bases of one trainer, as its shards keep them."""

    def __init__(self, topology: Topology, device: str) -> None:
        self._group = topology.optimizer.matrices
        self._named = {p.name: p for p in parameters(topology.model)}
        self.schedule, self._device = BasisSchedule(topology), device
        self._bases: dict[str, tuple[int, dict[str, Tensor]]] = {}
        self._held: dict[str, Tensor] = {}
        self._operands: dict[str, Round] = {}

    def gathering(self, step: int) -> dict[str, Callable[[Tensor], Tensor]]:
        """How gradients of `step` that are projected at once are: by name, linear functions."""
        return {
            name: partial(self._project, step, name)
            for name in self.schedule.names
            if not self.schedule.refreshes(step, name)
            and not self.schedule.sends_remainder(step, name)
        }

    def hold(self, name: str, gradient: Tensor) -> None:
        """Keep a gradient until its basis is known."""
        self._held[name] = gradient

    def forget(self) -> None:
        """The step is over."""
        self._held.clear()
        self._operands.clear()

    def travelling(self, step: int, name: str, gradient: Tensor | None = None) -> Tensor:
        """What is to be encoded: of `gradient`, gathered or whole, or of the one that is held."""
        if name not in self.schedule.names:
            assert gradient is not None
            return gradient
        found = self._held[name] if gradient is None else gradient
        if self.schedule.sends_remainder(step, name):
            return gum.remainder(found, self._basis(step, name), self._group.remainder)
        core = self._project(step, name, found) if gradient is None else found
        return core if self._group.projection == "galore" else gum.core(core, self._group.remainder)

    # --- sketches ---------------------------------------------------------------------------------

    def asked(
        self, message: m.SketchRequest, frames: Sequence[memoryview], attached: Attached | None
    ) -> None:
        """Take the operand of a round. Raises `ProtocolError`."""
        name, number = message.param, message.round
        if name not in self.schedule.names or number < 1 or len(message.tensors) != 1:
            raise Malformed(f"no sketch of {name[:80]!r} is wanted in round {number}")
        operand = read(message.tensors[0], frames, attached)
        sides = sorted(self._named[name].shape)
        product = "along" if number % 2 else "across"
        shape = (sides[0 if number % 2 else 1], self.schedule.plan(name).columns(tuple(sides)))
        if operand.dtype != np.float32 or operand.shape != shape:
            raise Malformed(f"operand of {name}: {operand.dtype} {operand.shape}, not {shape}")
        self._operands[name] = Round(number, product, to_torch(operand, self._device))

    def sketch(self, step: int, name: str, number: int) -> Array:
        """The product of the gradient that is held with that round's operand."""
        asked = self._operands[name] if number else None
        if asked is None:
            asked = self.schedule.first_round(step, name, self._device)
        assert asked.number == number
        return to_numpy(contribution(asked, self._held[name]))

    # --- bases ------------------------------------------------------------------------------------

    def take(self, name: str, version: int, kept: Mapping[str, Array]) -> None:
        """From now on project on this basis (checked by `checked_basis`), unless it is old."""
        known = self._bases.get(name)
        if known is None or version >= known[0]:
            self._bases[name] = (version, torched(kept, self._device))

    def checked(
        self,
        parameter: Parameter,
        ref: m.BasisRef,
        frames: Sequence[memoryview],
        attached: Attached | None,
    ) -> dict[str, Array]:
        """A private copy of a basis as it is kept. Raises `ProtocolError`."""
        specs = subspace.basis_tensors(self._group, parameter.shape)
        if parameter.name not in self.schedule.names or len(ref.tensors) != len(specs):
            raise Malformed(f"{parameter.name}: a basis of {len(ref.tensors)} tensors")
        kept: dict[str, Array] = {}
        for spec, tensor in zip(specs, ref.tensors, strict=True):
            array = kept[spec.name] = np.array(read(tensor, frames, attached))
            if array.dtype != spec.dtype or array.shape != spec.shape:
                raise Malformed(f"{parameter.name}: {spec.name} is {array.dtype} {array.shape}")
        if basis_digest(kept) != ref.digest:
            raise Malformed(f"{parameter.name}: the digest of its basis does not match")
        return kept

    def _basis(self, step: int, name: str) -> Tensor:
        """Decoded each time: as numbers, all bases would take a third of what gradients took."""
        version, kept = self._bases[name]
        assert version == self.schedule.version(step, name), (name, step, version)
        return basis_of(self._group, kept, self._named[name].shape)

    def _project(self, step: int, name: str, gradient: Tensor) -> Tensor:
        return project(gradient, self._basis(step, name))
