"""Samples that nearly repeat others: MinHash over runs of words, by the library rensa.

Of every group only one is kept: a held-out sample if there is one (training on what is held out
would be cheating), else the first in the corpus. Two samples are near-duplicates when they share a
given part of their runs of five words (their Jaccard similarity); 256 hashes tell that to about
0.03. Reading the corpus takes longer than hashing it.
"""

import importlib
import re
from collections.abc import Iterable
from typing import Any

_WORD = re.compile(r"\w+")
_RUN = 5
_HASHES, _BANDS = 256, 64
_SEED = 1


class MissingLibrary(RuntimeError):
    """A library that is only installed on demand: says how."""


def find(texts: Iterable[tuple[int, str]], similarity: float) -> dict[int, int]:
    """Samples to leave out, and which of those before them each repeats.

    Raises `MissingLibrary`.
    """
    library = _library()
    index = library.RMinHashLSH(threshold=similarity, num_perm=_HASHES, num_bands=_BANDS)
    kept: dict[int, Any] = {}
    repeats: dict[int, int] = {}
    for sample, text in texts:
        mark = library.RMinHash(num_perm=_HASHES, seed=_SEED)
        mark.update(_runs(text))
        near = [other for other in index.query(mark) if kept[other].jaccard(mark) >= similarity]
        if near:
            repeats[sample] = min(near)
        else:
            index.insert(sample, mark)
            kept[sample] = mark
    return repeats


def check() -> None:
    """Raises `MissingLibrary` where near-duplicates cannot be looked for."""
    _library()


def _runs(text: str) -> list[str]:
    words = _WORD.findall(text)
    return [" ".join(words[i : i + _RUN]) for i in range(max(1, len(words) - _RUN + 1))]


def _library() -> Any:
    try:
        return importlib.import_module("rensa")
    except ImportError as error:
        raise MissingLibrary(
            "data.near_duplicates needs the library rensa: pip install 'trireme[dedup]', or set "
            "data.near_duplicates = 0"
        ) from error
