"""Thousands of SIGKILLs to a process that updates matrices in shared memory: is any ever torn?

    python -m tests.benchmarks.state_kills [--kills 5000] [--json]

A process does nothing but what a shard does with gradients: optimizer, redo record, copy into
place, commit. It is killed at random moments, every second time while it copies into place, and the
next one goes on with what lies there. After each kill, all masters, moments, published versions and
their digests must be ones that an undisturbed run passes through. In plain form, and with 8-bit
momentum, NorMuon and folded moments. Exits with 1 when anything was torn.
"""

import sys
import time

import torch

from tests.actors.exchange import tiny
from tests.actors.optimizer.torn import COMPRESSED, killed
from tests.benchmarks.graph import arguments, show

_SIZE = ("model.dim=64", "model.heads=1", "model.vocab_size=4000")
# With a matrix large enough to be quantised.
_WAYS: dict[str, tuple[str, ...]] = {"plain": _SIZE, "compressed": (*_SIZE, *COMPRESSED)}


def main() -> None:
    """Kill, look, print."""
    options = arguments(__doc__, kills=5000)
    torch.set_num_threads(1)
    rows: list[dict[str, object]] = []
    for way, settings in _WAYS.items():
        began = time.monotonic()
        found = killed(tiny(*settings), options.kills // len(_WAYS))
        rows.append(
            {
                "state": way,
                "kills": found.kills,
                "steps reached": found.steps,
                "finished by a successor": found.pending,
                "torn": len(found.torn),
                "s": time.monotonic() - began,
            }
        )
    show("SIGKILL while matrices are updated", rows, as_json=options.json)
    sys.exit(any(row["torn"] for row in rows))


if __name__ == "__main__":
    main()
