"""Whole training loops: they learn, and separating state from codes changes no bit."""

import torch
from torch import Tensor

from kernels.model.config import ModelConfig
from kernels.model.model import LoopLM
from kernels.model.objective import objective
from kernels.optimizers import adamw, muon
from kernels.optimizers.clipping import clipped
from kernels.optimizers.quantised_state import zeros
from kernels.optimizers.schedules import learning_rate
from kernels.precision.ternary import quantise

CONFIG = ModelConfig(dim=32, layers=2, heads=2, loops=2, vocab_size=32, seq_len=24)
COURSE = {"warmup": 2, "stable": 20, "decay": 8}


def batch(step: int) -> tuple[Tensor, Tensor]:
    """Rows that count upwards by 1 or 2, from anywhere: learnable within seconds."""
    generator = torch.Generator().manual_seed(step)
    start = torch.randint(0, 32, (16, 1), generator=generator)
    stride = torch.randint(1, 3, (16, 1), generator=generator)
    rows = (start + stride * torch.arange(25)) % 32
    return rows, torch.zeros_like(rows)


class State:
    """What an optimizer shard owns: masters and moments."""

    def __init__(self, model: LoopLM) -> None:
        self.matrices = set(model.ternary_layers())
        self.master = {name: p.detach().clone() for name, p in model.named_parameters()}
        self.moments = {
            name: zeros((muon if name in self.matrices else adamw).declared(tuple(value.shape)))
            for name, value in self.master.items()
        }

    def update(self, name: str, grad: Tensor, step: int) -> Tensor:
        """The new master of one parameter."""
        master, moments = self.master[name], self.moments[name]
        if name in self.matrices:
            lr = learning_rate(step, lr=0.05, min_lr=0.005, **COURSE)
            done = muon.update(master, moments, grad, muon.MuonHyper(lr=lr), step)
        else:
            lr = learning_rate(step, lr=0.01, min_lr=0.001, **COURSE)
            done = adamw.update(master, moments, clipped(grad, 5.0), adamw.AdamWHyper(lr=lr), step)
        self.master[name], self.moments[name] = done
        return done[0]


def gradients(model: LoopLM, step: int) -> tuple[float, dict[str, Tensor]]:
    model.zero_grad()
    result = objective(model, *batch(step), entropy_weight=0.05)
    (result.objective_sum / result.counted).backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return result.loop_ce_means[-1], grads


def test_thirty_steps_learn_to_count():
    model = LoopLM(CONFIG)
    model.initialise(0)
    state = State(model)
    losses: list[float] = []
    for step in range(1, 31):
        loss, grads = gradients(model, step)
        losses.append(loss)
        for name, grad in grads.items():
            model.load_dense(name, state.update(name, grad, step))
    assert losses[0] > 3.3
    assert sum(losses[-3:]) / 3 < 0.5 * losses[0]


def test_a_trainer_with_codes_alone_follows_the_same_path_bit_for_bit():
    whole, trainer = LoopLM(CONFIG), LoopLM(CONFIG, "codes")
    whole.initialise(0)
    trainer.initialise(0)
    alone, shard = State(whole), State(whole)
    for step in range(1, 7):
        loss, grads = gradients(whole, step)
        for name, grad in grads.items():
            whole.load_dense(name, alone.update(name, grad, step))
        same_loss, same_grads = gradients(trainer, step)
        assert same_loss == loss
        for name, grad in same_grads.items():
            assert torch.equal(grad, grads[name]), name
            master = shard.update(name, grad, step)
            layer = trainer.ternary_layers().get(name)
            if layer is None:
                trainer.load_dense(name, master)
            else:
                layer.load(*quantise(master))
    for name, master in alone.master.items():
        assert torch.equal(master, shard.master[name]), name
