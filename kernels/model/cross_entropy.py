"""Cross entropy of many states through one head, without ever holding all their logits."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

# Shapes: R states a token, N tokens, V vocabulary, C width.

# Elements of logits made at once: 2 MiB stay within a core's share of cache, and the matrix
# products are large enough to run at full speed. Only speed, memory and last bits depend on it.
LOGIT_ELEMENTS = 1 << 19


def weighted_cross_entropy(
    weight_RN: Tensor,
    w_VC: Tensor,
    targets: Sequence[Tensor],
    counted: Sequence[Tensor],
    states_NC: Sequence[Tensor],
    logit_elements: int = LOGIT_ELEMENTS,
) -> tuple[Tensor, Tensor]:
    """sum_{r,n} weight_rn CE(W h_rn, target_rn), and every CE_rn (R, N): zero where not `counted`.

    Gradients, unless switched off, are made in the same pass, so backward may run only once.
    """
    chunk = max(1, logit_elements // w_VC.shape[0])
    learn = torch.is_grad_enabled()
    out: tuple[Tensor, Tensor] = _WeightedCrossEntropy.apply(
        weight_RN, w_VC, targets, counted, chunk, learn, *states_NC
    )
    return out


@torch.no_grad()
def token_losses(
    h_NC: Tensor, w_VC: Tensor, target_N: Tensor, logit_elements: int = LOGIT_ELEMENTS
) -> Tensor:
    """CE(W h_n, target_n) in nats, (N,). No gradients."""
    weight_1N = h_NC.new_zeros(1, len(h_NC))
    everything = torch.ones_like(target_N, dtype=torch.bool)
    _, ce_1N = weighted_cross_entropy(
        weight_1N, w_VC, [target_N], [everything], [h_NC], logit_elements
    )
    return ce_1N[0]


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
