"""Generation with a cache says what the whole model would say."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from kernels.model.config import ModelConfig
from kernels.model.model import LoopLM
from kernels.sampling.cache import KeyValueCache
from kernels.sampling.generate import Completion, Generation, Sampling, draw, generate, restrict

CONFIG = ModelConfig(dim=32, layers=2, heads=2, loops=3, vocab_size=50, seq_len=8, init_std=0.2)
GREEDY = Sampling(temperature=0.0)
PROMPTS = [[1, 5, 9, 2, 8], [3, 4], [7]]


def build(**changes: Any) -> LoopLM:
    """Double precision, so that no rounding to int8 falls the other way."""
    model = LoopLM(replace(CONFIG, **changes)).double()
    model.initialise(5)
    return model


def whole(model: LoopLM, tokens: list[int]) -> Tensor:
    """Logits (S, V) of the last loop, without a cache."""
    with torch.no_grad():
        return model(torch.tensor([tokens]))[-1, 0]


@pytest.mark.parametrize("ternary", [True, False])
@pytest.mark.parametrize("pieces", [[12], [5, 7], [1] * 12, [4, 1, 1, 3, 3]])
def test_cached_logits_equal_the_whole_forward(ternary: bool, pieces: list[int]):
    model = build(ternary=ternary)
    tokens = torch.randint(0, 50, (2, 12), generator=torch.Generator().manual_seed(1))
    cache = KeyValueCache(model.config, [0, 0], 12, dtype=torch.float64)
    got: list[Tensor] = []
    with torch.no_grad():
        for piece in tokens.split(pieces, dim=1):
            positions = cache.positions(piece.shape[1])
            states = model.states(piece, positions=positions, memory=cache.slot)
            cache.advance(piece.shape[1])
            got.append(model.logits(states[-1]))
    expected = torch.stack([whole(model, row.tolist()) for row in tokens])
    torch.testing.assert_close(torch.cat(got, dim=1), expected)


def test_greedy_completions_equal_those_without_a_cache():
    model = build()
    for prompt, got in zip(
        PROMPTS,
        generate(model, PROMPTS, seeds=[0, 1, 2], max_new_tokens=9, sampling=GREEDY),
        strict=True,
    ):
        tokens = list(prompt)
        for _ in range(9):
            tokens.append(int(whole(model, tokens)[-1].argmax()))
        assert list(got.tokens) == tokens[len(prompt) :]


def test_log_probabilities_are_the_models_own():
    model = build()
    got = generate(model, PROMPTS, seeds=[4, 5, 6], max_new_tokens=6)
    for prompt, completion in zip(PROMPTS, got, strict=True):
        logits = whole(model, [*prompt, *completion.tokens])[len(prompt) - 1 : -1]
        rows = torch.arange(6), torch.tensor(completion.tokens)
        expected = logits.log_softmax(-1)[rows].tolist()
        assert completion.log_probs == pytest.approx(expected)
        assert completion.drawn_log_probs == pytest.approx(expected)
    warm = generate(
        model, [[1]], seeds=[1], max_new_tokens=6, sampling=Sampling(temperature=0.7, top_k=5)
    )[0]
    logits = whole(model, [1, *warm.tokens])[:-1]
    rows = torch.arange(6), torch.tensor(warm.tokens)
    best = (logits / 0.7).topk(5, dim=-1).values.logsumexp(-1)
    assert warm.drawn_log_probs == pytest.approx(((logits / 0.7)[rows] - best).tolist())
    assert warm.log_probs == pytest.approx(logits.log_softmax(-1)[rows].tolist())


def test_a_sequence_does_not_depend_on_its_neighbours():
    model = build()
    together = generate(model, PROMPTS, seeds=[11, 12, 13], max_new_tokens=8)
    for prompt, seed, expected in zip(PROMPTS, [11, 12, 13], together, strict=True):
        alone = generate(model, [prompt], seeds=[seed], max_new_tokens=8)[0]
        assert alone.tokens == expected.tokens
        assert alone.log_probs == pytest.approx(expected.log_probs)


def test_a_group_reads_its_prompt_once_and_draws_apart():
    model = build()
    grouped = generate(model, PROMPTS[:2], seeds=[1, 2, 3, 4], max_new_tokens=8, group=2)
    apart = generate(
        model, [p for p in PROMPTS[:2] for _ in "ab"], seeds=[1, 2, 3, 4], max_new_tokens=8
    )
    assert [c.tokens for c in grouped] == [c.tokens for c in apart]
    assert len({c.tokens for c in grouped}) == 4


def test_the_end_token_ends_a_sequence_and_the_rest_goes_on():
    model = build()
    free = generate(model, PROMPTS, seeds=[0, 1, 2], max_new_tokens=9, sampling=GREEDY)
    eos = free[0].tokens[3]
    got = generate(model, PROMPTS, seeds=[0, 1, 2], max_new_tokens=9, sampling=GREEDY, eos=eos)
    for completion, unbounded in zip(got, free, strict=True):
        tokens = unbounded.tokens
        stop = tokens.index(eos) + 1 if eos in tokens else len(tokens)
        assert completion.tokens == tokens[:stop]
        assert completion.ended == (eos in tokens)


def test_sharing_loops_is_exact_for_the_prompt_and_takes_a_loops_th_of_the_memory():
    model = build()
    tokens = torch.tensor([PROMPTS[0]])
    caches = [
        KeyValueCache(model.config, [0], 8, share_loops=share, dtype=torch.float64)
        for share in (False, True)
    ]
    with torch.no_grad():
        prompt, after = zip(*[_read(model, tokens, cache) for cache in caches], strict=True)
    torch.testing.assert_close(prompt[1], prompt[0])
    assert not torch.equal(after[1], after[0])  # an approximation from here on
    assert caches[0].nbytes == model.config.loops * caches[1].nbytes
    got = generate(
        model, PROMPTS, seeds=[0, 1, 2], max_new_tokens=4, sampling=GREEDY, share_loops=True
    )
    assert [len(c.tokens) for c in got] == [4, 4, 4]


def _read(model: LoopLM, tokens: Tensor, cache: KeyValueCache) -> tuple[Tensor, Tensor]:
    """Last states after `tokens`, and after one more token."""
    out: list[Tensor] = []
    for piece in (tokens, tokens[:, :1]):
        positions = cache.positions(piece.shape[1])
        out.append(model.states(piece, positions=positions, memory=cache.slot)[-1])
        cache.advance(piece.shape[1])
    return out[0], out[1]


def test_a_full_cache_says_so():
    cache = KeyValueCache(build().config, [0], 4)
    with pytest.raises(ValueError, match="room for 4 positions; 0 are taken and 5 more"):
        cache.positions(5)


def test_cutting_off_keeps_the_likeliest():
    logits = torch.tensor([[0.1, 0.4, 0.2, 0.3], [0.25, 0.25, 0.4, 0.1]]).log()
    top = restrict(logits, Sampling(top_k=2)).exp()
    torch.testing.assert_close(top[0], torch.tensor([0.0, 4 / 7, 0.0, 3 / 7]))
    nucleus = restrict(logits, Sampling(top_p=0.6)).exp()
    torch.testing.assert_close(nucleus[0], torch.tensor([0.0, 4 / 7, 0.0, 3 / 7]))
    cold = restrict(logits, Sampling(temperature=0.5)).exp()
    torch.testing.assert_close(cold[0], torch.tensor([1.0, 16.0, 4.0, 9.0]) / 30)
    assert restrict(logits, GREEDY)[0].tolist() == [-torch.inf, 0.0, -torch.inf, -torch.inf]


def test_draws_follow_the_probabilities_and_never_take_what_is_cut_off():
    log_p = torch.tensor([0.5, 0.0, 0.3, 0.2]).log()
    generators = [torch.Generator().manual_seed(seed) for seed in range(4000)]
    drawn = draw(log_p.expand(4000, 4), generators)
    shares = torch.bincount(drawn, minlength=4) / 4000
    torch.testing.assert_close(shares, log_p.exp(), atol=0.03, rtol=0)
    assert shares[1] == 0


def test_generation_can_be_taken_step_by_step():
    model = build()
    generation = Generation(model, [[1, 2]], seeds=[3], max_new_tokens=5)
    seen: list[tuple[Completion, ...]] = []
    while generation.advance():
        seen.append(tuple(generation.completions()))
    assert [len(c[0].tokens) for c in seen] == [1, 2, 3, 4]
    whole_run = generate(model, [[1, 2]], seeds=[3], max_new_tokens=5)
    assert generation.completions() == whole_run
    assert not generation.advance()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"prompts": []}, "at least one token"),
        ({"prompts": [[1], []]}, "at least one token"),
        ({"seeds": [1]}, "1 prompts in groups of 2 need 2 seeds"),
        ({"max_new_tokens": 0}, "max_new_tokens must be"),
    ],
)
def test_impossible_requests_are_refused(arguments: dict[str, Any], words: str):
    request: dict[str, Any] = {"prompts": [[1]], "seeds": [1, 2], "max_new_tokens": 3, "group": 2}
    with pytest.raises(ValueError, match=words):
        generate(build(), **{**request, **arguments})


@pytest.mark.parametrize("wrong", [{"temperature": -1.0}, {"top_k": -1}, {"top_p": 0.0}])
def test_impossible_settings_are_refused(wrong: dict[str, Any]):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Sampling(**wrong)
