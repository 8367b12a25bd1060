"""One remote data worker: the process that `run.py attach` starts, as often as it was asked to.

    python -m actors.attached KEYFILE ENDPOINT NAME POOL [CPU]

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

# Exit code of a worker that the loader does not let in: starting it again would not help.
EXIT_REFUSED = 77


def main(arguments: list[str]) -> int:
    """The worker's life; its exit code."""
    from actors.data.worker import serve_remote

    key_file, endpoint, name, pool, *cpus = arguments
    parent = os.getppid()
    process.die_with_parent(signal.SIGTERM)
    if os.getppid() != parent:
        return 0  # it ended before it could be noticed
    process.set_name(name)
    chosen: Pool = "slow" if pool == "slow" else "fast"
    try:
        key = KeyFile.read(Path(key_file))
        return serve_remote(
            key, name, endpoint=endpoint, pool=chosen, cpus=tuple(int(cpu) for cpu in cpus)
        )
    except ProtocolError as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_REFUSED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
