"""Drafting changes how fast greedy decoding is, never what it says."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from kernels.model.config import ModelConfig, Prediction
from kernels.model.model import LoopLM
from kernels.model.objective import objective
from kernels.optimizers import adamw
from kernels.optimizers.quantised_state import zeros
from kernels.sampling.generate import Sampling, generate
from kernels.sampling.speculate import Speculation, speculate

FORMS: list[Prediction] = ["parallel", "sequential"]
CONFIG = ModelConfig(
    dim=32, layers=2, heads=2, loops=2, vocab_size=50, seq_len=16, init_std=0.2, predict_tokens=4
)
PROMPTS = [[1, 5, 9, 2, 8], [3, 4], [7]]


def build(**changes: Any) -> LoopLM:
    """Double precision, so that no rounding falls the other way."""
    model = LoopLM(replace(CONFIG, **changes)).double()
    model.initialise(5)
    return model


def plain(model: LoopLM, prompt: list[int], count: int, eos: int | None = None) -> Speculation:
    completion = generate(
        model, [prompt], seeds=[0], max_new_tokens=count, sampling=Sampling(temperature=0), eos=eos
    )[0]
    return Speculation(completion, 0, 0, len(completion.tokens))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("changes", [{}, {"predict_tokens": 2}, {"streams": 2, "ternary": False}])
def test_the_output_is_that_of_plain_greedy_decoding(form: Prediction, changes: dict[str, Any]):
    model = build(prediction=form, **changes)
    for prompt in PROMPTS:
        got, wanted = speculate(model, prompt, max_new_tokens=15), plain(model, prompt, 15)
        assert got.completion.tokens == wanted.completion.tokens
        assert got.completion.log_probs == pytest.approx(wanted.completion.log_probs)
        assert got.passes + got.accepted == len(got.completion.tokens)


@pytest.mark.parametrize("form", FORMS)
def test_the_end_token_ends_it_wherever_it_comes(form: Prediction):
    model = build(prediction=form)
    free = plain(model, PROMPTS[0], 12).completion.tokens
    for eos in dict.fromkeys(free):
        got = speculate(model, PROMPTS[0], max_new_tokens=12, eos=eos).completion
        assert got.tokens == free[: free.index(eos) + 1]
        assert got.ended


@pytest.mark.parametrize("form", FORMS)
def test_a_model_that_has_learned_to_look_ahead_saves_passes(form: Prediction):
    model = LoopLM(replace(CONFIG, layers=1, loops=1, init_std=0.05, prediction=form))
    model.initialise(1)
    state = {name: zeros(adamw.declared(tuple(p.shape))) for name, p in model.named_parameters()}
    for step in range(1, 41):  # rows that count upwards by one from anywhere
        start = torch.randint(0, 50, (16, 1), generator=torch.Generator().manual_seed(step))
        rows = (start + torch.arange(17)) % 50
        model.zero_grad()
        result = objective(model, rows, torch.zeros_like(rows), entropy_weight=0.0)
        (result.objective_sum / result.counted).backward()
        for name, p in model.named_parameters():
            grad = torch.zeros_like(p) if p.grad is None else p.grad
            hyper = adamw.AdamWHyper(lr=0.02)
            new, state[name] = adamw.update(p.detach(), state[name], grad, hyper, step)
            model.load_dense(name, new)
    model = model.double()
    got, wanted = speculate(model, [3], max_new_tokens=30), plain(model, [3], 30)
    assert got.completion.tokens == wanted.completion.tokens
    assert got.accepted > 0.3 * got.drafted
    assert got.passes < 0.6 * wanted.passes
    assert got.tokens_per_pass > 1.6


def test_without_predictors_it_is_plain_decoding():
    model = build(predict_tokens=1)
    got = speculate(model, PROMPTS[0], max_new_tokens=6)
    assert got.completion.tokens == plain(model, PROMPTS[0], 6).completion.tokens
    assert (got.drafted, got.accepted, got.passes) == (0, 0, 6)


def test_requests_for_nothing_are_refused():
    with pytest.raises(ValueError, match="at least one token"):
        speculate(build(), [], max_new_tokens=3)
    with pytest.raises(ValueError, match="max_new_tokens must be"):
        speculate(build(), [1], max_new_tokens=0)
