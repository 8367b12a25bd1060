"""What training minimises: expected cross entropy over exits, less entropy (Ouro, stage I).

    sum over counted tokens of  sum_t p_t CE_t - beta H(p)  +  lambda mean_k CE_k

where k runs over the model's predictors of tokens further ahead, if it has any.

Gradients flow through p_t and CE_t. All results are sums: whoever calls knows how many tokens the
whole batch has and normalises. Logits are made for a bounded number of tokens at a time, of one
state after the other, and since p_t is known before any logits are, the gradients of the head are
made in the same pass. So no more logits ever exist than that, however many loops and predictors.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.model.cross_entropy import LOGIT_ELEMENTS, weighted_cross_entropy
from kernels.model.filtered import Learnt, learnt_from_all, learnt_from_few
from kernels.model.loop import exit_entropy, exit_log_probabilities
from kernels.model.model import LoopLM
from kernels.model.multi_token import Rows

# Shapes: T loops, K predictors, R = T + K, B rows, S positions that are learnt from, N = B S.


@dataclass(frozen=True, slots=True)
class Objective:
    """Sums over the counted targets. `objective_sum` alone carries gradients.

    With a token filter `ce_sum` and `counted` are of all targets. The others are of those learnt
    from, and `objective_sum` is enlarged to stand for all: by `counted` / `learnt`.
    """

    objective_sum: Tensor  # scalar
    ce_sum: Tensor  # scalar, nats: of the last loop's prediction
    counted: int  # targets that count
    learnt: int  # targets learnt from, of those
    loop_ce_sums: Tensor  # (T,), nats: of each loop's prediction
    exit_sums: Tensor  # (T,): of the exit probabilities
    prediction_ce_sums: Tensor  # (K,), nats: of each predictor
    prediction_counted: tuple[int, ...]  # targets of each predictor that count

    @property
    def loop_ce_means(self) -> list[float]:
        """Cross entropy of each loop's prediction, nats per target."""
        return [value / max(self.learnt, 1) for value in self.loop_ce_sums.tolist()]

    @property
    def prediction_ce_means(self) -> list[float]:
        """Cross entropy of each predictor, nats per target of its own."""
        sums = self.prediction_ce_sums.tolist()
        return [s / max(n, 1) for s, n in zip(sums, self.prediction_counted, strict=True)]

    @property
    def exit_means(self) -> list[float]:
        """Average probability of leaving after each loop."""
        return [value / max(self.learnt, 1) for value in self.exit_sums.tolist()]


def counted_targets(documents_BT: Tensor) -> Tensor:
    """Which targets count, bool (B, T - 1): those in the same document as their input token."""
    return documents_BT[:, 1:] == documents_BT[:, :-1]


def objective(
    model: LoopLM,
    tokens_BT: Tensor,
    documents_BT: Tensor,
    *,
    entropy_weight: float,
    noise: int | None = None,
    logit_elements: int = LOGIT_ELEMENTS,
) -> Objective:
    """Objective of rows of seq_len + 1 tokens (B, T), of any integer type; see `Objective`.

    How the model is to be trained is its own affair: `LoopLM.train_as`. `noise` is the key of what
    a low precision draws: another for every step, rank and micro-batch (`optimizers.draws.key`).
    """
    rows = Rows.of(tokens_BT.long(), documents_BT, len(model.predictors))
    few = torch.is_grad_enabled() and model.train_config.filter != "none"
    learnt = (learnt_from_few if few else learnt_from_all)(model, rows, noise, logit_elements)
    return _sums(model, learnt, rows, entropy_weight, logit_elements)


def _sums(
    model: LoopLM, learnt: Learnt, rows: Rows, entropy_weight: float, logit_elements: int
) -> Objective:
    T, counted_N = model.config.loops, learnt.rows.same[0].reshape(-1)
    weight_TN, entropy_N = _exit(model, learnt.trunk.states, counted_N)
    heads = _heads(model, learnt, weight_TN)
    expected, ce_RN = weighted_cross_entropy(
        heads.weights,
        model.head_weight,
        heads.targets,
        heads.counted,
        heads.states,
        logit_elements,
    )
    sums_R = ce_RN.sum(dim=1)
    total = expected
    if entropy_weight:
        total = total - entropy_weight * (entropy_N * counted_N).sum()
    counted = int(rows.same[0].sum())
    learnt_counts = [int(same.sum()) for same in learnt.rows.same]
    if learnt.ce_sum is not None:
        total = total * (counted / max(learnt_counts[0], 1))
    return Objective(
        objective_sum=total,
        ce_sum=sums_R[T - 1] if learnt.ce_sum is None else learnt.ce_sum,
        counted=counted,
        learnt=learnt_counts[0],
        loop_ce_sums=sums_R[:T],
        exit_sums=weight_TN.detach().sum(dim=1),
        prediction_ce_sums=sums_R[T:],
        prediction_counted=tuple(learnt_counts[1:]),
    )


@dataclass(frozen=True, slots=True)
class _Heads:
    """Everything that is turned into logits: R states with targets and weights of their own."""

    states: list[Tensor]  # (N, C) each
    targets: list[Tensor]  # (N,) each
    counted: list[Tensor]  # (N,) each
    weights: Tensor  # (R, N)


def _heads(model: LoopLM, learnt: Learnt, weight_TN: Tensor) -> _Heads:
    """The loop's states, and the predictors' with their share of lambda."""
    K, T = len(learnt.predictions), len(learnt.trunk.states)
    targets = [target.reshape(-1) for target in learnt.rows.ahead]
    counted = [same.reshape(-1) for same in learnt.rows.same]
    if K:
        share = model.train_config.prediction_weight / K
        weight_TN = torch.cat((weight_TN, torch.stack(counted[1:]) * share))
    states = [*learnt.trunk.states, *learnt.predictions]
    return _Heads(
        states=[h.reshape(-1, h.shape[-1]) for h in states],
        targets=[targets[0]] * T + targets[1:],
        counted=[counted[0]] * T + counted[1:],
        weights=weight_TN,
    )


def _exit(model: LoopLM, states: list[Tensor], counted_N: Tensor) -> tuple[Tensor, Tensor]:
    """Exit probabilities (T, N), zero where nothing counts, and their entropy (N,)."""
    gates_TN = torch.stack([model.gates(h).reshape(-1) for h in states])
    log_p_TN = exit_log_probabilities(gates_TN)
    return log_p_TN.exp() * counted_N, exit_entropy(log_p_TN)
