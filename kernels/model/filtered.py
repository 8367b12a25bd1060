"""Learning from some of the tokens: Collider (arXiv 2502.00340; section 6 of the notes).

All tokens pass forward. Then the tokens that score highest are kept, the same number in each row,
and the others take no part in anything backward: neither their losses, nor, in any layer, their
keys and values, so that gradients have rows for kept tokens only. Three ways (`filter_backward`):

"gathered"   that, with matrices of as many rows as there are kept tokens; see `sparsity.tape`
"masked"     the same gradients with nothing saved, by stopping them at dropped keys and values:
             the reference (two forward passes)
"loss_only"  only the losses are left out (Rho-1), what Collider approximates

What attends to a kept token from elsewhere in the model, the sequential form's embedding of a later
token for instance, learns through the kept position it is used at.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from kernels.model.cross_entropy import token_losses
from kernels.model.loop import Trunk
from kernels.model.model import LoopLM
from kernels.model.multi_token import Rows
from kernels.sparsity.tape import Detaching, Recording
from kernels.sparsity.token_filter import Kept, kept_count, select

# Shapes: B rows, S positions, k kept ones, C width.


class Learnt(NamedTuple):
    """What the model made of the positions it learns from."""

    rows: Rows
    trunk: Trunk
    predictions: list[Tensor]  # of each predictor, (B, S, C)
    ce_sum: Tensor | None  # of all positions, nats; None where these are all


class _Choice(NamedTuple):
    kept: Kept
    ce_sum: Tensor


def learnt_from_all(model: LoopLM, rows: Rows, noise: int | None, logit_elements: int) -> Learnt:
    """Without a filter."""
    del logit_elements
    trunk = model.trunk(rows.inputs, noise=noise)
    predictions = model.predictions(trunk, rows) if model.predictors else []
    return Learnt(rows, trunk, predictions, None)


def learnt_from_few(model: LoopLM, rows: Rows, noise: int | None, logit_elements: int) -> Learnt:
    """With the filter of `model.train_config`."""
    match model.train_config.filter_backward:
        case "gathered":
            return _gathered(model, rows, noise, logit_elements)
        case "masked":
            return _masked(model, rows, noise, logit_elements)
        case "loss_only":
            whole = learnt_from_all(model, rows, noise, logit_elements)
            return _at(whole, _choose(model, whole.trunk, rows, logit_elements))


def _gathered(model: LoopLM, rows: Rows, noise: int | None, logit_elements: int) -> Learnt:
    recording = Recording(thrifty=model.config.activation_checkpointing)
    with torch.no_grad():
        trunk = model.trunk(rows.inputs, noise=noise, apply=recording.apply)
        model.predictions(trunk, rows, apply=recording.apply)
    kept, ce_sum = _choose(model, trunk, rows, logit_elements)
    few, replay = rows.at(kept), recording.replay(kept)
    rotary = model.cos[kept.index], model.sin[kept.index]
    trunk = model.trunk(
        few.inputs, requantise=False, noise=noise, rotary=rotary, apply=replay.apply
    )
    predictions = model.predictions(trunk, few, rotary=rotary, apply=replay.apply)
    return Learnt(few, trunk, predictions, ce_sum)


def _masked(model: LoopLM, rows: Rows, noise: int | None, logit_elements: int) -> Learnt:
    with torch.no_grad():
        trunk = model.trunk(rows.inputs, noise=noise)
    choice = _choose(model, trunk, rows, logit_elements)
    detaching = Detaching(choice.kept.mask())
    trunk = model.trunk(rows.inputs, requantise=False, noise=noise, apply=detaching.apply)
    predictions = model.predictions(trunk, rows, apply=detaching.apply)
    return _at(Learnt(rows, trunk, predictions, None), choice)


def _at(whole: Learnt, choice: _Choice) -> Learnt:
    """What a pass over all positions made of the kept ones."""
    take = choice.kept.take
    trunk = Trunk([take(h) for h in whole.trunk.states], take(whole.trunk.last))
    predictions = [take(h) for h in whole.predictions]
    return Learnt(whole.rows.at(choice.kept), trunk, predictions, choice.ce_sum)


@torch.no_grad()
def _choose(model: LoopLM, trunk: Trunk, rows: Rows, logit_elements: int) -> _Choice:
    """Which positions are kept: of those that count, the ones that score highest."""
    target_BS, counted_BS = rows.ahead[0], rows.same[0]
    loss_BS = _losses(model, trunk, target_BS, logit_elements)
    score_BS = loss_BS
    if model.train_config.filter == "excess":
        assert model.reference is not None
        reference = model.reference.trunk(rows.inputs, requantise=False)
        score_BS = loss_BS - _losses(model.reference, reference, target_BS, logit_elements)
    score_BS = score_BS.masked_fill(~counted_BS, -torch.inf)
    count = kept_count(model.train_config.filter_keep, target_BS.shape[1])
    return _Choice(select(score_BS, count), (loss_BS * counted_BS).sum())


def _losses(model: LoopLM, trunk: Trunk, target_BS: Tensor, logit_elements: int) -> Tensor:
    """Of the last loop's predictions, (B, S)."""
    h_NC = trunk.states[-1].flatten(0, 1)
    losses_N = token_losses(h_NC, model.head_weight, target_BS.reshape(-1), logit_elements)
    return losses_N.view(target_BS.shape)
