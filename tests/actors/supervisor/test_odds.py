"""Surroundings that work against a run: it says so, goes on where it can, and leaves nothing."""

from collections.abc import Callable
from pathlib import Path

import pytest

from actors.rundir import RunDir
from actors.supervisor import oom
from protocol import segments
from protocol.segments import segment_name
from tests.actors.supervisor.conftest import ACTORS, Crew
from tests.harness import wait_until


@pytest.mark.system
def test_actors_are_started_without_a_forkserver_when_none_can_be_kept(
    make_crew: Callable[..., Crew],
):
    def block(run: RunDir) -> None:
        (run.make_socket_dir() / "fork-light").mkdir()

    crew = make_crew(("recorder", "loader"), before=block)
    crew.wait_for("recorder", "loader", s=40.0)
    who = crew.kill("loader")
    crew.wait_for_another("loader", who)
    report = crew.run.death_of("loader", 1)
    wait_until(report.exists)
    assert "killed by SIGKILL" in report.read_text()
    crew.interrupt()
    (crew.run.socket_dir / "fork-light").rmdir()
    assert crew.finish() == 130, crew.story()
    assert crew.leftovers() == []


@pytest.mark.system
def test_too_little_shared_memory_is_said(make_crew: Callable[..., Crew]):
    def ask_for_a_petabyte(run: RunDir) -> None:
        (run.path / "do-segments").write_text(str(1 << 50))

    crew = make_crew(before=ask_for_a_petabyte)
    assert crew.finish() == 1, crew.story()
    assert "cannot reserve" in crew.last_line
    assert "df -h /dev/shm" in crew.last_line
    assert crew.leftovers() == []


@pytest.mark.system
def test_shared_memory_outlives_its_users_and_the_supervisor(crew: Crew):
    name = segment_name(crew.run.run_id, "optimizer_shard/0", "state")
    with segments.attach(name) as segment:
        segment.array("uint8", (4,))[:] = 7
    before = crew.rows()["supervisor"].who
    crew.kill("supervisor")
    crew.wait_for_another("supervisor", before)
    with segments.attach(name) as segment:
        assert segment.array("uint8", (5,)).tolist() == [7, 7, 7, 7, 0]
    crew.interrupt()
    assert crew.finish() == 130
    assert crew.leftovers() == []


@pytest.mark.system
def test_shared_memory_that_an_orphan_has_removed_is_made_again_for_its_successor(crew: Crew):
    name = segment_name(crew.run.run_id, "optimizer_shard/0", "state")
    assert segments.unlink(name)
    crew.wait_for_another("loader", crew.kill("loader"))
    with segments.attach(name) as segment:
        assert segment.array("uint8", (4,)).tolist() == [0, 0, 0, 0]
    crew.interrupt()
    assert crew.finish() == 130, crew.story()
    assert crew.leftovers() == []


@pytest.mark.system
def test_a_damaged_process_table_costs_lives_but_not_the_run(crew: Crew):
    """Nobody is known any more, so everybody is replaced: two lives of a name would be worse."""
    before = crew.rows()
    crew.kill("supervisor")
    crew.run.processes.write_text("{ torn")
    for name in ACTORS:
        crew.wait_for_another(name, before[name].who)
    living = {who.pid for who in crew.processes()}
    assert {before[name].pid for name in ACTORS}.isdisjoint(living)
    crew.interrupt()
    assert crew.finish() == 130, crew.story()
    assert crew.leftovers() == []


@pytest.mark.parametrize(
    ("name", "text", "kills"),
    [
        ("memory.events", "low 0\nhigh 0\nmax 3\noom 2\noom_kill 2\noom_group_kill 0\n", 2),
        ("memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n", 1),
        ("memory.events", "nonsense\n", 0),
    ],
)
def test_memory_kills_are_counted_by_the_control_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str, kills: int
):
    (tmp_path / name).write_text(text)
    monkeypatch.setattr(oom, "_oom_files", lambda: iter([tmp_path / "absent", tmp_path / name]))
    assert oom.oom_kills() == kills
