"""Bad topologies: every message names the key, the file, what was found and what would do."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors import topology
from actors.strict_toml import override_value
from actors.topology import TopologyError

TEXT, _ = topology.find_topology("config_b")


def error_of(text: str, *overrides: str) -> str:
    with pytest.raises(TopologyError) as caught:
        topology.decode(text, source="my.toml", overrides=overrides)
    return str(caught.value)


def line_of(text: str, start: str) -> int:
    return next(n for n, line in enumerate(text.splitlines(), 1) if line.startswith(start))


def test_an_unknown_key_is_named_with_its_line_and_the_nearest_spelling():
    text = TEXT.replace("gpu_memory_gb =", "gpu_memory =")
    message = error_of(text)
    assert message.startswith(f"my.toml:{line_of(text, 'gpu_memory')}: hardware.gpu_memory: ")
    assert (
        "unknown key; did you mean `gpu_memory_gb`? Accepted here: gpus, gpu_memory_gb" in message
    )


def test_an_unknown_table_is_an_unknown_key():
    assert "optimiser: unknown key; did you mean `optimizer`?" in error_of(
        TEXT + "\n[optimiser]\nx = 1\n"
    )


def test_a_key_like_nothing_known_gets_no_suggestion():
    message = error_of(TEXT + "\n[qqq]\n")
    assert "qqq: unknown key. Accepted here: name," in message


def test_a_key_in_an_array_of_tables_is_named_with_its_entry():
    text = TEXT.replace('kind = "python_stdlib"', 'kind = "python_stdlib"\npatern = "*.py"')
    message = error_of(text)
    assert f"my.toml:{line_of(text, 'patern')}: data.sources.0.patern: unknown key" in message
    assert "did you mean `pattern`?" in message


@pytest.mark.parametrize(
    ("setting", "found", "accepted"),
    [
        ("actors.trainers=0", "0 (integer)", "an integer >= 1 and <= 100000"),
        ("actors.fast_workers=-3", "-3 (integer)", "an integer >= 1"),
        ("actors.rollouts=-1", "-1 (integer)", "an integer >= 0"),
        ("actors.trainers=two", '"two" (string)', "an integer"),
        ("actors.trainers=2.5", "2.5 (number)", "an integer"),
        ("actors.trainers=true", "true (boolean)", "an integer"),
        ("model.ternary=1", "1 (integer)", "true or false"),
        ("model.vocab_size=100", "100 (integer)", "an integer >= 260"),
        ("optimizer.matrices.lr=0", "0 (integer)", "a number > 0"),
        ("optimizer.matrices.lr=nan", "nan", "a number > 0"),
        ("optimizer.matrices.momentum=1.0", "1.0 (number)", "a number >= 0 and < 1"),
        ("optimizer.matrices.kind=sgd", '"sgd" (string)', 'one of "muon", "muon8bit", "adamw"'),
        ("supervision.heartbeat_s=-1", "-1 (integer)", "a number > 0"),
        ("supervision.stop_s=inf", "inf", "a number > 0"),
        ("data.lease_s=0", "0 (integer)", "a number > 0"),
        ("data.held_out_share=2", "2 (integer)", "a number >= 0 and <= 1"),
        ("data.sources=all", '"all" (string)', "an array, each entry a table with the keys kind"),
        ("data.sources.0=all", '"all" (string)', "a table with the keys kind"),
        ("recorder.prometheus_port=70000", "70000 (integer)", "an integer >= 0 and <= 65535"),
        ("schedule.warmup=-1", "-1 (integer)", "an integer >= 0"),
        ("steps=0", "0 (integer)", "an integer >= 1"),
        ("seed=-1", "-1 (integer)", "an integer >= 0"),
        ("seed=99999999999999999999999999", "9999", "an integer >= 0"),
        ("name=a/b", '"a/b" (string)', "a string of letters, digits, _ . and -"),
        ("model=3", "3 (integer)", "a table with the keys dim, layers"),
        ("steps=2026-01-01", "2026-01-01 (date)", "an integer"),
    ],
)
def test_a_wrong_value_is_shown_with_what_would_be_accepted(
    setting: str, found: str, accepted: str
):
    message = error_of(TEXT, setting)
    key = setting.partition("=")[0]
    assert message.startswith(f"--set {setting}: {key}: found {found}")
    assert f"; accepted: {accepted}" in message


def test_a_misspelt_choice_gets_a_suggestion():
    wrong = error_of(TEXT, "optimizer.matrices.kind=mun")
    assert 'accepted: one of "muon", "muon8bit", ' in wrong
    assert "did you mean `muon`?" in wrong


def test_missing_keys_are_all_named():
    message = error_of('name = "x"\nsteps = 3\n[model]\ndim = 64\n')
    for key in ("hardware", "actors", "model.layers", "model.heads", "optimizer", "schedule"):
        assert f"{key}: is missing; accepted: " in message
    assert "my.toml:3: model.layers: is missing; accepted: an integer >= 1" in message


def test_all_problems_come_at_once():
    assert len(error_of(TEXT, "steps=x", "model.dimm=1", "actors.trainers=0").splitlines()) == 3


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("name = ", "at end of document"),
        ("a = 1\nb = [1,\n", "end of document"),
        ('name = "x"\nname = "y"\n', "at line 2"),
        ("[a\n", "at line 1, column 3"),
    ],
)
def test_bad_toml_is_refused_with_its_place(text: str, where: str):
    message = error_of(text)
    assert message.startswith("my.toml: not valid TOML: ")
    assert where in message


def test_deep_nesting_is_refused():
    assert "nested too deeply" in error_of("a = " + "[" * 100_000)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("x", "expected KEY.KEY=VALUE"),
        ("=3", "expected KEY.KEY=VALUE"),
        ("a..b=3", "expected KEY.KEY=VALUE"),
        ("steps.more=3", "`steps` is 150000 (integer), not a table"),
        ("data.sources.7.path=x", "`7` is not an entry of that array; it has entries 0 to 0"),
        ("data.sources.x.path=x", "`x` is not an entry of that array"),
    ],
)
def test_a_bad_setting_is_refused_in_words(setting: str, words: str):
    message = error_of(TEXT, setting)
    assert message.startswith("--set ")
    assert words in message


def test_a_setting_cannot_smuggle_in_a_second_key():
    assert override_value("1\nsteps = 2") == "1\nsteps = 2"


def test_long_values_are_shortened():
    assert len(error_of(TEXT, "name=" + "x y " * 1000)) < 400


@given(st.text(max_size=300))
def test_any_text_is_decoded_or_refused(text: str):
    with pytest.raises(TopologyError):
        topology.decode(text, source="x.toml")


@given(
    st.sampled_from(["model", "actors", "train", "data", "optimizer", "supervision", "emulation"]),
    st.sampled_from(["dim", "trainers", "sources", "matrices", "model", "kind", "0", "nothing"]),
    st.text(max_size=20) | st.integers().map(str) | st.sampled_from(["[]", "{}", "[[1]]", "true"]),
)
def test_any_setting_is_applied_or_refused(table: str, key: str, value: str):
    with contextlib.suppress(TopologyError):
        topology.decode(TEXT, source="x.toml", overrides=(f"{table}.{key}={value}",))
