"""The token filter: exact gradients from kept tokens only, and products that are really smaller."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from kernels.model.config import ModelConfig, TrainConfig
from kernels.model.layers import Mode
from kernels.model.model import LoopLM
from kernels.model.objective import Objective, objective
from kernels.precision.recipes import Precision
from kernels.sparsity.token_filter import Backward
from tests.kernels.model.test_multi_token import Ahead

TINY = ModelConfig(dim=32, layers=2, heads=2, loops=2, vocab_size=61, seq_len=24, init_std=0.05)
FILTER = TrainConfig(filter="loss", filter_keep=0.5)


def build(mode: Mode = "master", *, train: TrainConfig = FILTER, **changes: Any) -> LoopLM:
    model = LoopLM(replace(TINY, **changes), mode)
    model.train_as(train)
    model.initialise(5)
    return model


def batch(rows: int = 3, length: int = 25) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, 61, (rows, length), generator=generator)
    documents = torch.randint(0, 6, tokens.shape, generator=generator).eq(0).cumsum(1)
    return tokens, documents


def trained(model: LoopLM, noise: int = 3) -> tuple[Objective, dict[str, Tensor]]:
    result = objective(model, *batch(), entropy_weight=0.05, noise=noise)
    named = dict(model.named_parameters())
    grads = torch.autograd.grad(result.objective_sum, list(named.values()), materialize_grads=True)
    return result, dict(zip(named, grads, strict=True))


def way(backward: Backward, **train: Any) -> TrainConfig:
    return replace(FILTER, filter_backward=backward, **train)


VARIANTS: list[dict[str, Any]] = [
    {},
    {"loops": 3, "activation_checkpointing": True},
    {"ternary": False, "loops": 1},
    {"ternary": False, "activation_checkpointing": True},
    {"streams": 3, "tie_embedding": False},
    {"streams": 2, "stream_mixing": "permutation", "activation_checkpointing": True},
    {"predict_tokens": 3},
    {"predict_tokens": 3, "prediction": "sequential", "activation_checkpointing": True},
    {"predict_tokens": 2, "prediction": "sequential", "streams": 2},
]


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_few_rows_give_the_gradients_that_stopping_them_gives(changes: dict[str, Any]):
    results: list[Objective] = []
    grads: list[dict[str, Tensor]] = []
    for backward in ("masked", "gathered"):
        model = build(train=way(backward), **changes).double()
        found, gradients = trained(model)
        results.append(found)
        grads.append(gradients)
    torch.testing.assert_close(results[1].objective_sum, results[0].objective_sum)
    torch.testing.assert_close(results[1].loop_ce_sums, results[0].loop_ce_sums)
    torch.testing.assert_close(results[1].prediction_ce_sums, results[0].prediction_ce_sums)
    for name in grads[0]:
        torch.testing.assert_close(grads[1][name], grads[0][name], msg=name)


@pytest.mark.parametrize(
    ("precision", "ternary"),
    [
        ("nvfp4", True),
        ("nvfp4", False),
        ("fp4_dge", False),
        ("fp8", True),
        ("mxfp4_backward", True),
    ],
)
def test_tokens_are_rounded_among_all_tokens_also_when_they_are_computed_again(
    precision: Precision, ternary: bool
):
    """Scales of a whole batch: those of the kept tokens alone would give other products."""
    train = way("gathered", precision=precision)
    _, known = trained(build(train=train, ternary=ternary))
    _, again = trained(build(train=train, ternary=ternary, activation_checkpointing=True))
    for name in known:
        torch.testing.assert_close(again[name], known[name], msg=name, rtol=1e-4, atol=1e-5)


class Detached(Ahead):
    """Token by token; in attention, keys and values of dropped tokens are constants (oracle)."""

    kept: Tensor  # bool (B, S)

    def attention(self, name: str, x: Tensor) -> Tensor:
        B, S, C = x.shape
        heads = (B, S, self.config.heads, C // self.config.heads)
        q, k, v = (self.linear(f"{name}.{n}", x).view(heads).transpose(1, 2) for n in "qkv")
        q, k = self.rotate(q), self.rotate(k)
        m = self.kept[:, None, :, None].to(x.dtype)
        k, v = (t * m + (t * (1 - m)).detach() for t in (k, v))
        scores = q @ k.mT / q.shape[-1] ** 0.5
        future = torch.ones(S, S, dtype=torch.bool).triu(1)
        y = scores.masked_fill(future, -torch.inf).softmax(-1) @ v
        y = y.transpose(1, 2).reshape(B, S, C)
        return self.linear(f"{name}.o", self.norm(f"{name}.sub_norm", y))


@pytest.mark.parametrize("backward", ["masked", "gathered"])
def test_the_objective_and_its_gradients_equal_the_slow_reference(backward: Backward):
    model = build(train=way(backward), seq_len=10).double()
    tokens, documents = batch(2, 11)
    oracle = Detached(model)
    counted = documents[:, 1:] == documents[:, :-1]
    ce = -oracle.logits(_states(oracle, tokens, torch.ones_like(counted))[-1]).log_softmax(-1)
    ce = ce.gather(2, tokens[:, 1:, None])[..., 0].detach()
    order = ce.masked_fill(~counted, -torch.inf).argsort(dim=1, descending=True)
    kept = torch.zeros_like(counted).scatter_(1, order[:, :5], value=True)
    states = _states(oracle, tokens, kept)
    learnt = kept & counted
    lam = (states[0] @ oracle.p["exit_gate.weight"].T + oracle.p["exit_gate.bias"]).sigmoid()
    p = torch.stack((lam[..., 0], 1 - lam[..., 0]))
    each = torch.stack([-oracle.logits(h).log_softmax(-1) for h in states])
    each = each.gather(3, tokens[None, :, 1:, None].expand(2, -1, -1, -1))[..., 0]
    total = ((p * each + 0.05 * p * p.log()).sum(0) * learnt).sum()
    expected = total * (counted.sum() / learnt.sum())

    result = objective(model, tokens, documents, entropy_weight=0.05)
    torch.testing.assert_close(result.objective_sum, expected)
    torch.testing.assert_close(result.ce_sum, (ce * counted).sum())
    assert (result.counted, result.learnt) == (int(counted.sum()), int(learnt.sum()))
    named = dict(model.named_parameters())
    wanted = torch.autograd.grad(expected, list(named.values()), materialize_grads=True)
    got = torch.autograd.grad(result.objective_sum, list(named.values()), materialize_grads=True)
    for name, a, b in zip(named, got, wanted, strict=True):
        torch.testing.assert_close(a, b, msg=name)


def _states(oracle: Detached, tokens: Tensor, kept: Tensor) -> list[Tensor]:
    oracle.kept = kept
    return oracle.states(tokens[:, :-1])


def test_keeping_every_token_is_no_filter():
    wanted, wanted_grads = trained(build(train=TrainConfig()).double())
    for backward in ("gathered", "masked", "loss_only"):
        result, grads = trained(build(train=way(backward, filter_keep=1.0)).double())
        torch.testing.assert_close(result.objective_sum, wanted.objective_sum)
        for name in grads:
            torch.testing.assert_close(grads[name], wanted_grads[name], msg=name)


def test_what_is_approximated_is_small_but_there():
    _, exact = trained(build(train=way("loss_only")).double())
    _, dropped = trained(build(train=way("gathered")).double())
    name = "layers.0.attention.v.weight"
    cosine = torch.cosine_similarity(exact[name].flatten(), dropped[name].flatten(), dim=0)
    assert 0.5 < cosine < 0.9999


@pytest.mark.parametrize("precision", ["fp32", "fp8", "nvfp4", "mxfp4_backward"])
def test_modes_and_repetition_give_the_same_bits(precision: Any):
    train = way("gathered", precision=precision)
    _, first = trained(build("master", train=train))
    for mode in ("master", "codes"):
        _, again = trained(build(mode, train=train))
        assert [name for name in first if not torch.equal(first[name], again[name])] == []
    assert all(torch.isfinite(gradient).all() for gradient in first.values())


def test_forward_bits_are_those_of_an_unfiltered_pass():
    filtered, plain = (
        objective(build(train=t), *batch(), entropy_weight=0.05) for t in (FILTER, TrainConfig())
    )
    assert filtered.ce_sum.item() == pytest.approx(plain.ce_sum.item(), rel=1e-6)
    assert filtered.counted == plain.counted == plain.learnt
    assert filtered.learnt < plain.learnt


@pytest.mark.parametrize("checkpointing", [False, True])
def test_products_of_the_backward_pass_shrink_to_the_kept_share(checkpointing: bool):
    """All but attention's, whose fused kernel nobody counts."""
    counts: list[int] = []
    wide = {"dim": 64, "seq_len": 32, "activation_checkpointing": checkpointing}
    for train in (TrainConfig(), TrainConfig(filter="loss", filter_keep=0.5)):
        model = build("codes", train=train, ternary=False, vocab_size=61, **wide)
        tokens = torch.randint(0, 61, (2, 33), generator=torch.Generator().manual_seed(3))
        result = objective(model, tokens, torch.zeros_like(tokens), entropy_weight=0.0)
        with FlopCounterMode(display=False) as counter:
            result.objective_sum.backward()
        counts.append(counter.get_flop_counts()["Global"][torch.ops.aten.mm])
    assert counts[1] * 2 == counts[0]


# --- Rho-1's score --------------------------------------------------------------------------------


def test_excess_over_a_reference_keeps_what_can_still_be_learnt():
    model = build(train=TrainConfig())
    reference = LoopLM(TINY, "codes")
    reference.initialise(6)
    train = TrainConfig(filter="excess", filter_keep=0.5)
    model.train_as(train, reference)
    excess, _ = trained(model)
    by_loss, _ = trained(build())
    assert excess.learnt == by_loss.learnt
    assert excess.loop_ce_sums[-1] < by_loss.loop_ce_sums[-1]  # not simply the hardest
    assert "reference" not in " ".join(name for name, _ in model.named_parameters())
    # Against itself nothing stands out: the first positions that count are kept.
    model.train_as(train, model)
    assert trained(model)[0].learnt == by_loss.learnt


def test_a_reference_must_be_there_and_speak_the_same_tokens():
    model = build()
    with pytest.raises(ValueError, match='"excess" needs a reference model'):
        model.train_as(TrainConfig(filter="excess"))
    other = LoopLM(replace(TINY, vocab_size=70))
    with pytest.raises(ValueError, match="a vocabulary of 70, this one of 61"):
        model.train_as(TrainConfig(filter="excess"), other)


@pytest.mark.parametrize("share", [0.0, 1.1])
def test_impossible_shares_are_refused(share: float):
    with pytest.raises(ValueError, match=r"filter_keep is .*; accepted: more than 0, and 1 at"):
        TrainConfig(filter_keep=share)
