"""Renaming of local variables: the same program under other names.

Conservative on purpose. Only names that a function binds by plain assignment and that nobody else
can see are renamed: no parameters (callers may use keywords), no names that nested scopes, global
or nonlocal statements, imports, handlers or patterns touch, nothing in functions that look at
their own variables (`locals`, `eval`, ...) or use them in f-strings (whose inner positions Python
3.11 does not report).

Every draw is a function of (seed, epoch, sample's name): whichever worker does it, whenever.
"""

import ast
import hashlib
import keyword
import warnings
from collections.abc import Iterator

from actors.data.scarcity import memory_is_short

# Names that carry no meaning: what a reader of the renamed code must do without.
_NEW_NAMES = tuple(f"{letter}{digit}" for letter in "abcdvwxyz" for digit in range(10))
_LOOKS_AT_LOCALS = frozenset({"locals", "vars", "eval", "exec", "dir", "super", "globals"})
_SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
_COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
_BINDS_WITHOUT_NAME_NODE = (
    *(ast.Global, ast.Nonlocal, ast.Import, ast.ImportFrom, ast.ExceptHandler),
    *(ast.MatchAs, ast.MatchStar, ast.MatchMapping),
)


class Chance:
    """Draws that depend on nothing but what is named here."""

    def __init__(self, seed: int, epoch: int, name: str) -> None:
        self._key = f"{seed}\0{epoch}\0{name}"

    def share(self, what: str = "") -> float:
        """A number in [0, 1)."""
        digest = hashlib.blake2b(f"{self._key}\0{what}".encode(), digest_size=7).digest()
        return int.from_bytes(digest, "big") / 2**56

    def bits(self, what: str) -> int:
        """128 of them, to seed a generator with."""
        digest = hashlib.blake2b(f"{self._key}\0{what}".encode(), digest_size=16).digest()
        return int.from_bytes(digest, "big")


def rename_locals(text: str, chance: Chance) -> str | None:
    """`text` with local variables of its functions renamed; None when there is nothing to rename.

    Not checked here: that the result compiles (the caller does). Raises `MemoryError` when that is
    what there is too little of.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(text)
        places = list(_renamings(tree, chance))
    except MemoryError:
        if memory_is_short():
            raise
        return None
    except (SyntaxError, ValueError, RecursionError):
        return None
    if not places:
        return None
    # Columns are UTF-8 byte offsets, so lines are edited as bytes, from the end.
    lines = text.encode().split(b"\n")
    for line, start, end, name in sorted(places, reverse=True):
        lines[line] = lines[line][:start] + name + lines[line][end:]
    return b"\n".join(lines).decode()


def _renamings(tree: ast.Module, chance: Chance) -> Iterator[tuple[int, int, int, bytes]]:
    """Line, first and last column, new name of every place to change."""
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    used |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    free = [name for name in _NEW_NAMES if name not in used and not keyword.iskeyword(name)]
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        names = _own_names(node)
        # Another order in every function, or the first variable would always be called a0.
        place = str(node.lineno)
        order = sorted(free, key=lambda name, place=place: chance.share(f"{place}\0{name}"))
        new = {name: other.encode() for name, other in zip(sorted(names), order, strict=False)}
        for inner in ast.walk(node):
            if isinstance(inner, ast.Name) and inner.id in new:
                assert inner.end_col_offset is not None
                yield inner.lineno - 1, inner.col_offset, inner.end_col_offset, new[inner.id]


def _own_names(function: ast.FunctionDef | ast.AsyncFunctionDef) -> set[str]:
    """Names bound in this function by assignment alone; empty when that cannot be told."""
    bound: set[str] = set()
    for statement in function.body:
        for node in ast.walk(statement):
            if isinstance(node, (*_SCOPES, *_COMPREHENSIONS, *_BINDS_WITHOUT_NAME_NODE)):
                return set()
            if isinstance(node, ast.JoinedStr):
                return set()
            if isinstance(node, ast.Name):
                if node.id in _LOOKS_AT_LOCALS:
                    return set()
                if isinstance(node.ctx, ast.Store) and not node.id.startswith("__"):
                    bound.add(node.id)
    outside = [*function.decorator_list, function.args, *filter(None, [function.returns])]
    taken = {n.id for part in outside for n in ast.walk(part) if isinstance(n, ast.Name)}
    taken |= {n.arg for n in ast.walk(function.args) if isinstance(n, ast.arg)}
    return bound - taken
