"""`run.py invite`: a key file that lets one remote host join a running graph.

The key pair is made here; only its public half travels. The loader, or for a trainer the stand-in
of a rank that nobody has, writes it on its allow-list, opens its tcp endpoint if this is the first
invitation there, and says where to knock.
"""

import os
import re
import secrets
from pathlib import Path
from typing import TYPE_CHECKING

import click

from actors.commands import Failed, Refused
from actors.commands.status import open_run
from protocol.keys import INVITED

if TYPE_CHECKING:
    from actors.rundir import RunDir
    from protocol.messages import Invitation, Role

# The loader may be in the middle of being replaced.
ANSWER_S = 10.0
_LABEL = re.compile(r"[A-Za-z0-9_.]{1,64}")


@click.command()
@click.option(
    "--role",
    default="data_worker",
    show_default=True,
    type=click.Choice(INVITED),
    help="What the holder may be: data workers, one trainer, which takes a free rank, or a "
    "standby, which keeps a copy of the run.",
)
@click.option(
    "--run", "run_dir", type=click.Path(path_type=Path), metavar="DIR", help="[runs/latest]"
)
@click.option(
    "--out", type=click.Path(path_type=Path), metavar="FILE", help="Key file to write [LABEL.key]."
)
@click.option("--label", default="", help="Names the host in logs and statuses [made up].")
def invite(role: "Role", run_dir: Path | None, out: Path | None, label: str) -> None:
    """Write a key file that lets one remote host join the run.

    Carry it to that host over a way you trust (scp), and there:
    run.py attach ENDPOINT --key FILE. Whoever has the file can join: it is a secret.
    """
    from protocol.keys import KeyFile
    from protocol.transport import new_keypair

    label = label or f"guest_{secrets.token_hex(3)}"
    if not _LABEL.fullmatch(label):
        raise Refused(f"--label {label!r}: 1 to 64 letters, digits, '_' or '.'")
    path = out or Path(f"{label}.key")
    _check_writable(path)
    run = open_run(run_dir)
    public_key, secret_key = new_keypair()
    invitation = _ask(run, role, public_key, label)
    key = KeyFile(
        role=role,
        label=label,
        endpoint=invitation.endpoint,
        server_key=invitation.server_key,
        public_key=public_key,
        secret_key=secret_key,
        rank=invitation.rank,
    )
    try:
        key.write(path)
    except OSError as error:
        why = error.strerror or str(error)
        raise Failed(
            f"{path} cannot be written: {why}; invite again with another --label"
        ) from error
    if role == "standby":
        click.echo(f"{path} lets one host in as a standby named {label}-0")
        click.echo("It can read all that the run has learned, and change nothing.")
    elif role == "trainer":
        click.echo(f"{path} lets one host in as trainer/{invitation.rank}, named {label}-0")
    else:
        click.echo(f"{path} lets one host in as {role}s named {label}-0, {label}-1, ...")
    click.echo("It holds a secret. Carry it there over a way you trust, and start on that host:")
    asked = "" if role == "data_worker" else f" --role {role}"
    asked += " --run DIR" if role == "standby" else ""
    click.echo(f"  python run.py attach {invitation.endpoint} --key {path.name}{asked}")


def _check_writable(path: Path) -> None:
    """Before anybody is let in whose key would then be lost."""
    if path.exists() or path.is_symlink():
        raise Refused(f"--out {path} exists already; key files are never overwritten")
    if not path.parent.is_dir():
        raise Refused(f"--out {path}: there is no directory {path.parent}")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise Refused(f"--out {path}: {path.parent} is not writable")


def _ask(run: "RunDir", role: "Role", public_key: str, label: str) -> "Invitation":
    from actors import asking
    from protocol.messages import Invitation, InviteRequest

    request = InviteRequest(role=role, public_key=public_key, label=label)
    try:
        answer = asking.ask(run, request, timeout_s=ANSWER_S)
    except asking.Unanswered as error:
        raise Failed(str(error)) from error
    if not isinstance(answer, Invitation):
        raise Failed(f"the supervisor answered with a {type(answer).__name__}")
    if answer.refused:
        raise Failed(f"nobody was invited: {answer.refused}")
    return answer
