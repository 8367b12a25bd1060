"""Who has a rank, and until when, under a clock that the test moves."""

from actors.standin.visit import Over, Visit
from protocol.messages import Beat

GUEST = "trainer/attic-0"


def visit() -> Visit:
    made = Visit(silence_s=5.0, hang_s=60.0)
    assert made.asks(GUEST, 7, "attic", 100.0) == "new"
    return made


def beat(progress: int, waiting_for: str = "") -> Beat:
    return Beat(
        role="trainer",
        pid=1,
        started_ticks=1,
        host="attic",
        state="running",
        progress=progress,
        waiting_for=waiting_for,
        waiting_s=0.0,
        rss_bytes=0,
        gauges={},
    )


def test_nobody_is_missed_before_somebody_has_come():
    made = Visit(silence_s=5.0, hang_s=60.0)
    made.tick(1000.0)
    assert (made.over, made.is_guest("", -1)) == (None, False)


def test_whoever_has_the_rank_may_ask_again():
    made = visit()
    assert made.asks(GUEST, 7, "attic", 101.0) == "again"
    assert made.over is None


def test_others_and_earlier_lives_do_not_get_it():
    made = visit()
    assert made.asks("trainer/cellar-0", 9, "cellar", 101.0) == "no"
    assert made.asks(GUEST, 6, "attic", 101.0) == "no"
    assert made.over is None
    assert made.is_guest(GUEST, 7)


def test_a_later_life_ends_the_visit_of_the_one_before():
    made = visit()
    assert made.asks(GUEST, 8, "attic", 101.0) == "no"
    assert made.over == Over("it came anew", lost=True)


def test_silence_ends_it():
    made = visit()
    made.speaks(103.0)
    made.tick(107.9)
    assert made.over is None
    made.tick(108.1)
    assert made.over == Over("silent for 5.1 s", lost=True)


def test_a_hang_ends_it_though_the_guest_beats():
    made = visit()
    for now in range(100, 161):
        made.beats(beat(progress=3), float(now))
        made.tick(float(now))
    assert made.over is None
    made.beats(beat(progress=3), 161.0)
    made.tick(161.0)
    assert made.over == Over("beats, but made no progress for 61 s", lost=True)


def test_waiting_and_working_are_no_hangs():
    made = visit()
    for now in range(100, 300, 4):
        made.beats(beat(progress=3, waiting_for="the batch of step 2 from loader"), float(now))
        made.tick(float(now))
    for now in range(300, 500, 4):
        made.beats(beat(progress=now), float(now))
        made.tick(float(now))
    assert made.over is None


def test_a_goodbye_is_no_loss():
    made = visit()
    made.leaves()
    made.tick(1000.0)
    assert made.over == Over("it said goodbye", lost=False)
