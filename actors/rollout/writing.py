"""From prompts as text to completions as text: the tokenizer's and the sampler's side of it."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from actors.data.tokenizer import special_ids
from actors.topology import RolloutSpec
from kernels.model.model import LoopLM
from kernels.sampling.generate import Generation, Sampling


@dataclass(frozen=True, slots=True)
class Written:
    """One completion."""

    text: str
    tokens: int
    finished: bool  # by the end token, not by the length limit


class Pen:
    """Text in, text out."""

    def __init__(self, tokenizer_json: bytes) -> None:
        """Raises `TokenizerError` for a tokenizer that does not mark where documents end."""
        from tokenizers import Tokenizer  # takes memory only where it is needed

        self.tokenizer: Tokenizer = Tokenizer.from_buffer(tokenizer_json)
        self.tokenizer.encode_special_tokens = True  # a prompt may well contain the text "<eos>"
        self.bos, self.eos = special_ids(self.tokenizer, "tokenizer.json")

    def read(self, prompt: str, room: int) -> list[int]:
        """Token ids of a prompt, at most `room`: of a longer one, its end."""
        ids = self.tokenizer.encode(prompt, add_special_tokens=False).ids
        return [self.bos, *ids[max(0, len(ids) - max(0, room - 1)) :]]

    def write(self, tokens: Sequence[int]) -> Written:
        """Text of a completion. Special tokens inside it show, so that they earn nothing."""
        finished = bool(tokens) and tokens[-1] == self.eos
        body = list(tokens[:-1] if finished else tokens)
        text = self.tokenizer.decode(body, skip_special_tokens=False)
        return Written(text, len(tokens), finished)


def begin(
    model: LoopLM, pen: Pen, prompts: Sequence[str], spec: RolloutSpec, seeds: Sequence[int]
) -> Generation:
    """A group of completions for each prompt, to be advanced token by token.

    Reads the prompts, which is the first piece of work. `seeds`: one per completion, by prompt.
    """
    room = max(1, model.config.seq_len - spec.max_new_tokens)
    return Generation(
        model,
        [pen.read(prompt, room) for prompt in prompts],
        seeds=seeds,
        max_new_tokens=spec.max_new_tokens,
        sampling=Sampling(temperature=spec.temperature),
        eos=pen.eos,
        group=spec.group,
    )


def seeds_of(seed: int, version: int, draw: int, count: int) -> list[int]:
    """One seed per completion: a pure function of the run, the weights and the draw."""
    name = f"{seed}/{version}/{draw}"
    return [
        int.from_bytes(hashlib.sha256(f"{name}/{n}".encode()).digest()[:8], "big") >> 1
        for n in range(count)
    ]
