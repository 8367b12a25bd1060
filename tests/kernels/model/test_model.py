"""The model and its objective against the slow reference, in float64."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from kernels.model.config import ModelConfig
from kernels.model.initialise import init_parameter
from kernels.model.layers import RmsNorm
from kernels.model.model import LoopLM
from kernels.model.objective import Objective, objective
from kernels.precision.ternary import quantise
from tests.kernels.model.reference import Reference

TINY = ModelConfig(dim=16, layers=2, heads=2, loops=1, vocab_size=23, seq_len=6, init_std=0.3)
VARIANTS: list[dict[str, Any]] = [
    {"loops": 2},
    {"loops": 1},
    {"loops": 3, "tie_embedding": False},
    {"loops": 2, "ternary": False},
]


def build(**changes: Any) -> LoopLM:
    """A double precision model none of whose parameters is special."""
    model = LoopLM(replace(TINY, **changes)).double()
    model.initialise(seed=7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * init_parameter(name, (1, *parameter.shape), 8, 1.0)[0])
    return model


def batch(rows: int = 3) -> tuple[Tensor, Tensor]:
    """Tokens and documents; the second row holds three documents."""
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(0, 23, (rows, 7), generator=generator)
    documents = torch.zeros(rows, 7, dtype=torch.int32)
    documents[1] = torch.tensor([0, 0, 1, 1, 1, 2, 2])
    return tokens, documents


def assert_same(name: str, got: Tensor | None, wanted: Tensor | None) -> None:
    """Equal gradients; none at all is as good as zero (the gate of a model with one loop)."""
    if got is None or wanted is None:
        assert all(t is None or not t.any() for t in (got, wanted)), name
        return
    torch.testing.assert_close(got, wanted, msg=lambda words: f"{name}: {words}")


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_of_every_loop_equal_the_reference(variant: dict[str, Any]):
    model = build(**variant)
    tokens, _ = batch()
    reference = Reference(model)
    expected = torch.stack([reference.logits(h) for h in reference.states(tokens[:, :-1])])
    torch.testing.assert_close(model(tokens[:, :-1]), expected)


@pytest.mark.parametrize("beta", [0.0, 0.3])
@pytest.mark.parametrize("variant", VARIANTS)
def test_objective_and_all_gradients_equal_the_reference(variant: dict[str, Any], beta: float):
    model = build(**variant)
    tokens, documents = batch()
    expected = Reference(model).objective(tokens, documents, beta)
    parameters = dict(model.named_parameters())
    wanted = torch.autograd.grad(expected, list(parameters.values()), allow_unused=True)
    result = objective(model, tokens, documents, entropy_weight=beta, logit_elements=23 * 5)
    torch.testing.assert_close(result.objective_sum, expected)
    got = torch.autograd.grad(result.objective_sum, list(parameters.values()), allow_unused=True)
    for name, a, b in zip(parameters, got, wanted, strict=True):
        assert_same(name, a, b)


def test_reported_sums_are_plain_cross_entropies_of_counted_targets():
    model = build(loops=3)
    tokens, documents = batch()
    result = objective(model, tokens, documents, entropy_weight=0.1)
    counted = (documents[:, 1:] == documents[:, :-1]).reshape(-1)
    targets = tokens[:, 1:].reshape(-1)
    sums = [
        torch.nn.functional.cross_entropy(z.reshape(-1, 23)[counted], targets[counted])
        for z in model(tokens[:, :-1])
    ]
    assert result.counted == int(counted.sum()) == 3 * 6 - 2
    assert result.loop_ce_means == pytest.approx([s.item() for s in sums])
    assert result.ce_sum.item() == pytest.approx(sums[-1].item() * result.counted)
    assert sum(result.exit_means) == pytest.approx(1.0)
    assert not result.ce_sum.requires_grad


def test_targets_of_other_documents_leave_no_trace():
    model = build(loops=2)
    tokens, documents = batch()
    other = tokens.clone()
    other[:, -1] = (other[:, -1] + 1) % 23
    documents[:, -1] = 99  # the last target begins a document
    results: list[Objective] = []
    for rows in (tokens, other):
        model.zero_grad()
        results.append(objective(model, rows, documents, entropy_weight=0.1))
        results[-1].objective_sum.backward()
    assert results[0].objective_sum.item() == results[1].objective_sum.item()


def test_the_size_of_chunks_does_not_matter():
    model = build(loops=2)
    tokens, documents = batch()
    values: list[Tensor] = []
    grads: list[Tensor] = []
    for elements in (1, 23 * 4, 1 << 20):
        model.zero_grad()
        result = objective(model, tokens, documents, entropy_weight=0.1, logit_elements=elements)
        result.objective_sum.backward()
        values.append(result.objective_sum.detach())
        assert model.embedding.weight.grad is not None
        grads.append(model.embedding.weight.grad.clone())
    for value, grad in zip(values, grads, strict=True):
        torch.testing.assert_close(value, values[0])
        torch.testing.assert_close(grad, grads[0])


def test_evaluation_makes_no_graph_and_gives_the_same_sums():
    model = build(loops=2)
    tokens, documents = batch()
    trained = objective(model, tokens, documents, entropy_weight=0.1)
    with torch.no_grad():
        evaluated = objective(model, tokens, documents, entropy_weight=0.1)
    assert not evaluated.objective_sum.requires_grad
    assert torch.equal(evaluated.objective_sum, trained.objective_sum)
    assert torch.equal(evaluated.loop_ce_sums, trained.loop_ce_sums)


def test_sums_over_micro_batches_add_up():
    model = build(loops=2)
    tokens, documents = batch(rows=4)
    whole = objective(model, tokens, documents, entropy_weight=0.1)
    halves = [
        objective(model, tokens[i : i + 2], documents[i : i + 2], entropy_weight=0.1)
        for i in (0, 2)
    ]
    torch.testing.assert_close(whole.objective_sum, sum(h.objective_sum for h in halves))
    assert whole.counted == sum(h.counted for h in halves)


def test_a_row_without_any_counted_target_is_harmless():
    model = build(loops=2)
    tokens, _ = batch()
    documents = torch.arange(7, dtype=torch.int32).expand(3, 7)
    result = objective(model, tokens, documents, entropy_weight=0.1)
    result.objective_sum.backward()
    assert result.counted == 0
    assert result.loop_ce_means == [0.0, 0.0]
    assert all(not p.grad.any() for p in model.parameters() if p.grad is not None)


def test_norm_gradients_equal_torchs():
    norm = RmsNorm(12, 1e-5).double()
    x = torch.randn(4, 5, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x.requires_grad_()
    assert torch.autograd.gradcheck(norm, (x,))
    expected = torch.nn.functional.rms_norm(x, (12,), norm.weight, 1e-5)
    torch.testing.assert_close(norm(x), expected)


def test_rows_longer_than_configured_are_allowed():
    model = build(loops=1)
    tokens = torch.arange(20)[None] % 23
    reference = Reference(model)
    torch.testing.assert_close(model(tokens)[0], reference.logits(reference.states(tokens)[0]))


def test_values_are_a_function_of_seed_and_name_alone():
    a = init_parameter("layers.0.attention.q.weight", (8, 8), 1, 0.02)
    assert torch.equal(a, init_parameter("layers.0.attention.q.weight", (8, 8), 1, 0.02))
    assert not torch.equal(a, init_parameter("layers.0.attention.k.weight", (8, 8), 1, 0.02))
    assert not torch.equal(a, init_parameter("layers.0.attention.q.weight", (8, 8), 2, 0.02))
    assert a.std().item() == pytest.approx(0.02, rel=0.4)
    assert torch.equal(init_parameter("norm.weight", (8,), 1, 0.02), torch.ones(8))
    assert torch.equal(init_parameter("exit_gate.bias", (1,), 1, 0.02), torch.zeros(1))


def test_loading_refuses_what_does_not_fit():
    model = LoopLM(TINY, "codes")
    name = "layers.0.attention.q.weight"
    with pytest.raises(ValueError, match="takes codes"):
        model.load_dense(name, torch.zeros(16, 16))
    with pytest.raises(ValueError, match="has shape"):
        model.load_dense("norm.weight", torch.zeros(5))
    with pytest.raises(ValueError, match=r"this layer takes torch.int8 of shape \(16, 16\)"):
        model.ternary_layers()[name].load(torch.zeros(16, 8, dtype=torch.int8), 1.0)
    with pytest.raises(ValueError, match=r"codes are torch.float32"):
        model.ternary_layers()[name].load(torch.zeros(16, 16), 1.0)


def test_codes_and_dense_values_arrive_where_they_belong():
    source = LoopLM(replace(TINY, loops=2))
    source.initialise(1)
    copy = LoopLM(source.config, "codes")
    for name, parameter in source.named_parameters():
        layer = copy.ternary_layers().get(name)
        if layer is None:
            copy.load_dense(name, parameter)
        else:
            layer.load(*quantise(parameter.detach()))
    tokens = torch.arange(6)[None]
    assert torch.equal(copy(tokens), source(tokens))


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"heads": 3}, "multiple of twice model.heads"), ({"loops": 0}, "model.loops must be")],
)
def test_impossible_configurations_are_refused(changes: dict[str, int], words: str):
    with pytest.raises(ValueError, match=words):
        replace(TINY, **changes)
