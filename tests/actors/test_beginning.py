"""What is refused before any process is started, and what a prepared run directory holds."""

import contextlib
import json
import os
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from actors import beginning, checkpoints, hardware, outcome, process, rundir, topology
from actors.beginning import Begun, Wanted
from actors.hardware import Hardware
from actors.rundir import RunDirError
from actors.supervisor import places, table
from actors.topology import TopologyError
from protocol import segments


@pytest.fixture(scope="module")
def here() -> Hardware:
    return hardware.probe(gpus=())


@pytest.fixture
def begun(tmp_path: Path, here: Hardware) -> Iterator[Begun]:
    begun = beginning.begin(Wanted("local", 7, tmp_path / "run"), here)
    yield begun
    begun.run.remove_socket_dir()


def test_a_prepared_run_holds_all_the_supervisor_needs(begun: Begun):
    names = [actor.name for actor in places.read(begun.run)]
    assert {"supervisor", "loader", "recorder", "trainer/0", "optimizer_shard/0"} <= set(names)
    text = begun.run.topology.read_text()
    assert topology.decode(text, source="it") == begun.topology
    assert begun.topology.steps == 7
    assert hardware.from_json(begun.run.hardware.read_text()).cpus
    begun.release()


def test_a_run_that_is_driven_cannot_be_driven_twice(begun: Begun, here: Hardware):
    with pytest.raises(RunDirError, match=r"driven by another launcher; .*`run.py stop"):
        beginning.resume(Wanted(run_dir=begun.run.path), here)
    begun.release()


def test_a_used_directory_is_refused_without_resume(begun: Begun, here: Hardware):
    begun.release()
    with pytest.raises(RunDirError, match="add --resume"):
        beginning.begin(Wanted("local", run_dir=begun.run.path), here)


def test_what_a_removed_run_left_in_memory_is_not_taken_over(tmp_path: Path, here: Hardware):
    run = rundir.RunDir(tmp_path / "run")
    name = segments.segment_name(run.run_id, "optimizer_shard/0", "state")
    segments.create(name, 64).close()
    begun = beginning.begin(Wanted("local", run_dir=run.path), here)
    begun.release()
    assert segments.listing(f"trireme-{run.run_id}-") == []


def test_a_run_that_goes_on_without_its_directory_is_not_joined(tmp_path: Path, here: Hardware):
    run = rundir.RunDir(tmp_path / "run")
    env = {**os.environ, process.RUN_MARK: run.run_id}
    with subprocess.Popen(["sleep", "60"], env=env) as left:
        with pytest.raises(RunDirError, match=rf"still live; end them \(kill -9 {left.pid}\)"):
            beginning.begin(Wanted("local", run_dir=run.path), here)
        left.kill()
    assert not run.path.exists()


def test_missing_data_is_refused_before_the_directory_is_made(tmp_path: Path, here: Hardware):
    settings = ('data.sources=[{kind="directory", path="/nowhere/at/all"}]',)
    with pytest.raises(TopologyError, match=r"/nowhere/at/all"):
        beginning.begin(Wanted("local", 0, tmp_path / "run", settings), here)
    assert not (tmp_path / "run").exists()


def test_an_unknown_topology_names_those_that_are_known(tmp_path: Path, here: Hardware):
    with pytest.raises(TopologyError, match=r"config_a, config_b, config_c, local"):
        beginning.begin(Wanted("konfig", run_dir=tmp_path / "run"), here)


def test_checkpoints_that_are_none_any_more_are_said(begun: Begun, here: Hardware):
    begun.release()
    (begun.run.checkpoints / "step-00000003").mkdir()
    with pytest.raises(RunDirError, match=r"no complete checkpoint .* left of step-00000003"):
        beginning.resume(Wanted(run_dir=begun.run.path), here)


def test_a_run_that_never_had_a_checkpoint_begins_again(begun: Begun, here: Hardware):
    begun.release()
    run = begun.run
    with contextlib.closing(sqlite3.connect(run.ledger)) as ledger:
        ledger.execute("CREATE TABLE facts (key, value)")
        ledger.execute("INSERT INTO facts VALUES ('incarnation', '4')")
        ledger.commit()
    (run.checkpoints / "step-00000003.tmp").mkdir()  # it was being written
    steps = ("metrics.jsonl", "rollouts.jsonl", "rollouts.jsonl.1", "ledger.sqlite-wal")
    for name in (*steps, "tokenizer.json"):
        (run.path / name).write_text("{}\n")
    resumed = beginning.resume(Wanted(run_dir=run.path), here)
    assert resumed.topology == begun.topology
    assert "begins again with step 1" in resumed.notes[1]
    assert not any((run.path / name).exists() for name in (*steps, "ledger.sqlite"))
    assert run.tokenizer.exists()
    assert table.read(run)["loader"].incarnation == 4
    resumed.release()


def test_fire_before_the_first_checkpoint_is_refused(begun: Begun, here: Hardware):
    begun.release()
    with pytest.raises(RunDirError, match="no checkpoint yet"):
        beginning.resume(Wanted(run_dir=begun.run.path, fire=True), here)
    beginning.resume(Wanted(run_dir=begun.run.path), here).release()


def _checkpointed(begun: Begun) -> None:
    begun.release()
    (begun.run.checkpoints / "step-00000003").mkdir()
    (begun.run.checkpoints / "step-00000003" / "manifest.json").write_text("{}")


def test_a_resumed_run_may_have_other_steps(begun: Begun, here: Hardware):
    _checkpointed(begun)
    outcome.write(begun.run, outcome.Outcome(end="stopped", reason="enough"))
    table.write(begun.run, {"trainer/0": table.row(None, 5, restarts=4, deaths=(1.0,))})
    resumed = beginning.resume(Wanted(steps=9, run_dir=begun.run.path), here)
    assert (resumed.topology.steps, resumed.resumed, resumed.living) == (9, True, False)
    assert outcome.read(begun.run) is None
    # Incarnations go on counting; deaths of the past do not count against anybody.
    assert table.read(begun.run)["trainer/0"] == table.Row(incarnation=5)
    resumed.release()


@pytest.mark.parametrize(
    ("wanted", "key"),
    [
        (Wanted("config_b"), "name"),
        (Wanted("local", settings=("model.dim=256",)), "model.dim"),
        (Wanted(settings=("seed=3",)), "seed"),
        (Wanted(settings=("data.order=ready",)), "data.order"),
    ],
)
def test_what_a_resumed_run_learns_from_what_may_not_differ(
    begun: Begun, here: Hardware, wanted: Wanted, key: str
):
    _checkpointed(begun)
    wanted = Wanted(wanted.topology, 9, begun.run.path, wanted.settings)
    with pytest.raises(TopologyError, match=rf"differs in .*{key}.*; what may change: steps"):
        beginning.resume(wanted, here)


def test_what_changes_at_a_resume_is_said_by_name(begun: Begun, here: Hardware, tmp_path: Path):
    _checkpointed(begun)
    file = tmp_path / "mine.toml"
    file.write_text(
        topology.to_toml(topology.override(begun.topology, ("actors.trainers=3",), source="test"))
    )
    with pytest.raises(TopologyError, match=r"mine.toml says otherwise of actors.trainers; name"):
        beginning.resume(Wanted(str(file), run_dir=begun.run.path), here)
    said = Wanted(str(file), run_dir=begun.run.path, settings=("actors.trainers=3",))
    resumed = beginning.resume(said, here)
    assert resumed.topology.actors.trainers == 3
    resumed.release()


def test_who_does_the_work_may_differ(begun: Begun, here: Hardware):
    _checkpointed(begun)
    settings = "actors.trainers=2", "train.rows_per_trainer=7", "supervision.silence_s=3"
    resumed = beginning.resume(Wanted(run_dir=begun.run.path, settings=settings), here)
    assert resumed.topology.actors.trainers == 2
    assert "a step is 2 x 7 rows from here on (before: 1 x 8)" in resumed.notes[1]
    resumed.release()
    wider = Wanted(run_dir=begun.run.path, settings=("train.precision_ffn=nvfp4",))
    finer = beginning.resume(wider, here)
    assert "from here on other train.precision_ffn; weights will not be" in finer.notes[1]
    finer.release()
    again = beginning.resume(Wanted(run_dir=begun.run.path), here)  # it is the run's own now
    assert again.topology.actors.trainers == 2
    assert len(again.notes) == 1
    again.release()


def test_a_run_of_another_format_is_refused(begun: Begun, here: Hardware):
    _checkpointed(begun)
    (begun.run.path / "format").write_text("0\n")
    with pytest.raises(RunDirError, match="has format '0'"):
        beginning.resume(Wanted(run_dir=begun.run.path), here)


def test_the_newest_run_is_the_default(
    tmp_path: Path, here: Hardware, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    begun = beginning.begin(Wanted("local"), here)
    assert begun.run.path.parent == tmp_path / "runs"
    assert begun.run.path.name.startswith("local-")
    assert rundir.open_(beginning.LATEST).run_id == begun.run.run_id
    begun.release()
    # Also when it has a name, and again when it goes on; but not when it lies elsewhere.
    named = beginning.begin(Wanted("local", run_dir=Path("runs/named")), here)
    assert rundir.open_(beginning.LATEST).run_id == named.run.run_id
    named.release()
    beginning.resume(Wanted(run_dir=begun.run.path), here).release()
    assert rundir.open_(beginning.LATEST).run_id == begun.run.run_id
    beginning.begin(Wanted("local", run_dir=Path("elsewhere")), here).release()
    assert rundir.open_(beginning.LATEST).run_id == begun.run.run_id
    assert not Path("latest").exists()


def _of_versions(begun: Begun, *versions: int) -> None:
    """A checkpoint whose parameters are at these versions."""
    about = {f"p{i}": {"version": v, "published": {}} for i, v in enumerate(versions)}
    path = begun.run.checkpoints / "step-00000003" / "dense-0.safetensors"
    checkpoints.write_tensors(path, [], [], {"parameters": json.dumps(about)})


@pytest.mark.parametrize(("versions", "step"), [((3, 3), 4), ((3, 4), 5)])
def test_fire_comes_with_the_first_whole_step_after_a_resume(
    begun: Begun, here: Hardware, versions: tuple[int, ...], step: int
):
    _checkpointed(begun)
    _of_versions(begun, *versions)
    beginning.resume(Wanted(run_dir=begun.run.path, fire=True), here).release()
    again = beginning.resume(Wanted("local", run_dir=begun.run.path, steps=7), here)
    assert again.topology.optimizer.fire_at == (step,)
    again.release()


def test_fire_without_a_step_to_come_is_refused(begun: Begun, here: Hardware):
    _checkpointed(begun)
    _of_versions(begun, 7)
    with pytest.raises(TopologyError, match="all 7 steps have been made; accepted: with --steps 8"):
        beginning.resume(Wanted(run_dir=begun.run.path, fire=True), here)


def test_fire_on_a_damaged_checkpoint_is_refused(begun: Begun, here: Hardware):
    _checkpointed(begun)
    (begun.run.checkpoints / "step-00000003" / "x.safetensors").write_bytes(b"no")
    with pytest.raises(RunDirError, match=r"--fire: .*x\.safetensors cannot be read"):
        beginning.resume(Wanted(run_dir=begun.run.path, fire=True), here)
