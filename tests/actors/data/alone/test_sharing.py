"""How ranks share an epoch: plans and states alone, no processes."""

import json
from typing import Any

import numpy as np
import pytest

from actors.data.alone.batching import Plan
from actors.data.alone.state import Position, StateError, beginning, from_dicts, to_dict

N = 101


class Rank:
    """Delivers its share in turn."""

    def __init__(self, rank: int, ranks: int, states: list[Any] | None = None) -> None:
        self.plan = Plan(N, 3, True, rank, ranks)
        self.position: Position = from_dicts(states, self.plan) if states else beginning(N)

    def open(self) -> list[int]:
        at = self.position
        return self.plan.share(at.epoch, at.settled, at.left_out, over=at.over).samples.tolist()

    def deliver(self, count: int = N) -> list[int]:
        some = self.open()[:count]
        self.position.delivered(some)
        return some

    def state(self) -> Any:
        return json.loads(json.dumps(to_dict(self.position, self.plan)))


def flat(lists: list[list[int]]) -> list[int]:
    return [i for found in lists for i in found]


def team(ranks: int, states: list[Any] | None = None) -> list[Rank]:
    return [Rank(rank, ranks, states) for rank in range(ranks)]


def test_ranks_that_resume_from_their_own_states_repeat_nothing_and_keep_their_order():
    calm = [rank.open() for rank in team(3)]
    seen: list[list[int]] = [[], [], []]
    states: list[Any] = [None] * 3
    for counts in ((5, 9, 0), (7, 1, 3), (N, N, N)):
        for r, count in enumerate(counts):
            rank = Rank(r, 3, states[r] and [states[r]])
            seen[r] += rank.deliver(count)
            states[r] = rank.state()
    assert seen == calm


@pytest.mark.parametrize("all_states", [True, False])
def test_with_as_many_ranks_one_state_and_all_of_them_say_the_same(all_states: bool):
    ranks = team(2)
    seen = [rank.deliver(4 + 3 * rank.plan.rank) for rank in ranks]
    states = [rank.state() for rank in ranks]
    for rank, before in zip(ranks, seen, strict=True):
        r = rank.plan.rank
        again = Rank(r, 2, states if all_states else [states[r]])
        assert again.open() == Rank(r, 2).open()[len(before) :]


def test_numbers_of_ranks_may_change_again_and_again_within_an_epoch():
    seen: list[int] = []
    ranks = team(4)
    for number in (3, 1, 5, 2):
        for rank in ranks:
            seen += rank.deliver(6)
        ranks = team(number, [rank.state() for rank in ranks])
        for r, rank in enumerate(ranks):  # each on its own, in between
            seen += rank.deliver(r)
            ranks[r] = Rank(r, number, [rank.state()])
    assert sorted(seen + flat([rank.deliver() for rank in ranks])) == list(range(N))
    for rank in ranks:
        rank.position.next_epoch()
    assert [rank.open() for rank in ranks] == [
        Plan(N, 3, True, r, 2).share(1, np.zeros(N, np.bool_), ()).samples.tolist()
        for r in range(2)
    ]


def test_what_one_rank_left_out_moves_no_sample_of_another():
    ranks = team(2)
    for rank in ranks:
        rank.deliver()
    lost = ranks[0].plan.order(1)[10]
    ranks[0].position.left_out[int(lost)] = "OSError"
    for rank in ranks:
        rank.position.next_epoch()
    assert sorted(ranks[0].open() + ranks[1].open()) == [i for i in range(N) if i != lost]
    resumed = team(3, [rank.state() for rank in ranks])
    assert sorted(flat([rank.open() for rank in resumed])) == [i for i in range(N) if i != lost]


@pytest.mark.parametrize(
    ("given", "rank", "ranks", "why"),
    [
        ([0], 1, 2, r"rank 1 of 2, .* state of rank 0 of 2; .* all 2 ranks, or that of rank 1"),
        ([0], 0, 1, r"rank 0 of 1, .* state of rank 0 of 2; accepted: the states of all 2 ranks$"),
        ([1, 1], 0, 2, r"rank 1 of 2, 1 of 2; accepted"),
        ([0, 1, 1], 0, 2, r"all 2 ranks, or that of rank 0 alone"),
    ],
)
def test_states_of_some_other_ranks_are_refused_with_what_would_be_accepted(
    given: list[int], rank: int, ranks: int, why: str
):
    states = [member.state() for member in team(2)]
    with pytest.raises(StateError, match=why):
        Rank(rank, ranks, [states[i] for i in given])


def test_the_state_of_a_single_rank_is_that_of_all():
    alone = Rank(0, 1)
    seen = alone.deliver(30)
    ranks = team(2, [alone.state()])
    assert sorted(seen + ranks[0].deliver() + ranks[1].deliver()) == list(range(N))
