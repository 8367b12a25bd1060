"""GPUs through the real NVML bindings, against a library that answers as a driver would."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from actors import nvml
from actors.hardware import Gpu

REPOSITORY = Path(__file__).resolve().parents[2]

# Two GPUs that NVML lists in another order than the bus has them; a third that does not answer.
STUB = r"""
#include <stdlib.h>
#include <string.h>
typedef struct { char legacy[16]; unsigned numbers[5]; char bus_id[32]; } Pci;
typedef struct { unsigned long long total, free, used; } Memory;
typedef void *Gpu;
static const char *BUS[] = {"00000000:C1:00.0", "00000000:41:00.0", "00000000:E1:00.0"};
static long at(Gpu gpu) { return (long)gpu - 1; }
static int say(char *to, const char *text) { strcpy(to, text); return 0; }
int nvmlInitWithFlags(unsigned flags) {
  const char *broken = getenv("STUB_BROKEN");
  return broken ? atoi(broken) : 0;
}
int nvmlShutdown(void) { return 0; }
const char *nvmlErrorString(int code) { return "driver says no"; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = 3; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned i, Gpu *gpu) { *gpu = (Gpu)(i + 1L); return 0; }
int nvmlDeviceGetName(Gpu gpu, char *name, unsigned n) {
  if (at(gpu) == 2) return 15; /* is lost */
  return say(name, at(gpu) ? "NVIDIA Stub B" : "NVIDIA Stub A");
}
int nvmlDeviceGetMemoryInfo(Gpu gpu, Memory *m) { m->total = (at(gpu) + 1) << 30; return 0; }
int nvmlDeviceGetPciInfo_v3(Gpu gpu, Pci *pci) { return say(pci->bus_id, BUS[at(gpu)]); }
int nvmlDeviceGetUUID(Gpu gpu, char *uuid, unsigned n) {
  return say(uuid, at(gpu) ? "GPU-bbbb" : "GPU-aaaa");
}
"""

ASK = """
import json, sys
from pathlib import Path
from actors import nvml
import msgspec
nvml._torch_version = lambda: sys.argv[2]
print(json.dumps(msgspec.to_builtins(nvml.find_gpus(Path(sys.argv[1])))))
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("gcc") or shutil.which("cc")
    if not compiler:
        pytest.skip("no C compiler to build a stand-in for libnvidia-ml.so.1 with")
    folder = tmp_path_factory.mktemp("nvml")
    (folder / "stub.c").write_text(STUB)
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-w", "-o", folder / "libnvidia-ml.so.1", folder / "stub.c"],
        check=True,
    )
    return folder


def ask(root: Path, library: Path | None, torch: str = "2.13.0", **env: str) -> tuple[Any, Any]:
    """GPUs and notes as a fresh process finds them."""
    environment = {k: v for k, v in os.environ.items() if k != "CUDA_VISIBLE_DEVICES"}
    environment |= {"PYTHONPATH": str(REPOSITORY), **env}
    if library:
        environment["LD_LIBRARY_PATH"] = str(library)
    done = subprocess.run(
        [sys.executable, "-c", ASK, str(root), torch],
        env=environment, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    gpus, notes = json.loads(done.stdout)
    return gpus, notes


def lay_out(root: Path, pci: str, node: str, cpus: str) -> None:
    device = root / "sys/bus/pci/devices" / pci
    device.mkdir(parents=True)
    (device / "numa_node").write_text(node + "\n")
    (device / "local_cpulist").write_text(cpus + "\n")


def test_gpus_come_in_bus_order_with_their_place(library: Path, tmp_path: Path):
    lay_out(tmp_path, "0000:41:00.0", "1", "4-7,12-15")
    lay_out(tmp_path, "0000:c1:00.0", "-1", "0-15")
    gpus, notes = ask(tmp_path, library)
    assert gpus == [
        {
            "index": 0, "name": "NVIDIA Stub B", "memory_bytes": 2 << 30, "pci": "0000:41:00.0",
            "node": 1, "cpus": [4, 5, 6, 7, 12, 13, 14, 15], "uuid": "GPU-bbbb",
        },
        {
            "index": 1, "name": "NVIDIA Stub A", "memory_bytes": 1 << 30, "pci": "0000:c1:00.0",
            "node": -1, "cpus": list(range(16)), "uuid": "GPU-aaaa",
        },
    ]  # fmt: skip
    (note,) = notes
    assert note.startswith("GPU 2 does not answer and is left out: ")


def test_a_gpu_sysfs_does_not_know_has_no_place(library: Path, tmp_path: Path):
    gpus, _ = ask(tmp_path, library)
    assert [(gpu["node"], gpu["cpus"]) for gpu in gpus] == [(-1, []), (-1, [])]


def test_only_visible_gpus_are_used(library: Path, tmp_path: Path):
    gpus, notes = ask(tmp_path, library, CUDA_VISIBLE_DEVICES="GPU-aa")
    assert [(gpu["index"], gpu["uuid"]) for gpu in gpus] == [(0, "GPU-aaaa")]
    assert notes[-1] == "CUDA_VISIBLE_DEVICES leaves 1 of 2 GPUs"


def test_a_torch_without_cuda_uses_none_and_says_so(library: Path, tmp_path: Path):
    gpus, notes = ask(tmp_path, library, torch="2.13.0+cpu")
    assert gpus == []
    assert "2 GPU(s) present, but the installed torch 2.13.0+cpu is built without CUDA" in notes[-1]


def test_a_broken_driver_means_no_gpu_and_a_note(library: Path, tmp_path: Path):
    gpus, notes = ask(tmp_path, library, STUB_BROKEN="18")
    assert gpus == []
    assert notes[0].startswith("NVML does not answer, so no GPU is used: ")


def test_without_a_driver_there_is_nothing_to_say(library: Path, tmp_path: Path):
    assert ask(tmp_path, library, STUB_BROKEN="12") == ([], [])


GPUS = tuple(
    Gpu(i, f"g{i}", 1, f"0000:0{i}:00.0", 0, (), uuid)
    for i, uuid in enumerate(("GPU-12ab", "GPU-12cd", "GPU-99"))
)


@pytest.mark.parametrize(
    ("setting", "chosen"),
    [
        (None, ["g0", "g1", "g2"]),
        ("", []),
        ("-1", []),
        ("2,0", ["g2", "g0"]),
        ("1,7,0", ["g1"]),
        ("0,0", ["g0"]),
        ("GPU-12c,GPU-9", ["g1", "g2"]),
        ("GPU-12", []),  # names two
        ("MIG-1", []),
    ],
)
def test_cuda_visible_devices_is_read_as_cuda_reads_it(setting: str | None, chosen: list[str]):
    visible = nvml.visible_gpus(GPUS, setting)
    assert [gpu.name for gpu in visible] == chosen
    assert [gpu.index for gpu in visible] == list(range(len(chosen)))


@pytest.mark.parametrize(
    ("bus", "address"),
    [
        ("00000000:41:00.0", "0000:41:00.0"),
        ("00010002:C1:00.0", "0002:c1:00.0"),
        ("0000:01:00.0", "0000:01:00.0"),
    ],
)
def test_bus_ids_are_spelt_as_in_sysfs(bus: str, address: str):
    assert nvml.sysfs_address(bus) == address
