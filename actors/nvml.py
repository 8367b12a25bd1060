"""GPUs through NVML, and where on the PCI bus they sit.

The NVIDIA driver's management library needs neither CUDA nor torch. No library, no driver, a
driver that is broken, or a torch built without CUDA all mean "no GPU to use", said in a note.
"""

import os
from importlib import metadata
from pathlib import Path
from typing import Any

from actors.hardware import NO_NODE, Gpu, parse_cpulist

Found = tuple[tuple[Gpu, ...], tuple[str, ...]]  # GPUs, notes


def find_gpus(root: Path) -> Found:
    """GPUs that torch on this machine can use, and notes about those it cannot."""
    gpus, notes = read_gpus(root)
    visible = visible_gpus(gpus, os.environ.get("CUDA_VISIBLE_DEVICES"))
    if len(visible) < len(gpus):
        notes += (f"CUDA_VISIBLE_DEVICES leaves {len(visible)} of {len(gpus)} GPUs",)
    if visible and _torch_lacks_cuda():
        return (), (
            *notes,
            f"{len(visible)} GPU(s) present, but the installed torch {_torch_version()} is built "
            "without CUDA: install one with it to use them",
        )
    return visible, notes


def read_gpus(root: Path) -> Found:
    """Every GPU NVML knows, in PCI order, with its place from sysfs under `root`."""
    try:
        import pynvml
    except ImportError:
        return (), ("nvidia-ml-py is not installed, so GPUs were not looked for",)
    nvml: Any = pynvml
    try:
        nvml.nvmlInit()
    except nvml.NVMLError_LibraryNotFound:
        return (), ()  # no NVIDIA driver here: nothing to say
    except nvml.NVMLError as error:
        return (), (f"NVML does not answer, so no GPU is used: {error}",)
    try:
        return _ask(nvml, root)
    finally:
        nvml.nvmlShutdown()


def _ask(nvml: Any, root: Path) -> Found:
    found: list[Gpu] = []
    notes: list[str] = []
    try:
        count = nvml.nvmlDeviceGetCount()
    except nvml.NVMLError as error:
        return (), (f"NVML does not count its devices, so no GPU is used: {error}",)
    for number in range(count):
        try:
            handle = nvml.nvmlDeviceGetHandleByIndex(number)
            name = nvml.nvmlDeviceGetName(handle)
            memory = int(nvml.nvmlDeviceGetMemoryInfo(handle).total)
            bus = nvml.nvmlDeviceGetPciInfo(handle).busId
        except nvml.NVMLError as error:
            notes.append(f"GPU {number} does not answer and is left out: {error}")
            continue
        pci = sysfs_address(_text(bus))
        node, cpus = locality(root, pci)
        found.append(Gpu(len(found), _text(name), memory, pci, node, cpus, _uuid(nvml, handle)))
    found.sort(key=lambda gpu: gpu.pci)
    return tuple(_renumbered(found)), tuple(notes)


def _uuid(nvml: Any, handle: Any) -> str:
    try:
        return _text(nvml.nvmlDeviceGetUUID(handle))
    except nvml.NVMLError:
        return ""


def _text(value: str | bytes) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def sysfs_address(bus: str) -> str:
    """NVML's `00000000:41:00.0` as sysfs spells it: `0000:41:00.0`."""
    domain, _, rest = bus.strip().lower().partition(":")
    return f"{domain[-4:]:0>4}:{rest}"


def locality(root: Path, pci: str) -> tuple[int, tuple[int, ...]]:
    """NUMA node and local CPUs of a PCI device; (-1, ()) where sysfs does not tell."""
    device = root / "sys/bus/pci/devices" / pci
    try:
        node = int((device / "numa_node").read_text())
    except (OSError, ValueError):
        node = NO_NODE
    try:
        cpus = parse_cpulist((device / "local_cpulist").read_text())
    except OSError:
        cpus = []
    return node, tuple(cpus)


def visible_gpus(gpus: tuple[Gpu, ...], setting: str | None) -> tuple[Gpu, ...]:
    """The GPUs CUDA_VISIBLE_DEVICES leaves, numbered as CUDA will number them.

    As CUDA reads it: numbers or UUID prefixes, up to the first entry that names no GPU.
    """
    if setting is None:
        return gpus
    chosen: list[Gpu] = []
    for entry in (part.strip() for part in setting.split(",")):
        match = [
            gpu
            for gpu in gpus
            if (
                entry == str(gpu.index) or (entry.startswith("GPU-") and gpu.uuid.startswith(entry))
            )
        ]
        if len(match) != 1 or match[0] in chosen:
            break
        chosen += match
    return tuple(_renumbered(chosen))


def _renumbered(gpus: list[Gpu]) -> list[Gpu]:
    return [
        Gpu(i, gpu.name, gpu.memory_bytes, gpu.pci, gpu.node, gpu.cpus, gpu.uuid)
        for i, gpu in enumerate(gpus)
    ]


def _torch_version() -> str:
    try:
        return metadata.version("torch")
    except metadata.PackageNotFoundError:
        return ""


def _torch_lacks_cuda() -> bool:
    return _torch_version().endswith("+cpu")
