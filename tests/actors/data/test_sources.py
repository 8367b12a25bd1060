"""Finding samples: links, duplicates, things that are no files, lines and rows."""

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from actors.data import checks
from actors.data.corpus import Corpus, split
from actors.data.finding import Skipped, pattern_matcher
from actors.data.sources import SourceError, corpus_digest, line_rows, list_corpus
from actors.topology import DataSpec, Source
from tests.actors.data.small_graph import small


def directory(path: Path, pattern: str = "**/*.py") -> Source:
    return Source(kind="directory", path=str(path), pattern=pattern)


def listed(*sources: Source) -> tuple[list[str], Skipped, Corpus]:
    corpus, skipped = list_corpus(sources)
    return [corpus.name(i) for i in range(len(corpus))], skipped, corpus


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    for name in ("b.py", "a/x.py", "a/y.txt", "a/deep/er/z.py", ".git/hook.py", "__pycache__/c.py"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"# {name}\n")
    return root


# --- the standard library -------------------------------------------------------------------------


def test_the_standard_library_is_listed_without_its_tests():
    names, _, corpus = listed(Source(kind="python_stdlib"))
    assert "stdlib/json/decoder.py" in names
    assert len(names) > 400
    assert not [name for name in names if "/test/" in name or "/tests/" in name]
    assert not [name for name in names if "site-packages" in name or "_sysconfigdata" in name]
    assert names == sorted(names)
    assert corpus.digest == listed(Source(kind="python_stdlib"))[2].digest


# --- directories ----------------------------------------------------------------------------------


def test_files_are_listed_by_name_and_hidden_ones_are_not(tree: Path):
    names, _, corpus = listed(directory(tree))
    assert names == ["tree/a/deep/er/z.py", "tree/a/x.py", "tree/b.py"]
    assert corpus.ref(1).path == str(tree / "a" / "x.py")
    assert corpus.ref(1).language == "python"


def test_a_link_loop_ends(tree: Path):
    (tree / "a" / "loop").symlink_to(tree)
    (tree / "self.py").symlink_to(tree / "self.py")
    names, skipped, _ = listed(directory(tree))
    assert len(names) == 3
    assert skipped.counts["directory seen before"] == 1
    assert skipped.counts["link loop"] == 1


def test_a_file_with_several_paths_is_one_sample(tree: Path):
    (tree / "c.py").symlink_to(tree / "b.py")
    os.link(tree / "b.py", tree / "d.py")
    names, skipped, _ = listed(directory(tree), directory(tree / "a"))
    assert len(names) == 3
    assert skipped.counts["duplicate"] == 4


def test_what_is_no_file_is_left_out_and_counted(tree: Path):
    os.mkfifo(tree / "pipe.py")
    (tree / "nothing.py").write_text("")
    (tree / "gone.py").symlink_to(tree / "nowhere.py")
    _, skipped, _ = listed(directory(tree))
    assert skipped.counts == {"not a file": 1, "empty": 1, "vanished": 1}
    assert skipped.examples["not a file"] == [str(tree / "pipe.py")]


def test_equal_names_from_two_sources_stay_apart(tmp_path: Path):
    for parent in ("one", "two"):
        (tmp_path / parent / "src").mkdir(parents=True)
        (tmp_path / parent / "src" / "x.py").write_text(f"# {parent}\n")
    names, _, _ = listed(*(directory(tmp_path / parent / "src") for parent in ("one", "two")))
    assert names == ["src/x.py", "src/x.py~2"]


def test_globs_name_files_and_directories(tree: Path):
    names, _, _ = listed(directory(tree / "*"))
    assert names == ["a/deep/er/z.py", "a/x.py", "b.py"]


def test_file_names_that_are_no_text_are_listed_all_the_same(tmp_path: Path):
    path = os.path.join(os.fsencode(tmp_path), b"caf\xe9.py")
    with open(path, "w") as file:
        file.write("x = 1\n")
    names, _, _ = listed(directory(tmp_path))
    assert names[0].endswith("caf\\udce9.py")


@pytest.mark.parametrize(
    ("pattern", "path", "matches"),
    [
        ("**/*.py", "x.py", True),
        ("**/*.py", "a/b/x.py", True),
        ("*.py", "a/x.py", False),
        ("a/**", "a/b/c.txt", True),
        ("a?[xy].r[!s]", "abx.rt", True),
        ("a?[xy].r[!s]", "abx.rs", False),
        ("[", "[", True),
        ("x.py", "xzpy", False),
    ],
)
def test_patterns(pattern: str, path: str, matches: bool):
    assert (pattern_matcher(pattern).fullmatch(path) is not None) == matches


# --- lines ----------------------------------------------------------------------------------------


def lines_of(path: Path) -> list[tuple[int, bytes]]:
    data = path.read_bytes()
    rows = line_rows(str(path))
    columns = zip(rows.positions, rows.offsets, rows.lengths, strict=True)
    return [(int(number), data[start : start + length]) for number, start, length in columns]


@pytest.mark.parametrize("end", [b"", b"\n"])
def test_lines_know_where_they_are(tmp_path: Path, end: bytes):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"text": 1}\n\n  \r\n{"text": 2}\r\n{"text": 3}' + end)
    assert lines_of(path) == [(1, b'{"text": 1}'), (4, b'{"text": 2}\r'), (5, b'{"text": 3}')]


def test_lines_longer_than_any_buffer_are_found(tmp_path: Path):
    path = tmp_path / "x.jsonl"
    long = b"y" * 3_000_000
    path.write_bytes(b"a\n" + long + b"\n" + b" " * 2_000_000 + b"\nb")
    assert lines_of(path) == [(1, b"a"), (2, long), (4, b"b")]


def test_samples_of_jsonl_are_named_by_line(tmp_path: Path):
    (tmp_path / "x.jsonl").write_text('{"text": "a"}\n\n{"text": "b"}\n')
    names, _, corpus = listed(Source(kind="jsonl", path=str(tmp_path / "*.jsonl"), language="text"))
    assert names == ["x.jsonl:1", "x.jsonl:3"]
    assert (corpus.ref(1).offset, corpus.ref(1).length, corpus.ref(1).field) == (15, 13, "text")


# --- rows -----------------------------------------------------------------------------------------


@pytest.fixture
def parquet(tmp_path: Path) -> Path:
    path = tmp_path / "x.parquet"
    table = pa.table({"id": [1, 2, 3], "code": ["a", None, "c"]})
    pq.write_table(table, path, row_group_size=2)
    return path


def test_samples_of_parquet_are_named_by_row(parquet: Path):
    names, _, corpus = listed(Source(kind="parquet", path=str(parquet), field="code"))
    assert names == ["x.parquet[0]", "x.parquet[1]", "x.parquet[2]"]
    assert corpus.ref(2).row == 2


@pytest.mark.parametrize(
    ("field", "words"),
    [
        ("text", "no column 'text'; it has id, code: say which"),
        ("id", "'id' holds int64, not text"),
    ],
)
def test_a_missing_or_wrong_column_is_said_with_those_there_are(
    parquet: Path, field: str, words: str
):
    with pytest.raises(SourceError, match=words):
        listed(Source(kind="parquet", path=str(parquet), field=field))
    (problem,) = checks.check(
        small(DataSpec(sources=(Source(kind="parquet", path=str(parquet), field=field),)))
    )
    assert words in problem


def test_one_odd_file_of_many_is_borne_and_counted(parquet: Path):
    pq.write_table(pa.table({"text": ["a"]}), parquet.with_name("other.parquet"))
    (parquet.parent / "torn.parquet").write_bytes(b"PAR1" + b"x" * 100)
    source = Source(kind="parquet", path=str(parquet.parent / "*.parquet"), field="code")
    names, skipped, _ = listed(source)
    assert names == ["x.parquet[0]", "x.parquet[1]", "x.parquet[2]"]
    assert skipped.counts == {"no such column": 2}
    assert [Path(name).name for name in skipped.examples["no such column"]] == [
        "other.parquet", "torn.parquet"
    ]  # fmt: skip
    # A source of which nothing is left is not what was meant, whatever others there are.
    other = Source(kind="parquet", path=str(parquet.with_name("other.parquet")), field="code")
    with pytest.raises(SourceError, match="no column 'code'; it has text"):
        listed(other, source)


def test_what_is_called_parquet_and_is_not(tmp_path: Path):
    path = tmp_path / "x.parquet"
    path.write_bytes(b"PAR0" * 100)
    source = Source(kind="parquet", path=str(path))
    with pytest.raises(SourceError, match="not a parquet file"):
        listed(source)
    (problem,) = checks.check(small(DataSpec(sources=(source,))))
    assert "not a parquet file" in problem


# --- checks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "there", "words"),
    [
        ("directory", "nothing", "does not exist"),
        ("directory", "directory", "no file with any content below"),
        ("jsonl", "directory", "is a directory; kind = 'jsonl' takes files"),
        ("jsonl", "empty file", "left out: 1 empty"),
    ],
)
def test_data_that_is_not_there_is_said_before_anything_starts(
    tmp_path: Path, kind: str, there: str, words: str
):
    path = tmp_path / "data"
    if there == "directory":
        path.mkdir()
    elif there == "empty file":
        path.touch()
    source = Source(kind=kind, path=str(path))  # pyright: ignore[reportArgumentType]
    (problem,) = checks.check(small(DataSpec(sources=(source,))))
    assert problem.startswith("data.sources.0: ")
    assert words in problem
    assert str(path) in problem


def test_sound_data_has_no_problems(tree: Path):
    assert checks.check(small(DataSpec(sources=(directory(tree),)))) == []


def test_an_empty_corpus_is_an_error_that_counts_what_was_left_out(tmp_path: Path):
    (tmp_path / "x.py").write_text("")
    with pytest.raises(SourceError, match=r"no sample in any source \(left out: 1 empty\)"):
        listed(directory(tmp_path))


# --- split and digest -----------------------------------------------------------------------------


def test_what_is_held_out_depends_on_names_alone():
    names = [f"stdlib/{i}.py" for i in range(5000)]
    _, held = split(0.02, names)
    chosen = {names[i] for i in held}
    assert 60 < len(chosen) < 140
    half = names[::2]
    _, held_of_half = split(0.02, half)
    assert {half[i] for i in held_of_half} == chosen & set(half)


def test_even_a_handful_of_files_has_something_held_out_and_something_to_train_on():
    for share in (0.001, 0.999):
        training, held = split(share, ["a.py", "b.py"])
        assert (len(training), len(held)) == (1, 1)
    assert len(split(0.0, ["a.py", "b.py"])[1]) == 0
    assert len(split(0.5, ["a.py"])[0]) == 1


def test_a_corpus_is_known_by_its_content_not_by_its_place(tree: Path, tmp_path: Path):
    first = listed(directory(tree))[2]
    moved = tmp_path / "elsewhere" / "tree"
    moved.parent.mkdir()
    tree.rename(moved)
    os.utime(moved / "b.py", (1, 1))
    assert listed(directory(moved))[2].digest == first.digest
    (moved / "b.py").write_text("# c.py\n")
    assert listed(directory(moved))[2].digest != first.digest


def test_the_digest_of_a_large_corpus_looks_at_heads_and_tails(
    tree: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("actors.data.sources.DIGEST_WHOLE_BYTES", 1)
    files = list(listed(directory(tree))[2].files)
    before = corpus_digest(files)
    (tree / "b.py").write_text("# B.py\n")
    assert corpus_digest(files) != before
    (tree / "b.py").unlink()
    assert corpus_digest(files)
