"""GaLore and GUM in one process: every rank's gradient at hand, nothing sent to anybody.

Written on the kernels alone, so that it can stand beside the exchange as its reference. Gradients
are projected use by use, as trainers do it, because the order of sums shows in the last bit.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from actors.parameters import parameters
from actors.topology import Topology
from kernels.model.model import LoopLM
from kernels.optimizers import draws, galore, refresh_schedule
from kernels.optimizers.gum import draws_remainder
from kernels.optimizers.projection import (
    RefreshPlan,
    basis_shape,
    contribution,
    first_round,
    next_round,
    project,
    random_basis,
    unproject,
)
from kernels.optimizers.quantised_state import load, store
from kernels.optimizers.state import StateTensor, Storage

Shape = tuple[int, ...]


class PlainProjection:
    """The subspaces of one run, with the state that its projected optimizer keeps."""

    def __init__(self, topology: Topology, model: LoopLM) -> None:
        self.group, self.seed, self.model = topology.optimizer.matrices, topology.seed, model
        matrices = [p for p in parameters(topology.model) if p.group == "matrices"]
        wanted = matrices if self.group.projection != "none" else []
        self.shapes: dict[str, Shape] = {p.name: p.shape for p in wanted}
        self.place = {p.name: index for index, p in enumerate(wanted)}
        kind = {"int8": "linear"}.get(self.group.basis, self.group.basis)
        self.storage = Storage(kind, 128)  # pyright: ignore[reportArgumentType]
        self.bases: dict[str, dict[str, Tensor]] = {}
        self.cores: dict[str, Tensor] = {}
        if self.group.first_basis == "random":
            for name, shape in self.shapes.items():
                key = draws.key(self.seed, "basis", name)
                self.bases[name] = self._kept(random_basis(shape, self.rank(name), key))

    def rank(self, name: str) -> int:
        """Directions kept of a matrix."""
        return min(self.group.rank or -(-min(self.shapes[name]) // 4), *self.shapes[name])

    def refreshes(self, step: int, name: str) -> bool:
        """Whether a new basis comes before the gradient of `step` is projected."""
        at_start = self.group.first_basis == "gradient"
        index, count = self.place[name], len(self.place)
        return refresh_schedule.refreshes(
            step, index, count, self.group.refresh_every, at_start=at_start
        )

    def remainder(self, step: int, name: str) -> bool:
        """GUM's draw."""
        period, group = self.group.refresh_every, self.group
        since = step - refresh_schedule.phase(self.place[name], len(self.place), period)
        return group.projection == "gum" and draws_remainder(
            self.seed, name, since, period, group.remainder
        )

    def basis(self, name: str) -> Tensor:
        """As it is kept, rounding included."""
        shape = basis_shape(self.shapes[name], self.rank(name))
        return load(self.bases[name], "basis", self.storage, shape)

    def begin(self, step: int) -> None:
        """Before a rank's forward passes."""
        self.cores = {}
        at_once = [
            n for n in self.place if not self.refreshes(step, n) and not self.remainder(step, n)
        ]

        def add(name: str, grad: Tensor) -> None:
            core = project(grad, self.basis(name))
            self.cores[name] = self.cores[name] + core if name in self.cores else core

        self.model.hand_over({n: lambda grad, n=n: add(n, grad) for n in at_once})

    def travelling(
        self, step: int, name: str, grads: Sequence[Tensor], weights: Sequence[float]
    ) -> list[Tensor]:
        """What each rank sends, before its codec. `grads` are cores where they were gathered."""
        if name not in self.place:
            return list(grads)
        found = self.refreshes(step, name)
        if found:
            self.bases[name] = self._kept(self._find(step, name, grads, weights))
        if self.group.projection == "galore":
            return [project(g, self.basis(name)) for g in grads] if found else list(grads)
        q, remainder = self.group.remainder, self.remainder(step, name)
        if not found and not remainder:
            return [core / (1.0 - q) for core in grads]
        basis, shape = self.basis(name), self.shapes[name]
        if not remainder:
            return [project(g, basis) / (1.0 - q) for g in grads]
        return [(g - unproject(project(g, basis), basis, shape)) / q for g in grads]

    def whole(self, step: int, name: str, mean: Tensor) -> Tensor:
        """GUM's estimate of the gradient."""
        if self.remainder(step, name):
            return mean
        return unproject(mean, self.basis(name), self.shapes[name])

    def hyper(self, name: str, lr: float) -> galore.GaLoreHyper:
        """The settings of one GaLore update."""
        g = self.group
        eight_bit = g.kind.endswith("8bit")
        return galore.GaLoreHyper(
            lr=lr,
            rank=self.rank(name),
            base="adamw" if g.kind.startswith("adamw") else "muon",
            alpha=g.galore_scale,
            weight_decay=g.weight_decay,
            carry=g.moments,
            eight_bit=eight_bit,
            block=g.block or (2048 if g.kind == "muon8bit" else 256),
            basis=self.storage.kind,  # pyright: ignore[reportArgumentType]
            momentum=g.momentum,
            coefficients=g.coefficients,
            iterations=g.iterations,
            scaling=g.scaling,
            beta1=g.beta1,
            beta2=g.beta2,
            eps=g.eps,
        )

    def declared(self, name: str) -> tuple[StateTensor, ...]:
        """GaLore's state."""
        return galore.declared(self.shapes[name], self.hyper(name, 1.0))

    def moved(
        self,
        name: str,
        master: Tensor,
        state: Mapping[str, Tensor],
        core: Tensor,
        lr: float,
        step: int,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """GaLore's update."""
        hyper, shape = self.hyper(name, lr), self.shapes[name]
        state = dict(state)
        if not int(state["version"]) and self.group.first_basis == "random":
            state |= self.bases[name] if not self.refreshes(step, name) else self._random(name)
        if self.refreshes(step, name):
            state = galore.adopt(state, self.basis(name), shape, hyper, step)
            # Codes of decoded codes may differ from them in the last bit.
            state |= self.bases[name]
        return galore.update(master, state, core, hyper, step)

    def _random(self, name: str) -> dict[str, Tensor]:
        key = draws.key(self.seed, "basis", name)
        return self._kept(random_basis(self.shapes[name], self.rank(name), key))

    def _find(
        self, step: int, name: str, grads: Sequence[Tensor], weights: Sequence[float]
    ) -> Tensor:
        plan = RefreshPlan(self.rank(name), power_iterations=self.group.power_iterations)
        asked = first_round(self.shapes[name], plan, draws.key(self.seed, "sketch", name, step))
        while True:
            summed = torch.zeros(())
            for rank, (grad, weight) in enumerate(zip(grads, weights, strict=True)):
                share = contribution(asked, grad) * weight
                summed = share if rank == 0 else summed + share
            answer = next_round(asked, summed, plan)
            if isinstance(answer, Tensor):
                return answer
            asked = answer

    def _kept(self, basis: Tensor) -> dict[str, Tensor]:
        return store("basis", basis, self.storage)
