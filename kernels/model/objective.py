"""What training minimises: expected cross entropy over exits, less entropy (Ouro, stage I).

    sum over counted tokens of  sum_t p_t CE_t - beta H(p)  +  lambda mean_k CE_k

where k runs over the model's predictors of tokens further ahead, if it has any.

Gradients flow through p_t and CE_t. All results are sums: whoever calls knows how many tokens the
whole batch has and normalises. Logits are made for a bounded number of tokens at a time, of one
state after the other, and since p_t is known before any logits are, the gradients of the head are
made in the same pass. So no more logits ever exist than that, however many loops and predictors.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kernels.model.loop import Trunk, exit_entropy, exit_log_probabilities
from kernels.model.model import LoopLM
from kernels.model.multi_token import reach, targets_ahead

# Shapes: T loops, K predictors, R = T + K, B rows, S = seq_len positions, N = B S tokens,
# V vocabulary, C width.

# Elements of logits made at once: 2 MiB stay within a core's share of cache, and the matrix
# products are large enough to run at full speed. Only speed, memory and last bits depend on it.
LOGIT_ELEMENTS = 1 << 19


@dataclass(frozen=True, slots=True)
class Objective:
    """Sums over the counted targets. `objective_sum` alone carries gradients."""

    objective_sum: Tensor  # scalar
    ce_sum: Tensor  # scalar, nats: of the last loop's prediction
    counted: int  # targets that count
    loop_ce_sums: Tensor  # (T,), nats: of each loop's prediction
    exit_sums: Tensor  # (T,): of the exit probabilities
    prediction_ce_sums: Tensor  # (K,), nats: of each predictor
    prediction_counted: tuple[int, ...]  # targets of each predictor that count

    @property
    def loop_ce_means(self) -> list[float]:
        """Cross entropy of each loop's prediction, nats per target."""
        return [value / max(self.counted, 1) for value in self.loop_ce_sums.tolist()]

    @property
    def prediction_ce_means(self) -> list[float]:
        """Cross entropy of each predictor, nats per target of its own."""
        sums = self.prediction_ce_sums.tolist()
        return [s / max(n, 1) for s, n in zip(sums, self.prediction_counted, strict=True)]

    @property
    def exit_means(self) -> list[float]:
        """Average probability of leaving after each loop."""
        return [value / max(self.counted, 1) for value in self.exit_sums.tolist()]


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
    tokens_BT = tokens_BT.long()
    K, T = len(model.predictors), model.config.loops
    same_BS = reach(documents_BT, K + 1)
    counted_N = same_BS[0].reshape(-1)
    trunk = model.trunk(tokens_BT[:, :-1], noise=noise)
    weight_TN, entropy_N = _exit(model, trunk.states, counted_N)
    heads = _heads(model, trunk, tokens_BT, same_BS, weight_TN)
    expected, ce_RN = _WeightedCrossEntropy.apply(
        heads.weights,
        model.head_weight,
        heads.targets,
        heads.counted,
        max(1, logit_elements // model.config.vocab_size),
        torch.is_grad_enabled(),
        *heads.states,
    )
    sums_R = ce_RN.sum(dim=1)
    total = expected
    if entropy_weight:
        total = total - entropy_weight * (entropy_N * counted_N).sum()
    return Objective(
        objective_sum=total,
        ce_sum=sums_R[T - 1],
        counted=int(counted_N.sum()),
        loop_ce_sums=sums_R[:T],
        exit_sums=weight_TN.detach().sum(dim=1),
        prediction_ce_sums=sums_R[T:],
        prediction_counted=tuple(int(same.sum()) for same in same_BS[1:]),
    )


@dataclass(frozen=True, slots=True)
class _Heads:
    """Everything that is turned into logits: R states with targets and weights of their own."""

    states: list[Tensor]  # (N, C) each
    targets: list[Tensor]  # (N,) each
    counted: list[Tensor]  # (N,) each
    weights: Tensor  # (R, N)


def _heads(
    model: LoopLM,
    trunk: Trunk,
    tokens_BT: Tensor,
    same_BS: Sequence[Tensor],
    weight_TN: Tensor,
) -> _Heads:
    """The loop's states, and the predictors' with their share of lambda."""
    K, T = len(model.predictors), len(trunk.states)
    targets = targets_ahead(tokens_BT, K)
    states = trunk.states
    if K:
        states = [*states, *model.predictions(trunk, tokens_BT, same_BS)]
        share = model.train_config.prediction_weight / K
        ahead_KN = torch.stack([same.reshape(-1) for same in same_BS[1:]])
        weight_TN = torch.cat((weight_TN, ahead_KN * share))
    return _Heads(
        states=[h.reshape(-1, h.shape[-1]) for h in states],
        targets=[targets[0]] * T + list(targets[1:]),
        counted=[same_BS[0].reshape(-1)] * T + [same.reshape(-1) for same in same_BS[1:]],
        weights=weight_TN,
    )


def _exit(model: LoopLM, states: list[Tensor], counted_N: Tensor) -> tuple[Tensor, Tensor]:
    """Exit probabilities (T, N), zero where nothing counts, and their entropy (N,)."""
    gates_TN = torch.stack([model.gates(h).reshape(-1) for h in states])
    log_p_TN = exit_log_probabilities(gates_TN)
    return log_p_TN.exp() * counted_N, exit_entropy(log_p_TN)


class _WeightedCrossEntropy(torch.autograd.Function):
    """sum_{r,n} weight_rn CE(W h_rn, target_rn), and every CE_rn (zero where nothing counts).

    With `learn`, forward already makes the gradients for h and W, as if the result's own gradient
    were one: the softmax is at hand and would have to be made again otherwise. Backward scales
    them in place, so it may run once.
    """

    @staticmethod
    def forward(
        ctx: Any,
        weight_RN: Tensor,
        w_VC: Tensor,
        targets: Sequence[Tensor],
        counted: Sequence[Tensor],
        chunk: int,
        learn: bool,
        *states_NC: Tensor,
    ) -> tuple[Tensor, Tensor]:
        ce_RN = torch.empty_like(weight_RN)
        # Two buffers for all chunks: fresh memory each time would cost a page fault every 4 KiB.
        rows = min(chunk, weight_RN.shape[1])
        logits_NV, log_p_NV = w_VC.new_empty(2, rows, w_VC.shape[0])
        dw_VC = torch.zeros_like(w_VC) if learn else None
        dstates = [torch.empty_like(h) for h in states_NC] if learn else []
        for r, h_NC in enumerate(states_NC):
            for start in range(0, h_NC.shape[0], chunk):
                part = slice(start, start + chunk)
                h, target, weight = h_NC[part], targets[r][part, None], weight_RN[r, part, None]
                logits = torch.mm(h, w_VC.mT, out=logits_NV[: len(h)])
                log_p = torch.log_softmax(logits, dim=-1, out=log_p_NV[: len(h)])
                ce_RN[r, part] = -log_p.gather(1, target).squeeze(1)
                if dw_VC is None:
                    continue
                # d logits = weight * (softmax - onehot); the weight is moved to the thin factors.
                dlogits = log_p.exp_()
                dlogits.scatter_add_(1, target, dlogits.new_full((), -1.0).expand_as(target))
                torch.mm(dlogits, w_VC, out=dstates[r][part]).mul_(weight)
                dw_VC.addmm_(dlogits.mT, h * weight)
            ce_RN[r].mul_(counted[r])
        ctx.mark_non_differentiable(ce_RN)
        if dw_VC is not None:
            ctx.save_for_backward(ce_RN, dw_VC, *dstates)
        return (weight_RN * ce_RN).sum(dim=1).sum(), ce_RN

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        ce_RN, dw_VC, *dstates = ctx.saved_tensors
        scale = grads[0]
        dstates = [d.mul_(scale) for d in dstates]
        return ce_RN * scale, dw_VC.mul_(scale), None, None, None, None, *dstates
