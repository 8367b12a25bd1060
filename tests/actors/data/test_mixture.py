"""Weights of sources: exact in every epoch, and fair in the long run."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.data.mixture import choosing, copies
from actors.data.ordering import Draws
from actors.data.sources import list_corpus
from actors.topology import Source


@settings(max_examples=80, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(1, 30), st.floats(0.01, 4.0, allow_nan=False)), min_size=1, max_size=4
    ),
    st.integers(0, 2**40),
)
def test_every_source_comes_as_often_as_its_weight_says(made: list[tuple[int, float]], seed: int):
    columns = [
        (source, sample, copy)
        for source, (count, weight) in enumerate(made)
        for copy in range(copies(weight))
        for sample in range(count)
    ]
    sources, samples, copy = np.array(columns, np.int64).T
    entries = np.arange(len(columns))
    choose = choosing(entries, sources, copy, [weight for _, weight in made], seed)
    for epoch in range(4):
        chosen = choose(epoch)
        assert len(set(chosen.tolist())) == len(chosen)
        came = Counter(zip(sources[chosen].tolist(), samples[chosen].tolist(), strict=True))
        for source, (count, weight) in enumerate(made):
            times = [came[source, sample] for sample in range(count)]
            whole = int(weight)
            assert sum(times) == whole * count + round((weight - whole) * count)
            assert set(times) <= {whole, whole + 1}


def test_with_whole_weights_every_epoch_has_everything():
    entries = np.arange(10)
    choose = choosing(entries, np.zeros(10, np.int64), np.zeros(10, np.int64), [1.0], 3)
    assert choose(0) is entries


def test_in_the_long_run_all_samples_of_a_source_come_equally_often():
    entries = np.arange(40)
    zeros = np.zeros(40, np.int64)
    choose = choosing(entries, zeros, zeros, [0.3], 1)
    came = Counter(int(i) for epoch in range(10) for i in choose(epoch))
    assert set(came.values()) == {3}
    assert len(came) == 40


def test_epochs_are_drawn_from_what_is_chosen_for_them():
    choose = {0: np.array([1, 2]), 1: np.array([3])}
    draws = Draws(1, lambda epoch: choose.get(epoch, np.array([4])))
    found = [draw.key for draw in (draws.next() for _ in range(4)) if draw is not None]
    assert sorted(found[:2]) == [(0, 1), (0, 2)]
    assert found[2:] == [(1, 3), (2, 4)]


@pytest.mark.parametrize(("weight", "entries"), [(1.0, 3), (2.0, 6), (2.5, 9), (0.5, 3)])
def test_a_corpus_has_an_entry_for_each_time(tmp_path: Path, weight: float, entries: int):
    (tmp_path / "code").mkdir()
    for name in "abc":
        (tmp_path / "code" / f"{name}.py").write_text(f"# {name}\n")
    (tmp_path / "once.jsonl").write_text('{"text": "x"}\n')
    sources = (
        Source(kind="directory", path=str(tmp_path / "code"), weight=weight),
        Source(kind="jsonl", path=str(tmp_path / "once.jsonl")),
    )
    corpus, _ = list_corpus(sources)
    assert len(corpus) == entries + 1
    training, held_out = corpus.split(0.4)
    kept_apart = {corpus.name(int(i)) for i in held_out}
    assert kept_apart.isdisjoint(corpus.name(int(i)) for i in training)
    everything, _ = corpus.split(0.0)
    choose = corpus.choosing(everything, seed=1)
    counts = [Counter(corpus.file(int(i)).source for i in choose(epoch)) for epoch in range(3)]
    assert [count[0] for count in counts] == [round(3 * weight)] * 3
    assert [count[1] for count in counts] == [1] * 3
