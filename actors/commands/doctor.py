"""`run.py doctor`: whether this machine can run Trireme, and what to do where it cannot."""

import json
import sys

import click
import msgspec

from actors import checkup

_MARKS = {"ok": "ok  ", "warn": "warn", "fail": "FAIL"}


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
def doctor(as_json: bool) -> None:
    """Check this machine and this installation. Exits with 1 when something must be changed."""
    checks = checkup.judge(checkup.gather())
    healthy = all(check.status != "fail" for check in checks)
    if as_json:
        document = {"ok": healthy, "checks": msgspec.to_builtins(checks)}
        click.echo(json.dumps(document, indent=1))
    else:
        width = max(len(check.name) for check in checks)
        for check in checks:
            advice = f"\n{'':{width + 8}}-> {check.advice}" if check.advice else ""
            click.echo(f"{_MARKS[check.status]}  {check.name:{width}}  {check.found}{advice}")
    if not healthy:
        sys.exit(1)
