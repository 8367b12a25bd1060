"""Journal files: whatever befalls their ends, what is read was written."""

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors import journal
from actors.journal import Writer

RECORDS = st.lists(
    st.tuples(st.binary(max_size=40), st.lists(st.binary(max_size=60), max_size=3)), max_size=6
)


def written(path: Path, records: list[tuple[bytes, list[bytes]]]) -> list[tuple[bytes, bytes]]:
    writer = Writer(path)
    for header, body in records:
        writer.append(header, body)
    writer.close()
    return [(header, b"".join(body)) for header, body in records]


def read(path: Path, torn: list[str] | None = None) -> list[tuple[bytes, bytes]]:
    on_torn = pytest.fail if torn is None else torn.append
    return [(found.header, found.body()) for found in journal.records(path, on_torn)]


@given(RECORDS)
def test_what_was_written_is_read(records: list[tuple[bytes, list[bytes]]]):
    with TemporaryDirectory() as directory:
        path = Path(directory) / "j"
        assert written(path, records) == read(path)


@given(RECORDS, st.data())
def test_a_torn_end_costs_what_was_torn(
    records: list[tuple[bytes, list[bytes]]], data: st.DataObject
):
    with TemporaryDirectory() as directory:
        path = Path(directory) / "j"
        whole = written(path, records)
        raw = path.read_bytes()
        ends = [found.end for found in journal.records(path, pytest.fail)]
        size = data.draw(st.integers(0, len(raw)))
        path.write_bytes(raw[:size])
        torn: list[str] = []
        assert read(path, torn) == whole[: sum(end <= size for end in ends)]
        assert bool(torn) == (size not in {0, *ends})
        assert all(str(path) in why for why in torn)


@given(RECORDS, st.data())
def test_a_damaged_byte_is_never_read(
    records: list[tuple[bytes, list[bytes]]], data: st.DataObject
):
    with TemporaryDirectory() as directory:
        path = Path(directory) / "j"
        whole = written(path, [*records, (b"last", [b"one"])])
        raw = bytearray(path.read_bytes())
        raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
        path.write_bytes(raw)
        torn: list[str] = []
        found = read(path, torn)
        assert found == whole[: len(found)]
        assert len(found) < len(whole)
        assert len(torn) == 1


def test_reading_goes_on_where_it_stopped(tmp_path: Path):
    writer = Writer(tmp_path / "j")
    writer.append(b"one")
    [first] = journal.records(tmp_path / "j", pytest.fail)
    writer.append(b"two", [b"body"])
    writer.close()
    [second] = journal.records(tmp_path / "j", pytest.fail, first.end)
    assert (second.header, second.body()) == (b"two", b"body")
    assert second._replace(header=b"").again() == second


def test_a_file_is_begun_once(tmp_path: Path):
    Writer(tmp_path / "j").close()
    with pytest.raises(FileExistsError):
        Writer(tmp_path / "j")


def test_names_say_what_files_are():
    part = journal.Part(1, 100, 12)
    assert journal.part_of(part.name) == part
    assert journal.part_of("ledger-0001.journal") is None
    copy, notes = journal.ledger_names(3)
    assert journal.ledger_number(copy) == journal.ledger_number(notes) == 3
    assert journal.ledger_number(f"{copy}.tmp") is None
    names = [journal.Part(0, step, 1).name for step in (100, 200, 300)]
    assert journal.superseded([*names, copy], 200) == names[:1]
