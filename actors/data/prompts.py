"""Prompts: functions of held-out Python files, cut where somebody has to go on writing.

A draw is a pure function of (seed, draw): whoever asks again, or after a restart, gets the same
prompts. Each is a function up to the end of its signature and docstring, or up to some statement
of its body, so that at least one statement remains to be written.
"""

import ast
import warnings
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

# Parsing costs about 100 bytes of memory per byte of source, and the loader is to stay small.
MAX_FILE_BYTES = 100_000
# Files looked into for one prompt before the answer is that there is none.
_MAX_TRIES = 200
_KEPT_FILES = 64


@dataclass(frozen=True, slots=True)
class Prompt:
    """The beginning of a function."""

    name: str  # file and function
    text: str


@dataclass(frozen=True, slots=True)
class _Cuts:
    """One function, and after which of its lines it may be cut."""

    name: str
    lines: tuple[str, ...]
    ends: tuple[int, ...]  # number of lines kept


class Prompts:
    """Cuts prompts from files."""

    def __init__(
        self,
        seed: int,
        samples: Sequence[int],
        read: Callable[[int], tuple[str, str] | None],
        max_chars: int,
    ) -> None:
        """`read` gives name and text of a sample, or None when it cannot be used."""
        self._seed = seed
        self._samples = samples
        self._read = read
        self._max_chars = max_chars
        self._files: OrderedDict[int, tuple[_Cuts, ...]] = OrderedDict()

    def draw(self, draw: int, count: int) -> list[Prompt]:
        """`count` prompts, fewer only where there are no functions to cut."""
        key = np.array([self._seed % 2**64, draw % 2**64], np.uint64)
        chance = np.random.Philox(key=key)
        found = (self._one(chance) for _ in range(count))
        return [prompt for prompt in found if prompt is not None]

    def _one(self, chance: np.random.Philox) -> Prompt | None:
        for _ in range(_MAX_TRIES if self._samples else 0):
            sample, function, end = (int(number) for number in chance.random_raw(3))
            cuts = self._cuts(self._samples[sample % len(self._samples)])
            if cuts:
                chosen = cuts[function % len(cuts)]
                kept = chosen.lines[: chosen.ends[end % len(chosen.ends)]]
                return Prompt(chosen.name, "\n".join(kept).rstrip() + "\n")
        return None

    def _cuts(self, sample: int) -> tuple[_Cuts, ...]:
        known = self._files.get(sample)
        if known is None:
            source = self._read(sample)
            known = () if source is None else tuple(functions(*source, self._max_chars))
            self._files[sample] = known
            if len(self._files) > _KEPT_FILES:
                self._files.popitem(last=False)
        return known


def functions(name: str, text: str, max_chars: int) -> list[_Cuts]:
    """The functions of a file that have something to cut, in order."""
    if len(text) > MAX_FILE_BYTES:
        return []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    lines = text.split("\n")
    made = (
        _cut(name, node, lines, max_chars)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )
    found = [cuts for cuts in made if cuts is not None]
    return sorted(found, key=lambda cuts: (cuts.name, cuts.lines))


def _cut(
    name: str, node: ast.FunctionDef | ast.AsyncFunctionDef, lines: list[str], max_chars: int
) -> _Cuts | None:
    first = min([node.lineno, *(d.lineno for d in node.decorator_list)]) - 1
    body = node.body
    if body[0].lineno <= node.lineno and len(body) == 1:
        return None  # def f(): return 1
    has_docstring = ast.get_docstring(node, clean=False) is not None
    kept = _dedented(lines[first : node.end_lineno])
    # The first cut is after the signature, or after the docstring where there is one; the others
    # before each further statement. What is kept never ends within a statement.
    statements = body[1:] if has_docstring else body
    starts = [_first_line(statement) - 1 - first for statement in statements]
    ends = [end for end in dict.fromkeys(starts) if len("\n".join(kept[:end])) <= max_chars]
    signature_end = node.body[0].lineno - 1 - first
    ends = [end for end in ends if end >= max(1, signature_end)]
    return _Cuts(f"{name}::{node.name}", tuple(kept), tuple(ends)) if ends else None


def _dedented(lines: list[str]) -> list[str]:
    """Lines moved left by the first one's indentation; the inside of a string may stay as it is."""
    indent = len(lines[0]) - len(lines[0].lstrip())
    return [line[indent:] if not line[:indent].strip() else line for line in lines]


def _first_line(statement: ast.stmt) -> int:
    """Line a statement begins on, decorators included."""
    decorators: list[ast.expr] = getattr(statement, "decorator_list", [])
    return min([statement.lineno, *(decorator.lineno for decorator in decorators)])
