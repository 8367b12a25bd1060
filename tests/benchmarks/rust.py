"""A run on Rust: how much of it compiles, and what verifying costs.

    python -m tests.benchmarks.rust [--steps 50] [--json]

Debian's rust-src is fetched and unpacked (rust_sources.py), a tokenizer trained on it, and `local`
trained on its tests and its library, every sample verified by rustc in the sandbox. What does not
compile by itself, which is most of a library, is refused by name: the compile rate is that of
single files as crates of their own. A second run finds the verdicts in the cache.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from actors.data import rustc
from actors.data.rustc import CannotVerify
from tests.harness import Driven, python, python_env
from tests.rust_sources import NoSources, rust_sources

# Of the repository: what is meant to be compiled file by file, and what is not.
PLACES = ("src/test/ui", "library")
_PATIENCE_S = 900.0


class Result(NamedTuple):
    """What one run came to."""

    steps: int
    seconds: float
    first_loss: float
    last_loss: float
    verified: int
    compiled: int
    compile_rate: float
    bad: dict[str, int]
    parked: int  # samples that waited for rustc while their worker went on with others

    @property
    def words(self) -> str:
        """For people."""
        kinds = ", ".join(f"{n:,} {kind}" for kind, n in sorted(self.bad.items()))
        return (
            f"{self.steps} steps in {self.seconds:.0f} s, loss {self.first_loss:.2f} -> "
            f"{self.last_loss:.2f}; {self.compiled:,} of {self.verified:,} samples compile "
            f"({self.compile_rate:.1%}); {kinds or 'none'}; {self.parked:,} parked"
        )


def train(run: Path, sources: Sequence[Path], steps: int, settings: Sequence[str] = ()) -> Result:
    """Train `local` on those directories. Raises AssertionError with the run's story."""
    tables = ", ".join(
        f'{{kind = "directory", path = "{path}", pattern = "**/*.rs", language = "rust"}}'
        for path in sources
    )
    sets = [part for setting in settings for part in ("--set", setting)]
    command = python("run.py", "--topology", "local", "--run", str(run), "--steps", str(steps))
    began = time.monotonic()
    driven = Driven([*command, "--set", f"data.sources=[{tables}]", *sets], run, python_env())
    try:
        code = driven.finish(_PATIENCE_S)
        assert code == 0, driven.story()
        return _result(driven, time.monotonic() - began)
    finally:
        driven.end()


def _result(driven: Driven, seconds: float) -> Result:
    records = driven.metrics()
    said: list[dict[str, Any]] = driven.log("loader")
    served = next(record for record in said if record["event"] == "data served")
    return Result(
        steps=records[-1]["step"],
        seconds=seconds,
        first_loss=records[0]["loss"],
        last_loss=records[-1]["loss"],
        verified=served["verified"],
        compiled=served["compiled"],
        compile_rate=served["compile_rate"],
        bad=served["bad"],
        parked=served["parked"],
    )


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="Train on Debian's rust-src.")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    results: dict[str, Result] = {}
    with tempfile.TemporaryDirectory(prefix="trireme-rust-") as folder:
        os.environ["XDG_CACHE_HOME"] = f"{folder}/cache"  # no verdicts of earlier runs
        try:
            rustc.check_machine()
            sources = [rust_sources(Path(folder, "package"), place) for place in PLACES]
        except (NoSources, CannotVerify) as error:
            sys.stderr.write(f"not possible here: {error}\n")
            return 2
        for name in ("first run", "verdicts known"):
            run = Path(folder, name.replace(" ", "-"))
            results[name] = result = train(run, sources, asked.steps)
            if not asked.json:
                sys.stdout.write(f"{name}: {result.words}\n")
                sys.stdout.flush()
    if asked.json:
        found = {name: result._asdict() for name, result in results.items()}
        sys.stdout.write(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
