"""Time, deadlines, silence and credits: all without waiting."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.clock import Deadline, ManualClock, MonotonicClock
from protocol.credits import Credits
from protocol.errors import DeadlinePassed
from protocol.liveness import Liveness


def test_a_manual_clock_moves_when_told_and_never_back():
    clock = ManualClock(start=3.0)
    clock.advance(0.5)
    assert clock.now() == 3.5
    with pytest.raises(ValueError, match="cannot go back"):
        clock.advance(-0.1)


def test_the_real_clock_does_not_run_backwards():
    clock = MonotonicClock()
    assert clock.now() <= clock.now()


def test_a_deadline_passes_at_its_moment_and_names_what_was_late():
    clock = ManualClock()
    deadline = Deadline.after(clock, 2.0, "answer from loader")
    clock.advance(1.5)
    assert (deadline.left(), deadline.passed()) == (0.5, False)
    deadline.check()
    clock.advance(1.0)
    assert (deadline.left(), deadline.passed()) == (0.0, True)
    with pytest.raises(DeadlinePassed, match=r"answer from loader: deadline passed 0\.5 s ago"):
        deadline.check()


def test_a_quiet_peer_is_silent_only_after_the_limit():
    live = Liveness(silence_s=5.0)
    live.hear("trainer/0", 0.0)
    live.hear("trainer/1", 3.0)
    assert live.next_due() == 5.0
    assert live.silent(5.0) == []
    assert live.silent(5.1) == ["trainer/0"]
    assert live.silent(9.0) == ["trainer/0", "trainer/1"]
    live.forget("trainer/0")
    assert live.silent(9.0) == ["trainer/1"]
    assert (live.age("trainer/1", 9.0), live.age("trainer/0", 9.0)) == (6.0, None)


def test_nobody_is_silent_where_nobody_was_heard():
    live = Liveness(silence_s=1.0)
    assert live.silent(100.0) == []
    assert live.next_due() is None
    with pytest.raises(ValueError, match="positive"):
        Liveness(silence_s=0.0)


def test_a_late_sign_of_life_does_not_undo_a_newer_one():
    live = Liveness(silence_s=1.0)
    live.hear("loader", 10.0)
    live.hear("loader", 4.0)
    assert live.age("loader", 10.0) == 0.0


def test_credits_run_out_and_come_back_once():
    credit = Credits(2)
    assert [credit.try_spend(seq) for seq in (1, 1, 2, 3)] == [True, False, True, False]
    assert (credit.outstanding, credit.left) == (2, 0)
    assert [credit.give_back(1), credit.give_back(1), credit.give_back(7)] == [True, False, False]
    assert credit.try_spend(3)


def test_no_credit_at_all_is_a_mistake():
    with pytest.raises(ValueError, match="never let anything through"):
        Credits(0)


@given(st.integers(1, 5), st.lists(st.tuples(st.booleans(), st.integers(0, 9))))
def test_credits_never_exceed_their_limit(limit: int, events: list[tuple[bool, int]]):
    credit = Credits(limit)
    out: set[int] = set()
    for spend, seq in events:
        if spend and credit.try_spend(seq):
            out.add(seq)
        elif not spend and credit.give_back(seq):
            out.remove(seq)
        assert credit.outstanding == len(out) <= limit
