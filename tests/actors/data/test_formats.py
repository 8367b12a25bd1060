"""Compressed lines, folders of data sets: every sample found, read, or named as bad."""

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.data import packed
from actors.data.reading import read
from actors.data.sample import Options, SampleProblem, State
from actors.data.sources import SourceError, list_corpus
from actors.topology import Source

OPTIONS = Options(max_sample_bytes=1_000_000)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def texts(*sources: Source) -> dict[str, str]:
    """Text by name, read in an order that no compressed stream likes."""
    corpus, _ = list_corpus(sources)
    order = sorted(range(len(corpus)), key=lambda i: (i * 7919) % 101)
    return {corpus.name(i): read(State(), corpus.ref(i), OPTIONS).text.decode() for i in order}


def write(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(data))
    elif path.suffix == ".zst":
        path.write_bytes(zstandard.ZstdCompressor().compress(data))
    else:
        path.write_bytes(data)
    return path


def lines(count: int, size: int = 10) -> bytes:
    rows = (json.dumps({"text": f"line {i} " + "ab" * (i % size)}) for i in range(count))
    return "".join(f"{row}\n" for row in rows).encode()


@pytest.mark.parametrize("suffix", [".gz", ".zst", ""])
def test_lines_of_compressed_files_are_those_of_plain_ones(tmp_path: Path, suffix: str):
    data = b"\n\n" + lines(5000, 400) + b'\n{"text": "the last, without an end"}'
    path = write(tmp_path / f"rows.jsonl{suffix}", data)
    found = texts(Source(kind="jsonl", path=str(path)))
    assert len(found) == 5001
    assert found[f"rows.jsonl{suffix}:3"] == "line 0 "
    assert found[f"rows.jsonl{suffix}:5004"] == "the last, without an end"


@settings(max_examples=60, deadline=None)
@given(st.lists(st.binary(max_size=40), max_size=60), st.integers(1, 64))
def test_packing_keeps_every_line(tmp_path_factory: pytest.TempPathFactory, rows: Any, block: int):
    tmp_path = tmp_path_factory.mktemp("packed")
    data = b"\n".join(row.replace(b"\n", b" ") for row in rows)
    path = write(tmp_path / "x.jsonl.gz", data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packed, "_BLOCK_BYTES", block)
        patch.setattr(packed, "_CHUNK_BYTES", 1 + block // 3)
        target, found = packed.pack(str(path), tmp_path)
        kept = {
            int(number): packed.line(target, int(offset), int(length), int(number))
            for offset, length, number in zip(
                found.offsets, found.lengths, found.positions, strict=True
            )
        }
    expected = enumerate(data.split(b"\n"), start=1)
    assert kept == {number: row for number, row in expected if row.strip()}


def test_a_packed_file_is_made_once_and_again_when_the_original_changes(
    tmp_path: Path, cache: Path
):
    path = write(tmp_path / "rows.jsonl.gz", lines(10))
    source = Source(kind="jsonl", path=str(path))
    for _ in range(2):
        texts(source)
    assert len(list((cache / "trireme" / "packed").iterdir())) == 1
    write(path, lines(11))
    os.utime(path, ns=(1, 1))
    assert len(texts(source)) == 11
    assert len(list((cache / "trireme" / "packed").iterdir())) == 2


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_compressed_file_that_was_cut_short_is_named(tmp_path: Path, suffix: str):
    path = write(tmp_path / f"rows.jsonl{suffix}", lines(5000, 400))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(SourceError, match=rf"rows\.jsonl\{suffix} is not whole"):
        list_corpus((Source(kind="jsonl", path=str(path)),))


def test_a_packed_file_that_was_damaged_or_deleted_refuses_its_samples(tmp_path: Path, cache: Path):
    path = write(tmp_path / "rows.jsonl.gz", lines(10))
    corpus, _ = list_corpus((Source(kind="jsonl", path=str(path)),))
    (made,) = (cache / "trireme" / "packed").iterdir()
    made.write_bytes(b"\x28\xb5\x2f\xfd" + os.urandom(90))
    with pytest.raises(SampleProblem, match="unreadable"):
        read(State(), corpus.ref(3), OPTIONS)
    made.unlink()
    with pytest.raises(SampleProblem, match="vanished"):
        read(State(), corpus.ref(4), OPTIONS)


# --- Hugging Face folders -------------------------------------------------------------------------


def saved(path: Path, rows: list[str], files: int = 2) -> None:
    """What `datasets.Dataset.save_to_disk` writes."""
    path.mkdir(parents=True)
    names: list[dict[str, str]] = []
    for i in range(files):
        name = f"data-{i:05}-of-{files:05}.arrow"
        table = pa.table({"text": rows[i::files], "licence": ["MIT"] * len(rows[i::files])})
        with (
            pa.OSFile(str(path / name), "wb") as sink,
            pa.ipc.new_stream(sink, table.schema) as writer,
        ):
            writer.write_table(table, max_chunksize=3)
        names.append({"filename": name})
    (path / "state.json").write_text(json.dumps({"_data_files": names, "_fingerprint": "x"}))
    (path / "dataset_info.json").write_text("{}")


def test_a_saved_data_set_is_read_row_by_row(tmp_path: Path):
    saved(tmp_path / "set", [f"row {i}" for i in range(20)])
    found = texts(Source(kind="huggingface", path=str(tmp_path / "set")))
    assert sorted(found.values()) == sorted(f"row {i}" for i in range(20))
    assert found["set/data-00001-of-00002.arrow[3]"] == "row 7"


def test_of_a_saved_dictionary_one_split_is_taken(tmp_path: Path):
    for split in ("train", "test"):
        saved(tmp_path / "set" / split, [f"{split} {i}" for i in range(4)], files=1)
    (tmp_path / "set" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    source = Source(kind="huggingface", path=str(tmp_path / "set"), split="test")
    assert sorted(texts(source).values()) == [f"test {i}" for i in range(4)]
    with pytest.raises(SourceError, match="no split 'dev'; accepted: train, test"):
        list_corpus((Source(kind="huggingface", path=str(tmp_path / "set"), split="dev"),))


def parquet(path: Path, rows: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"text": pa.array(rows, pa.string())}), path, row_group_size=2)


def test_of_a_folder_from_the_hub_the_files_of_a_split_are_taken(tmp_path: Path):
    root = tmp_path / "hub"
    parquet(root / "data" / "train-00000-of-00002.parquet", ["a", "b", "c"])
    parquet(root / "data" / "train-00001-of-00002.parquet", ["d"])
    parquet(root / "data" / "validation-00000-of-00001.parquet", ["v"])
    parquet(root / "data" / "python_only-00000-of-00001.parquet", ["p"])
    write(root / "data" / "train.jsonl", lines(3))  # the same rows in another format
    parquet(root / ".cache" / "train-00000-of-00001.parquet", ["hidden"])
    by_split = {
        split: sorted(texts(Source(kind="huggingface", path=str(root), split=split)).values())
        for split in ("train", "validation", "python_only")
    }
    assert by_split == {
        "train": ["a", "b", "c", "d"], "validation": ["v"], "python_only": ["p"]
    }  # fmt: skip


def test_splits_may_be_directories_and_files_compressed(tmp_path: Path):
    write(tmp_path / "hub" / "train" / "0.jsonl.zst", lines(3))
    write(tmp_path / "hub" / "test" / "0.jsonl.gz", lines(2))
    assert len(texts(Source(kind="huggingface", path=str(tmp_path / "hub")))) == 3
    source = Source(kind="huggingface", path=str(tmp_path / "hub"), split="test")
    assert len(texts(source)) == 2


def test_where_no_name_tells_a_split_all_is_training(tmp_path: Path):
    parquet(tmp_path / "hub" / "part-0.parquet", ["a"])
    parquet(tmp_path / "hub" / "part-1.parquet", ["b"])
    assert len(texts(Source(kind="huggingface", path=str(tmp_path / "hub")))) == 2


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("README.md", "# hello", "holds neither what `save_to_disk` writes"),
        ("state.json", "{]", "not as `save_to_disk` writes it"),
        ("state.json", "{}", "not as `save_to_disk` writes it"),
        ("x.parquet", "no", "is not a parquet file"),
        ("x.arrow", "no", "holds neither"),
    ],
)
def test_what_is_no_data_set_is_said_in_words(tmp_path: Path, name: str, content: str, why: str):
    root = tmp_path / "set"
    write(root / name, content.encode())
    with pytest.raises(SourceError, match=why):
        list_corpus((Source(kind="huggingface", path=str(root)),))


def test_a_folder_without_any_row_is_said_in_words(tmp_path: Path):
    parquet(tmp_path / "set" / "x.parquet", [])
    with pytest.raises(SourceError, match="no sample in any source"):
        list_corpus((Source(kind="huggingface", path=str(tmp_path / "set")),))


def test_a_file_that_shrinks_while_it_is_read_refuses_its_rows(tmp_path: Path):
    path = tmp_path / "x.parquet"
    parquet(path, [f"row {i}" for i in range(10)])
    corpus, _ = list_corpus((Source(kind="parquet", path=str(path)),))
    assert read(State(), corpus.ref(9), OPTIONS).text == b"row 9"
    parquet(path, ["row 0"])
    with pytest.raises(SampleProblem, match="row 9 is gone"):
        read(State(), corpus.ref(9), OPTIONS)
    pq.write_table(pa.table({"other": ["x"]}), path)
    with pytest.raises(SampleProblem, match="no column 'text'; it has other"):
        read(State(), corpus.ref(0), OPTIONS)
