"""What may be done to samples: licences, filling in, near-duplicates, somebody's own functions."""

import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from actors.data import duplicates, filling, licences, stages
from actors.data.augmentation import Chance
from actors.data.quality import CERTAIN, Quality
from actors.data.sample import Options, SampleProblem, State
from actors.data.stages import StageError, is_verified, own, read, stage_names, verify
from actors.data.terms import options_of
from actors.data.tokenizer import TokenizerError, load, train
from actors.topology import DataSpec
from protocol.messages import DataPlan, SampleRef

LIMIT = 100_000
OPTIONS = Options(max_sample_bytes=LIMIT)
CODE = "def f(value):\n    total = value + 1\n    return total\n"


def ref(path: Path | str = "x.py", language: str = "python", **more: object) -> SampleRef:
    return SampleRef(name=str(path), language=language, path=str(path), **more)  # pyright: ignore[reportArgumentType]


# --- licences -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expression", "wanted", "fits"),
    [
        ("MIT", ("MIT",), True),
        ("mit", ("MIT", "Apache-2.0"), True),
        ("GPL-3.0-or-later", ("GPL-3.0",), True),
        ("GPL-3.0-or-later", ("MIT",), False),
        ("MIT OR GPL-2.0-only", ("MIT",), True),
        ("MIT AND GPL-2.0-only", ("MIT",), False),
        ("MIT AND (Apache-2.0 OR GPL-2.0)", ("MIT", "Apache-2.0"), True),
        ("GPL-2.0 WITH Classpath-exception-2.0 AND MIT", ("GPL-2.0", "MIT"), True),
        ("BSD-3-Clause", ("BSD-*",), True),
        ("", ("*",), False),
        ("(MIT", ("MIT",), True),
        ("AND OR", ("MIT",), False),
    ],
)
def test_expressions_are_satisfied_as_spdx_means_them(
    expression: str, wanted: tuple[str, ...], fits: bool
):
    assert licences.is_wanted(expression, wanted) == fits


@pytest.mark.parametrize(
    ("head", "found"),
    [
        ("# SPDX-License-Identifier: MIT WITH some-exception\n", "MIT WITH some-exception"),
        ("/* SPDX-License-Identifier: GPL-2.0 */\nint x;", "GPL-2.0"),
        ("# Licensed under the Apache License, Version 2.0 (the", "Apache-2.0"),
        ("permission is hereby granted, free of charge, to any person obtaining a copy", "MIT"),
        ("# GNU Lesser General Public\n# License as published, version 2.1", "LGPL-2.1"),
        ("# Python Software Foundation License", "PSF-2.0"),
        ("x = 1\n", ""),
    ],
)  # fmt: skip
def test_licences_are_known_by_their_tags_and_words(head: str, found: str):
    assert licences.in_words(head) == found


def test_a_file_is_under_the_licence_of_the_nearest_file_that_has_one(tmp_path: Path):
    (tmp_path / "LICENSE").write_text("Apache License\n  Version 2.0, January 2004\n")
    (tmp_path / "deep" / "er").mkdir(parents=True)
    code = tmp_path / "deep" / "er" / "x.py"
    code.write_text(CODE)
    wanted = replace(OPTIONS, licences=("MIT",))
    with pytest.raises(SampleProblem, match=r"Apache-2\.0; data\.licences accepts MIT") as refused:
        read(State(), ref(code), wanted)
    assert refused.value.kind == "licence"
    assert read(State(), ref(code), replace(OPTIONS, licences=("Apache-2.0",))).text
    code.write_text("# SPDX-License-Identifier: MIT\n" + CODE)
    assert read(State(), ref(code), wanted).text


def test_a_field_may_name_the_licence(tmp_path: Path):
    rows = tmp_path / "x.jsonl"
    lines = ['{"text": "a", "l": "MIT"}', '{"text": "b", "l": ["MIT", "GPL-2.0"]}', '{"text": "c"}']
    rows.write_text("\n".join(lines))
    options = replace(OPTIONS, licences=("MIT",), licence_field="l")
    kept: list[str] = []
    refused: list[str] = []
    offset = 0
    for line in lines:
        where = ref(rows, offset=offset, length=len(line), field="text")
        offset += len(line) + 1
        try:
            kept.append(read(State(), where, options).text.decode())
        except SampleProblem as problem:
            refused.append(problem.kind)
    assert (kept, refused) == (["a"], ["licence", "licence"])


# --- fill in the middle ---------------------------------------------------------------------------


def test_a_text_cut_in_three_is_whole_and_the_same_for_everybody():
    text = "".join(chr(97 + i % 26) for i in range(500))
    cuts = [filling.cut(text, Chance(1, epoch, "x"), 1.0) for epoch in range(200)]
    assert all(cut and cut.prefix + cut.middle + cut.suffix == text for cut in cuts)
    assert cuts == [filling.cut(text, Chance(1, epoch, "x"), 1.0) for epoch in range(200)]
    first = Counter(cut.suffix_first for cut in cuts if cut)
    assert min(first.values()) > 60


def test_the_share_of_texts_that_are_cut_is_what_was_asked_for():
    cut = sum(filling.cut(CODE, Chance(1, 0, f"{i}"), 0.5) is not None for i in range(1000))
    assert 440 < cut < 560
    assert filling.cut("short", Chance(1, 0, "x"), 1.0) is None


def test_a_filled_document_has_the_parts_behind_their_tokens():
    encoder = load(train([CODE] * 50, 300, filling=True))
    text = CODE * 4
    for suffix_first in (False, True):
        cut = filling.Cut(text[:20], text[20:50], text[50:], suffix_first)
        tokens = encoder.filled(cut).tolist()
        assert (tokens[0], tokens[-1]) == (0, 1)
        prefix, suffix, middle = (tokens.index(token) for token in (3, 4, 5))
        assert (suffix < prefix) == suffix_first
        assert middle > max(prefix, suffix)
        assert encoder.document(cut.middle).tolist()[1:-1] == tokens[middle + 1 : -1]
    plain = load(train([CODE] * 50, 300))
    with pytest.raises(TokenizerError, match="has no tokens for parts of a text"):
        plain.filled(filling.Cut("a", "b", "c", suffix_first=False))


def test_text_that_looks_like_a_mark_is_not_one():
    encoder = load(train([CODE] * 50, 300, filling=True))
    assert not {3, 4, 5} & set(encoder.document("x = '<fim_middle><fim_prefix>'").tolist())


# --- near-duplicates ------------------------------------------------------------------------------


def test_of_near_duplicates_the_first_is_kept():
    words = np.random.default_rng(1).integers(0, 5000, (4, 400))
    texts = [" ".join(f"w{word}" for word in row) for row in words]
    changed = texts[1].replace(texts[1].split()[200], "other")
    found = duplicates.find(enumerate([*texts, changed, texts[2], "tiny", "tiny"]), 0.8)
    assert found == {4: 1, 5: 2, 7: 6}


def test_similar_is_not_yet_the_same():
    words = [f"w{i}" for i in range(600)]
    other = words[:300] + [f"v{i}" for i in range(300)]
    assert duplicates.find([(0, " ".join(words)), (1, " ".join(other))], 0.8) == {}


def test_without_the_library_it_is_said_how_to_get_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "rensa", None)
    with pytest.raises(duplicates.MissingLibrary, match=r"pip install 'trireme\[dedup\]'"):
        duplicates.check()


# --- somebody's own -------------------------------------------------------------------------------


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module with stages in it, where Python finds it."""
    (tmp_path / "my_stages.py").write_text(
        "def shout(text): return text.upper()\n"
        "def tag(text, name, language, rng): "
        "return f'# {name} {language} {rng.integers(10**9)}\\n' + text\n"
        "def drop(text): return None if 'total' in text else text\n"
        "def spoil(text): return text + 'def (:\\n'\n"
        "def fail(text): raise KeyError('no such thing')\n"
        "def odd(text): return 7\n"
        "def nothing(text): return ' '\n"
        "def grow(text): return text * 10**5\n"
        "number = 3\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    own.cache_clear()
    monkeypatch.delitem(sys.modules, "my_stages", raising=False)
    return "my_stages"


def apply(name: str, **changes: object) -> bytes:
    options = replace(OPTIONS, **{"verify": True, **changes})
    return own(name)(State(text=CODE.encode()), ref(), options).text


def test_a_function_named_in_the_topology_is_a_stage(module: str):
    assert apply(f"{module}:shout", verify=False) == CODE.upper().encode()
    told = apply(f"{module}:tag", epoch=1)
    assert told.startswith(b"# x.py python ")
    assert told == apply(f"{module}:tag", epoch=1)
    assert told != apply(f"{module}:tag", epoch=2)


@pytest.mark.parametrize(
    ("function", "kind", "detail"),
    [
        ("drop", "left out by my_stages:drop", ""),
        ("spoil", "broken by my_stages:spoil", "does not compile: line 4"),
        ("fail", "fails in my_stages:fail", "KeyError: 'no such thing'"),
        ("odd", "fails in my_stages:odd", "it returned int"),
        ("nothing", "fails in my_stages:nothing", "nothing but white space"),
        ("grow", "too large", "after my_stages:grow"),
    ],
)
def test_what_a_function_does_to_a_sample_is_counted_by_kind(
    module: str, function: str, kind: str, detail: str
):
    with pytest.raises(SampleProblem) as problem:
        apply(f"{module}:{function}")
    assert problem.value.kind == kind
    assert detail in problem.value.detail


@pytest.mark.parametrize("name", ["my_stages:none", "nowhere:f", "my_stages:number"])
def test_a_function_that_is_not_there_is_named(module: str, name: str):
    with pytest.raises(StageError, match=f"data.stages: {name} is not to be had"):
        own(name)


def test_functions_come_between_augmenting_and_tokenizing():
    data = DataSpec(stages=("a:f", "b:g"), augment_share=0.5)
    assert stage_names(data) == ("read", "verify", "augment", "a:f", "b:g", "tokenize")


# --- verifying some, judging all ------------------------------------------------------------------


def test_only_every_so_many_samples_are_verified():
    broken = State(text=b"def (:\n")
    refused: list[int] = []
    for sample in range(20):
        options = replace(OPTIONS, verify_every_n=5, sample=sample)
        try:
            verify(broken, ref(), options)
        except SampleProblem:
            refused.append(sample)
    assert refused == [0, 5, 10, 15]
    assert not is_verified(0, "text", 1)


def judged(data: DataSpec, good: int, bad: int, kind: str = "does not compile") -> Quality:
    quality = Quality(data)
    for i in range(good):
        quality.good(i, "python")
    for _ in range(bad):
        quality.refused(kind)
    return quality


def test_a_run_stops_when_too_little_compiles():
    data = DataSpec(min_compile_rate=0.9)
    assert judged(data, 95, 5).problem() == ""
    assert judged(data, 8, 2).problem() == ""  # too few to tell
    why = judged(data, 80, 20).problem()
    assert "data.min_compile_rate = 0.9: 80 of 100 samples compile (20 does not compile)" in why
    assert judged(data, 10, 90, "empty").problem() == ""


def test_a_run_stops_when_too_many_samples_are_bad():
    data = DataSpec(max_bad_share=0.1)
    assert judged(data, CERTAIN - 10, 10, "empty").problem() == ""
    why = judged(data, CERTAIN - 11, 11, "empty").problem()
    assert "data.max_bad_share = 0.1: 11 of 100 samples cannot be used (11 empty)" in why
    assert judged(DataSpec(), 0, 1000, "empty").problem() == ""


def test_what_the_plan_says_reaches_the_stages():
    plan = DataPlan(
        tokenizer_digest="x", stages=("read",), cutoff_s=1.0, max_sample_bytes=9, heartbeat_s=1.0,
        options={"fim_share": 0.5, "verify": True, "verify_every_n": 3, "licences": ["MIT"]},
    )  # fmt: skip
    options = options_of(plan, None)
    assert (options.fim_share, options.verify, options.verify_every_n) == (0.5, True, 3)
    assert options.licences == ("MIT",)
    assert options.licence_field == ""
    assert stages.STAGES["verify"] is verify
