"""How long samples take: real stages on real files, timed on this machine for simulations."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from actors.data.packing import Tokens
from actors.data.stages import STAGES, SampleProblem, State
from actors.data.terms import Terms, options_of
from actors.data.tokenizer import load
from protocol.messages import SampleRef


@dataclass(frozen=True, slots=True)
class Measured:
    """A file, and what real stages made of it in how long."""

    ref: SampleRef
    text: bytes
    tokens: Tokens
    stage_s: tuple[float, ...]


def measured(refs: Sequence[SampleRef], terms: Terms) -> list[Measured]:
    """Do to these what a run does. Files of no use are left out."""
    options = options_of(terms.plan, load(terms.tokenizer))
    found: list[Measured] = []
    for ref in refs:
        state, text, spent = State(), b"", list[float]()
        try:
            for name in terms.plan.stages:
                began = time.thread_time()
                state = STAGES[name](state, ref, options)
                spent.append(time.thread_time() - began)
                text = text or state.text
        except SampleProblem:
            continue
        if state.tokens is not None and len(state.tokens) > 1:
            found.append(Measured(ref, text, state.tokens, tuple(spent)))
    return found
