"""A real run that goes on without a trainer, and a replay that arrives at the same bits."""

import json
from typing import Any

import pytest

from tests.system.conftest import SMALL, digests
from tests.system.test_graph import Start

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(300)]

STEPS = 80
TWO = (*SMALL, "actors.trainers=2", "actors.optimizer_shards=2")
# Shorter than any replacement takes, so that every death is noticed.
ELASTIC = (*TWO, "elastic=true", "supervision.gone_s=0.02")


def absences(records: list[dict[str, Any]]) -> list[Any]:
    return [(record.get("absent"), record.get("silent")) for record in records]


def test_steps_go_on_without_a_trainer_and_a_replay_makes_the_same_bits(start: Start, tmp_path):
    run = start("--steps", str(STEPS), settings=ELASTIC)
    run.until(lambda: run.step() >= 5, 120, "the fifth step")
    for _ in range(3):
        who = run.kill("trainer/1")
        run.wait_for_another("trainer/1", who, 60.0)
        step = run.step()
        run.until(lambda step=step: run.step() > step + 8, 60.0, "steps with and without it")
    assert run.finish(200) == 0, run.story()
    missing = [record for record in run.metrics() if "absent" in record]
    assert missing, "nobody was ever missed"
    assert {rank for record in missing for rank in record["absent"]} == {"1"}
    assert "absent" not in run.metrics()[-1], "it never came back"

    follow = f"attendance_of={json.dumps(str(run.run.path))}"
    again = start("--steps", str(STEPS), settings=(*TWO, follow), path=tmp_path / "again")
    assert again.finish(200) == 0, again.story()
    assert digests(again) == digests(run)
    assert absences(again.metrics()) == absences(run.metrics())
    assert again.leftovers() == run.leftovers() == []
