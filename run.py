"""Trireme's command line. `python run.py --topology config_b` trains; see actors/commands."""

import sys

from actors import commands

if __name__ == "__main__":
    sys.exit(commands.call())
