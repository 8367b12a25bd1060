"""Old steps made again: a trainer that resumes from a checkpoint asks for batches composed before.

The ledger knows which spans a step consists of; the samples are leased once more and what comes
back is compared with what the ledger remembers of them. Pure.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from actors.data.feed import Fact, Refusal
from actors.data.ordering import Key
from actors.data.packing import Document, Packed, Span, repack

# Long documents run through many steps; without this they would be tokenized for each anew.
CACHE_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Replayed:
    """A step's rows, equal to those recorded."""

    step: int
    packed: Packed


@dataclass(frozen=True, slots=True)
class Diverged:
    """A step cannot be made again: from it on, batches have to be composed anew."""

    step: int
    refusal: Refusal


@dataclass(slots=True)
class _Step:
    spans: Sequence[Span]
    facts: Mapping[Key, Fact]
    missing: set[Key]
    documents: dict[Key, Document]


class Replays:
    """Steps being made again."""

    def __init__(self, row_tokens: int) -> None:
        self._row_tokens = row_tokens
        self._steps: dict[int, _Step] = {}
        self._cache: OrderedDict[Key, Document] = OrderedDict()
        self._cached_bytes = 0

    def __contains__(self, step: int) -> bool:
        return step in self._steps

    def __len__(self) -> int:
        return len(self._steps)

    def want(self, step: int, spans: Sequence[Span], facts: Mapping[Key, Fact]) -> list[Key]:
        """Make `step` again; the samples that have to be leased for it, the first used first."""
        keys = list(dict.fromkeys(span.key for span in spans))
        at_hand = {key: self._cache[key] for key in keys if key in self._cache}
        missing = [key for key in keys if key not in at_hand]
        self._steps[step] = _Step(spans, facts, set(missing), at_hand)
        return missing

    def finished(self, document: Document) -> Diverged | None:
        """A sample is done. `Diverged` when it is not what it was."""
        key = document.key
        waiting = [(n, step) for n, step in self._steps.items() if key in step.missing]
        for n, step in sorted(waiting, key=lambda pair: pair[0]):
            if Fact.of(document) != step.facts[key]:
                return Diverged(n, Refusal(key, "changed", "not what it was when first delivered"))
            step.missing.remove(key)
            step.documents[key] = document
        if waiting:
            self._keep(document)
        return None

    def refuse(self, refusal: Refusal) -> Diverged | None:
        """A sample cannot be had any more. `Diverged` when a step needs it."""
        steps = [n for n, step in self._steps.items() if refusal.key in step.missing]
        return Diverged(min(steps), refusal) if steps else None

    def done(self) -> list[Replayed]:
        """Steps that are complete, each returned once."""
        complete = sorted(n for n, step in self._steps.items() if not step.missing)
        return [self._finish(n, self._steps.pop(n)) for n in complete]

    def _finish(self, n: int, step: _Step) -> Replayed:
        return Replayed(n, repack(step.spans, step.documents.values(), self._row_tokens))

    def _keep(self, document: Document) -> None:
        if document.key in self._cache:
            return
        self._cache[document.key] = document
        self._cached_bytes += document.tokens.nbytes
        while self._cached_bytes > CACHE_BYTES and len(self._cache) > 1:
            self._cached_bytes -= self._cache.popitem(last=False)[1].tokens.nbytes
