"""The machine from sysfs, procfs and cgroups, on trees of files laid out for the purpose."""

from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors import hardware
from actors.hardware import Hardware, HardwareError, format_cpulist, parse_cpulist, read_machine

GIB = 1 << 30
Write = Callable[[str, str], None]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def file(path: str, text: str) -> None:
        target = tmp_path / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text + "\n")

    return file


def machine(write: Write, *, cores: int, siblings: int = 1, per_l3: int = 0, nodes: int = 1) -> int:
    """Lay out a machine of one package per node; returns its number of threads.

    Threads are numbered as Linux does: first every core's first, then the siblings.
    """
    threads = cores * siblings
    cpu = "sys/devices/system/cpu"
    write(f"{cpu}/online", f"0-{threads - 1}")
    per_node = cores // nodes
    for i in range(threads):
        core = i % cores
        family = [core + cores * s for s in range(siblings)]
        write(f"{cpu}/cpu{i}/topology/core_cpus_list", ",".join(map(str, family)))
        write(f"{cpu}/cpu{i}/topology/physical_package_id", str(core // per_node))
        for level, index in ((1, 0), (1, 1), (2, 2)):
            write(f"{cpu}/cpu{i}/cache/index{index}/level", str(level))
            write(f"{cpu}/cpu{i}/cache/index{index}/shared_cpu_list", format_cpulist(family))
        if per_l3:
            first = core // per_l3 * per_l3
            shared = [c + cores * s for s in range(siblings) for c in range(first, first + per_l3)]
            write(f"{cpu}/cpu{i}/cache/index3/level", "3")
            write(f"{cpu}/cpu{i}/cache/index3/shared_cpu_list", format_cpulist(shared))
    for n in range(nodes):
        local = [t for t in range(threads) if t % cores // per_node == n]
        write(f"sys/devices/system/node/node{n}/cpulist", format_cpulist(local))
        write(f"sys/devices/system/node/node{n}/meminfo", f"Node {n} MemTotal:  {8 << 20} kB")
        distances = " ".join("10" if n == m else "21" for m in range(nodes))
        write(f"sys/devices/system/node/node{n}/distance", distances)
    write("proc/meminfo", f"MemTotal:       {nodes * 8 << 20} kB\nMemFree: 1 kB")
    write("proc/cpuinfo", "processor : 0\nmodel name : Test CPU 9000")
    return threads


def read(root: Path, affinity: Iterable[int]) -> Hardware:
    return read_machine(root, affinity=affinity)


def test_cores_caches_nodes_and_siblings_come_from_sysfs(write: Write, tmp_path: Path):
    threads = machine(write, cores=8, siblings=2, per_l3=2, nodes=2)
    found = read(tmp_path, range(threads))
    assert [cpu.id for cpu in found.cpus] == list(range(16))
    first, sibling, other = found.cpus[1], found.cpus[9], found.cpus[6]
    assert (first.core, first.l3, first.node, first.package) == (1, 0, 0, 0)
    assert (sibling.core, sibling.l3, sibling.node) == (1, 0, 0)
    assert (other.core, other.l3, other.node, other.package) == (6, 3, 1, 1)
    assert [(n.id, n.memory_bytes, n.distances) for n in found.nodes] == [
        (0, 8 * GIB, (10, 21)),
        (1, 8 * GIB, (21, 10)),
    ]
    assert found.memory_bytes == 16 * GIB
    assert found.cpu_model == "Test CPU 9000"
    assert found.allowed == tuple(range(16))


def test_without_an_l3_a_package_is_one_domain(write: Write, tmp_path: Path):
    machine(write, cores=4, nodes=2)
    assert [cpu.l3 for cpu in read(tmp_path, range(4)).cpus] == [0, 0, 1, 1]


def test_older_kernels_spell_siblings_otherwise(write: Write, tmp_path: Path):
    machine(write, cores=2, siblings=2)
    for i in range(4):
        topology = tmp_path / f"sys/devices/system/cpu/cpu{i}/topology"
        (topology / "core_cpus_list").rename(topology / "thread_siblings_list")
    assert [cpu.core for cpu in read(tmp_path, range(4)).cpus] == [0, 1, 0, 1]


def test_offline_cpus_do_not_exist(write: Write, tmp_path: Path):
    machine(write, cores=4)
    write("sys/devices/system/cpu/online", "0,2-3")
    found = read(tmp_path, range(4))
    assert [cpu.id for cpu in found.cpus] == [0, 2, 3]
    assert found.allowed == (0, 2, 3)


def test_affinity_limits_what_is_allowed(write: Write, tmp_path: Path):
    machine(write, cores=4)
    assert read(tmp_path, [3, 1]).allowed == (1, 3)


INTERRUPTS = """\
            CPU0       CPU2       CPU3
   9:          0          0          0   IO-APIC   9-fasteoi   acpi
 131:      60000         12          0   PCI-MSI 524288-edge   nvme0q1
 140:      50000          0      99000   PCI-MSI 1048576-edge  eth0-TxRx-0
 LOC:   90000000   90000000   90000000   Local timer interrupts
 ERR:          0
"""


def test_threads_that_serve_devices_all_the_time_are_known(write: Write, tmp_path: Path):
    machine(write, cores=4)
    write("proc/interrupts", INTERRUPTS)
    write("proc/uptime", "1000.00 3999.00")
    # Of 1000 seconds: 110 a second, 0.012, 99. Timers are everybody's.
    assert read(tmp_path, range(4)).interrupted == (0,)
    write("proc/uptime", "900.00 3999.00")
    assert read(tmp_path, range(4)).interrupted == (0, 3)


@pytest.mark.parametrize("text", ["", "garbage", "  CPU0 CPU1\n 1: x y\n 2:\n three: 4"])
def test_interrupts_that_are_not_told_trouble_nobody(text: str, write: Write, tmp_path: Path):
    machine(write, cores=2)
    write("proc/interrupts", text)
    write("proc/uptime", "10.0 10.0")
    assert read(tmp_path, range(2)).interrupted == ()


def test_a_node_of_memory_alone_is_no_place(write: Write, tmp_path: Path):
    machine(write, cores=2)
    write("sys/devices/system/node/node1/cpulist", "")
    assert [node.id for node in read(tmp_path, range(2)).nodes] == [0]


def test_where_nothing_is_told_affinity_makes_the_machine(tmp_path: Path):
    found = read(tmp_path, [4, 7])
    assert [(cpu.id, cpu.core, cpu.node) for cpu in found.cpus] == [(4, 0, 0), (7, 1, 0)]
    assert found.allowed == (4, 7)
    assert len(found.nodes) == 1
    assert found.memory_bytes == 0


def test_version_2_cgroups_limit_cpus_time_and_memory(write: Write, tmp_path: Path):
    machine(write, cores=8)
    write("proc/self/cgroup", "0::/box/inner")
    write("sys/fs/cgroup/cpuset.cpus.effective", "0-7")
    write("sys/fs/cgroup/box/cpu.max", "150000 100000")
    write("sys/fs/cgroup/box/memory.max", str(4 * GIB))
    write("sys/fs/cgroup/box/inner/cpuset.cpus.effective", "2-4")
    write("sys/fs/cgroup/box/inner/cpu.max", "max 100000")
    write("sys/fs/cgroup/box/inner/memory.max", "max")
    found = read(tmp_path, range(8))
    assert found.allowed == (2, 3, 4)
    assert found.cpu_quota == 1.5  # an ancestor's limit is a limit
    assert found.memory_bytes == 4 * GIB


def test_a_container_that_sees_only_its_own_cgroup(write: Write, tmp_path: Path):
    machine(write, cores=8)
    write("proc/self/cgroup", "0::/../../docker/abc")
    write("sys/fs/cgroup/cpu.max", "300000 100000")
    write("sys/fs/cgroup/memory.max", str(2 * GIB))
    found = read(tmp_path, range(8))
    assert (found.cpu_quota, found.memory_bytes) == (3.0, 2 * GIB)


def test_version_1_cgroups_limit_cpus_time_and_memory(write: Write, tmp_path: Path):
    machine(write, cores=8)
    write(
        "proc/self/cgroup",
        "4:memory:/box\n3:cpuset:/box\n2:cpu,cpuacct:/box\n1:name=systemd:/x\n0::/",
    )
    write("sys/fs/cgroup/cpuset/cpuset.cpus", "0-7")
    write("sys/fs/cgroup/cpuset/box/cpuset.cpus", "5-6")
    write("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "-1")
    write("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000")
    write("sys/fs/cgroup/cpu,cpuacct/box/cpu.cfs_quota_us", "200000")
    write("sys/fs/cgroup/cpu,cpuacct/box/cpu.cfs_period_us", "100000")
    write("sys/fs/cgroup/memory/memory.limit_in_bytes", str(9223372036854771712))
    write("sys/fs/cgroup/memory/box/memory.limit_in_bytes", str(3 * GIB))
    found = read(tmp_path, range(8))
    assert (found.allowed, found.cpu_quota, found.memory_bytes) == ((5, 6), 2.0, 3 * GIB)


def test_a_cpuset_of_another_view_does_not_leave_nothing(write: Write, tmp_path: Path):
    machine(write, cores=4)
    write("proc/self/cgroup", "0::/")
    write("sys/fs/cgroup/cpuset.cpus.effective", "64-127")
    assert read(tmp_path, [0, 1]).allowed == (0, 1)


def test_garbage_in_limits_is_no_limit(write: Write, tmp_path: Path):
    machine(write, cores=2)
    write("proc/self/cgroup", "nonsense\n0::/\n::\n")
    write("sys/fs/cgroup/cpu.max", "a b c")
    write("sys/fs/cgroup/memory.max", "-7")
    found = read(tmp_path, range(2))
    assert (found.cpu_quota, found.memory_bytes) == (0.0, 8 * GIB)


def test_this_machine_can_be_probed():
    found = hardware.probe()
    assert set(found.allowed) <= {cpu.id for cpu in found.cpus}
    assert found.allowed
    assert found.memory_bytes > 0
    assert hardware.from_json(hardware.to_json(found)) == found


def test_a_bad_hardware_file_is_refused_in_words():
    for text in ("", "{}", '{"source": 3}', "[1]"):
        with pytest.raises(HardwareError, match="not a description of hardware"):
            hardware.from_json(text)


@pytest.mark.parametrize(
    ("text", "cpus"),
    [
        ("", []),
        ("0", [0]),
        ("0-3,8,10-11", [0, 1, 2, 3, 8, 10, 11]),
        ("3,1\n", [1, 3]),
        ("x,2-y,5", [5]),
        ("7-5", []),
    ],
)
def test_cpu_lists_are_read_as_the_kernel_writes_them(text: str, cpus: list[int]):
    assert parse_cpulist(text) == cpus


def test_a_monstrous_cpu_list_stays_small():
    assert len(parse_cpulist("0-99999999999")) == 65536


@given(st.sets(st.integers(0, 2000)))
def test_cpu_lists_survive_being_written_and_read(cpus: set[int]):
    assert parse_cpulist(format_cpulist(cpus)) == sorted(cpus)
