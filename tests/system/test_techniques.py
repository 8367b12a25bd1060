"""All techniques at once in real processes: whoever is killed, the run keeps its bits."""

from collections.abc import Callable

import pytest

from tests.system.conftest import SMALL, Run

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(300)]

STEPS = 30
EVERYTHING = (
    *SMALL,
    "actors.trainers=2",
    "actors.optimizer_shards=2",
    "checkpoint.every_steps=10",
    "model.streams=2",
    "model.predict_tokens=2",
    "train.precision=nvfp4",
    "train.filter=loss",
    "optimizer.matrices.kind=muon8bit",
    "optimizer.dense.kind=foam",
    "optimizer.dense_codec=int8",
    "optimizer.dense_updates=two_bit",
    "optimizer.fire_at=[12]",
)
PROJECTED = (
    *EVERYTHING,
    "optimizer.codec=int4",
    "optimizer.matrices.projection=galore",
    "optimizer.matrices.rank=8",
    "optimizer.matrices.refresh_every=5",
)
REMEMBERED = (*EVERYTHING, "optimizer.codec=ternary_rotated")
Start = Callable[..., Run]


@pytest.mark.parametrize(
    "settings", [PROJECTED, REMEMBERED], ids=["projected gradients", "remembered errors"]
)
def test_kill_and_resume_keep_the_digest_with_everything_on(
    start: Start, settings: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory
):
    path = tmp_path_factory.mktemp("undisturbed") / "run"
    undisturbed = start("--steps", str(STEPS), settings=settings, path=path)
    assert undisturbed.finish(200) == 0, undisturbed.story()
    expected = [record["weights_digest"] for record in undisturbed.metrics()]
    assert len(expected) == STEPS

    run = start("--steps", str(STEPS), settings=settings)
    run.until(lambda: run.step() >= 2, 120, "the second step")
    for name in ("trainer/1", "optimizer_shard/0", "trainer/0", "optimizer_shard/1"):
        step, who = run.step(), run.kill(name)
        run.wait_for_another(name, who, 60.0)
        run.until(lambda step=step: run.step() > step, 60.0, f"a step after the death of {name}")
    run.interrupt()
    assert run.finish(60) == 130, run.story()
    resumed = run.resume()
    assert resumed.finish(200) == 0, resumed.story()
    assert [record["weights_digest"] for record in resumed.metrics()] == expected
    assert resumed.leftovers() == []


def test_fire_at_a_resume_is_fire_in_the_topology(
    start: Start, tmp_path_factory: pytest.TempPathFactory
):
    path = tmp_path_factory.mktemp("undisturbed") / "run"
    planned = start(
        "--steps", "12", settings=(*SMALL, "optimizer.fire_at=[9]"), path=path, topology="local"
    )
    assert planned.finish(120) == 0, planned.story()
    run = start("--steps", "8")
    assert run.finish(120) == 0, run.story()
    fired = run.resume("--fire", "--steps", "12")
    assert fired.finish(120) == 0, fired.story()
    both = [[record["weights_digest"] for record in one.metrics()] for one in (planned, fired)]
    assert both[0] == both[1]
    flips = [record["flips"] for record in fired.metrics()]
    assert flips[8] > 2 * max(flips[9:])
