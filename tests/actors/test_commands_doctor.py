"""`run.py doctor`: verdicts on machines better and worse than this one."""

import json
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner

from actors import checkup
from actors.checkup import GB, Check, Facts
from actors.commands.doctor import doctor
from actors.hardware import Cpu, Gpu, Hardware, Node
from actors.sandbox.terms import HOLDS, NEEDS, Means

HARDWARE = Hardware(
    source="test",
    cpus=(Cpu(0, 0, 0, 0, 0), Cpu(1, 1, 0, 0, 0)),
    allowed=(0, 1),
    nodes=(Node(0, 16 * GB),),
    memory_bytes=16 * GB,
)
HEALTHY = Facts(
    python=(3, 11, 7), system="Linux x86_64", missing=(), torch="2.13.0+cpu", hardware=HARDWARE,
    shm_free=8 * GB, open_files=4096, processes=-1, governor="schedutil", rustc="/usr/bin/rustc",
    sandbox=Means("bubblewrap", holds=HOLDS), disk="/home/me", disk_free=50 * GB,
    cache="/home/me/.cache", cache_writable=True, temporary="/tmp", temporary_writable=True,
    pidfd=True,
)  # fmt: skip


def verdicts(**changes: Any) -> dict[str, Check]:
    facts = msgspec.structs.replace(HEALTHY, **changes)
    return {check.name: check for check in checkup.judge(facts)}


def with_hardware(**changes: Any) -> dict[str, Check]:
    return verdicts(hardware=msgspec.structs.replace(HARDWARE, **changes))


def test_a_good_machine_has_nothing_to_change():
    found = verdicts()
    assert {check.status for check in found.values()} == {"ok"}
    assert not any(check.advice for check in found.values())


@pytest.mark.parametrize(
    ("changes", "name", "status", "advice"),
    [
        ({"python": (3, 10, 1)}, "python", "fail", "Python 3.11"),
        ({"missing": ("pyzmq", "rich")}, "packages", "fail", "pip install -e ."),
        ({"torch": ""}, "torch", "fail", "pip install torch==2.13.0"),
        ({"torch": "2.14.0"}, "torch", "warn", "tested with 2.13.0"),
        ({"system": "Darwin arm64"}, "kernel", "fail", "Linux"),
        ({"pidfd": False}, "kernel", "fail", "Linux 5.3"),
        ({"governor": "powersave"}, "cpu governor", "warn", "performance"),
        ({"shm_free": GB // 20}, "shared memory", "fail", "--shm-size"),
        ({"shm_free": GB // 2}, "shared memory", "warn", "--shm-size"),
        ({"shm_free": -1}, "shared memory", "fail", "--shm-size"),
        ({"open_files": 256}, "open files", "warn", "ulimit -n"),
        ({"processes": 100}, "processes", "warn", "ulimit -u"),
        ({"disk_free": GB}, "disk", "warn", "checkpoints"),
        ({"disk_free": 0}, "disk", "fail", "free some"),
        ({"cache_writable": False}, "cache", "fail", "XDG_CACHE_HOME"),
        ({"temporary": "/tmp" + "/x" * 40}, "socket directory", "fail", "TMPDIR"),
        ({"temporary_writable": False}, "socket directory", "fail", "TMPDIR"),
        ({"rustc": ""}, "rustc", "warn", "install rustc"),
        ({"sandbox": Means("limits", holds=NEEDS["parse"])}, "sandbox", "warn", "bubblewrap"),
        ({"sandbox": Means("limits")}, "sandbox", "warn", "Rust cannot be verified"),
    ],
)
def test_what_is_missing_is_named_with_its_cure(
    changes: dict[str, Any], name: str, status: str, advice: str
):
    found = verdicts(**changes)
    assert found[name].status == status
    assert advice in found[name].advice
    assert all(check.status == "ok" for other, check in found.items() if other != name)


def test_what_the_sandbox_holds_is_named():
    assert verdicts()["sandbox"].found == "bubblewrap"
    found = verdicts(sandbox=Means("landlock", False, NEEDS["execute"], {"names": "seen"}))
    assert found["sandbox"].found.endswith("without hiding names")
    found = verdicts(sandbox=Means("limits", False, NEEDS["parse"]))
    assert "no hold on files, network, processes" in found["sandbox"].found


def test_limits_of_containers_are_shown():
    assert with_hardware(cpu_quota=1.0)["cpus"].status == "warn"
    assert "quota 1.5 cores" in with_hardware(cpu_quota=1.5)["cpus"].found
    assert with_hardware(allowed=(1,))["cpus"].found.startswith("1 cores, 1 of 2 threads")
    assert with_hardware(memory_bytes=GB)["memory"].status == "fail"


def test_gpus_are_listed_and_unusable_ones_explained():
    gpu = Gpu(0, "NVIDIA Stub", 24 * GB, "0000:01:00.0")
    assert with_hardware(gpus=(gpu,))["gpu"].found == "NVIDIA Stub (24.0 GB)"
    unusable = with_hardware(notes=("1 GPU(s) present, but torch lacks CUDA",))["gpu"]
    assert (unusable.status, unusable.found) == ("warn", "none")
    assert "lacks CUDA" in unusable.advice


def test_the_command_prints_verdicts_and_fails_when_something_must_change(
    monkeypatch: pytest.MonkeyPatch,
):
    facts = msgspec.structs.replace(HEALTHY, torch="")
    monkeypatch.setattr(checkup, "gather", lambda: facts)
    result = CliRunner().invoke(doctor)
    assert result.exit_code == 1
    assert "FAIL  torch" in result.stdout
    assert "-> pip install torch==2.13.0" in result.stdout
    result = CliRunner().invoke(doctor, ["--json"])
    document = json.loads(result.stdout)
    assert result.exit_code == 1
    assert document["ok"] is False
    assert {"name": "torch", "status": "fail", "found": "not installed",
            "advice": "pip install torch==2.13.0"} in document["checks"]  # fmt: skip


def test_this_machine_can_be_examined():
    result = CliRunner().invoke(doctor, ["--json"])
    assert result.exit_code in (0, 1)
    assert len(json.loads(result.stdout)["checks"]) == 16
