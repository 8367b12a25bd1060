"""Fill in the middle: a text cut in three, its middle last (Bavarian et al., arXiv 2207.14255).

A model that has seen  <prefix> A <suffix> C <middle> B  can complete in the middle of a file. Which
samples, and where they are cut, is a function of (seed, epoch, name). Half of those cut are given
as prefix-suffix-middle, the others as suffix-prefix-middle, as the paper found best.
"""

from dataclasses import dataclass

from actors.data.augmentation import Chance

# Below this there is no middle worth the name.
_LEAST_CHARACTERS = 8


@dataclass(frozen=True, slots=True)
class Cut:
    """A text in three parts, and which comes first."""

    prefix: str
    middle: str
    suffix: str
    suffix_first: bool


def cut(text: str, chance: Chance, share: float) -> Cut | None:
    """The text cut in three; None when it is not its turn, or too short."""
    if chance.share("fim") >= share or len(text) < _LEAST_CHARACTERS:
        return None
    ends = sorted(int(chance.share(f"fim {i}") * (len(text) + 1)) for i in range(2))
    first, last = ends
    return Cut(
        text[:first], text[first:last], text[last:], suffix_first=chance.share("fim spm") < 0.5
    )
