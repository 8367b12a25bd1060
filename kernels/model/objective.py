"""What training minimises: expected cross entropy over exits, less entropy (Ouro, stage I).

    sum over counted tokens of  sum_t p_t CE_t - beta H(p)

Gradients flow through p_t and CE_t. All results are sums: whoever calls knows how many tokens the
whole batch has and normalises. Logits are made for a bounded number of tokens at a time, and since
p_t is known before any logits are, the gradients of the head are made in the same pass.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kernels.model.loop import exit_entropy, exit_log_probabilities
from kernels.model.model import LoopLM

# Shapes: T loops, B rows, S = seq_len positions, N = B S tokens, V vocabulary, C width.

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

    @property
    def loop_ce_means(self) -> list[float]:
        """Cross entropy of each loop's prediction, nats per target."""
        return [value / max(self.counted, 1) for value in self.loop_ce_sums.tolist()]

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
    logit_elements: int = LOGIT_ELEMENTS,
) -> Objective:
    """Objective of rows of seq_len + 1 tokens (B, T), of any integer type; see `Objective`."""
    tokens_BT = tokens_BT.long()
    counted_N = counted_targets(documents_BT).reshape(-1)
    targets_N = tokens_BT[:, 1:].reshape(-1)
    states = model.states(tokens_BT[:, :-1])
    weight_TN, entropy_N = _exit(model, states, counted_N)
    expected, ce_TN = _WeightedCrossEntropy.apply(
        weight_TN,
        model.head_weight,
        targets_N,
        counted_N,
        max(1, logit_elements // model.config.vocab_size),
        torch.is_grad_enabled(),
        *[h.reshape(-1, h.shape[-1]) for h in states],
    )
    loop_sums_T = ce_TN.sum(dim=1)
    total = expected
    if entropy_weight:
        total = total - entropy_weight * (entropy_N * counted_N).sum()
    return Objective(
        objective_sum=total,
        ce_sum=loop_sums_T[-1],
        counted=int(counted_N.sum()),
        loop_ce_sums=loop_sums_T,
        exit_sums=weight_TN.detach().sum(dim=1),
    )


def _exit(model: LoopLM, states: list[Tensor], counted_N: Tensor) -> tuple[Tensor, Tensor]:
    """Exit probabilities (T, N), zero where nothing counts, and their entropy (N,)."""
    gates_TN = torch.stack([model.gates(h).reshape(-1) for h in states])
    log_p_TN = exit_log_probabilities(gates_TN)
    return log_p_TN.exp() * counted_N, exit_entropy(log_p_TN)


class _WeightedCrossEntropy(torch.autograd.Function):
    """sum_{t,n} weight_tn CE(W h_tn, target_n), and every CE_tn (zero where nothing counts).

    With `learn`, forward already makes the gradients for h and W, as if the result's own gradient
    were one: the softmax is at hand and would have to be made again otherwise. Backward scales
    them in place, so it may run once.
    """

    @staticmethod
    def forward(
        ctx: Any,
        weight_TN: Tensor,
        w_VC: Tensor,
        targets_N: Tensor,
        counted_N: Tensor,
        chunk: int,
        learn: bool,
        *states_NC: Tensor,
    ) -> tuple[Tensor, Tensor]:
        ce_TN = torch.empty_like(weight_TN)
        # Two buffers for all chunks: fresh memory each time would cost a page fault every 4 KiB.
        rows = min(chunk, len(targets_N))
        logits_NV, log_p_NV = w_VC.new_empty(2, rows, w_VC.shape[0])
        dw_VC = torch.zeros_like(w_VC) if learn else None
        dstates = [torch.empty_like(h) for h in states_NC] if learn else []
        for t, h_NC in enumerate(states_NC):
            for start in range(0, h_NC.shape[0], chunk):
                part = slice(start, start + chunk)
                h, target, weight = h_NC[part], targets_N[part, None], weight_TN[t, part, None]
                logits = torch.mm(h, w_VC.mT, out=logits_NV[: len(h)])
                log_p = torch.log_softmax(logits, dim=-1, out=log_p_NV[: len(h)])
                ce_TN[t, part] = -log_p.gather(1, target).squeeze(1)
                if dw_VC is None:
                    continue
                # d logits = weight * (softmax - onehot); the weight is moved to the thin factors.
                dlogits = log_p.exp_()
                dlogits.scatter_add_(1, target, dlogits.new_full((), -1.0).expand_as(target))
                torch.mm(dlogits, w_VC, out=dstates[t][part]).mul_(weight)
                dw_VC.addmm_(dlogits.mT, h * weight)
        ce_TN.mul_(counted_N)
        ctx.mark_non_differentiable(ce_TN)
        if dw_VC is not None:
            ctx.save_for_backward(ce_TN, dw_VC, *dstates)
        return (weight_TN * ce_TN).sum(dim=1).sum(), ce_TN

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        ce_TN, dw_VC, *dstates = ctx.saved_tensors
        scale = grads[0]
        dstates = [d.mul_(scale) for d in dstates]
        return ce_TN * scale, dw_VC.mul_(scale), None, None, None, None, *dstates
