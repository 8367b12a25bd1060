"""What people wrote is code: the judge must not mistake it for something else."""

import difflib
import heapq
import inspect
import random
import shlex
import textwrap
from collections import Counter
from types import ModuleType

import pytest

from actors.data.prompts import functions
from actors.rollout.scoring import score

MODULES = (shlex, difflib, heapq, textwrap)


def continuations(module: ModuleType) -> list[tuple[str, str]]:
    """Functions of a module cut as the loader cuts them, each with what really followed."""
    found: list[tuple[str, str]] = []
    for cuts in functions(module.__name__, inspect.getsource(module), 10**6):
        for end in cuts.ends:
            kept = "\n".join(cuts.lines[:end]).rstrip() + "\n"
            found.append((kept, "\n".join(cuts.lines[end:]) + "\n"))
    return found


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_nearly_all_of_what_people_wrote_is_rewarded(module: ModuleType):
    reasons = Counter(score(*pair, finished=True).reason for pair in continuations(module))
    assert reasons["good"] >= 0.93 * reasons.total(), reasons
    assert reasons.keys() <= {"good", "trivial", "repeats the prompt"}, reasons


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_code_cut_off_anywhere_is_unfinished_at_worst_never_wrong(module: ModuleType):
    draw = random.Random(0)
    reasons: Counter[str] = Counter()
    for prompt, rest in continuations(module):
        for at in draw.sample(range(1, len(rest) + 1), min(3, len(rest))):
            reasons[score(prompt, rest[:at], finished=False).reason] += 1
    assert not reasons.keys() & {"does not parse", "does not compile", "leaves the function hollow"}
    assert reasons["good"] >= 0.25 * reasons.total(), reasons
