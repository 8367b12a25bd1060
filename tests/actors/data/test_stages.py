"""Stages: what samples are made of, and what is refused under which name."""

import ast
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from actors.data import stages
from actors.data.augmentation import Chance, rename_locals
from actors.data.finding import kind_of
from actors.data.stages import (
    STAGES,
    Options,
    SampleProblem,
    State,
    augment,
    compile_problem,
    read,
    stage_names,
    tokenize,
    verify,
)
from actors.data.tokenizer import load, train
from actors.topology import DataSpec
from protocol.messages import SampleRef
from tests.harness import ROOT

LIMIT = 100_000
OPTIONS = Options(max_sample_bytes=LIMIT)


def ref(path: Path, language: str = "python", **more: object) -> SampleRef:
    return SampleRef(name=path.name, language=language, path=str(path), **more)  # pyright: ignore[reportArgumentType]


def text_of(path: Path, language: str = "python") -> str:
    return read(State(), ref(path, language), OPTIONS).text.decode()


def refusal(path: Path, language: str = "python", **more: object) -> SampleProblem:
    with pytest.raises(SampleProblem) as caught:
        read(State(), ref(path, language, **more), OPTIONS)
    return caught.value


# --- read -----------------------------------------------------------------------------------------


def test_line_ends_and_marks_are_made_one(tmp_path: Path):
    path = tmp_path / "x.py"
    path.write_bytes(b"\xef\xbb\xbfa = 1\r\nb = 2\rc = 3\n")
    assert text_of(path) == "a = 1\nb = 2\nc = 3\n"


def test_python_may_declare_another_encoding(tmp_path: Path):
    path = tmp_path / "x.py"
    path.write_bytes("# -*- coding: latin-1 -*-\nname = 'é'\n".encode("latin-1"))
    assert "é" in text_of(path)
    assert refusal(path, "text").kind == "not utf-8"


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"x = '\xff\xfe\xfa'\n", "not utf-8"),
        (b"# coding: klingon\nx = 1\n", "not utf-8"),
        (b"# coding: rot13\nk = 1\n", "not utf-8"),
        (b"\x7fELF\x00\x01\x02\x03" + b"\x00" * 100, "binary"),
        (b"x = 1\n" * 1000 + b"\0", "binary"),
        (b" \n\t\n", "empty"),
        (b"\xef\xbb\xbf", "empty"),
        (b"x" * (LIMIT + 1), "too large"),
    ],
)
def test_bytes_that_are_no_text_are_refused_by_kind(tmp_path: Path, content: bytes, kind: str):
    path = tmp_path / "x.py"
    path.write_bytes(content)
    assert refusal(path).kind == kind


def test_places_that_hold_no_file_are_refused_by_kind(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    kinds = [refusal(tmp_path / name).kind for name in ("nowhere", "pipe", "loop")]
    assert kinds == ["vanished", "not a file", "link loop"]
    assert refusal(tmp_path).kind in ("not a file", "unreadable (Is a directory)")


def test_a_file_without_permission_is_unreadable():
    assert kind_of(PermissionError(13, "Permission denied")) == "unreadable"  # root never meets one


def line(tmp_path: Path, content: bytes, field: str = "text") -> tuple[Path, dict[str, object]]:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b"{}\n" + content)
    return path, {"offset": 3, "length": len(content), "field": field}


def test_the_text_of_a_line_is_read(tmp_path: Path):
    path, where = line(tmp_path, '{"n": 1, "text": "grüße\\n"}'.encode())
    assert read(State(), ref(path, "text", **where), OPTIONS).text.decode() == "grüße\n"


@pytest.mark.parametrize(
    ("content", "kind", "words"),
    [
        (b'{"text": ', "not json", "truncated"),
        (b"complete garbage \xff\xfe", "not json", ""),
        (b"[1, 2]", "not json", "got list"),
        (b'{"body": "x", "id": 3}', "no such field", "no 'text'; it has body, id"),
        (b'{"text": 5}', "no such field", "holds int"),
        (b'{"text": ""}', "empty", ""),
        (b'{"text": "a\\u0000b"}', "binary", ""),
        (b"[" * 50_000, "not json", ""),
        (b'{"text": "' + b"x" * LIMIT + b'"}', "too large", "100,012 bytes"),
    ],
)
def test_lines_that_are_no_samples_are_refused_by_kind(
    tmp_path: Path, content: bytes, kind: str, words: str
):
    path, where = line(tmp_path, content)
    problem = refusal(path, "text", **where)
    assert problem.kind == kind
    assert words in problem.detail


def test_a_single_line_of_50_mb_is_refused_without_being_read(tmp_path: Path):
    path = tmp_path / "x.jsonl"
    with path.open("wb") as file:
        file.truncate(50_000_000)
    assert refusal(path, "text", length=50_000_000, field="text").kind == "too large"


def test_a_file_cut_short_since_it_was_listed(tmp_path: Path):
    path, where = line(tmp_path, b'{"text": "long enough"}')
    os.truncate(path, 8)
    assert refusal(path, "text", **where).kind == "truncated"


def test_rows_are_read_across_groups(tmp_path: Path):
    path = tmp_path / "x.parquet"
    values = [f"text {i}" for i in range(9)] + [None]
    pq.write_table(pa.table({"code": values}), path, row_group_size=4)
    found = [
        read(State(), ref(path, "text", row=row, field="code"), OPTIONS).text for row in range(9)
    ]
    assert found == [f"text {i}".encode() for i in range(9)]
    assert refusal(path, "text", row=9, field="code").kind == "empty"
    assert refusal(path, "text", row=10, field="code").kind == "unreadable"
    assert "it has code" in refusal(path, "text", row=0, field="text").detail


# --- verify ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["x = 1\n", "def f():\n    return '\\d'\n", "x is 1\n", "assert (1, 'x')\n"]
)
def test_code_that_compiles_with_warnings_passes_in_silence(
    text: str, capsys: pytest.CaptureFixture[str]
):
    state = State(text=text.encode())
    assert verify(state, ref(Path("x.py")), OPTIONS) is state
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("print 'hello'\n", "does not compile"),
        ("return 1\n", "does not compile"),
        ("x = 'abc\n", "does not compile"),
        ("def f():\nreturn\n", "does not compile"),
        ("(" * 500 + ")" * 500, "does not compile"),
        ("-" * 200_000 + "1", "too complex to compile"),
        ("x = " + "f(" * 90 + ")" * 90 + "\n" + "+1" * 100_000, "too complex to compile"),
        ("'\ud800'", "does not compile"),
    ],
)
def test_code_that_does_not_compile_is_told_why(text: str, kind: str):
    problem = compile_problem(text)
    assert problem is not None
    assert problem[0] in (kind, "too complex to compile", "does not compile")
    assert problem[1]


def test_where_the_compiler_stopped_is_said():
    with pytest.raises(SampleProblem, match="line 2"):
        verify(State(text=b"x = 1\ny = = 2\n"), ref(Path("x.py")), OPTIONS)


def test_other_languages_are_not_compiled():
    state = State(text=b"fn main() {}")
    assert verify(state, ref(Path("x.rs"), "rust"), OPTIONS) is state


# --- augment --------------------------------------------------------------------------------------

SOURCE = '''import os

def area(width, height):
    """Of a rectangle."""
    product = width * height
    for index in range(3):
        product += index
    größe = product
    return größe

def uses_format(value):
    shown = value
    return f"{shown}"

def sees_itself(value):
    local = value
    return locals()
'''


def test_locals_are_renamed_and_nothing_else():
    renamed = rename_locals(SOURCE, Chance(1, 0, "x.py"))
    assert renamed is not None
    assert compile_problem(renamed) is None
    for name in ("product", "index", "größe"):
        assert name not in renamed
    for name in ("width", "height", "shown", "local", "os", "area", "range"):
        assert name in renamed
    space: dict[str, object] = {}
    exec(renamed, space)
    assert space["area"](2, 5) == 13  # pyright: ignore[reportCallIssue]


def test_renaming_is_a_function_of_seed_epoch_and_name():
    first = rename_locals(SOURCE, Chance(1, 0, "x.py"))
    assert rename_locals(SOURCE, Chance(1, 0, "x.py")) == first
    assert rename_locals(SOURCE, Chance(1, 1, "x.py")) != first


def test_a_share_of_samples_is_augmented_per_epoch():
    state = State(text=SOURCE.encode())
    options = replace(OPTIONS, augment_share=0.5)
    changed = [
        augment(state, ref(Path(f"{i}.py")), replace(options, epoch=epoch)) is not state
        for i in range(30)
        for epoch in range(2)
    ]
    assert 15 < sum(changed) < 45
    assert changed[::2] != changed[1::2]


def test_the_standard_library_still_parses_to_the_same_shape_when_renamed():
    folder = Path(os.__file__).parent
    for name in ("json/decoder.py", "textwrap.py", "heapq.py", "dataclasses.py", "shlex.py"):
        text = (folder / name).read_text()
        renamed = rename_locals(text, Chance(3, 0, name))
        assert renamed is not None
        assert compile_problem(renamed) is None
        shapes = [[type(n) for n in ast.walk(ast.parse(code))] for code in (text, renamed)]
        assert shapes[0] == shapes[1]


@pytest.mark.parametrize("text", ["x = (\n", "x = 1\n", "def f(a):\n    return a\n", "\0"])
def test_where_there_is_nothing_to_rename_nothing_is(text: str):
    assert rename_locals(text, Chance(0, 0, "x")) is None


# --- tokenize, and all of them --------------------------------------------------------------------


def test_stages_that_would_do_nothing_are_left_out():
    assert stage_names(DataSpec()) == ("read", "verify", "tokenize")
    assert stage_names(DataSpec(verify=False)) == ("read", "tokenize")
    assert stage_names(DataSpec(augment_share=0.1)) == ("read", "verify", "augment", "tokenize")


def test_a_document_lies_between_its_marks():
    encoder = load(train(["def f(x):\n    return x\n"] * 3, 280))
    state = tokenize(State(text=b"return x"), ref(Path("x.py")), replace(OPTIONS, encoder=encoder))
    assert state.tokens is not None
    assert state.tokens.dtype == np.int32
    assert (state.tokens[0], state.tokens[-1]) == (encoder.bos, encoder.eos)
    assert state.text == b"return x"


def test_every_stage_keeps_its_place():
    assert tuple(STAGES) == ("read", "verify", "augment", "tokenize")


def test_want_of_memory_is_not_the_samples_fault(monkeypatch: pytest.MonkeyPatch):
    def refuses(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(stages, "compile", refuses, raising=False)
    assert compile_problem("x = 1") == ("too complex to compile", "MemoryError")
    monkeypatch.setattr(stages, "memory_is_short", lambda: True)
    with pytest.raises(MemoryError):
        compile_problem("x = 1")


def test_a_process_that_may_not_grow_knows_it():
    code = """
import resource
from actors.data.scarcity import memory_is_short
assert not memory_is_short()
pages = int(open("/proc/self/statm").read().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (1 << 20), -1))
assert memory_is_short()
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
