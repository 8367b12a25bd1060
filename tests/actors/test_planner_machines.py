"""Plans for the three machines of the project, and for small ones: who sits exactly where."""

from collections import Counter
from pathlib import Path

import msgspec
import pytest

from actors import hwloc, planner, preparing
from actors.hardware import Cpu, Hardware, Node, parse_cpulist
from actors.planner import Placement, Plan
from actors.topology import TopologyError

FILES = Path(__file__).parent.parent / "hardware"


def machine(name: str) -> Hardware:
    return hwloc.read_file(FILES / f"{name}.xml")


def made(topology: str, hardware: Hardware, *overrides: str) -> Plan:
    prepared = preparing.prepare(topology, hardware, overrides=overrides)
    return planner.plan(prepared.topology, hardware)


def seats(plan: Plan, role: str, pool: str = "") -> list[Placement]:
    return [actor for actor in plan.actors if actor.role == role and pool in actor.pool]


def cpus(plan: Plan, name: str) -> tuple[int, ...]:
    return plan.placement(name).cpus


def test_config_a_trains_on_the_gpus_node_and_works_on_the_others_first():
    hardware = machine("config_a")
    plan = made("config_a", hardware)
    node_of = {cpu.id: cpu.node for cpu in hardware.cpus}

    trainer, shard, loader = (
        plan.placement(n) for n in ("trainer/0", "optimizer_shard/0", "loader")
    )
    assert (trainer.cpus, trainer.numa_node, trainer.device) == ((32, 33), 2, "cuda:0")
    assert (loader.cpus, loader.numa_node) == ((34,), 2)
    # Three whole L3 domains of four cores, on the GPU's node.
    assert (shard.cpus, shard.numa_node, shard.device) == (tuple(range(36, 48)), 2, "cpu")
    assert shard.threads == 12

    workers = seats(plan, "data_worker")
    assert len(workers) == 64
    nodes = [worker.numa_node for worker in workers]
    assert nodes == [0] * 16 + [1] * 16 + [3] * 16 + [2] * 16
    assert all(worker.cpus[0] < 64 for worker in workers[:49]), "physical cores first"
    assert {node_of[worker.cpus[0]] for worker in workers[49:]} == {2}
    # The trainer's siblings are the last anyone gets.
    assert [worker.cpus for worker in workers[-2:]] == [(96,), (97,)]
    assert_one_worker_per_core(plan, hardware, 64)
    assert_nobody_shares(plan)


def test_cores_that_serve_devices_are_given_away_last():
    quiet = machine("config_a")
    plan = made("config_a", quiet)
    assert (cpus(plan, "trainer/0"), cpus(plan, "loader")) == ((32, 33), (34,))

    # The GPU's first core, and one of the first node's: by their second threads.
    loud = msgspec.structs.replace(quiet, interrupted=(96, 65))
    plan = made("config_a", loud)
    assert (cpus(plan, "trainer/0"), cpus(plan, "loader")) == ((33, 34), (35,))
    workers = [worker.cpus[0] for worker in seats(plan, "data_worker")]
    assert workers[:15] == [0, *range(2, 16)]
    assert workers[47] == 1, "after all free cores that are as near"
    assert_one_worker_per_core(plan, loud, 64)
    assert_nobody_shares(plan)
    assert "serving interrupts of devices, given away last: cpus 65,96" in plan.notes


def test_config_b_gives_its_workers_the_hyper_threads():
    hardware = machine("config_b")
    plan = made("config_b", hardware)
    assert [(a.cpus, a.device) for a in seats(plan, "trainer")] == [
        ((0, 1), "cuda:0"),
        ((2, 3), "cuda:1"),
    ]
    assert cpus(plan, "loader") == (4,)
    assert [(a.cpus, a.device) for a in seats(plan, "optimizer_shard")] == [
        ((5,), "cuda:0"),
        ((6,), "cuda:1"),
    ]
    # One core is left; all others are siblings, those of trainers last.
    assert [a.cpus[0] for a in seats(plan, "data_worker", "fast")] == [7, 12, 13, 14, 8, 9]
    assert [a.cpus[0] for a in seats(plan, "data_worker", "slow")] == [10, 11]
    assert_one_worker_per_core(plan, hardware, 8)
    assert cpus(plan, "rollout/0") == (15,)
    assert plan.placement("rollout/0").nice == 10
    # Neither trainers nor shards are disturbed by those who find no thread of their own.
    assert cpus(plan, "supervisor") == cpus(plan, "recorder") == (4, 7, 12, 15)
    assert any("sharing cpus 4,7,12,15: supervisor, recorder" in note for note in plan.notes)


def test_config_c_has_a_worker_on_every_core_of_all_sixteen_nodes():
    hardware = machine("config_c")
    plan = made("config_c", hardware)
    package_of = {cpu.id: cpu.package for cpu in hardware.cpus}
    trainer, shard, loader = (
        plan.placement(n) for n in ("trainer/0", "optimizer_shard/0", "loader")
    )
    assert (trainer.cpus, trainer.numa_node, trainer.device) == ((21, 22), 3, "cuda:0")
    assert (loader.cpus, loader.numa_node) == ((23,), 3)
    assert (shard.device, shard.threads, shard.numa_node) == ("cpu", 52, 3)
    # It takes its socket, except for trainer and loader.
    assert {package_of[cpu] for cpu in shard.cpus} == {0}
    assert set(shard.cpus) == set(range(56)) - {21, 22, 23, 55}

    workers = seats(plan, "data_worker")
    assert Counter(worker.numa_node for worker in workers) == dict.fromkeys(range(16), 7)
    assert_one_worker_per_core(plan, hardware, 112)
    assert all(worker.cpus[0] < 112 for worker in workers[:57]), "physical cores first"
    assert_nobody_shares(plan)


def test_a_shard_may_take_a_whole_socket_of_config_c():
    plan = made("config_c", machine("config_c"), "optimizer.threads=53")
    assert set(cpus(plan, "optimizer_shard/0")) == set(range(56)) - {21, 22, 23}


def test_two_cores_give_each_trainer_its_own_and_the_rest_both():
    plan = made("config_b", machine("two_cores"))
    assert plan.emulated
    assert [(a.cpus, a.device, a.floats) for a in seats(plan, "trainer")] == [
        ((0,), "cpu", False),
        ((1,), "cpu", False),
    ]
    others = [actor for actor in plan.actors if actor.role != "trainer"]
    assert all(actor.cpus == (0, 1) and actor.floats for actor in others)
    nice = {actor.role: actor.nice for actor in plan.actors}
    assert nice == {
        "supervisor": 0, "loader": 0, "trainer": 0, "optimizer_shard": 0,
        "recorder": 5, "data_worker": 5, "rollout": 10,
    }  # fmt: skip
    assert all(actor.threads == 1 for actor in plan.actors)


def test_local_on_two_cores_keeps_the_trainers_core_free_of_everybody():
    plan = made("local", machine("two_cores"))
    assert cpus(plan, "trainer/0") == (0,)
    assert {actor.cpus for actor in plan.actors if actor.role != "trainer"} == {(1,)}
    assert not plan.placement("optimizer_shard/0").floats
    assert plan.placement("loader").floats


def one_core() -> Hardware:
    return Hardware(
        source="test", cpus=(Cpu(3, 0, 0, 0, 0),), allowed=(3,), nodes=(Node(0, 1),), memory_bytes=0
    )


@pytest.mark.parametrize("name", ["config_a", "config_b", "config_c", "local"])
def test_on_one_core_everybody_shares_it(name: str):
    plan = made(name, one_core())
    assert {actor.cpus for actor in plan.actors} == {(3,)}
    assert seats(plan, "rollout")


def test_a_cpuset_is_never_left():
    hardware = msgspec.structs.replace(machine("config_a"), allowed=tuple(parse_cpulist("4-9,70")))
    plan = made("config_a", hardware)
    # 70 is the sibling of 6: seven threads on six cores, none of them near the GPU.
    assert cpus(plan, "trainer/0") == (4, 5)
    assert cpus(plan, "loader") == (6,)
    # Four cores cannot hide the shard's work; its one core is of an L3 domain nobody has begun.
    shard = plan.placement("optimizer_shard/0")
    assert (shard.cpus, shard.device) == ((8,), "cuda:0")
    assert {cpu for actor in plan.actors for cpu in actor.cpus} == set(hardware.allowed)


def test_a_node_outside_the_cpuset_leads_to_the_nearest_allowed_one():
    hardware = machine("config_c")
    allowed = tuple(c.id for c in hardware.cpus if c.node in (5, 9))
    plan = made("config_c", msgspec.structs.replace(hardware, allowed=allowed))
    assert plan.placement("trainer/0").numa_node == 5  # the GPU's node is 3, on the same socket


def test_a_quota_leaves_as_many_threads_as_it_pays_for_near_the_gpu():
    hardware = msgspec.structs.replace(machine("config_c"), cpu_quota=3.5)
    plan = made("config_c", hardware)
    assert {cpu for actor in plan.actors for cpu in actor.cpus} == {21, 22, 23, 24}
    assert "the cgroup grants 3.5 cores: 4 threads are used" in plan.notes


def test_hardware_that_must_be_there_is_there_only_as_far_as_a_quota_pays_for_it():
    granted = {n: msgspec.structs.replace(machine("config_b"), cpu_quota=n) for n in (1.0, 8.0)}
    preparing.prepare("config_b", granted[8.0], require_hardware=True)
    with pytest.raises(TopologyError, match="8 cores wanted, 1 found"):
        preparing.prepare("config_b", granted[1.0], require_hardware=True)


def test_a_plan_says_how_much_shared_memory_a_container_must_have():
    note = "shared memory: 10.2 GB in /dev/shm (containers: --shm-size)"
    assert note in made("config_b", machine("config_b")).notes


def test_local_takes_every_gpu_and_some_cores_of_a_larger_machine():
    plan = made("local", machine("config_b"))
    assert [a.device for a in seats(plan, "trainer")] == ["cuda:0", "cuda:1"]
    assert len(seats(plan, "optimizer_shard")) == 2
    plan = made("local", machine("config_a"))
    assert len(seats(plan, "data_worker", "fast")) == 8
    assert plan.placement("trainer/0").numa_node == 2


def test_cpu_trainers_spread_over_nodes():
    hardware = msgspec.structs.replace(machine("config_a"), gpus=())
    plan = made("local", hardware, "actors.trainers=4", "train.threads=4")
    assert [a.numa_node for a in seats(plan, "trainer")] == [0, 1, 2, 3]
    assert [len(a.cpus) for a in seats(plan, "trainer")] == [4, 4, 4, 4]
    assert [a.threads for a in seats(plan, "trainer")] == [4, 4, 4, 4]


def assert_one_worker_per_core(plan: Plan, hardware: Hardware, cores: int) -> None:
    core_of = {cpu.id: cpu.core for cpu in hardware.cpus}
    used = [core_of[a.cpus[0]] for a in seats(plan, "data_worker") if len(a.cpus) == 1]
    assert len(used) == len(set(used)) == cores


def assert_nobody_shares(plan: Plan) -> None:
    held = [cpu for actor in plan.actors for cpu in actor.cpus]
    assert len(held) == len(set(held))
    assert not any(actor.floats for actor in plan.actors)
