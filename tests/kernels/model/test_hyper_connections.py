"""Hyper-connections: against the paper written down token by token, and against its traps."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from kernels.model import hyper_connections
from kernels.model.config import ModelConfig
from kernels.model.hyper_connections import (
    HyperConnection,
    Mixing,
    StreamsHead,
    permutation_table,
    sinkhorn,
)
from kernels.model.initialise import init_parameter
from kernels.model.layers import Mode
from kernels.model.model import LoopLM
from kernels.model.objective import objective
from kernels.model.stream_gain import stream_gain
from kernels.optimizers import adamw
from kernels.optimizers.quantised_state import zeros
from kernels.sampling.generate import Sampling, generate

MIXINGS: list[Mixing] = ["sinkhorn", "permutation"]
SMALL = ModelConfig(
    dim=32, layers=2, heads=2, loops=2, vocab_size=61, seq_len=16, streams=4, init_std=0.05
)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def build(mode: Mode = "master", **changes: Any) -> LoopLM:
    model = LoopLM(replace(SMALL, **changes), mode)
    model.initialise(3)
    return model


def batch(rows: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, 61, (rows, 17), generator=generator)
    return tokens, torch.randint(0, 2, (rows, 17), generator=generator).cumsum(1) // 6


def connection(mixing: Mixing, streams: int = 3, width: int = 5) -> HyperConnection:
    """In double precision, none of whose parameters is special."""
    module = HyperConnection(streams, width, mixing).double()
    with torch.no_grad():
        for seed, parameter in enumerate(module.parameters()):
            parameter.copy_(normal(*parameter.shape, seed=seed))
    return module


def reference(module: HyperConnection, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The paper for one token: its streams `x` (n, C) and its sublayer's output `y` (C,)."""
    n = len(x)
    flat = x.reshape(-1)
    m = (module.phi @ flat) / (flat.square().mean() + 1e-20).sqrt()
    a, b = module.alpha, module.b
    pre = [torch.sigmoid(a[0] * m[j] + b[j]) + 1e-6 for j in range(n)]
    post = [2 * torch.sigmoid(a[1] * m[n + k] + b[n + k]) for k in range(n)]
    logits = a[2] * m[2 * n :] + b[2 * n :]
    if module.mixing == "sinkhorn":
        mix = logits.view(n, n).softmax(-1) + 1e-6
        mix = mix / mix.sum(-2, keepdim=True)
        for _ in range(19):
            mix = mix / mix.sum(-1, keepdim=True)
            mix = mix / mix.sum(-2, keepdim=True)
    else:
        weights = logits.softmax(-1)
        table = permutation_table(n).double().view(-1, n, n)
        mix = torch.stack([w * p for w, p in zip(weights, table, strict=True)]).sum(0)
    u = torch.stack([w * row for w, row in zip(pre, x, strict=True)]).sum(0)
    after = [post[k] * y + sum(mix[j, k] * x[j] for j in range(n)) for k in range(n)]
    return u, torch.stack(after)


@pytest.mark.parametrize("mixing", MIXINGS)
def test_maps_do_to_each_token_what_the_paper_says(mixing: Mixing):
    module = connection(mixing)
    x, y = normal(2, 4, 3, 5), normal(2, 4, 5, seed=9)
    maps = module(x)
    read, written = maps.read(x), maps.write(x, y)
    for place in ((0, 0), (1, 3)):
        u, after = reference(module, x[place], y[place])
        torch.testing.assert_close(read[place], u)
        torch.testing.assert_close(written[place], after)


@pytest.mark.parametrize("mixing", MIXINGS)
def test_gradients_are_those_of_differences(mixing: Mixing):
    module = connection(mixing)
    names = [name for name, _ in module.named_parameters()]

    def run(x: Tensor, y: Tensor, *values: Tensor) -> Tensor:
        maps = torch.func.functional_call(module, dict(zip(names, values, strict=True)), (x,))
        return maps.write(x, torch.tanh(maps.read(x)) * y)

    inputs = [normal(2, 3, 5), normal(2, 5, seed=1), *(p.detach() for p in module.parameters())]
    assert torch.autograd.gradcheck(run, [t.clone().requires_grad_() for t in inputs])


def test_the_heads_gradients_are_those_of_differences():
    head = StreamsHead(3, 4).double()
    with torch.no_grad():
        for seed, parameter in enumerate(head.parameters()):
            parameter.copy_(normal(*parameter.shape, seed=seed))
    assert torch.autograd.gradcheck(head, (normal(2, 3, 4).requires_grad_(),))


@pytest.mark.parametrize("size", [0.3, 1.0])
def test_sinkhorn_is_doubly_stochastic_columns_exactly_and_rows_nearly(size: float):
    m = sinkhorn(size * normal(500, 4, 4, dtype=torch.float32))
    assert (m > 0).all()
    # Columns are divided last: sums over the first index are 1.
    assert (m.sum(-2) - 1).abs().max() < 3e-7
    rows = (m.sum(-1) - 1).abs().max().item()
    assert rows < (2e-3 if size == 1.0 else 2e-5)


def test_sinkhorn_survives_logits_of_any_size():
    logits = torch.tensor([[[500.0, -500.0], [500.0, -500.0]]], requires_grad=True)
    m = sinkhorn(logits)
    m.sum().backward()
    assert torch.isfinite(m).all()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def test_sinkhorns_gradient_does_not_depend_on_how_tokens_are_cut(monkeypatch: pytest.MonkeyPatch):
    logits, dm = normal(10, 4, 4).requires_grad_(), normal(10, 4, 4, seed=1)
    (whole,) = torch.autograd.grad(sinkhorn(logits), logits, dm)
    monkeypatch.setattr(hyper_connections, "_CHUNK_TOKENS", 3)
    (cut,) = torch.autograd.grad(sinkhorn(logits), logits, dm)
    torch.testing.assert_close(cut, whole)


def test_permutations_are_exactly_doubly_stochastic():
    module = connection("permutation", streams=4).float()
    mix = module(normal(200, 4, 5, dtype=torch.float32)).mix
    assert (mix.sum(-1) - 1).abs().max() < 1e-6
    assert (mix.sum(-2) - 1).abs().max() < 1e-6
    table = permutation_table(4).view(24, 4, 4)
    assert torch.equal(table[0], torch.eye(4))
    assert len({tuple(p.flatten().tolist()) for p in table}) == 24


def test_mixing_goes_from_the_first_index_to_the_second():
    """The transpose would swap which sums are exact, and show nowhere else."""
    module = HyperConnection(2, 3, "sinkhorn").double()
    with torch.no_grad():
        module.b[4:] = torch.tensor([0.0, 4.0, 0.0, 0.0])  # much of stream 0 goes to stream 1
    x = torch.zeros(1, 2, 3, dtype=torch.float64)
    x[:, 0] = 1.0
    maps = module(x)
    after = maps.write(x, torch.zeros(1, 3, dtype=torch.float64))
    torch.testing.assert_close(after[0, :, 0], maps.mix[0, 0])
    assert after[0, 1, 0] > 0.7


# --- In the model ---------------------------------------------------------------------------------


@pytest.mark.parametrize("mixing", MIXINGS)
@pytest.mark.parametrize("streams", [2, 4])
def test_at_first_it_computes_what_a_plain_residual_computes(mixing: Mixing, streams: int):
    tokens = batch()[0][:, :-1]
    model = build(ternary=False, streams=streams, stream_mixing=mixing)
    with_streams = torch.stack(model.states(tokens))
    plain = torch.stack(build(ternary=False, streams=1).states(tokens))
    assert (with_streams - plain).abs().max() < 2e-6 * plain.abs().max()
    assert not torch.equal(with_streams, plain)


def trained(model: LoopLM, steps: int) -> list[float]:
    """Losses of a few steps of AdamW, all on the same rows."""
    state = {name: zeros(adamw.declared(tuple(p.shape))) for name, p in model.named_parameters()}
    losses: list[float] = []
    for step in range(1, steps + 1):
        model.zero_grad()
        result = objective(model, *batch(), entropy_weight=0.05)
        (result.objective_sum / result.counted).backward()
        losses.append(result.loop_ce_means[-1])
        for name, p in model.named_parameters():
            assert p.grad is not None, name
            new, state[name] = adamw.update(
                p.detach(), state[name], p.grad, adamw.AdamWHyper(lr=0.01), step
            )
            model.load_dense(name, new)
    return losses


@pytest.mark.parametrize("mixing", MIXINGS)
def test_mixing_moves_away_from_its_start_and_streams_come_apart(mixing: Mixing):
    model = build(stream_mixing=mixing)
    # The first sublayer of a turn finds equal streams, which any mixing leaves as they are.
    inner = [m for m in model.modules() if isinstance(m, HyperConnection)][1:]
    streams = normal(50, 4, 32, dtype=torch.float32)
    before = [(m.b.detach()[8:].clone(), m(streams).mix.detach()) for m in inner]
    losses = trained(model, 10)
    assert losses[-1] < losses[0]
    for module, (b, mix) in zip(inner, before, strict=True):
        # Adam moves what has a gradient by about its rate of 0.01 a step.
        assert (module.b.detach()[8:] - b).abs().max() > 0.02
        assert (module(streams).mix - mix).abs().max() > 2e-3
    seen: list[Tensor] = []
    hook = inner[-1].register_forward_pre_hook(lambda _m, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        model.states(batch()[0][:, :-1])
    hook.remove()
    spread = (seen[0] - seen[0].mean(-2, keepdim=True)).norm() / seen[0].norm()
    assert spread > 0.005


def test_streams_have_different_gradients_from_the_first_step():
    model = build()
    objective(model, *batch(), entropy_weight=0.05).objective_sum.backward()
    for module in model.modules():
        if isinstance(module, HyperConnection):
            assert module.b.grad is not None
            post = module.b.grad[4:8]
            assert post.std() > 0.05 * post.abs().mean()


@pytest.mark.parametrize("mixing", MIXINGS)
def test_gain_over_depth_stays_near_one(mixing: Mixing):
    model = build(stream_mixing=mixing, layers=8)
    with torch.no_grad():  # logits of ordinary size
        for module in model.modules():
            if isinstance(module, HyperConnection):
                module.alpha.fill_(0.5)
                module.phi.normal_(0.0, 0.1, generator=torch.Generator().manual_seed(1))
    gain = stream_gain(model, batch()[0][:, :-1])
    assert 0.99 < gain.forward < 1.1
    assert 0.99 < gain.backward < 1.1
    assert 0.05 < gain.left < 0.9


def test_gain_is_asked_of_streams_only():
    with pytest.raises(ValueError, match="streams = 1 has no mixing"):
        stream_gain(build(streams=1), batch()[0][:, :-1])


@pytest.mark.parametrize("mixing", MIXINGS)
def test_modes_and_checkpointing_give_the_same_bits(mixing: Mixing):
    results: list[dict[str, Tensor]] = []
    ways: list[tuple[Mode, bool]] = [("master", False), ("codes", False), ("codes", True)]
    for mode, checkpointing in ways:
        model = build(mode, stream_mixing=mixing, activation_checkpointing=checkpointing)
        objective(model, *batch(), entropy_weight=0.05).objective_sum.backward()
        results.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    for other in results[1:]:
        assert other.keys() == results[0].keys()
        assert [n for n in other if not torch.equal(other[n], results[0][n])] == []


def test_generation_with_a_cache_says_what_the_whole_model_says():
    model = build(init_std=0.3).double()
    prompts = [[1, 5, 9, 2], [3]]
    got = generate(
        model, prompts, seeds=[0, 1], max_new_tokens=8, sampling=Sampling(temperature=0.0)
    )
    for prompt, completion in zip(prompts, got, strict=True):
        tokens = list(prompt)
        for _ in range(8):
            with torch.no_grad():
                tokens.append(int(model(torch.tensor([tokens]))[-1, 0, -1].argmax()))
        assert list(completion.tokens) == tokens[len(prompt) :]


def test_a_shard_makes_the_same_first_values_without_the_model():
    model = build()
    for name, parameter in model.named_parameters():
        if "streams" in name:
            assert torch.equal(parameter, init_parameter(name, parameter.shape, 3, 0.05)), name
    pre = model.get_parameter("layers.1.ffn_streams.b")[:4].sigmoid()
    torch.testing.assert_close(pre, torch.tensor([0.1, 0.1, 0.1, 0.7]), atol=2e-6, rtol=0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"streams": 0}, "accepted are 1"),
        ({"streams": 9}, "to 8"),
        ({"streams": 5, "stream_mixing": "permutation"}, "to 4"),
    ],
)
def test_impossible_numbers_of_streams_are_refused(changes: dict[str, Any], words: str):
    with pytest.raises(ValueError, match=words):
        replace(SMALL, **changes)
