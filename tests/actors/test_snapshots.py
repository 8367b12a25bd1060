"""One version of all parameters, from shards that move on meanwhile."""

from hypothesis import given, settings
from hypothesis import strategies as st

from actors.snapshots import NEWEST, Ask, SnapshotCollector


def collector() -> SnapshotCollector[str]:
    return SnapshotCollector([["a", "b"], ["c"]])


def test_every_shard_is_asked_once_and_again_after_a_while():
    want = collector()
    assert want.asks(0.0) == [Ask(0, NEWEST), Ask(1, NEWEST)]
    assert want.asks(0.1) == []
    want.add(1, 7, "c", "c7")
    assert want.asks(0.3) == [Ask(0, NEWEST)]
    assert want.asks(0.4) == []
    assert want.asks(0.9) == [Ask(0, NEWEST)]


def test_a_shard_that_lives_anew_is_asked_at_once():
    want = collector()
    want.asks(0.0)
    want.add(0, 7, "a", "a7")
    want.shard_up(0)
    want.shard_up(9)
    assert want.asks(0.01) == [Ask(0, NEWEST)]


def test_one_version_everywhere_is_a_snapshot():
    want = collector()
    want.asks(0.0)
    want.add(0, 7, "a", "a7")
    want.add(1, 7, "c", "c7")
    assert want.result() is None
    want.add(0, 7, "b", "b7")
    assert want.result() == (7, {"a": "a7", "b": "b7", "c": "c7"})
    assert want.asks(9.0) == []


def test_whoever_is_ahead_is_asked_for_the_older_version():
    want = collector()
    want.asks(0.0)
    for name in "ab":
        want.add(0, 8, name, f"{name}8")
    want.add(1, 7, "c", "c7")
    assert want.result() is None
    assert want.asks(0.0) == [Ask(0, 7)]
    for name in "ab":
        want.add(0, 7, name, f"{name}7")
    assert want.result() == (7, {"a": "a7", "b": "b7", "c": "c7"})


def test_all_start_over_when_the_older_version_is_gone():
    want = collector()
    want.asks(0.0)
    want.add(1, 7, "c", "c7")
    for name in "ab":
        want.add(0, 8, name, f"{name}8")
    want.asks(0.0)
    for name in "ab":
        want.add(0, 9, name, f"{name}9")
    assert want.result() is None
    assert want.asks(0.0) == [Ask(0, NEWEST), Ask(1, NEWEST)]


def test_parameters_of_two_versions_are_never_mixed_within_a_shard():
    want = collector()
    want.add(1, 8, "c", "c8")
    want.add(0, 7, "a", "a7")
    want.add(0, 8, "b", "b8")
    assert want.result() is None
    want.add(0, 8, "a", "a8")
    assert want.result() == (8, {"a": "a8", "b": "b8", "c": "c8"})


def test_what_nobody_asked_for_is_ignored():
    want = collector()
    want.add(5, 7, "a", "x")
    want.add(0, 7, "c", "x")
    want.add(0, -1, "a", "x")
    assert want.missing == [0, 1]


@settings(max_examples=200, deadline=None)
@given(moves=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 8)), max_size=60))
def test_shards_that_stop_moving_are_always_caught(moves: list[tuple[int, int]]):
    """Shards run ahead at random, each keeping two versions; then they rest."""
    owned = [["a"], ["b", "c"], ["d"]]
    want: SnapshotCollector[int] = SnapshotCollector(owned)
    newest = [0, 0, 0]
    asked: list[Ask] = []
    now = 0.0

    def answer(ask: Ask) -> None:
        top = newest[ask.shard]
        version = ask.version if max(top - 1, 0) <= ask.version <= top else top
        for name in owned[ask.shard]:
            want.add(ask.shard, version, name, version)

    for shard, pick in moves:
        newest[shard] = min(newest[shard] + 1, min(newest) + 1)
        now += 0.2
        asked += want.asks(now)
        if asked and pick:
            answer(asked.pop(pick % len(asked)))
        if want.result():
            break
    for _ in range(40):
        if want.result():
            break
        now += 2.1
        for ask in asked + want.asks(now):
            answer(ask)
        asked = []
    snapshot = want.result()
    assert snapshot is not None
    assert set(snapshot.parameters.values()) == {snapshot.version}
