"""Hardware from hwloc's XML (`lstopo machine.xml`), for plans about machines that are elsewhere.

Objects are related by their cpusets rather than by nesting, which differs between hwloc versions.
The file may come from anyone: entities and internal DTDs are refused, and so is excessive size.
"""

import xml.etree.ElementTree as ET
from pathlib import Path
from xml.parsers import expat

from actors.hardware import NO_NODE, Cpu, Gpu, Hardware, HardwareError, Node

# lstopo writes about 1 KB per hardware thread; the largest machines have a few thousand.
MAX_BYTES = 32_000_000
_NVIDIA = "10de"
_DISPLAY_CLASSES = ("0300", "0302")  # VGA controller, 3D controller
# hwloc knows GPUs by PCI id only, unless it was built with their libraries.
_KNOWN_GPUS = {
    "10de:2684": "NVIDIA GeForce RTX 4090",
    "10de:2bb1": "NVIDIA RTX PRO 6000 Blackwell Workstation Edition",
}


Located = tuple[ET.Element, frozenset[int]]  # an object, and the CPUs it or its parent holds
# Words of a cpuset: as many as 65,536 CPUs need.
_MAX_WORDS = 2048


def read_file(path: Path) -> Hardware:
    """The machine an hwloc XML file describes. Raises `HardwareError`."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise HardwareError(f"{path}: cannot be read: {error.strerror}") from None
    return parse(data, source=str(path))


def parse(data: bytes, *, source: str) -> Hardware:
    """The machine described by hwloc XML. Raises `HardwareError`, naming `source`."""
    if len(data) > MAX_BYTES:
        raise HardwareError(f"{source}: larger than {MAX_BYTES} bytes, so not an hwloc topology")
    root = _tree(data, source)
    try:
        return _machine(root, source)
    except ValueError as error:
        raise HardwareError(
            f"{source}: not a usable hwloc topology: {error}; accepted: what `lstopo "
            f"{Path(source).name}` writes on the machine in question"
        ) from None


def _machine(root: ET.Element, source: str) -> Hardware:
    objects = _objects(root)
    threads = [o for o, _ in objects if o.get("type") == "PU"]
    if root.tag != "topology" or not threads:
        raise ValueError("it has no PU objects")
    nodes = _of_type(objects, "NUMANode")
    packages = _of_type(objects, "Package")
    # Virtual machines may have no L3: their packages are the domains then.
    caches = _positions(_of_type(objects, "L3Cache") or packages)
    cores, sockets = _positions(_of_type(objects, "Core")), _positions(packages)
    homes = {cpu: _number(node, "os_index") for node, local in nodes for cpu in local}
    cpus: list[Cpu] = []
    for thread in threads:
        i = int(thread.get("os_index", ""))
        cpus.append(
            Cpu(
                id=i,
                core=cores.get(i, len(threads) + i),
                l3=caches.get(i, 0),
                node=homes.get(i, 0),
                package=sockets.get(i, 0),
            )
        )
    machine = objects[0][0]
    ids = sorted(cpu.id for cpu in cpus)
    if len(set(ids)) < len(ids):
        raise ValueError("two PU objects have the same os_index")
    allowed = parse_cpuset(machine.get("allowed_cpuset", ""))
    memory = [(_number(node, "os_index"), _number(node, "local_memory")) for node, _ in nodes]
    total = sum(size for _, size in memory)
    return Hardware(
        source=source,
        cpus=tuple(sorted(cpus, key=lambda cpu: cpu.id)),
        allowed=tuple(i for i in ids if i in allowed) or tuple(ids),
        nodes=tuple(Node(i, size) for i, size in sorted(memory)) or (Node(0, total),),
        memory_bytes=total,
        gpus=_gpus(objects, nodes),
        cpu_model=_info(objects, "CPUModel"),
    )


# --- GPUs -----------------------------------------------------------------------------------------


def _gpus(objects: list[Located], nodes: list[Located]) -> tuple[Gpu, ...]:
    devices = [(o, cpus) for o, cpus in objects if o.get("type") == "PCIDev" and _is_gpu(o)]
    # A file written with CUDA's help marks the devices that compute; display adapters drop out.
    marked = [(o, cpus) for o, cpus in devices if _cuda_memory(o) > 0]
    found: list[Gpu] = []
    for device, cpus in sorted(marked or devices, key=lambda d: d[0].get("pci_busid", "")):
        home = [n for n, local in nodes if cpus and cpus <= local]
        found.append(
            Gpu(
                index=len(found),
                name=_gpu_name(device),
                memory_bytes=_cuda_memory(device),
                pci=device.get("pci_busid", ""),
                node=_number(home[0], "os_index") if home else NO_NODE,
                cpus=tuple(sorted(cpus)),
            )
        )
    return tuple(found)


def _is_gpu(device: ET.Element) -> bool:
    words = device.get("pci_type", "").split()
    return len(words) > 1 and words[0] in _DISPLAY_CLASSES and _pci_id(device).startswith(_NVIDIA)


def _pci_id(device: ET.Element) -> str:
    """`10de:2684` of pci_type `0300 [10de:2684] [10de:16f4] a1 00`."""
    words = device.get("pci_type", "").split()
    return words[1].strip("[]").lower() if len(words) > 1 else ""


def _cuda_memory(device: ET.Element) -> int:
    for info in device.iter("info"):
        if info.get("name") == "CUDAGlobalMemorySize":
            return int(info.get("value", "0")) * 1024  # hwloc counts KiB
    return 0


def _gpu_name(device: ET.Element) -> str:
    for info in device.iter("info"):
        if info.get("name") == "GPUModel":
            return info.get("value", "")
    return _KNOWN_GPUS.get(_pci_id(device), f"NVIDIA {_pci_id(device)}")


# --- Reading XML ----------------------------------------------------------------------------------


def _objects(root: ET.Element) -> list[Located]:
    """Every <object>, in document order, with its own cpuset or else its nearest parent's."""
    found: list[Located] = []
    stack: list[Located] = [(root, frozenset())]
    while stack:
        element, inherited = stack.pop()
        cpus = parse_cpuset(element.get("cpuset", "")) or inherited
        if element.tag == "object":
            found.append((element, cpus))
        stack += [(child, cpus) for child in reversed(element) if child.tag == "object"]
    return found


def _of_type(objects: list[Located], kind: str) -> list[Located]:
    return [(o, cpus) for o, cpus in objects if o.get("type") == kind]


def _positions(groups: list[Located]) -> dict[int, int]:
    """CPU to the position of the group that holds it."""
    return {cpu: n for n, (_, cpus) in enumerate(groups) for cpu in cpus}


def _number(element: ET.Element, attribute: str) -> int:
    return int(element.get(attribute, "0"))


def _info(objects: list[Located], name: str) -> str:
    for element, _ in objects:
        for info in element.findall("info"):
            if info.get("name") == name:
                return info.get("value", "")
    return ""


def parse_cpuset(text: str) -> frozenset[int]:
    """hwloc's bitmap: 32-bit words in hexadecimal, highest first, "" between commas meaning 0."""
    words = text.split(",") if text else []
    if len(words) > _MAX_WORDS or any(len(word) > len("0xffffffff") for word in words):
        raise ValueError(f"cpuset {text[:40]} has no end")
    bits = 0
    for word in words:
        bits = bits << 32 | (int(word, 16) if word.strip() else 0)
    return frozenset(i for i in range(bits.bit_length()) if bits >> i & 1)


def _tree(data: bytes, source: str) -> ET.Element:
    """The document's root. Raises `HardwareError` on bad XML and on anything that defines."""
    builder = ET.TreeBuilder()
    parser = expat.ParserCreate()

    def refuse_entity(*_: object) -> None:
        raise HardwareError(f"{source}: defines entities, which hwloc never does; refused")

    def check_doctype(_name: str, _system: object, _public: object, internal: bool) -> None:
        # lstopo names its DTD, which is never fetched; one that comes inside the file is refused.
        if internal:
            raise HardwareError(f"{source}: brings its own DTD, which hwloc never does; refused")

    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.StartDoctypeDeclHandler = check_doctype
    parser.EntityDeclHandler = refuse_entity
    try:
        parser.Parse(data, True)
        return builder.close()
    except (expat.ExpatError, AssertionError) as error:
        raise HardwareError(
            f"{source}: not XML: {error}; accepted: what `lstopo {Path(source).name}` writes"
        ) from None
