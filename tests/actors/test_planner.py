"""What a plan says besides who sits where: devices, memory, the wire, the document."""

import json
from pathlib import Path

import msgspec
import pytest

from actors import hwloc, plan_memory, planner, preparing, topology
from actors.hardware import Hardware
from actors.parameters import parameters, unique_count
from actors.plan_costs import gpu_rate, newton_schulz_flops, shard_cost, trainer_flops
from actors.planner import Plan, document
from actors.topology import Topology, TopologyError

FILES = Path(__file__).parent.parent / "hardware"
PLAIN = ("optimizer.codec=dense", "optimizer.dense_codec=dense", "optimizer.dense_updates=dense")


def machine(name: str) -> Hardware:
    return hwloc.read_file(FILES / f"{name}.xml")


def made(name: str, *overrides: str, on: str = "") -> Plan:
    hardware = machine(on or name)
    return planner.plan(preparing.prepare(name, hardware, overrides=overrides).topology, hardware)


def test_the_document_has_the_fields_of_the_contract():
    plan = json.loads(json.dumps(document(made("config_b"))))
    assert list(plan) == ["topology", "hardware", "model", "actors", "wire"]
    assert list(plan["hardware"]) == ["found", "wanted", "emulated"]
    assert plan["hardware"]["found"]["gpus"] == plan["hardware"]["wanted"]["gpus"] == 2
    assert plan["hardware"]["emulated"] is False
    assert list(plan["model"]) == ["unique_parameters", "applied_parameters"]
    assert list(plan["wire"]) == [
        "up_bytes_per_step", "down_bytes_per_step", "bf16_allreduce_bytes_per_step",
    ]  # fmt: skip
    for actor in plan["actors"]:
        assert list(actor) == ["name", "role", "cpus", "numa_node", "device", "memory_bytes"]
        *parts, total = actor["memory_bytes"].values()
        assert list(actor["memory_bytes"]) == [
            "weights", "gradients", "optimizer", "activations", "buffers", "total",
        ]  # fmt: skip
        assert total == sum(parts) > 0
    roles = {actor["role"] for actor in plan["actors"]}
    assert roles == {
        "supervisor", "loader", "data_worker", "trainer", "optimizer_shard", "rollout", "recorder",
    }  # fmt: skip


def test_the_same_input_gives_the_same_plan():
    assert made("config_c") == made("config_c")


def test_a_name_the_plan_does_not_have_is_a_key_error():
    with pytest.raises(KeyError, match="trainer/7"):
        made("config_b").placement("trainer/7")


def test_a_trainer_of_another_host_takes_no_core_and_no_gpu_here():
    own = made("config_b", *PLAIN)
    plan = made("config_b", *PLAIN, "actors.trainers=3", "actors.remote_trainers=1")
    assert [plan.placement(f"trainer/{i}") for i in range(2)] == [
        own.placement(f"trainer/{i}") for i in range(2)
    ]
    stand_in = plan.placement("trainer/2")
    assert (stand_in.device, stand_in.floats) == ("cpu", True)
    assert stand_in.memory == plan.placement("recorder").memory


# --- Where shards compute -------------------------------------------------------------------------


def test_newton_schulz_costs_twenty_m_squared_n():
    t = topology.load("config_b", ("actors.optimizer_shards=1",))
    C, F, layers = 1536, 4096, 20
    expected = layers * (4 * 20 * C**3 + 3 * 20 * C**2 * F)
    assert newton_schulz_flops(t, 0) == expected
    assert 15e12 < expected < 30e12


def test_a_projected_space_is_orthogonalised_in_a_sixteenth_of_the_time():
    projected = ("optimizer.matrices.projection=galore", "optimizer.matrices.kind=muon8bit")
    whole, small = (topology.load("config_a", (*PLAIN, *more)) for more in ((), projected))
    assert newton_schulz_flops(whole, 0) / newton_schulz_flops(small, 0) == pytest.approx(16, 0.01)


def test_what_adamw_optimises_costs_no_newton_schulz():
    assert newton_schulz_flops(topology.load("local", ("optimizer.matrices.kind=adamw",)), 0) == 0


def test_a_shard_that_would_hold_up_the_trainers_sits_on_the_gpu():
    t, gpu = topology.load("config_b"), machine("config_b").gpus[0]
    eight_cores = shard_cost(t, gpu, 8)
    assert eight_cores.on_gpu
    assert eight_cores.gpu_s is not None
    assert eight_cores.gpu_s < 1 < eight_cores.cpu_s
    assert "optimizer shards on the GPU" in eight_cores.explain()


def test_a_shard_whose_work_hides_stays_on_the_cpu():
    for name, cores in (("config_a", 12), ("config_c", 52)):
        cost = shard_cost(topology.load(name), machine(name).gpus[0], cores)
        assert not cost.on_gpu
        assert "so it hides" in cost.explain()


def test_without_a_gpu_there_is_no_choice():
    cost = shard_cost(topology.load("local"), None, 1)
    assert (cost.on_gpu, cost.gpu_s) == (False, None)
    assert cost.explain() == made("local", on="two_cores").notes[0]


def test_checkpointing_costs_another_forward_pass():
    plain = topology.load("config_b", ("model.activation_checkpointing=false",))
    assert trainer_flops(topology.load("config_b")) / trainer_flops(plain) == pytest.approx(8 / 6)


def test_unknown_gpus_count_as_slow_ones():
    assert gpu_rate("NVIDIA GeForce RTX 4090") > gpu_rate("Something Else")


# --- Memory and the wire --------------------------------------------------------------------------


def test_a_trainer_holds_codes_and_one_gradient():
    t, trainer = topology.load("config_b"), made("config_b", *PLAIN).placement("trainer/0")
    params = parameters(t.model)
    ternary = sum(p.numel for p in params if p.kind == "ternary")
    dense = sum(p.numel for p in params if p.kind == "dense")
    assert trainer.memory.weights == ternary + 4 * dense
    # Loops add up all gradients until the last; two more of a layer's are on their way.
    largest = max(p.numel for p in params if p.kind == "ternary")
    assert trainer.memory.gradients == 4 * (ternary + dense + 2 * largest)
    assert trainer.memory.optimizer == 0


def test_shards_hold_the_state_between_them():
    plan = made("config_b")
    shards = [actor for actor in plan.actors if actor.role == "optimizer_shard"]
    params = parameters(topology.load("config_b").model)
    muon = sum(p.numel for p in params if p.group == "matrices")
    adamw = sum(p.numel for p in params if p.group == "dense")
    assert sum(shard.memory.optimizer for shard in shards) == 4 * muon + 8 * adamw
    assert sum(shard.memory.weights for shard in shards) > 4 * (muon + adamw)


def test_the_wire_is_counted_over_all_trainers():
    t, plan = topology.load("config_b"), made("config_b", *PLAIN)
    unique = unique_count(t.model)
    assert plan.wire.up_bytes_per_step == 2 * 4 * unique
    assert plan.wire.bf16_allreduce_bytes_per_step == 2 * (2 * unique * 2 * (2 - 1) / 2)
    assert plan.wire.down_bytes_per_step < plan.wire.up_bytes_per_step / 5
    assert made("config_a").wire.bf16_allreduce_bytes_per_step == 0


@pytest.mark.parametrize("name", ["config_a", "config_b", "config_c"])
def test_codecs_spare_most_of_the_wire(name: str):
    """Against bf16: eight times less up, thirty times less down."""
    t, wire = topology.load(name), made(name).wire
    bf16 = 2 * unique_count(t.model) * t.actors.trainers
    assert bf16 > 8 * wire.up_bytes_per_step
    assert bf16 > 30 * wire.down_bytes_per_step


def test_what_does_not_fit_is_cut_to_the_same_step():
    for name, bound in (("config_a", 20), ("config_b", 12), ("config_c", 12)):
        wanted, rows = topology.load(name).train, 1
        assert wanted.gpu_memory_gb == bound
        prepared = preparing.prepare(name, machine(name))
        train = prepared.topology.train
        assert train.rows_per_trainer == rows
        assert train.rows_per_trainer * train.accumulation == (
            wanted.rows_per_trainer * wanted.accumulation
        )
        assert prepared.note
        assert f"{wanted.rows_per_trainer} rows at a time do not fit" in prepared.note
        plan = planner.plan(prepared.topology, machine(name))
        assert planner.gpu_excess(plan, machine(name), bound) == {}
        # Twice the rows would not have fitted.
        larger = msgspec.structs.replace(train, rows_per_trainer=2 * rows)
        plan = planner.plan(msgspec.structs.replace(prepared.topology, train=larger), machine(name))
        assert planner.gpu_excess(plan, machine(name), bound)


def test_seven_billion_parameters_train_on_one_gpu_of_24_gb():
    prepared = preparing.prepare("7b", machine("config_b"))
    plan = planner.plan(prepared.topology, machine("config_b"))
    assert plan.model.unique_parameters >= 7e9
    trainer = plan.placement("trainer/0")
    assert plan_memory.on_device(trainer.memory, "trainer") < 24e9
    shards = [actor for actor in plan.actors if actor.role == "optimizer_shard"]
    everything = plan_memory.on_device(trainer.memory, "trainer") + sum(
        plan_memory.on_device(shard.memory, "optimizer_shard") for shard in shards
    )
    assert everything < 24e9, "with the shard beside it, too"
    assert any(note.startswith("cuda:0 (") and "for trainer/0" in note for note in plan.notes)


def test_what_fits_stays_as_it_is():
    prepared = preparing.prepare("7b", machine("config_b"))
    assert prepared.note is None
    assert prepared.topology == topology.load("7b")


def test_rows_asked_for_are_kept_and_the_plan_says_what_would_fit():
    plan = made("config_a", "train.rows_per_trainer=32", "train.accumulation=4")
    (note,) = [note for note in plan.notes if note.startswith("cuda:0")]
    assert "for trainer/0: --set train.rows_per_trainer=8 --set train.accumulation=16" in note


def test_a_model_that_never_fits_is_said_to():
    plan = made("config_b", "model.layers=400", "actors.optimizer_shards=1")
    assert any("even one row at a time does not fit" in note for note in plan.notes)
    assert any("of memory to use, but all actors" in note for note in plan.notes)
    plan = made("config_b", "model.activation_checkpointing=false", "model.seq_len=32768")
    assert any("activation_checkpointing=true keeps less" in note for note in plan.notes)


def test_steps_beyond_the_schedule_are_said():
    plan = made("local", "steps=300", on="two_cores")
    assert any("steps = 300 goes on for 50 steps after the schedule" in n for n in plan.notes)


# --- What runs instead ----------------------------------------------------------------------------


def test_missing_gpus_mean_emulation_and_one_line():
    small, note = planner.resolve(topology.load("config_b"), machine("two_cores"))
    assert small == topology.emulate(topology.load("config_b"))
    assert note == (
        "config_b emulated: 2 GPU(s) (RTX 4090) wanted, 0 found; 2 CPU trainer(s) run its "
        "[emulation] model of 0.69 M parameters instead"
    )


def test_resolving_twice_changes_nothing():
    for name, on in (("config_b", "two_cores"), ("config_b", "config_b"), ("local", "config_b")):
        once, _ = planner.resolve(topology.load(name), machine(on))
        assert planner.resolve(once, machine(on)) == (once, None)


def test_smaller_gpus_are_missing_gpus():
    t = topology.load(
        "config_a", ("hardware.gpu_name=", "hardware.cores=8", "hardware.numa_nodes=1")
    )
    _, note = planner.resolve(t, machine("config_b"))
    assert note
    assert "GPUs of 96 GB wanted, 26 GB found" in note


def test_another_gpu_and_fewer_cores_run_with_a_note():
    t = topology.load("config_b", ("hardware.gpu_name=RTX 5090", "hardware.cores=64"))
    resolved, note = planner.resolve(t, machine("config_b"))
    assert (resolved, note) == (t, None)
    notes = planner.plan(t, machine("config_b")).notes
    assert "RTX 5090 wanted, NVIDIA GeForce RTX 4090 found" in notes
    assert "64 cores wanted, 8 found" in notes


def test_required_hardware_that_is_missing_is_an_error():
    with pytest.raises(
        TopologyError, match=r"--require-hardware, but 2 GPU\(s\) \(RTX 4090\) wanted"
    ):
        planner.resolve(topology.load("config_b"), machine("two_cores"), require_hardware=True)
    wanted = topology.load("config_b", ("hardware.cores=64",))
    with pytest.raises(TopologyError, match="64 cores wanted, 8 found"):
        planner.resolve(wanted, machine("config_b"), require_hardware=True)
    small = topology.emulate(topology.load("config_b"))
    with pytest.raises(TopologyError, match="this is an emulated copy"):
        planner.resolve(small, machine("config_b"), require_hardware=True)


@pytest.mark.parametrize("name", ["config_a", "config_b", "config_c"])
def test_required_hardware_that_is_there_is_fine(name: str):
    t = topology.load(name)
    assert planner.resolve(t, machine(name), require_hardware=True) == (t, None)


def test_without_emulation_missing_gpus_are_an_error():
    t = msgspec.structs.replace(topology.load("config_b"), emulation=None)
    with pytest.raises(TopologyError, match=r"2 GPU.* and the topology has no \[emulation\]"):
        planner.resolve(t, machine("two_cores"))


def test_an_emulated_topology_uses_no_gpu_even_where_there_is_one():
    hardware = machine("config_c")
    prepared = preparing.prepare("config_b", hardware)
    assert prepared.topology.emulated
    plan = planner.plan(prepared.topology, hardware)
    assert {actor.device for actor in plan.actors} == {"cpu"}


def test_settings_speak_about_what_runs():
    hardware = machine("two_cores")

    def prepared(*overrides: str) -> Topology:
        return preparing.prepare("config_b", hardware, overrides=overrides).topology

    assert prepared("model.dim=64").model.dim == 64
    assert prepared("emulation.model.dim=64").model.dim == 64
    assert prepared("steps=1000").steps == 1000
    assert prepared("actors.trainers=3").actors.trainers == 3
    assert not prepared("hardware.gpus=0").emulated
    with pytest.raises(
        TopologyError, match=r"--set model.dim=63: model.heads|model.heads: 4 heads"
    ):
        prepared("model.dim=63")
    with pytest.raises(TopologyError, match="did you mean `emulation`"):
        prepared("emulatio.model.dim=64")
