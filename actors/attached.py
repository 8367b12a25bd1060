"""One data worker, trainer or standby of another host: the process that `run.py attach` starts.

    python -m actors.attached KEYFILE ENDPOINT NAME POOL|DEVICE|DIR [CPU]

Leaves politely at SIGTERM, and when the process that started it ends. What it prints last says
why it ended.
"""

import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from actors import process
from protocol.errors import ProtocolError
from protocol.keys import KeyFile

if TYPE_CHECKING:
    from protocol.messages import Pool

# Exit code of one that is not let in: starting it again would not help.
EXIT_REFUSED = 77


def main(arguments: list[str]) -> int:
    """Its life; its exit code."""
    key_file, endpoint, name, place, *cpus = arguments
    parent = os.getppid()
    process.die_with_parent(signal.SIGTERM)
    if os.getppid() != parent:
        return 0  # it ended before it could be noticed
    process.set_name(name)
    try:
        key = KeyFile.read(Path(key_file))
        if key.role == "trainer":
            from actors.trainer import guest

            return guest.serve_remote(key, name, endpoint=endpoint, device=place)
        if key.role == "standby":
            from actors.standby import guest as standby

            return standby.serve_remote(key, name, endpoint=endpoint, directory=Path(place))
        from actors.data import worker

        pool: Pool = "slow" if place == "slow" else "fast"
        chosen = tuple(int(cpu) for cpu in cpus)
        return worker.serve_remote(key, name, endpoint=endpoint, pool=pool, cpus=chosen)
    except ProtocolError as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_REFUSED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
