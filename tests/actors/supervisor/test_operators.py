"""What a person can ask of a running supervisor, through the commands a person uses."""

import json
import signal
import subprocess
import time
from collections.abc import Callable
from typing import Any

import pytest

from actors.asking import Unanswered, ask
from protocol.messages import Invitation, InviteRequest, StatusRequest
from tests.actors.supervisor.conftest import ACTORS, Crew
from tests.harness import ROOT, python, wait_until

pytestmark = pytest.mark.system

STATUS_KEYS = {"run", "state", "step", "loss", "bits_per_byte", "tokens_per_s", "actors", "queues"}
ACTOR_KEYS = {"name", "role", "pid", "host", "state", "incarnation", "restarts", "cpus"} | {
    "numa_node",
    "device",
    "rss_bytes",
    "heartbeat_age_s",
    "waiting",
}


def call(crew: Crew, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = python("run.py", *arguments, "--run", str(crew.run.path))
    return subprocess.run(
        command, check=False, cwd=ROOT, capture_output=True, text=True, timeout=60
    )


def status(crew: Crew) -> dict[str, Any]:
    done = call(crew, "status", "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_status_shows_every_actor(crew: Crew):
    wait_until(lambda: status(crew)["state"] == "running")
    document = status(crew)
    assert set(document) >= STATUS_KEYS
    actors = {actor["name"]: actor for actor in document["actors"]}
    assert set(actors) == {"supervisor", *ACTORS}
    for name, actor in actors.items():
        assert set(actor) >= ACTOR_KEYS
        assert actor["pid"] == crew.rows()[name].pid
        assert actor["state"] == "running"
        assert actor["rss_bytes"] > 5_000_000
    assert actors["trainer/0"]["waiting"]["for"] == "orders"
    assert len({actor["pid"] for actor in actors.values()}) == len(actors)
    shown = call(crew, "status").stdout
    assert "trainer/1" in shown
    assert "orders" in shown


def test_kill_takes_names_and_globs(crew: Crew):
    before = crew.rows()
    done = call(crew, "kill", "trainer/*")
    assert (done.returncode, done.stdout) == (0, "SIGKILL sent to trainer/0, trainer/1\n")
    for name in ("trainer/0", "trainer/1"):
        crew.wait_for_another(name, before[name].who)
    assert status(crew)["actors"] != []
    refused = call(crew, "kill", "helmsman")
    assert refused.returncode == 2
    assert "no living actor matches 'helmsman'; there are: data_worker/0, loader" in refused.stderr


def test_even_the_supervisor_can_be_killed_by_name(crew: Crew):
    before = crew.rows()
    assert call(crew, "kill", "supervisor", "--signal", "9").returncode == 0
    crew.wait_for_another("supervisor", before["supervisor"].who)
    assert crew.rows()["trainer/0"].who == before["trainer/0"].who


def test_stop_waits_for_the_end(crew: Crew):
    done = call(crew, "stop")
    assert done.returncode == 0, done.stderr
    assert "has ended: stopped by run.py stop" in done.stdout
    assert crew.finish() == 130
    assert crew.leftovers() == []
    assert "is not running: stopped by run.py stop" in call(crew, "stop").stdout
    assert status(crew)["state"] == "stopped"
    failed = call(crew, "kill", "trainer/0")
    assert failed.returncode == 1
    assert "is not running" in failed.stderr


def test_a_silent_supervisor_is_named(make_crew: Callable[..., Crew]):
    crew = make_crew(ACTORS, "supervision.silence_s=30.0")
    crew.wait_for(*ACTORS)
    crew.kill("supervisor", signal.SIGSTOP)
    begin = time.monotonic()
    with pytest.raises(Unanswered, match="has not answered for 1 s"):
        ask(crew.run, StatusRequest(), timeout_s=1.0)
    assert time.monotonic() - begin < 3.0
    crew.kill("supervisor", signal.SIGCONT)


def test_an_invitation_is_the_loaders_to_give(make_crew: Callable[..., Crew]):
    crew = make_crew(("recorder", "trainer/0"))
    crew.wait_for("recorder", "trainer/0")
    invite = InviteRequest(role="data_worker", public_key="k" * 40, label="guest")
    answer = ask(crew.run, invite)
    assert isinstance(answer, Invitation)
    assert answer.refused == "the loader is not running"


@pytest.mark.slow
def test_an_actor_with_torch_is_replaced_within_a_second(make_crew: Callable[..., Crew]):
    crew = make_crew(("recorder", "rollout/0"))
    crew.wait_for("rollout/0", s=60.0)
    took = []
    for _ in range(3):
        who = crew.kill("rollout/0")
        killed = time.monotonic()
        crew.wait_for_another("rollout/0", who)
        took.append(time.monotonic() - killed)
        time.sleep(0.5)
    print("SIGKILL to the next life's process, torch:", [f"{s * 1000:.0f} ms" for s in took])
    assert sorted(took)[1] < 1.0
