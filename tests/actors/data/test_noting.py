"""A worker notes what it is at; the sample that ended it is blamed, and no other."""

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import structlog

from actors.data.corpus import Corpus
from actors.data.crew import Crew
from actors.data.leases import LeaseTable, Poisoned
from actors.data.noting import IDLE, Note, path_of, read
from actors.data.terms import Terms
from protocol import messages as m
from tests.actors.data.test_crew import PLAN, Wire, corpus, hear, ready

__all__ = ["corpus"]  # the fixture


def test_a_note_tells_life_and_lease(tmp_path: Path):
    path = path_of(str(tmp_path), "data_worker/3")
    assert read(path, 1) is None
    note = Note(path, 1)
    assert read(path, 1) == IDLE
    for lease in (0, 7, (5 << 32) + 1):
        note.write(lease)
        assert read(path, 1) == lease
    assert path.stat().st_mode & 0o777 == 0o600
    # The next life's note says nothing of this one's, and the other way round.
    later = Note(path, 2)
    assert (read(path, 1), read(path, 2)) == (None, IDLE)
    note.close()
    note.write(9)
    assert read(path, 2) == IDLE
    later.close()
    path.write_bytes(b"short")
    assert read(path, 2) is None


def test_without_a_place_for_it_nothing_is_noted(tmp_path: Path):
    for note in (Note(None, 1), Note(tmp_path / "missing" / "at", 1)):
        note.write(3)
        note.close()


class Ward:
    """A worker with three leases, and the loader's side of it."""

    def __init__(self, corpus: Corpus) -> None:
        self.noted: int | None = None
        self.wire = Wire()
        table = LeaseTable(lease_s=9.0, limit=3, max_deaths=1)
        for sample in range(3):
            table.add((0, sample), sample)
        terms = Terms(PLAN, b"{}", vocab_size=300, lease_s=9.0)
        send, log = cast("Any", self.wire.send), structlog.get_logger()
        self.crew = Crew(table, corpus, terms, send, log, noted=lambda _name, _life: self.noted)
        hear(self.crew, m.JoinPool(pool="fast", host="h", shares_files=True))
        hear(self.crew, m.LeaseRequest(pool="fast", credit=3))
        self.crew.lease(0.0)
        self.leases = [lease.lease for lease in self.wire.leases()]

    def dies(self) -> list[int]:
        """Samples that are blamed."""
        down = m.PeerDown(name="data_worker/0", incarnation=1, reason="died: SIGSEGV")
        outcomes = hear(self.crew, down, sender="supervisor", channel="control")
        return [one.key[1] for one in outcomes if isinstance(one, Poisoned)]


@pytest.fixture
def ward(corpus: Corpus) -> Ward:
    return Ward(corpus)


def test_the_sample_that_was_begun_is_blamed_although_earlier_results_were_lost(ward: Ward):
    ward.noted = ward.leases[1]
    assert ward.dies() == [1]


def test_who_dies_between_two_samples_blames_none(ward: Ward):
    ward.noted = IDLE
    assert ward.dies() == []


def test_who_dies_after_its_result_was_heard_blames_none(ward: Ward):
    ward.noted = ward.leases[0]
    (first, *_) = ward.wire.leases()
    hear(ward.crew, *ready(first, np.array([0, 7, 1], np.int32)))
    assert ward.dies() == []


def test_without_a_note_the_oldest_lease_is_blamed(ward: Ward):
    assert ward.dies() == [0]


def test_of_several_begun_each_is_tried_alone(ward: Ward):
    lease = ward.leases[0]
    hear(ward.crew, m.SampleParked(lease=lease, epoch=0, sample=0))
    ward.noted = ward.leases[1]
    assert ward.dies() == []
    assert ward.crew.table.unfinished() == 3
