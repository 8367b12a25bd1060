"""Finding files: every regular, non-empty file once, in a fixed order, whatever the links say.

What cannot be used is counted by kind, never raised: one odd file in a hundred thousand is not a
reason to stop.
"""

import os
import re
import stat
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache

# How many names of each kind are kept for the log.
_EXAMPLES = 5


@dataclass(slots=True)
class Skipped:
    """What was left out of the listing, by kind, with the first few names."""

    counts: Counter[str] = field(default_factory=Counter[str])
    examples: dict[str, list[str]] = field(default_factory=dict[str, list[str]])

    def note(self, kind: str, name: str) -> None:
        """One more of that kind."""
        self.counts[kind] += 1
        names = self.examples.setdefault(kind, [])
        if len(names) < _EXAMPLES:
            names.append(name)


@dataclass(frozen=True, slots=True)
class Found:
    """A regular file a source matched."""

    name: str
    path: str
    size: int


@dataclass(frozen=True, slots=True)
class Tree:
    """A directory to look through."""

    root: str
    label: str  # names of its files start with this
    wanted: Callable[[str], bool]  # by path below the root
    unwanted_directory: Callable[[str], bool]  # by name


def walk(tree: Tree, seen: set[tuple[int, int]], skipped: Skipped) -> Iterator[Found]:
    """Files of a tree in a fixed order, links followed, every directory entered once."""
    entered: set[tuple[int, int]] = set()
    stack = [""]
    while stack:
        below = stack.pop()
        directory = os.path.join(tree.root, below)
        try:
            facts = os.stat(directory)
            if (facts.st_dev, facts.st_ino) in entered:
                skipped.note("directory seen before", directory)
                continue
            entered.add((facts.st_dev, facts.st_ino))
            names = sorted(os.listdir(directory))
        except OSError as error:
            skipped.note(f"directory {kind_of(error)}", directory)
            continue
        inner: list[str] = []
        for name in names:
            relative = f"{below}{name}"
            path = os.path.join(tree.root, relative)
            if os.path.isdir(path):
                if not tree.unwanted_directory(name):
                    inner.append(f"{relative}/")
            elif tree.wanted(relative):
                found = look(path, f"{tree.label}/{relative}", seen, skipped)
                if found is not None:
                    yield found
        stack.extend(reversed(inner))


def look(path: str, name: str, seen: set[tuple[int, int]], skipped: Skipped) -> Found | None:
    """The file at `path` if it is one to use."""
    try:
        facts = os.stat(path)
    except OSError as error:  # a link to nowhere, or gone since the directory was read
        skipped.note(kind_of(error), path)
        return None
    if not stat.S_ISREG(facts.st_mode):  # reading a fifo would wait for ever
        skipped.note("not a file", path)
    elif facts.st_size == 0:
        skipped.note("empty", path)
    elif (facts.st_dev, facts.st_ino) in seen:
        skipped.note("duplicate", path)
    else:
        seen.add((facts.st_dev, facts.st_ino))
        return Found(name=_printable(name), path=path, size=facts.st_size)
    return None


def kind_of(error: OSError) -> str:
    """What stands in the way of a file, in a word or two: the kind it is counted under."""
    match error:
        case FileNotFoundError():
            return "vanished"
        case PermissionError():
            return "unreadable"
        case IsADirectoryError():
            return "not a file"
        case _ if "symbolic links" in (error.strerror or ""):
            return "link loop"
        case _:
            return f"unreadable ({error.strerror})"


def _printable(name: str) -> str:
    """Names travel as UTF-8; bytes of a file name that are none become escapes."""
    return name.encode("utf-8", "backslashreplace").decode()


# Parts of a path pattern and what they match. Longer ones first.
_WILDCARDS = (("**/", "(?:[^/]+/)*"), ("**", ".*"), ("*", "[^/]*"), ("?", "[^/]"))


def matches(pattern: str) -> Callable[[str], bool]:
    """Whether a path below a directory matches `pattern`."""
    expression = pattern_matcher(pattern)
    return lambda relative: expression.fullmatch(relative) is not None


@cache
def pattern_matcher(pattern: str) -> re.Pattern[str]:
    """Expression for paths below a directory: `**/` any depth, `*` and `?` within one name."""
    out: list[str] = []
    rest = pattern
    while rest:
        for token, expression in (
            ("**/", "(?:[^/]+/)*"),
            ("**", ".*"),
            ("*", "[^/]*"),
            ("?", "[^/]"),
        ):
            if rest.startswith(token):
                out.append(expression)
                rest = rest[len(token) :]
                break
        else:
            group = re.match(r"\[!?[^]/]+\]", rest)
            token = group[0] if group else rest[0]
            out.append(token.replace("[!", "[^") if group else re.escape(token))
            rest = rest[len(token) :]
    return re.compile("".join(out), re.DOTALL)
