"""The command line: `run.py COMMAND`, or just `run.py --topology NAME` to run.

Each command is a module of this package with a click command of the same name, imported when it
is called, so that `--help` is quick and a command costs only what it needs.
"""

import errno
import importlib
import os
import sys
from pathlib import Path
from typing import Any

import click

# In the order of `--help`.
COMMANDS = {
    "run": "Train: launch a topology and see it through (the default command).",
    "plan": "Show who would run where, with how much memory; start nothing.",
    "status": "Show what a run is doing.",
    "logs": "Show what the actors of a run have said.",
    "stop": "End a run cleanly, with a checkpoint.",
    "kill": "Send a signal to actors of a run.",
    "invite": "Make a key that lets one remote host in.",
    "revoke": "Shut an invited host out again.",
    "attach": "Join a run on another host.",
    "generate": "Complete a prompt with a run's newest weights.",
    "eval": "Measure a run's newest weights on held-out files.",
    "ablate": "Train with each technique alone and with all together, and compare.",
    "chaos": "Kill anything at random and prove that nothing was lost.",
    "simulate": "Look for broken rules in thousands of simulated runs full of trouble.",
    "doctor": "Check this machine.",
}


# Of writing to what is open already: of a full disk, a quota, a limit, a device that fails.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


class Commands(click.Group):
    """Finds commands by module; what begins with an option is the command `run`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Those that are there."""
        here = Path(__file__).parent
        return [name for name in COMMANDS if (here / f"{name}.py").exists()]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import it."""
        if cmd_name not in self.list_commands(ctx):
            return None
        module = importlib.import_module(f"actors.commands.{cmd_name}")
        return getattr(module, cmd_name, None) or module.command  # `eval` is a builtin's name

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put the default command in where none is named."""
        if args and args[0].startswith("-") and args[0] not in ("--help", "-h"):
            args = ["run", *args]
        return super().parse_args(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Without importing any of them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name]) for name in self.list_commands(ctx)])


class Refused(click.ClickException):
    """Wrong usage or configuration: the message says what, where, and what would be accepted."""

    exit_code = 2


class Failed(click.ClickException):
    """What was asked for did not work out. The message is the last line of output."""

    exit_code = 1

    def show(self, file: Any = None) -> None:
        """Just the reason."""
        click.echo(self.format_message(), err=True)


def call() -> int:
    """Run the command line; the exit code. Ctrl-C outside of a run is 130 and says nothing."""
    try:
        code = main(standalone_mode=False)
        sys.stdout.flush()
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return 130
    except BrokenPipeError:  # the reader of our output has seen enough
        return 1
    except OSError as error:
        if error.errno not in _FULL or error.filename is not None:
            raise
        Failed(f"what is printed cannot be written: {error.strerror}").show()
        return 1
    finally:
        try:
            sys.stdout.flush()
        except OSError:  # else the interpreter tries it again, and ends with a code of its own
            lead_nowhere()
    return code if isinstance(code, int) else 0


def lead_nowhere() -> None:
    """What is printed from now on, and what could not be written so far, is dropped."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Trireme trains ternary language models on the machines you own.

    `run.py --topology config_b` launches a run; `run.py run --help` shows its options.
    """
