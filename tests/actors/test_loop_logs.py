"""Log records are plain, bounded, and carry no secret."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors import logs
from actors.seat import Seat
from protocol import codec
from protocol.keys import KeyFile
from protocol.messages import LogRecord

SECRET = "D:)Q[IlAW!ahhC2ac:9*A}h:p?([4%wOTJ%JR%cs"


@pytest.fixture
def records() -> list[logs.Record]:
    return []


def logger(records: list[logs.Record], level: str = "info") -> Any:
    facts = {"actor": "trainer/0", "incarnation": 2, "step": 7}
    return logs.make_logger(records.append, lambda: facts, level=level)


def test_a_record_says_who_when_and_what(records: list[logs.Record]):
    logger(records).bind(rank=1).warning("slow step", seconds=2.5)
    (record,) = records
    assert record.pop("timestamp").endswith("+00:00")
    assert record == {
        "actor": "trainer/0",
        "incarnation": 2,
        "step": 7,
        "rank": 1,
        "level": "warning",
        "event": "slow step",
        "seconds": 2.5,
    }


def test_events_below_the_level_cost_nothing(records: list[logs.Record]):
    logger(records).debug("detail")
    logger(records, "debug").debug("detail")
    assert len(records) == 1


def test_an_exception_becomes_text_with_its_traceback(records: list[logs.Record]):
    try:
        int("seven")
    except ValueError:
        logger(records).exception("reading failed")
    assert "ValueError: invalid literal" in records[0]["exception"]
    assert "test_loop_logs.py" in records[0]["exception"]


def test_secrets_are_hidden_by_name_and_by_type(records: list[logs.Record]):
    key = KeyFile(
        role="data_worker",
        label="attic",
        endpoint="tcp://x:1",
        server_key="s",
        public_key="p",
        secret_key=SECRET,
    )
    logger(records).info("invited", secret_key=SECRET, key=key, nested={"Password": SECRET, "n": 1})
    assert SECRET not in json.dumps(records)
    assert records[0]["nested"] == {"Password": logs.HIDDEN, "n": 1}
    assert "attic" in records[0]["key"]


def test_long_texts_keep_both_ends(records: list[logs.Record]):
    logger(records).info("x", text="a" * 9000 + "the end")
    assert len(records[0]["text"]) < logs.MAX_TEXT + 100
    assert records[0]["text"].endswith("the end")


@given(
    st.dictionaries(
        st.text(max_size=10),
        st.recursive(
            st.none()
            | st.integers()
            | st.floats()
            | st.text(st.characters(), max_size=20)
            | st.binary(max_size=5)
            | st.builds(object),
            lambda inner: (
                st.lists(inner)
                | st.dictionaries(st.integers() | st.text(), inner)
                | st.tuples(inner)
            ),
            max_leaves=20,
        ),
        max_size=5,
    )
)
def test_whatever_is_logged_can_be_sent(event: dict[str, Any]):
    record = logs.plain_record(event)
    body = codec.pack_body(LogRecord(record=record))
    assert len(body) < codec.MAX_BODY_BYTES


def test_a_seat_travels_as_json():
    seat = Seat(
        run_dir="/runs/a",
        run_id="0123abcd",
        socket_dir="/tmp/t",
        name="trainer/0",
        role="trainer",
        cpus=(2, 3),
    )
    assert msgspec.json.decode(msgspec.json.encode(seat), type=Seat) == seat
