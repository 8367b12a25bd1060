"""Forward and backward of one step of one rank: rows in, facts and gradients out.

Gradients are means over this rank's counted targets. With several micro-batches they are summed in
the parameters' `.grad` and complete with the last one; hooks hand each on in the moment it is.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from actors.topology import TrainSpec
from kernels.model.model import LoopLM
from kernels.model.objective import counted_targets, objective
from kernels.optimizers import draws

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle


class Sums(NamedTuple):
    """What the forward passes of a step amounted to."""

    tokens: int  # targets counted
    loss_sum: float  # nats
    objective_sum: float


OnGradient = Callable[[str, Tensor], None]
Linear = Callable[[Tensor], Tensor]


class GradientHooks:
    """Hands on each parameter's gradient as soon as a backward pass has completed it.

    Only while `armed`; the tensor is the receiver's to keep. Where only a linear function of a
    gradient is wanted (`gather`), that is added up use by use and handed on instead.
    """

    def __init__(self, model: LoopLM, on_gradient: OnGradient) -> None:
        self._model = model
        self._named = dict(model.named_parameters())
        self._on_gradient = on_gradient
        self._gathered: Mapping[str, Linear] = {}
        self._sums: dict[str, Tensor] = {}
        self._seen: set[str] = set()
        self.armed = False
        self._handles: list[RemovableHandle] = [
            parameter.register_post_accumulate_grad_hook(self._hook(name))
            for name, parameter in self._named.items()
        ]

    def gather(self, functions: Mapping[str, Linear]) -> None:
        """From the next forward pass on, hand on these functions of gradients, by parameter."""
        self._gathered = functions
        self._sums.clear()
        self._model.hand_over({name: partial(self._add, name) for name in functions})

    def _add(self, name: str, gradient: Tensor) -> None:
        value = self._gathered[name](gradient)
        known = self._sums.get(name)
        self._sums[name] = value if known is None else known.add_(value)

    def _hook(self, name: str) -> Callable[[Tensor], None]:
        def hook(parameter: Tensor) -> None:
            # Also called at the end of uses that have been handed over, with no gradient then.
            if self.armed:
                self._hand_on(name, parameter)

        return hook

    def _hand_on(self, name: str, parameter: Tensor) -> None:
        grad = self._sums.pop(name, None) if name in self._gathered else parameter.grad
        if grad is None:
            grad = torch.zeros_like(parameter)
            grad = self._gathered[name](grad) if name in self._gathered else grad
        self._on_gradient(name, grad)
        self._seen.add(name)
        parameter.grad = None

    def finish(self) -> None:
        """Hand on what no backward pass has reached (an exit gate with one loop, say)."""
        for name, parameter in self._named.items():
            if name not in self._seen:
                self._hand_on(name, parameter)
        self._seen.clear()
        self.armed = False

    def remove(self) -> None:
        """Take the hooks off the model."""
        self._model.hand_over({})
        for handle in self._handles:
            handle.remove()


def noise_key(seed: int, step: int, rank: int, micro_batch: int) -> int:
    """Key of everything a micro-batch draws at random: a replaced trainer draws it again."""
    return draws.key(seed, "micro-batch", step, rank, micro_batch)


def run_step(
    model: LoopLM,
    hooks: GradientHooks,
    tokens_BT: Tensor,
    documents_BT: Tensor,
    train: TrainSpec,
    noise: Callable[[int], int],
    on_sums: Callable[[Sums], None],
    on_micro_batch: Callable[[], object],
) -> None:
    """Forward and backward over all rows, `train.rows_per_trainer` at a time.

    `noise` gives each micro-batch its key. `on_sums` is called after the last forward pass and
    before its backward pass, `on_micro_batch` after each backward pass.
    """
    counted = int(counted_targets(documents_BT).sum())
    loss_sum = objective_sum = 0.0
    starts = range(0, tokens_BT.shape[0], train.rows_per_trainer)
    for micro_batch, start in enumerate(starts):
        rows = slice(start, start + train.rows_per_trainer)
        result = objective(
            model,
            tokens_BT[rows],
            documents_BT[rows],
            entropy_weight=train.exit_entropy_weight,
            noise=noise(micro_batch),
        )
        loss_sum += result.ce_sum.item()
        objective_sum += result.objective_sum.detach().item()
        if start == starts[-1]:
            hooks.armed = True
            on_sums(Sums(counted, loss_sum, objective_sum))
        (result.objective_sum / max(counted, 1)).backward()
        on_micro_batch()
    hooks.finish()
