"""Tables for people, on a terminal and in a file."""

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

# Without a terminal there is no width to keep to; the widest table's own is about this.
PIPE_WIDTH = 200


def console() -> "Console":
    """Where tables go: as wide as the terminal, or as they want to be where there is none."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else PIPE_WIDTH, highlight=False)
