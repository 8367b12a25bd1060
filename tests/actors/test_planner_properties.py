"""Whatever the machine: everybody has a seat, within what is allowed, the same each time."""

from itertools import combinations

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from actors import planner, topology
from actors.hardware import Cpu, Gpu, Hardware, Node
from actors.placement import usable_cores
from actors.topology import ActorCounts, Topology


@st.composite
def machines(draw: st.DrawFn) -> Hardware:
    nodes = draw(st.integers(1, 4))
    domains, cores, smt = (draw(st.integers(1, n)) for n in (3, 4, 2))
    total = nodes * domains * cores
    cpus = [
        Cpu(id=core + total * s, core=core, l3=core // cores, node=core // (cores * domains),
            package=core // (cores * domains) % 2)
        for s in range(smt)
        for core in range(total)
    ]  # fmt: skip
    ids = [cpu.id for cpu in cpus]
    allowed = draw(st.sets(st.sampled_from(ids), min_size=1))
    distances = draw(st.booleans())
    gpus = tuple(
        Gpu(i, "NVIDIA GeForce RTX 4090", 24 << 30, f"{i}", draw(st.integers(-1, 5)),
            tuple(sorted(draw(st.sets(st.sampled_from(ids))))))
        for i in range(draw(st.integers(0, 3)))
    )  # fmt: skip
    return Hardware(
        source="test",
        cpus=tuple(cpus),
        allowed=tuple(sorted(allowed)),
        nodes=tuple(
            Node(n, 1 << 33, tuple(10 + 5 * abs(n - m) for m in range(nodes)) if distances else ())
            for n in range(nodes)
        ),
        memory_bytes=1 << 34,
        gpus=gpus,
        cpu_quota=draw(st.sampled_from([0.0, 0.5, 1.0, 2.5, 100.0])),
    )


@st.composite
def topologies(draw: st.DrawFn) -> Topology:
    t = topology.load("local")
    small = st.integers(1, 5)
    actors = ActorCounts(
        trainers=draw(small),
        optimizer_shards=draw(small),
        rollouts=draw(st.integers(0, 2)),
        fast_workers=draw(st.integers(1, 20)),
        slow_workers=draw(st.integers(0, 5)),
    )
    return msgspec.structs.replace(
        t,
        actors=actors,
        train=msgspec.structs.replace(t.train, threads=draw(small)),
        optimizer=msgspec.structs.replace(t.optimizer, threads=draw(small)),
        hardware=msgspec.structs.replace(t.hardware, any=False),
        emulated=draw(st.booleans()),
    )


@settings(deadline=None)
@given(topologies(), machines())
def test_every_plan_is_valid(t: Topology, hardware: Hardware):
    plan = planner.plan(t, hardware)
    allowed, counts = set(hardware.allowed), t.actors
    names = [actor.name for actor in plan.actors]
    assert sorted(names) == sorted(
        ["supervisor", "recorder", "loader"]
        + [f"trainer/{i}" for i in range(counts.trainers)]
        + [f"optimizer_shard/{k}" for k in range(counts.optimizer_shards)]
        + [f"data_worker/{i}" for i in range(counts.fast_workers + counts.slow_workers)]
        + [f"rollout/{j}" for j in range(counts.rollouts)]
    )
    devices = {"cpu"} | {f"cuda:{gpu.index}" for gpu in hardware.gpus if not t.emulated}
    nodes = {cpu.id: cpu.node for cpu in hardware.cpus}
    for actor in plan.actors:
        assert actor.cpus, actor.name
        assert set(actor.cpus) <= allowed
        assert list(actor.cpus) == sorted(set(actor.cpus))
        assert actor.numa_node in {nodes[cpu] for cpu in actor.cpus}
        assert actor.device in devices
        assert 1 <= actor.threads <= len(actor.cpus)
    pools = [actor.pool for actor in plan.actors if actor.role == "data_worker"]
    assert pools == ["fast"] * counts.fast_workers + ["slow"] * counts.slow_workers


@settings(deadline=None)
@given(topologies(), machines())
def test_trainers_and_shards_have_their_own_cores_while_there_are_enough(
    t: Topology, hardware: Hardware
):
    cores = usable_cores(hardware)
    if len(cores) < t.actors.trainers + t.actors.optimizer_shards:
        return
    core_of = {thread: core.id for core in cores for thread in core.threads}
    heavy = [
        a for a in planner.plan(t, hardware).actors if a.role in ("trainer", "optimizer_shard")
    ]
    for a, b in combinations(heavy, 2):
        assert not {core_of[c] for c in a.cpus} & {core_of[c] for c in b.cpus}, (a.name, b.name)


@settings(deadline=None)
@given(topologies(), machines())
def test_nobody_sits_on_a_thread_that_is_somebodys_own(t: Topology, hardware: Hardware):
    actors = [a for a in planner.plan(t, hardware).actors if not a.floats and a.role != "trainer"]
    for a, b in combinations(actors, 2):
        assert not set(a.cpus) & set(b.cpus), (a.name, b.name)


@settings(deadline=None)
@given(topologies(), machines())
def test_siblings_are_used_only_when_cores_run_out(t: Topology, hardware: Hardware):
    cores = usable_cores(hardware)
    core_of = {thread: core for core in cores for thread in core.threads}
    actors = planner.plan(t, hardware).actors
    workers = [a for a in actors if a.role == "data_worker" and not a.floats]
    primaries = {core.threads[0] for core in cores}
    if any(a.cpus[0] not in primaries for a in workers):
        held = {core_of[c].id for a in actors if not a.floats for c in a.cpus}
        assert held == {core.id for core in cores}


@settings(deadline=None)
@given(topologies(), machines())
def test_plans_are_deterministic(t: Topology, hardware: Hardware):
    assert planner.plan(t, hardware) == planner.plan(t, hardware)
    assert planner.document(planner.plan(t, hardware)) == planner.document(
        planner.plan(t, hardware)
    )
