"""What lies in deploy/ is never run here, but it must at least be what the programs would read."""

import configparser
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import click
import msgspec
import pytest
import yaml

from actors import hwloc, launcher, matching, roles, topology
from actors.commands import main
from actors.optimizer import layout
from actors.outcome import Outcome
from actors.supervisor import segments
from actors.topology import Topology

DEPLOY = Path(__file__).parents[2] / "deploy"
MACHINES = Path(__file__).parents[1] / "hardware"
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
    assert _unit()["ExecStart"].startswith("/bin/sh -c ")
    assert _unit()["KillMode"] == "mixed"  # the launcher ends its graph itself
    stopped = launcher.exit_code(Outcome(end="stopped", reason=""))
    assert _unit()["SuccessExitStatus"] == str(stopped)  # else it would be started again


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


TOPOLOGIES = [topology.load(path.stem) for path in sorted((DEPLOY / "topologies").glob("*.toml"))]


@pytest.mark.parametrize("spec", TOPOLOGIES, ids=lambda spec: spec.name)
def test_a_stop_leaves_time_for_the_checkpoint(spec: Topology):
    """Written at half a gigabyte per second, digested and read back; a third of the time is for
    what is under way before it."""
    shards = range(spec.actors.optimizer_shards)
    nbytes = sum(layout.checkpoint_bytes(spec, shard) for shard in shards)
    assert nbytes / 0.5e9 + nbytes / 1e9 <= 0.6 * spec.supervision.stop_s


def test_schedulers_wait_until_a_run_has_ended():
    stop_s = {spec.name: spec.supervision.stop_s for spec in TOPOLOGIES}
    (job,) = (one for one in _documents("train.yaml") if one["kind"] == "Job")
    grace_s = job["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    assert grace_s > roles.stopped_within(stop_s["config_b"])
    assert int(_unit()["TimeoutStopSec"]) > roles.stopped_within(max(stop_s.values()))
    script = (DEPLOY / "slurm" / "train.sbatch").read_text()
    (before_s,) = re.findall(r"--signal=B:TERM@(\d+)", script)
    # Only the shards write for long, and this time is taken from the job's: no more than it needs.
    assert int(before_s) > 2 * max(stop_s.values()) + 60


def test_workers_of_a_batch_job_have_their_node_to_themselves():
    script = (DEPLOY / "slurm" / "workers.sbatch").read_text()
    assert "\n#SBATCH --exclusive\n" in script
    assert '--cpus-per-task="$SLURM_CPUS_ON_NODE"' in script  # else nproc says 1


def test_a_pod_has_what_its_topology_must_have():
    (job,) = (one for one in _documents("train.yaml") if one["kind"] == "Job")
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert "--topology config_b" in container["args"][0]
    limits = container["resources"]["limits"]
    machine = hwloc.read_file(MACHINES / "config_b.xml")
    pod = msgspec.structs.replace(
        machine,
        cpu_quota=float(limits["cpu"]),
        memory_bytes=int(limits["memory"].removesuffix("Gi")) << 30,
        gpus=machine.gpus[: limits["nvidia.com/gpu"]],
    )
    (spec,) = (one for one in TOPOLOGIES if one.name == "config_b")
    assert matching.deficits(spec.hardware, pod) == {}
    (shm,) = (one for one in job["spec"]["template"]["spec"]["volumes"] if one["name"] == "shm")
    room = int(shm["emptyDir"]["sizeLimit"].removesuffix("Gi")) << 30
    assert sum(segments.wanted("x", spec).values()) < room


def _documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DEPLOY / "kubernetes" / name).read_text()))


def _unit() -> configparser.SectionProxy:
    unit = configparser.ConfigParser(interpolation=None, strict=False)
    unit.optionxform = str  # pyright: ignore[reportAttributeAccessIssue]
    unit.read_string((DEPLOY / "systemd" / "trireme@.service").read_text())
    return unit["Service"]
