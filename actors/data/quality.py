"""Is the data good enough to go on with? Pure.

Single samples that cannot be used never stop a run. A share of them beyond `max_bad_share` does,
and so does code that compiles more rarely than `min_compile_rate`: both say that what is trained on
is not what was meant, and a run that goes on for days would say so too late.
"""

from collections import Counter
from typing import Any

from actors.data.stages import is_verified
from actors.topology import DataSpec

# Samples before which no share is judged.
CERTAIN = 100
_UNCOMPILED = ("does not compile", "too complex to compile")


class Quality:
    """Counts samples, good and bad."""

    def __init__(self, data: DataSpec) -> None:
        self._data = data
        self.seen = self.compiled = self.verified = 0
        self.bad = Counter[str]()

    def good(self, sample: int, language: str) -> None:
        """A sample was finished."""
        self.seen += 1
        if self._data.verify and is_verified(sample, language, self._data.verify_every_n):
            self.verified += 1
            self.compiled += 1

    def refused(self, kind: str) -> None:
        """A sample cannot be used."""
        self.seen += 1
        self.bad[kind] += 1
        self.verified += kind in _UNCOMPILED

    @property
    def compile_rate(self) -> float:
        """Of the samples verified; 1 before any was."""
        return self.compiled / self.verified if self.verified else 1.0

    def figures(self) -> dict[str, Any]:
        """What has been seen, for the log."""
        return {
            "samples": self.seen,
            "bad": dict(self.bad),
            "verified": self.verified,
            "compiled": self.compiled,
            "compile_rate": round(self.compile_rate, 4),
        }

    def problem(self) -> str:
        """Why the run should not go on; "" when it may."""
        data, bad = self._data, sum(self.bad.values())
        kinds = ", ".join(f"{count} {kind}" for kind, count in self.bad.most_common(5))
        if self.seen >= CERTAIN and bad > data.max_bad_share * self.seen:
            return (
                f"data.max_bad_share = {data.max_bad_share:g}: {bad:,} of {self.seen:,} samples "
                f"cannot be used ({kinds}); mend the sources, or raise the limit"
            )
        if self.verified >= CERTAIN and self.compile_rate < data.min_compile_rate:
            return (
                f"data.min_compile_rate = {data.min_compile_rate:g}: {self.compiled:,} of "
                f"{self.verified:,} samples compile ({kinds}); is `language` right? Mend the "
                "sources, or lower the rate"
            )
        return ""
