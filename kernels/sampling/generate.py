"""Continue prompts, token by token, with a key-value cache.

Every sequence draws from its own generator, so what it becomes does not depend on its neighbours'
draws. A group of completions of one prompt reads the prompt once.

Not covered: leaving the loop early. All loops run; the last loop's prediction is used.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.model.initialise import stream
from kernels.model.model import LoopLM
from kernels.sampling.cache import KeyValueCache

# Shapes: B sequences, V vocabulary.


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How the next token is chosen. Raises `ValueError` on impossible settings."""

    temperature: float = 1.0  # 0: always the likeliest
    top_k: int = 0  # only the k likeliest; 0: all
    top_p: float = 1.0  # only the fewest likeliest whose probabilities reach p

    def __post_init__(self) -> None:
        if self.temperature < 0.0:
            raise ValueError(f"temperature must be 0 (greedy) or more, got {self.temperature}")
        if self.top_k < 0:
            raise ValueError(f"top_k must be 0 (all tokens) or more, got {self.top_k}")
        if not 0.0 < self.top_p <= 1.0:
            raise ValueError(f"top_p must be above 0 and at most 1, got {self.top_p}")


@dataclass(frozen=True, slots=True)
class Completion:
    """What followed a prompt.

    `log_probs` are the model's own (temperature 1, all tokens); `drawn_log_probs` those of the
    distribution actually drawn from. The same when temperature is 1 and nothing is cut off.
    """

    tokens: tuple[int, ...]  # without the prompt; with the end token, if it came
    log_probs: tuple[float, ...]
    drawn_log_probs: tuple[float, ...]
    ended: bool  # by the end token, not by the limit


def restrict(logits_BV: Tensor, sampling: Sampling) -> Tensor:
    """Log-probabilities (B, V) of the distribution to draw from; -inf for what is cut off."""
    if sampling.temperature == 0.0:
        best_B1 = logits_BV.argmax(dim=-1, keepdim=True)
        return torch.full_like(logits_BV, -torch.inf).scatter_(1, best_B1, 0.0)
    log_p_BV = torch.log_softmax(logits_BV / sampling.temperature, dim=-1)
    if 0 < sampling.top_k < log_p_BV.shape[1]:
        least_B1 = log_p_BV.topk(sampling.top_k, dim=-1).values[:, -1:]
        log_p_BV = log_p_BV.masked_fill(log_p_BV < least_B1, -torch.inf)
        log_p_BV = torch.log_softmax(log_p_BV, dim=-1)
    if sampling.top_p < 1.0:
        ordered_BV, order_BV = log_p_BV.sort(dim=-1, descending=True, stable=True)
        before_BV = ordered_BV.exp().cumsum(dim=-1) - ordered_BV.exp()
        cut_BV = torch.zeros_like(log_p_BV, dtype=torch.bool)
        cut_BV.scatter_(1, order_BV, before_BV >= sampling.top_p)
        log_p_BV = torch.log_softmax(log_p_BV.masked_fill(cut_BV, -torch.inf), dim=-1)
    return log_p_BV


def draw(log_p_BV: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """One token per row (B,), each with its own generator: the highest log p + Gumbel noise."""
    V = log_p_BV.shape[1]
    noise_BV = torch.stack([torch.empty(V).exponential_(generator=g) for g in generators])
    return (log_p_BV - noise_BV.to(log_p_BV.device).log_()).argmax(dim=-1)


class Generation:
    """Completions in progress: `advance` until it says no more, then `completions`.

    `prompts` are token ids, at least one each; every prompt gets `group` completions, in order, so
    there are `len(prompts) * group` `seeds`. Weights must not change until it is done.
    """

    def __init__(
        self,
        model: LoopLM,
        prompts: Sequence[Sequence[int]],
        *,
        seeds: Sequence[int],
        max_new_tokens: int,
        sampling: Sampling = Sampling(),
        eos: int | None = None,
        group: int = 1,
        share_loops: bool = False,
    ) -> None:
        _check(prompts, seeds, max_new_tokens, group)
        self._model = model
        self._sampling = sampling
        self._eos = eos
        self._left = max_new_tokens
        self._generators = [stream(seed, "sampling") for seed in seeds]
        count = len(seeds)
        self._tokens: list[list[int]] = [[] for _ in range(count)]
        self._log_probs: list[list[float]] = [[] for _ in range(count)]
        self._drawn: list[list[float]] = [[] for _ in range(count)]
        self._ended = [False] * count
        model.requantise()
        device = model.head_weight.device
        longest = max(map(len, prompts))
        padding = [longest - len(prompt) for prompt in prompts]
        filled = [[0] * pad + list(prompt) for pad, prompt in zip(padding, prompts, strict=True)]
        self._cache = KeyValueCache(
            model.config,
            padding,
            longest + max_new_tokens,
            share_loops=share_loops,
            device=device,
            dtype=model.head_weight.dtype,
        )
        logits_BV = self._forward(torch.tensor(filled, device=device))
        self._cache.repeated(group)
        self._logits_BV = logits_BV.repeat_interleave(group, dim=0)

    @torch.no_grad()
    def _forward(self, tokens_BS: Tensor) -> Tensor:
        """Logits (B, V) of what follows the last of the new tokens."""
        S = tokens_BS.shape[1]
        states = self._model.states(
            tokens_BS,
            positions=self._cache.positions(S),
            memory=self._cache.slot,
            requantise=False,
        )
        self._cache.advance(S)
        return self._model.logits(states[-1][:, -1])

    @torch.no_grad()
    def advance(self) -> bool:
        """One more token for every sequence that has not ended. False when all is done."""
        if self._left == 0 or all(self._ended):
            return False
        log_p_BV = restrict(self._logits_BV, self._sampling)
        tokens_B = (
            log_p_BV.argmax(dim=-1)
            if self._sampling.temperature == 0.0
            else draw(log_p_BV, self._generators)
        )
        own_BV = torch.log_softmax(self._logits_BV, dim=-1)
        own = own_BV.gather(1, tokens_B[:, None]).squeeze(1).tolist()
        drawn = log_p_BV.gather(1, tokens_B[:, None]).squeeze(1).tolist()
        for row, token in enumerate(tokens_B.tolist()):
            if not self._ended[row]:
                self._tokens[row].append(token)
                self._log_probs[row].append(own[row])
                self._drawn[row].append(drawn[row])
                self._ended[row] = token == self._eos
        self._left -= 1
        if self._left == 0 or all(self._ended):
            return False
        self._logits_BV = self._forward(tokens_B[:, None])
        return True

    def completions(self) -> list[Completion]:
        """What there is so far, in the order of `seeds`."""
        columns = zip(self._tokens, self._log_probs, self._drawn, self._ended, strict=True)
        return [Completion(tuple(t), tuple(p), tuple(d), e) for t, p, d, e in columns]


def _check(
    prompts: Sequence[Sequence[int]], seeds: Sequence[int], max_new_tokens: int, group: int
) -> None:
    if not prompts or not all(prompts):
        raise ValueError("every prompt needs at least one token: begin it with <bos>")
    if group < 1 or len(seeds) != len(prompts) * group:
        raise ValueError(
            f"{len(prompts)} prompts in groups of {group} need {len(prompts) * max(group, 1)} "
            f"seeds, one per completion; got {len(seeds)}"
        )
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be at least 1, got {max_new_tokens}")


def generate(
    model: LoopLM,
    prompts: Sequence[Sequence[int]],
    *,
    seeds: Sequence[int],
    max_new_tokens: int,
    sampling: Sampling = Sampling(),
    eos: int | None = None,
    group: int = 1,
    share_loops: bool = False,
) -> list[Completion]:
    """All of a `Generation` at once."""
    generation = Generation(
        model,
        prompts,
        seeds=seeds,
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        eos=eos,
        group=group,
        share_loops=share_loops,
    )
    while generation.advance():
        pass
    return generation.completions()
