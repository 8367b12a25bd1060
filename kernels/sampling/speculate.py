"""Greedy decoding several tokens at a time, with the model's own predictors as the draft.

At each step the predictors propose what follows, and one forward pass of the model reads the
proposals and says at each of them what it would have said itself. Proposals are kept as long as
they agree (blockwise decoding; Gloeckle et al., arXiv 2404.19737, section 2), and what the model
says after the last of them comes for free. So every token is the model's own choice, as in plain
greedy decoding: only where two logits differ by less than the rounding of a matrix product, whose
last bits depend on how many tokens are read at once, may the other one be taken.

Not covered: drawing at a temperature (which needs the rejection rule), and several sequences at a
time: each would accept another number of tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kernels.model.layers import Call
from kernels.model.model import LoopLM
from kernels.model.multi_token import Predictor
from kernels.sampling.cache import KeyValueCache
from kernels.sampling.generate import Completion

# Shapes: S new positions, P positions so far, C width, V vocabulary. One sequence: B = 1.


@dataclass(frozen=True, slots=True)
class Speculation:
    """A completion, and what the drafts were good for."""

    completion: Completion
    drafted: int  # proposals made
    accepted: int  # of these, tokens of the completion
    passes: int  # forward passes of the model, the one over the prompt included

    @property
    def tokens_per_pass(self) -> float:
        """1 is what plain decoding makes."""
        return len(self.completion.tokens) / self.passes


@torch.no_grad()
def speculate(
    model: LoopLM, prompt: Sequence[int], *, max_new_tokens: int, eos: int | None = None
) -> Speculation:
    """Continue `prompt` greedily. Without predictors this is plain decoding.

    Raises `ValueError` for an empty prompt or no tokens to be made.
    """
    if not prompt:
        raise ValueError("the prompt needs at least one token: begin it with <bos>")
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
    model.requantise()
    reader = _Reader(model, len(prompt) + max_new_tokens)
    draft = _Draft(model, len(prompt) + max_new_tokens)
    tokens, log_probs = list(prompt), list[float]()
    best, own = reader.read(tokens)
    tokens.append(best[-1])
    log_probs.append(own[-1])
    drafted = accepted = 0
    passes = 1
    while len(log_probs) < max_new_tokens and tokens[-1] != eos:
        proposals = draft.propose(tokens, reader.last, max_new_tokens - len(log_probs) - 1)
        start = len(tokens)
        best, own = reader.read([tokens[-1], *proposals])
        agreed = 0
        while agreed < len(proposals) and proposals[agreed] == best[agreed] != eos:
            agreed += 1
        tokens += best[: agreed + 1]
        log_probs += own[: agreed + 1]
        reader.forget_after(start + agreed)
        drafted, passes = drafted + len(proposals), passes + 1
        accepted += agreed
    made = tuple(tokens[len(prompt) :])
    completion = Completion(made, tuple(log_probs), (0.0,) * len(made), made[-1] == eos)
    return Speculation(completion, drafted, accepted, passes)


class _Reader:
    """The model itself, with its cache."""

    def __init__(self, model: LoopLM, capacity: int) -> None:
        self._model = model
        weight = model.head_weight
        self._cache = KeyValueCache(
            model.config, [0], capacity, device=weight.device, dtype=weight.dtype
        )
        # The last loop's state before the final norm, of every position read: what drafts read.
        self.last = weight.new_empty(1, 0, weight.shape[1])

    def read(self, tokens: Sequence[int]) -> tuple[list[int], list[float]]:
        """For each of the next tokens, the likeliest token after it and its log-probability."""
        S = len(tokens)
        trunk = self._model.trunk(
            torch.tensor([tokens], device=self.last.device),
            positions=self._cache.positions(S),
            memory=self._cache.slot,
            requantise=False,
        )
        self._cache.advance(S)
        self.last = torch.cat((self.last, trunk.last), dim=1)
        log_p_SV = torch.log_softmax(self._model.logits(trunk.states[-1][0]), dim=-1)
        best = log_p_SV.max(dim=-1)
        return best.indices.tolist(), best.values.tolist()

    def forget_after(self, count: int) -> None:
        """Only the first `count` positions turned out to be tokens of the sequence."""
        self._cache.rewind(count)
        self.last = self.last[:, :count]


class _Draft:
    """The predictors, each with a cache of its own.

    Predictor k's entry of position t depends on the token at t + k when it is sequential. The last
    ones are therefore made from proposals, and made again once the tokens are known.
    """

    def __init__(self, model: LoopLM, capacity: int) -> None:
        self._model = model
        self._predictors = [p for p in model.predictors if isinstance(p, Predictor)]
        weight = model.head_weight
        one = replace(model.config, layers=1, loops=1)
        self._caches = [
            KeyValueCache(one, [0], capacity, device=weight.device, dtype=weight.dtype)
            for _ in self._predictors
        ]
        self._made = [weight.new_empty(1, 0, weight.shape[1]) for _ in self._predictors]

    def propose(self, tokens: Sequence[int], last_1PC: Tensor, most: int) -> list[int]:
        """What follows `tokens`, of which the model has read all but the last."""
        proposals: list[int] = []
        h_1PC = last_1PC
        for k, predictor in enumerate(self._predictors[:most]):
            known = torch.tensor([[*tokens, *proposals]], device=last_1PC.device)
            made_1PC = self._run(k, predictor, h_1PC, known)
            logits_V = self._model.logits(predictor.norm(made_1PC[0, -1]))
            proposals.append(int(logits_V.argmax()))
            if predictor.sequential:
                h_1PC = made_1PC
                # Position t saw the token at t + k + 1; beyond the known ones that was a proposal.
                self._caches[k].rewind(max(0, min(h_1PC.shape[1], len(tokens) - k - 1)))
        return proposals

    def _run(self, k: int, predictor: Predictor, h_1PC: Tensor, known_1: Tensor) -> Tensor:
        """Predictor k's states of all positions, of which those in its cache are as they were."""
        cache = self._caches[k]
        start, stop = cache.length, h_1PC.shape[1]
        h_1SC = e_1SC = h_1PC[:, start:]
        if predictor.sequential:
            e_1SC = self._model.embed(known_1[:, start + k + 1 : stop + k + 1])
        rotary = self._model.rotary(stop - start, cache.positions(stop - start))
        made_1SC = predictor(h_1SC, e_1SC, Call(*rotary, cache.slot(0, 0)))
        cache.advance(stop - start)
        self._made[k] = torch.cat((self._made[k][:, :start], made_1SC), dim=1)
        return self._made[k]
