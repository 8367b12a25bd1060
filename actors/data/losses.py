"""What a run does without: files that are no samples, samples refused, samples quarantined.

Counted by kind for `status`, and named in the log.
"""

from collections import Counter
from typing import Protocol

from actors.data.feed import Refusal
from actors.data.leases import Poisoned
from actors.data.ledger import Ledger
from actors.data.quality import Quality

# Refusals of each kind that are named in the log; the ledger has them all.
NAMED = 20


class Log(Protocol):
    """Where it is said: a structlog logger."""

    def warning(self, event: str, **fields: object) -> object:
        """One sample less."""
        ...

    def error(self, event: str, **fields: object) -> object:
        """One that did harm."""
        ...


class Losses:
    """Of one run, earlier lives of its loader included."""

    def __init__(self, quality: Quality, log: Log) -> None:
        self._quality, self._log = quality, log
        self._refused: Counter[str] = Counter()
        self._quarantined: Counter[str] = Counter()
        self._left_out: dict[str, int] = {}

    def begin(self, ledger: Ledger) -> None:
        """Go on from what is recorded."""
        self._refused.update(ledger.refused_by_kind())
        self._quarantined.update(ledger.quarantined_by_kind())
        self._left_out = ledger.left_out()

    def refused(self, name: str, refusal: Refusal) -> None:
        """A sample cannot be used."""
        kind = refusal.kind
        self._quality.refused(kind)
        self._refused[kind] += 1
        if self._refused[kind] <= NAMED:
            self._log.warning("sample refused", sample=name, kind=kind, why=refusal.detail)

    def poisoned(self, name: str, poisoned: Poisoned) -> None:
        """A sample is not to be tried again."""
        kind = poisoned.kind
        self._quality.refused(kind)
        self._quarantined[kind] += 1
        self._log.error("sample quarantined", sample=name, kind=kind, why=poisoned.reason)

    def gauges(self) -> dict[str, int]:
        """Figures for `status`."""
        figures = {
            "refused": self._refused.total(),
            "quarantined": self._quarantined.total(),
        }
        counted = {
            "left out": self._left_out,
            "refused": self._refused,
            "quarantined": self._quarantined,
        }
        for what, kinds in counted.items():
            figures |= {f"{what}: {kind}": count for kind, count in kinds.items()}
        return figures

    def words(self) -> str:
        """All of them, for whoever has to mend it."""
        kinds = ", ".join(f"{count} {kind}" for kind, count in self._refused.most_common())
        return f"{kinds or 'none'}, {self._quarantined.total()} quarantined"
