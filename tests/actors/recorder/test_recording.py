"""What is counted, and what is remembered from one recorder to the next."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from actors import rundir
from actors.recorder.recording import Recording
from actors.rundir import RunDir
from protocol import messages as m
from protocol.messages import WIRE_VERSION, Envelope, Message
from protocol.transport import Received


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return rundir.create(tmp_path / "run")


@pytest.fixture
def recording(run: RunDir) -> Iterator[Recording]:
    recording = Recording(run)
    yield recording
    recording.close()


def said(message: Message, *, seq: int = 0, life: int = 1, sender: str = "rollout/0") -> Received:
    kind = type(message).__name__
    envelope = Envelope(WIRE_VERSION, kind, sender, life, seq, 0)
    return Received("telemetry", sender, "rollout", life, envelope, message, ())


def line(event: str = "x") -> m.LogRecord:
    return m.LogRecord(record={"event": event, "level": "info"})


def report(version: int, *rewards: float) -> m.RolloutReport:
    return m.RolloutReport(
        version=version,
        draw=1,
        prompt="f",
        rewards=rewards,
        compiled=0,
        completions=len(rewards),
        tokens=1,
        seconds=0.1,
    )


@pytest.mark.parametrize(
    ("heard", "lost"),
    [
        ([(1, 0), (1, 1), (1, 2)], 0),
        ([(1, 0), (1, 3)], 2),
        ([(1, 500), (1, 501)], 0),  # the rest went to the recorder before
        ([(1, 500), (2, 0)], 0),
        ([(1, 500), (2, 2)], 2),
        ([(1, 5), (1, 5)], 0),
    ],
)
def test_gaps_are_losses_unless_a_predecessor_heard_them(
    recording: Recording, heard: list[tuple[int, int]], lost: int
):
    for life, seq in heard:
        recording.take(said(line(), life=life, seq=seq))
    assert recording.figures().counts["telemetry_lost"] == lost


def test_a_new_recorder_goes_on_counting_a_version(run: RunDir):
    first = Recording(run)
    first.take(said(report(4, 1.0, 0.0)))
    first.close()
    with run.rollouts.open("ab") as file:
        file.write(b'{"version": 4, "rewa')
    second = Recording(run)
    second.take(said(report(4, 1.0, 1.0)))
    second.close()
    newest = json.loads(run.rollouts.read_text().splitlines()[-1])
    assert (newest["version_completions"], newest["compile_rate"]) == (4, 0.75)


def test_tokens_and_bytes_are_summed_once_per_step(recording: Recording):
    records = tuple({"step": s, "tokens": 10, "up_bytes": 2, "down_bytes": 1} for s in (1, 2))
    for _ in range(3):
        recording.take(said(m.Metrics(records=records), sender="optimizer_shard/0"))
    counts = recording.figures().counts
    assert (counts["tokens"], counts["up_bytes"], counts["down_bytes"]) == (20, 4, 2)


@pytest.mark.parametrize("document", ["", "[]", "{", '{"actors": [{"name": 1}]}', "null"])
def test_a_status_that_makes_no_sense_is_left_unread(recording: Recording, document: str):
    recording.take(said(m.Status(document=document), sender="supervisor"))
    assert recording.figures().status.actors == []


def test_other_messages_do_no_harm(recording: Recording):
    recording.take(said(m.Welcome(peers={}), sender="supervisor"))
    assert recording.flush() == ""
