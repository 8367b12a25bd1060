"""The model without any technique, as it was before there were any: copied, and not to be changed.

Whatever is added to `kernels/model` must leave these very bits when it is switched off.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from kernels.model.layers import Attention, FeedForward, Layer, project, rotate
from kernels.model.loop import exit_entropy, exit_log_probabilities
from kernels.model.model import LoopLM
from kernels.model.objective import LOGIT_ELEMENTS


def attention(module: Attention, x_BSC: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    B, S, C = x_BSC.shape
    q, k, v = project(x_BSC, (module.q, module.k, module.v))
    heads = (B, S, module.heads, C // module.heads)
    q_BHSD = rotate(q.view(heads), cos, sin).transpose(1, 2)
    k_BHSD = rotate(k.view(heads), cos, sin).transpose(1, 2)
    v_BHSD = v.view(heads).transpose(1, 2)
    y = functional.scaled_dot_product_attention(q_BHSD, k_BHSD, v_BHSD, is_causal=S > 1)
    return module.o(module.sub_norm(y.transpose(1, 2).reshape(B, S, C)))


def feed_forward(module: FeedForward, x_BSC: Tensor) -> Tensor:
    gate, up = project(x_BSC, (module.gate, module.up))
    return module.down(module.sub_norm(_ReluSquaredGate.apply(gate, up)))


class _ReluSquaredGate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return gate.relu().square_().mul_(up)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        (dy,) = grads
        gate, up = ctx.saved_tensors
        positive = gate.relu()
        dy_positive = dy * positive
        dup = dy_positive * positive
        return dy_positive.mul_(up).mul_(2.0), dup


def layer(module: nn.Module, x_BSC: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    assert isinstance(module, Layer)
    attended = attention(module.attention, module.attention_norm_in(x_BSC), cos, sin)
    x_BSC = x_BSC + module.attention_norm_out(attended)
    return x_BSC + module.ffn_norm_out(feed_forward(module.ffn, module.ffn_norm_in(x_BSC)))


def states(model: LoopLM, tokens_BS: Tensor) -> list[Tensor]:
    model.requantise()
    S = tokens_BS.shape[1]
    h_BSC = functional.embedding(tokens_BS, model.embedding.weight)
    out: list[Tensor] = []
    for _ in range(model.config.loops):
        for module in model.layers:
            h_BSC = layer(module, h_BSC, model.cos[:S], model.sin[:S])
        h_BSC = model.norm(h_BSC)
        out.append(h_BSC)
    return out


def objective(
    model: LoopLM, tokens_BT: Tensor, documents_BT: Tensor, entropy_weight: float
) -> tuple[Tensor, Tensor]:
    """The objective's sum and the cross entropies of every loop, summed."""
    counted_N = (documents_BT[:, 1:] == documents_BT[:, :-1]).reshape(-1)
    targets_N = tokens_BT[:, 1:].reshape(-1)
    hidden = states(model, tokens_BT[:, :-1])
    gates_TN = torch.stack([model.gates(h).reshape(-1) for h in hidden])
    log_p_TN = exit_log_probabilities(gates_TN)
    expected, ce_TN = _WeightedCrossEntropy.apply(
        log_p_TN.exp() * counted_N,
        model.head_weight,
        targets_N,
        counted_N,
        max(1, LOGIT_ELEMENTS // model.config.vocab_size),
        *[h.reshape(-1, h.shape[-1]) for h in hidden],
    )
    total = expected - entropy_weight * (exit_entropy(log_p_TN) * counted_N).sum()
    return total, ce_TN.sum(dim=1)


class _WeightedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        weight_TN: Tensor,
        w_VC: Tensor,
        targets_N: Tensor,
        counted_N: Tensor,
        chunk: int,
        *states_NC: Tensor,
    ) -> tuple[Tensor, Tensor]:
        ce_TN = torch.empty_like(weight_TN)
        # Two buffers for all chunks: fresh memory each time would cost a page fault every 4 KiB.
        rows = min(chunk, len(targets_N))
        logits_NV, log_p_NV = w_VC.new_empty(2, rows, w_VC.shape[0])
        dw_VC = torch.zeros_like(w_VC)
        dstates = [torch.empty_like(h) for h in states_NC]
        for t, h_NC in enumerate(states_NC):
            for start in range(0, h_NC.shape[0], chunk):
                part = slice(start, start + chunk)
                h, target, weight = h_NC[part], targets_N[part, None], weight_TN[t, part, None]
                logits = torch.mm(h, w_VC.mT, out=logits_NV[: len(h)])
                log_p = torch.log_softmax(logits, dim=-1, out=log_p_NV[: len(h)])
                ce_TN[t, part] = -log_p.gather(1, target).squeeze(1)
                # d logits = weight * (softmax - onehot); the weight is moved to the thin factors.
                dlogits = log_p.exp_()
                dlogits.scatter_add_(1, target, dlogits.new_full((), -1.0).expand_as(target))
                torch.mm(dlogits, w_VC, out=dstates[t][part]).mul_(weight)
                dw_VC.addmm_(dlogits.mT, h * weight)
        ce_TN.mul_(counted_N)
        ctx.mark_non_differentiable(ce_TN)
        ctx.save_for_backward(ce_TN, dw_VC, *dstates)
        return (weight_TN * ce_TN).sum(dim=1).sum(), ce_TN

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor | None, ...]:
        ce_TN, dw_VC, *dstates = ctx.saved_tensors
        scale = grads[0]
        dstates = [d.mul_(scale) for d in dstates]
        return ce_TN * scale, dw_VC.mul_(scale), None, None, None, *dstates
