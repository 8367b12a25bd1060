"""What a standby takes, in which order, and what it lets go: without files or sockets."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors import journal
from actors.journal import Part
from actors.standby import catalogue, mirror
from actors.standby.mirror import Mirror, Reach
from protocol.messages import FileFacts


def saved(step: int, name: str = "manifest.json") -> str:
    return f"checkpoints/step-{step:08d}/{name}"


def part(shard: int, start: int, number: int = 1) -> str:
    return f"journal/{Part(shard, start, number).name}"


PIECE = 10


@pytest.fixture(autouse=True, scope="module")
def small_pieces() -> Iterator[None]:
    before, mirror.PIECE_BYTES = mirror.PIECE_BYTES, PIECE
    yield
    mirror.PIECE_BYTES = before


@dataclass
class Two:
    """Two hosts: files as sizes and times; what the standby does is done to `here`."""

    there: dict[str, FileFacts] = field(default_factory=dict[str, FileFacts])
    here: Mirror = field(default_factory=lambda: Mirror({}))
    done: list[mirror.Instruction] = field(default_factory=list[mirror.Instruction])
    whole: bool = True  # whether checkpoints turn out to be

    def put(self, path: str, size: int, at: int = 1) -> None:
        self.there[path] = FileFacts(path=path, size=size, modified_ns=at)

    def round(self, most: int = 1000) -> list[mirror.Instruction]:
        """What the standby does in one round, broken off after `most`."""
        self.here.told(list(self.there.values()))
        found: list[mirror.Instruction] = []
        while len(found) < most and (todo := self.here.next()) is not None:
            found.append(todo)
            if isinstance(todo, mirror.Fetch):
                facts = self.there.get(todo.path)
                left = 0 if facts is None else facts.size - todo.offset
                self.here.took(todo.path, min(todo.size, max(0, left)))
            elif isinstance(todo, mirror.Complete):
                self.here.completed(todo.step, whole=self.whole)
        self.done += found
        return found

    def until_quiet(self) -> None:
        for _ in range(1000):
            if not self.round():
                return
        raise AssertionError(self.done[-10:])

    def removed(self) -> list[str]:
        return [todo.path for todo in self.done if isinstance(todo, mirror.Remove)]


def test_nothing_but_a_copy_is_ever_named():
    for path in (
        "keys/server.json",
        "../keys/server.json",
        "journal/../keys/allowed/trainer-a.json",
        "checkpoints/step-00000001/../../keys/server.json",
        "checkpoints/step-00000001/..",
        "checkpoints/step-00000001.tmp/manifest.json",
        "/etc/passwd",
        "ledger.sqlite",
        "journal/ledger-0001.sqlite.tmp",
        "",
    ):
        assert catalogue.kind_of(path) is None, path


def test_steps_come_before_checkpoints_and_shard_0_last():
    paths = [saved(20), saved(20, "a.safetensors"), part(0, 20), part(1, 20), "topology.toml"]
    paths += [f"journal/{name}" for name in journal.ledger_names(1)]
    assert catalogue.ordered([*paths, "plan.json"]) == [
        "topology.toml",
        "journal/ledger-0001.journal",
        "journal/ledger-0001.sqlite",
        part(1, 20),
        part(0, 20),
        saved(20, "a.safetensors"),
        saved(20),
    ]


def test_a_large_checkpoint_never_keeps_steps_waiting():
    two = Two()
    two.put(saved(20, "a.safetensors"), 10 * PIECE)
    two.put(saved(20), 1)
    for size in (5, 7, 9):
        two.put(part(0, 20), size)
        first, second = two.round()
        assert isinstance(first, mirror.Fetch)
        assert first.path == part(0, 20)
        assert isinstance(second, mirror.Fetch)
        assert second.path == saved(20, "a.safetensors")
    two.until_quiet()
    assert two.here.saved == 20
    assert two.here.lacking_bytes == 0


def test_what_was_begun_is_finished_while_it_lasts():
    two = Two()
    two.put(saved(20), 3 * PIECE)
    two.round()
    two.put(saved(40), 1)
    two.until_quiet()
    assert [todo.step for todo in two.done if isinstance(todo, mirror.Complete)] == [20, 40]
    two.put(saved(60), 3 * PIECE)
    two.round()
    del two.there[saved(60)]
    two.put(saved(80), 1)
    two.until_quiet()
    assert two.here.saved == 80
    assert "checkpoints/step-00000060.tmp" in two.removed()


def test_a_checkpoint_that_is_not_whole_is_taken_again():
    two = Two(whole=False)
    two.put(saved(20), 1)
    two.round()
    assert two.here.saved == -1
    two.whole = True
    two.until_quiet()
    assert two.here.saved == 20


def test_steps_are_let_go_when_a_newer_checkpoint_is_whole_here():
    two = Two()
    two.put(saved(20), 1)
    two.put(part(0, 20), 5)
    two.until_quiet()
    del two.there[part(0, 20)]  # the run's host has the next one
    two.put(part(0, 40), 5)
    two.until_quiet()
    assert two.removed() == []
    two.put(saved(40), 1)
    two.until_quiet()
    assert two.removed() == [part(0, 20)]
    two.put(part(0, 20), 5)  # which keeps it for longer
    two.until_quiet()
    assert part(0, 20) not in two.here.held


def test_an_older_ledger_goes_when_the_newer_is_whole():
    two = Two()
    first, second = (
        [f"journal/{name}" for name in journal.ledger_names(number)] for number in (1, 2)
    )
    for path in first:
        two.put(path, 5)
    two.until_quiet()
    two.there.clear()
    two.put(second[0], 3 * PIECE)
    two.put(second[1], 0)
    two.round(most=3)
    assert two.removed() == []
    two.until_quiet()
    assert sorted(two.removed()) == sorted(first)


def test_steps_wait_for_the_ledger_that_they_are_composed_in():
    """A loader's new life begins with a copy of its ledger, which takes a moment."""
    two = Two()
    two.put("journal/ledger-0002.journal", 5)
    two.put(part(0, 20), 5)
    two.until_quiet()
    assert part(0, 20) not in two.here.held
    two.put("journal/ledger-0002.sqlite", 5)
    two.until_quiet()
    assert two.here.held[part(0, 20)].size == 5


def test_one_that_starts_anew_goes_on_from_what_it_has():
    held = mirror.held_files(
        {part(0, 20): (7, 0), saved(40, "a"): (5, 0), "topology.toml": (9, 3), "notes.txt": (1, 1)}
    )
    two = Two(here=Mirror(held, saved=20))
    two.put("topology.toml", 9, at=3)
    two.put(part(0, 20), 9)
    two.put(saved(40, "a"), 8)
    assert two.round() == [mirror.Fetch(part(0, 20), 7, 2), mirror.Fetch(saved(40, "a"), 5, 3)]


def test_a_small_file_is_replaced_when_it_has_changed():
    two = Two()
    two.put("topology.toml", 5, at=1)
    two.until_quiet()
    two.put("topology.toml", 5, at=2)
    assert two.round() == [
        mirror.Begin("topology.toml"),
        mirror.Fetch("topology.toml", 0, 5),
        mirror.Finish("topology.toml", 2),
    ]


@pytest.mark.parametrize("path", ["metrics.jsonl", part(0, 20)])
def test_what_was_taken_back_there_is_cut_off_here(path: str):
    two = Two()
    two.put(path, 9)
    two.until_quiet()
    two.put(path, 4)
    assert two.round() == [mirror.Cut(path, 4)]
    two.put(path, 6)
    assert two.round() == [mirror.Fetch(path, 4, 2)]


def test_a_file_that_vanishes_is_not_waited_for():
    two = Two(here=Mirror({}))
    two.put("topology.toml", 5)
    two.here.told(two.there.values())
    assert two.here.next() == mirror.Begin("topology.toml")
    assert two.here.next() == mirror.Fetch("topology.toml", 0, 5)
    two.here.took("topology.toml", 0)
    assert two.here.next() is None


def test_a_copy_reaches_as_far_as_steps_follow_each_other():
    reach = Reach()
    assert reach.step == -1
    steps = [19, 21, 22, 24]
    reach.committed(steps, steps)
    assert reach.step == -1
    reach.complete(20)
    assert reach.step == 22
    reach.committed([23], [])
    assert reach.step == 24
    reach.committed([25], [])
    assert reach.step == 24
    reach.complete(40)
    assert reach.step == 40


@given(st.data())
def test_whatever_happens_there_the_copy_comes_to_hold_it(data: st.DataObject):
    """Files grow, are replaced, and go; rounds are broken off anywhere; the standby starts anew."""
    two, step = Two(), 0
    for number in range(data.draw(st.integers(1, 12))):
        event = data.draw(st.sampled_from(["note", "save", "small", "anew", "round"]))
        if event == "note":
            path = part(data.draw(st.integers(0, 1)), step)
            before = two.there[path].size if path in two.there else 0
            two.put(path, before + data.draw(st.integers(1, 25)))
        elif event == "save":
            step += 20
            save(two, step, data.draw(st.integers(1, 40)))
        elif event == "small":
            two.put("topology.toml", data.draw(st.integers(1, 30)), at=number)
        elif event == "anew":
            two.here = Mirror(dict(two.here.held), two.here.saved)
        two.round(most=data.draw(st.integers(0, 4)))
    two.until_quiet()
    assert two.here.saved == (step or -1)
    assert two.here.lacking_bytes == 0
    needed = {path for path in two.there if catalogue.step_of(path) < 0}
    needed -= {path for path in needed if journal.superseded([path[8:]], step)}
    assert {path: two.here.held[path].size for path in needed} == {
        path: two.there[path].size for path in needed
    }


def save(two: Two, step: int, size: int) -> None:
    """A checkpoint is whole there: what it makes needless goes."""
    two.put(saved(step, "a.safetensors"), size)
    two.put(saved(step), 3)
    for path in [*two.there]:
        old = -1 < catalogue.step_of(path) < step - 20
        if old or journal.superseded([path[8:]], step - 20):
            del two.there[path]
