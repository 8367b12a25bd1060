"""Predicting further ahead: against the slow reference, token by token."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from kernels.model.config import ModelConfig, Prediction, TrainConfig
from kernels.model.initialise import init_parameter
from kernels.model.layers import Mode
from kernels.model.model import LoopLM
from kernels.model.multi_token import reach, shifted
from kernels.model.objective import objective
from tests.kernels.model.reference import Reference
from tests.kernels.model.test_model import assert_same

FORMS: list[Prediction] = ["parallel", "sequential"]
TINY = ModelConfig(
    dim=16, layers=1, heads=2, loops=2, vocab_size=23, seq_len=6, init_std=0.3, predict_tokens=3
)


def build(mode: Mode = "master", **changes: Any) -> LoopLM:
    """None of whose parameters is special."""
    model = LoopLM(replace(TINY, **changes), mode)
    model.initialise(seed=7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1 and "streams" not in name:
                parameter.add_(0.1 * init_parameter(name, (1, *parameter.shape), 8, 1.0)[0])
    return model


def batch(rows: int = 3) -> tuple[Tensor, Tensor]:
    """The second row holds three documents, the third one that comes back."""
    tokens = torch.randint(0, 23, (rows, 7), generator=torch.Generator().manual_seed(3))
    documents = torch.zeros(rows, 7, dtype=torch.int32)
    documents[1] = torch.tensor([0, 0, 1, 1, 1, 2, 2])
    documents[2] = torch.tensor([0, 0, 0, 0, 1, 0, 0])
    return tokens, documents


class Ahead(Reference):
    """The reference, and its predictors."""

    def last(self, tokens: Tensor) -> Tensor:
        """The last loop's state before the final norm."""
        states = self.states(tokens)
        h = states[-2] if len(states) > 1 else self.p["embedding.weight"][tokens]
        for number in range(self.config.layers):
            h = self.layer(f"layers.{number}", h)
        return h

    def layer(self, n: str, h: Tensor) -> Tensor:
        y = self.attention(f"{n}.attention", self.norm(f"{n}.attention_norm_in", h))
        h = h + self.norm(f"{n}.attention_norm_out", y)
        y = self.ffn(f"{n}.ffn", self.norm(f"{n}.ffn_norm_in", h))
        return h + self.norm(f"{n}.ffn_norm_out", y)

    def joined(self, k: int, h: Tensor, tokens: Tensor, documents: Tensor) -> Tensor:
        """What sequential predictor k reads: RMSNorm(Emb(t_{i+k})) and RMSNorm(h_i), joined."""
        e = torch.zeros_like(h)
        for b in range(tokens.shape[0]):
            for s in range(tokens.shape[1] - 1):
                if self.together(documents[b], s, s + k):
                    e[b, s] = self.p["embedding.weight"][tokens[b, s + k]]
        n = f"predictors.{k - 1}"
        both = (self.norm(f"{n}.embedding_norm", e), self.norm(f"{n}.hidden_norm", h))
        return self.linear(f"{n}.join", torch.cat(both, dim=-1))

    @staticmethod
    def together(documents: Tensor, first: int, last: int) -> bool:
        return last < len(documents) and len(set(documents[first : last + 1].tolist())) == 1

    def ahead(self, tokens: Tensor, documents: Tensor) -> Tensor:
        """sum over predictors and tokens of CE, each predictor's by itself (K,)."""
        h = self.last(tokens[:, :-1])
        sums: list[Tensor] = []
        for k in range(1, self.config.predict_tokens):
            n = f"predictors.{k - 1}"
            enter = h
            if self.config.prediction == "sequential":
                enter = self.joined(k, h, tokens, documents)
            made = self.layer(f"{n}.layer", enter)
            if self.config.prediction == "sequential":
                h = made
            log_p = self.logits(self.norm(f"{n}.norm", made)).log_softmax(-1)
            total = torch.zeros((), dtype=h.dtype)
            for b in range(tokens.shape[0]):
                for s in range(tokens.shape[1] - 1):
                    if self.together(documents[b], s, s + k + 1):
                        total = total - log_p[b, s, tokens[b, s + k + 1]]
            sums.append(total)
        return torch.stack(sums)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "changes",
    [{}, {"predict_tokens": 4, "loops": 1, "ternary": False}, {"tie_embedding": False}],
)
def test_objective_and_all_gradients_equal_the_reference(form: Prediction, changes: dict[str, Any]):
    model = build(prediction=form, **changes).double()
    model.train_as(TrainConfig(prediction_weight=0.7))
    tokens, documents = batch()
    reference = Ahead(model)
    sums = reference.ahead(tokens, documents)
    expected = reference.objective(tokens, documents, 0.1) + 0.7 * sums.mean()
    parameters = dict(model.named_parameters())
    wanted = torch.autograd.grad(expected, list(parameters.values()), allow_unused=True)
    result = objective(model, tokens, documents, entropy_weight=0.1, logit_elements=23 * 5)
    torch.testing.assert_close(result.objective_sum, expected)
    torch.testing.assert_close(result.prediction_ce_sums, sums.detach())
    got = torch.autograd.grad(result.objective_sum, list(parameters.values()), allow_unused=True)
    for name, a, b in zip(parameters, got, wanted, strict=True):
        assert_same(name, a, b)


def test_what_counts_never_crosses_documents():
    _, documents = batch()
    near, far = reach(documents, 2)
    assert near[1].tolist() == [True, False, True, True, False, True]
    assert far[1].tolist() == [False, False, True, False, False, False]
    # Its number comes back two tokens later, but it is another document in between.
    assert far[2].tolist() == [True, True, False, False, False, False]
    assert reach(documents, 1)[0].equal(near)
    assert shifted(torch.arange(7)[None], 3).tolist() == [[3, 4, 5, 6, 0, 0]]


@pytest.mark.parametrize("form", FORMS)
def test_tokens_of_other_documents_leave_no_trace_in_what_is_predicted(form: Prediction):
    model = build(prediction=form).double()
    tokens, documents = batch()
    documents[:] = 0
    documents[:, -2:] = 1
    other = tokens.clone()
    other[:, -1] = (other[:, -1] + 1) % 23  # never an input of the model itself
    sums = [
        objective(model, rows, documents, entropy_weight=0.0).prediction_ce_sums
        for rows in (tokens, other)
    ]
    assert torch.equal(sums[0], sums[1])


def test_figures_of_predictors_are_means_over_their_own_targets():
    model = build().double()
    tokens, documents = batch()
    result = objective(model, tokens, documents, entropy_weight=0.0)
    same = [s.sum().item() for s in reach(documents, 3)]
    assert result.prediction_counted == tuple(same[1:])
    means = (result.prediction_ce_sums / torch.tensor(same[1:])).tolist()
    assert result.prediction_ce_means == pytest.approx(means)
    plain = objective(build(predict_tokens=1).double(), tokens, documents, entropy_weight=0.0)
    assert plain.prediction_ce_means == []
    torch.testing.assert_close(plain.loop_ce_sums, result.loop_ce_sums)


@pytest.mark.parametrize("form", FORMS)
def test_modes_streams_and_checkpointing_give_the_same_bits(form: Prediction):
    results: list[dict[str, Tensor]] = []
    ways: list[tuple[Mode, bool]] = [("master", False), ("codes", False), ("codes", True)]
    for mode, checkpointing in ways:
        model = build(mode, prediction=form, streams=2, activation_checkpointing=checkpointing)
        objective(model, *batch(), entropy_weight=0.05).objective_sum.backward()
        results.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    for other in results[1:]:
        assert other.keys() == results[0].keys()
        assert [n for n in other if not torch.equal(other[n], results[0][n])] == []


class _Largest(TorchDispatchMode):
    """The most elements any tensor had whose last dimension is the vocabulary's."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and out.ndim and out.shape[-1] == self.vocabulary:
            self.elements = max(self.elements, out.numel())
        return out


@pytest.mark.parametrize("predict_tokens", [1, 4])
def test_there_are_never_more_logits_than_of_one_piece_of_one_head(predict_tokens: int):
    model = build(predict_tokens=predict_tokens, vocab_size=97)
    with _Largest(97) as seen:
        result = objective(model, *batch(rows=8), entropy_weight=0.05, logit_elements=97 * 20)
        result.objective_sum.backward()
    assert seen.elements == 2 * 97 * 20  # logits and their logarithms, of 20 of 48 tokens


def test_predictors_of_no_weight_learn_nothing():
    model = build("codes")
    model.train_as(TrainConfig(prediction_weight=0.0))
    objective(model, *batch(), entropy_weight=0.05).objective_sum.backward()
    for name, parameter in model.named_parameters():
        if name.startswith("predictors"):
            assert parameter.grad is not None
            assert not parameter.grad.any(), name


@pytest.mark.parametrize("wrong", [{"predict_tokens": 0}, {"predict_tokens": 7}])
def test_impossible_distances_are_refused(wrong: dict[str, int]):
    with pytest.raises(ValueError, match="predict_tokens"):
        replace(TINY, **wrong)


def test_a_negative_weight_is_refused():
    with pytest.raises(ValueError, match="prediction_weight must be 0 or more"):
        TrainConfig(prediction_weight=-0.1)
