"""Machines from hwloc's XML, and files that are something else."""

from pathlib import Path

import pytest

from actors import hwloc
from actors.hardware import Hardware, HardwareError

FILES = Path(__file__).parent.parent / "hardware"


def read(name: str) -> Hardware:
    return hwloc.read_file(FILES / f"{name}.xml")


def test_config_a_has_four_nodes_and_sixteen_l3_domains():
    found = read("config_a")
    assert len(found.cpus) == 128
    assert len({cpu.core for cpu in found.cpus}) == 64
    assert len({cpu.l3 for cpu in found.cpus}) == 16
    assert {cpu.node for cpu in found.cpus} == {0, 1, 2, 3}
    for cpu in found.cpus:
        assert cpu.node == cpu.id % 64 // 16
        assert cpu.core == found.cpus[cpu.id % 64].core  # siblings are 64 apart
    assert [node.memory_bytes for node in found.nodes] == [256_000_000_000] * 4
    (gpu,) = found.gpus
    assert (gpu.pci, gpu.node, gpu.memory_bytes) == ("0000:41:00.0", 2, 96 << 30)
    assert "RTX PRO 6000" in gpu.name
    assert set(gpu.cpus) == {cpu.id for cpu in found.cpus if cpu.node == 2}


def test_config_b_has_one_node_and_two_gpus():
    found = read("config_b")
    assert len(found.cpus) == 16
    assert len({cpu.core for cpu in found.cpus}) == 8
    assert {(cpu.l3, cpu.node, cpu.package) for cpu in found.cpus} == {(0, 0, 0)}
    assert [(g.index, g.pci, g.node, g.memory_bytes >> 30) for g in found.gpus] == [
        (0, "0000:01:00.0", 0, 24),
        (1, "0000:02:00.0", 0, 24),
    ]
    assert "RTX 4090" in found.gpus[0].name


def test_config_c_has_a_node_per_l3_and_two_sockets():
    found = read("config_c")
    assert len(found.cpus) == 224
    for cpu in found.cpus:
        core = cpu.id % 112
        assert (cpu.node, cpu.l3, cpu.package) == (core // 7, core // 7, core // 56)
    (gpu,) = found.gpus
    assert gpu.node == 3


def test_two_cores_are_read_from_a_file_that_names_its_dtd():
    found = read("two_cores")
    assert [(cpu.id, cpu.core, cpu.l3, cpu.node) for cpu in found.cpus] == [
        (0, 0, 0, 0),
        (1, 1, 0, 0),
    ]
    assert found.gpus == ()
    assert found.memory_bytes == 8_000_000_000
    assert found.cpu_model == "Two cores"


def test_a_machine_part_of_which_is_not_allowed():
    text = (FILES / "config_b.xml").read_text()
    text = text.replace('allowed_cpuset="0x0000ffff"', 'allowed_cpuset="0x00000f0f"')
    found = hwloc.parse(text.encode(), source="x")
    assert found.allowed == (0, 1, 2, 3, 8, 9, 10, 11)
    assert len(found.cpus) == 16


def test_a_display_adapter_beside_a_compute_gpu_does_not_count():
    text = (FILES / "config_b.xml").read_text().replace('value="25165824"', 'value="0"', 1)
    found = hwloc.parse(text.encode(), source="x")
    assert [gpu.pci for gpu in found.gpus] == ["0000:02:00.0"]


def test_a_gpu_whose_memory_nobody_told_still_counts():
    text = (FILES / "config_c.xml").read_text().replace("CUDAGlobalMemorySize", "Other")
    (gpu,) = hwloc.parse(text.encode(), source="x").gpus
    assert (gpu.memory_bytes, gpu.node) == (0, 3)


@pytest.mark.parametrize(
    ("text", "cpus"),
    [
        ("", []),
        ("0x00000005", [0, 2]),
        ("0x00000001,,0x00000002", [1, 64]),
        ("0x1,0x0", [32]),
    ],
)
def test_cpusets_are_words_with_the_highest_first(text: str, cpus: list[int]):
    assert sorted(hwloc.parse_cpuset(text)) == cpus


ENTITIES = '<?xml version="1.0"?><!DOCTYPE topology [<!ENTITY a "aaaa">]><topology>&a;</topology>'
EXTERNAL = '<!DOCTYPE t [<!ENTITY a SYSTEM "file:///etc/passwd">]><topology>&a;</topology>'


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "not XML: no element found"),
        (b"PK\x03\x04 not xml", "not XML"),
        (b"<topology>", "not XML: no element found"),
        (b"<html><body/></html>", "it has no PU objects"),
        (b"<topology version='2.0'/>", "it has no PU objects"),
        (ENTITIES.encode(), "refused"),
        (EXTERNAL.encode(), "refused"),
        (ENTITIES.encode("utf-16"), "refused"),
        (b"<topology><object type='PU' os_index='x'/></topology>", "not a usable hwloc topology"),
        (
            b"<topology>" + 2 * b"<object type='PU' os_index='1'/>" + b"</topology>",
            "two PU objects have the same os_index",
        ),
        (
            b"<topology><object type='PU' os_index='1' cpuset='0xf...f'/></topology>",
            "not a usable hwloc topology",
        ),
        (
            b"<topology><object cpuset='" + b"f" * 1_000_000 + b"'/></topology>",
            "has no end",
        ),
        (
            b"<topology><object type='PU' os_index='1' cpuset='zz'/></topology>",
            "not a usable hwloc topology",
        ),
    ],
)
def test_anything_else_is_refused_in_words(data: bytes, words: str):
    with pytest.raises(HardwareError, match=words) as caught:
        hwloc.parse(data, source="machine.xml")
    assert str(caught.value).startswith("machine.xml: ")


def test_size_is_limited(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(hwloc, "MAX_BYTES", 100)
    with pytest.raises(HardwareError, match="larger than 100 bytes"):
        read("config_b")


def test_a_file_that_is_not_there_is_named():
    with pytest.raises(HardwareError, match=r"absent\.xml: cannot be read: No such file"):
        read("absent")


def test_deep_nesting_does_no_harm():
    deep = b"<topology>" + b"<object>" * 50_000 + b"</object>" * 50_000 + b"</topology>"
    with pytest.raises(HardwareError, match="it has no PU objects"):
        hwloc.parse(deep, source="deep.xml")
