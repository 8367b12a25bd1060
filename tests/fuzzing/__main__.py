"""A longer search than CI has time for: python -m tests.fuzzing [--inputs N] [--seed S] [TARGET...]

Guided by coverage: an input that reaches a line of the reader, or an order of two lines, that none
before has reached joins those that are mutated further. Following lines costs most of the time, so
only every tenth input is followed.
"""

import argparse
import random
import sys
import time
import traceback
from pathlib import Path
from types import FrameType
from typing import Any

from tests.fuzzing.mutations import mutated
from tests.fuzzing.targets import Target, targets

_FOLLOWED = 10
_MOST_KEPT = 2000


class Coverage:
    """Which steps from line to line the watched files have seen."""

    def __init__(self, watched: tuple[str, ...]) -> None:
        self._watched = watched
        self.seen: set[tuple[str, int, int]] = set()
        self._known: dict[str, bool] = {}

    def of(self, target: Target, data: bytes) -> int:
        """How many new ones this input takes. Raises what the target must not raise."""
        before = len(self.seen)
        sys.settrace(self._enter)
        try:
            target.survives(data)
        finally:
            sys.settrace(None)
        return len(self.seen) - before

    def _enter(self, frame: FrameType, _what: str, _more: Any) -> Any:
        file = frame.f_code.co_filename
        if file not in self._known:
            self._known[file] = file.endswith(self._watched)
        if not self._known[file]:
            return None
        last = [0]

        def follow(at: FrameType, what: str, _more: Any) -> Any:
            if what == "line":
                self.seen.add((file, last[0], at.f_lineno))
                last[0] = at.f_lineno
            return follow

        return follow


def fuzz(target: Target, inputs: int, seed: int) -> tuple[int, int, list[bytes]]:
    """Inputs kept, steps from line to line seen, and inputs that are findings."""
    chance = random.Random(f"{target.name} {seed}")
    kept, coverage, findings = list(target.seeds), Coverage(target.watched), list[bytes]()
    for data in target.seeds:
        assert target.survives(data), f"{target.name}: a seed is refused"
        coverage.of(target, data)
    for number in range(inputs):
        data = mutated(chance, chance.choice(kept), kept)
        try:
            if number % _FOLLOWED:
                target.survives(data)
            elif coverage.of(target, data) and len(kept) < _MOST_KEPT:
                kept.append(data)
        except Exception:  # noqa: BLE001 - whatever it is, it is a finding
            findings.append(data)
            print(f"FINDING in {target.name}: {data[:200]!r}")
            traceback.print_exc(limit=-4)
            if len(findings) > 5:
                break
    return len(kept), len(coverage.seen), findings


def main() -> int:
    """0 when nothing was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzzing")
    parser.add_argument("--inputs", type=int, default=1_000_000, help="all targets together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("only", nargs="*", help="targets, by name")
    wanted = parser.parse_args()
    found = 0
    with targets() as known:
        chosen = [target for target in known if not wanted.only or target.name in wanted.only]
        each = wanted.inputs // len(chosen)
        for target in chosen:
            began = time.monotonic()
            kept, seen, findings = fuzz(target, each, wanted.seed)
            took_s = time.monotonic() - began
            found += len(findings)
            print(
                f"{target.name}: {each} inputs in {took_s:.0f} s, {kept} kept, {seen} steps seen, "
                f"{len(findings)} findings",
                flush=True,
            )
            for number, data in enumerate(findings):
                Path(f"finding-{target.name.replace(' ', '-')}-{number}").write_bytes(data)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
