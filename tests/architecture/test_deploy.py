"""What lies in deploy/ is never run here, but it must at least be what the programs would read."""

import configparser
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import click
import pytest
import yaml

from actors.commands import main

DEPLOY = Path(__file__).parents[2] / "deploy"
# `run.py ...` as it stands in scripts, units, manifests and comments, to the end of the command.
CALL = re.compile(r"run\.py ((?=[\w-])(?:[^;&|`\n\\)']|\\\n)+)")
FILES = [
    path
    for path in DEPLOY.rglob("*")
    if path.suffix in (".sbatch", ".yaml", ".yml", ".service", ".toml") or path.name == "Dockerfile"
]


@pytest.mark.parametrize("script", sorted(DEPLOY.rglob("*.sbatch")), ids=lambda path: path.name)
def test_scripts_parse(script: Path):
    assert shutil.which("bash")
    subprocess.run(["bash", "-n", str(script)], check=True)


@pytest.mark.parametrize("path", sorted(DEPLOY.rglob("*.y*ml")), ids=lambda path: path.name)
def test_manifests_parse(path: Path):
    documents = list(yaml.safe_load_all(path.read_text()))
    assert documents
    if path.parent.name == "kubernetes":
        assert all({"apiVersion", "kind", "metadata", "spec"} <= set(one) for one in documents)


def test_the_unit_parses():
    unit = configparser.ConfigParser(interpolation=None, strict=False)
    unit.optionxform = str  # pyright: ignore[reportAttributeAccessIssue]
    unit.read_string((DEPLOY / "systemd" / "trireme@.service").read_text())
    assert unit["Service"]["ExecStart"].startswith("/bin/sh -c ")
    assert unit["Service"]["KillMode"] == "mixed"  # the launcher ends its graph itself


def calls() -> list[str]:
    found = [call for path in FILES for call in CALL.findall(path.read_text())]
    assert len(found) >= 8
    return sorted({call.strip() for call in found})


@pytest.mark.parametrize("call", calls())
def test_every_command_line_is_one_that_run_py_has(call: str):
    words = shlex.split(re.sub(r"\$\(\w+\)", "1", call.rstrip(" \"'").replace('"', "")))
    command: click.Command = main
    if not words[0].startswith("-"):
        chosen = main.get_command(click.Context(main), words[0])
        assert chosen is not None, words[0]
        command = chosen
    else:
        command = main.get_command(click.Context(main), "run") or main
    known = {option for parameter in command.params for option in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= known
