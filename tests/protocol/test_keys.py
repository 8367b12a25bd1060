"""Keys on disk, the allow-list, ZAP replies and what a handshake's events mean. No sockets."""

import os
from pathlib import Path

import msgspec
import pytest

from protocol import keys, zap
from protocol.errors import EndpointError, Unauthorised
from protocol.handshakes import Event, Handshake
from protocol.keys import Admission, Admissions, AllowList, KeyFile

PUBLIC = "Yne@$w-vo<fVvi]a<NY6T1ed:M$fCG*[IaLV{hID"
RAW = bytes.fromhex("BB88471D65E2659B30C55A5321CEBB5AAB2B70A398645C26DCA2B2FCB43FC518")
SECRET = "D:)Q[IlAW!ahhC2ac:9*A}h:p?([4%wOTJ%JR%cs"
FILE = KeyFile(
    role="data_worker",
    label="attic",
    endpoint="tcp://192.0.2.7:40000",
    server_key=PUBLIC,
    public_key=PUBLIC,
    secret_key=SECRET,
)


def test_z85_agrees_with_the_example_of_its_rfc():
    """Key pair of RFC 26's reference implementation."""
    assert keys.z85(RAW) == PUBLIC
    assert keys.is_key(PUBLIC)
    assert not keys.is_key(PUBLIC[:-1])
    assert not keys.is_key(PUBLIC[:-1] + "~")
    with pytest.raises(ValueError, match="multiples of 4"):
        keys.z85(b"123")


def test_a_key_file_is_private_complete_and_never_replaced(tmp_path: Path):
    path = tmp_path / "attic.json"
    FILE.write(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert KeyFile.read(path) == FILE
    assert FILE.curve().secret_key == SECRET
    with pytest.raises(FileExistsError):
        FILE.write(path)
    assert os.listdir(tmp_path) == ["attic.json"]


def test_secrets_show_nowhere():
    curve = FILE.curve()
    server = keys.ServerCurve(PUBLIC, SECRET, lambda _: None)
    made = keys.ServerKeys(public_key=PUBLIC, secret_key=SECRET)
    for thing in (FILE, curve, server, made):
        assert SECRET not in f"{thing!r} {thing}"


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "not a key file"),
        (b"\xff\xfe", "not a key file"),
        (b"{}", "not a key file"),
        (b'{"role": "emperor"}', "not a key file"),
    ],
)
def test_a_file_that_is_no_key_file_is_named(tmp_path: Path, content: bytes, complaint: str):
    path = tmp_path / "key.json"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(EndpointError, match=complaint) as caught:
        KeyFile.read(path)
    assert str(path) in str(caught.value)


def test_a_key_file_others_can_read_or_that_is_absent_is_refused(tmp_path: Path):
    path = tmp_path / "key.json"
    with pytest.raises(EndpointError, match="No such file"):
        KeyFile.read(path)
    FILE.write(path)
    path.chmod(0o644)
    with pytest.raises(EndpointError, match="chmod 600"):
        KeyFile.read(path)


def test_a_key_file_with_a_broken_key_is_refused(tmp_path: Path):
    path = tmp_path / "key.json"
    msgspec.structs.replace(FILE, server_key="x").write(path)
    with pytest.raises(EndpointError, match="Z85"):
        KeyFile.read(path)


def test_a_runs_own_pair_is_made_once(tmp_path: Path):
    path = tmp_path / "server.json"
    first = keys.server_keys(path, lambda: (PUBLIC, SECRET))
    again = keys.server_keys(path, lambda: ("other", "pair"))
    assert first == again
    assert path.stat().st_mode & 0o777 == 0o600
    path.write_text("damaged")
    with pytest.raises(EndpointError, match="does not hold"):
        keys.server_keys(path, lambda: (PUBLIC, SECRET))


def test_the_files_of_the_allow_list_decide_at_every_question(tmp_path: Path):
    allow = AllowList(tmp_path / "allowed")
    assert allow(PUBLIC) is None
    allow.admit("data_worker", "attic", PUBLIC)
    allow.admit("data_worker", "attic", PUBLIC)
    assert AllowList(tmp_path / "allowed")(PUBLIC) == Admission("data_worker", "attic")
    assert allow(SECRET) is None
    (tmp_path / "allowed" / "damaged.json").write_bytes(b"\xff{")
    assert allow(PUBLIC) is not None
    assert "attic" in allow.labels("data_worker")
    assert allow.revoke("data_worker", "attic")
    assert not allow.revoke("data_worker", "attic")
    assert not allow.revoke("data_worker", "../damaged")
    assert "attic" not in allow.labels("data_worker")
    assert allow(PUBLIC) is None


@pytest.mark.parametrize(
    ("role", "label", "key", "complaint"),
    [
        ("rollout", "attic", PUBLIC, "only data_worker or trainer or standby can"),
        ("data_worker", "../attic", PUBLIC, "label"),
        ("data_worker", "a-b", PUBLIC, "label"),
        ("data_worker", "", PUBLIC, "label"),
        ("data_worker", "attic", "short", "Z85"),
        ("data_worker", "taken", PUBLIC, "already"),
    ],
)
def test_a_bad_invitation_says_what_would_be_accepted(
    tmp_path: Path, role: str, label: str, key: str, complaint: str
):
    allow = AllowList(tmp_path)
    allow.admit("data_worker", "taken", SECRET)
    with pytest.raises(ValueError, match=complaint):
        allow.admit(role, label, key)  # pyright: ignore[reportArgumentType]


def test_what_the_allow_list_said_is_good_for_a_second():
    said: dict[str, Admission | None] = {PUBLIC: Admission("data_worker", "attic")}
    admissions = Admissions(said.get)
    assert admissions.of(PUBLIC, 10.0) is not None
    said[PUBLIC] = None
    assert admissions.of(PUBLIC, 10.9) is not None
    assert admissions.of(PUBLIC, 11.1) is None


def test_an_allow_list_that_cannot_be_read_admits_nobody():
    def unreadable(_key: str) -> Admission | None:
        raise PermissionError("no")

    assert Admissions(unreadable).of(PUBLIC, 0.0) is None
    verdict = zap.answer(REQUEST, {b"remote": unreadable})
    assert (verdict.reply[2], "cannot be read" in verdict.refused) == (b"400", True)


REQUEST = [b"1.0", b"17", b"remote", b"192.0.2.9", b"", b"CURVE", RAW]


def test_an_admitted_key_becomes_the_user_id():
    verdict = zap.answer(REQUEST, {b"remote": lambda _: Admission("data_worker", "attic")})
    assert verdict.reply == [b"1.0", b"17", b"200", b"OK", PUBLIC.encode(), b""]
    assert verdict.refused == ""


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (REQUEST, f"192.0.2.9: key {PUBLIC} is not on the allow-list"),
        ([*REQUEST[:5], b"NULL"], "not CURVE"),
        ([*REQUEST[:5], b"PLAIN", b"user", b"password"], "not CURVE"),
        ([*REQUEST[:2], b"samples", *REQUEST[3:]], "no channel of ours"),
        ([*REQUEST[:6], b"short"], "no channel of ours"),
        ([], "not CURVE"),
    ],
)
def test_everybody_else_is_refused_in_words(request_: list[bytes], words: str):
    verdict = zap.answer(request_, {b"remote": lambda _: None})
    assert verdict.reply[2] == b"400"
    assert words in verdict.refused


@pytest.mark.parametrize(
    ("events", "up", "final", "words"),
    [
        (["connected", "succeeded"], True, False, ""),
        (["retried"], False, False, "nobody listens"),
        (["retried", "connected", "succeeded"], True, False, ""),
        (["connected", "unauthorised", "disconnected"], False, True, "refuses this key"),
        (["connected", "disconnected", "retried"], False, True, "broke off the handshake"),
        (["connected", "broken"], False, True, "broke off the handshake"),
        (["connected", "succeeded", "disconnected"], False, False, ""),
        (["connected", "succeeded", "disconnected", "unauthorised"], False, True, "refuses"),
    ],
)
def test_the_order_of_events_tells_what_happened(
    events: list[Event], up: bool, final: bool, words: str
):
    handshake = Handshake("tcp://192.0.2.7:40000")
    for event in events:
        handshake.heard(event)
    assert (handshake.up, handshake.final) == (up, final)
    assert words in handshake.trouble
    assert bool(handshake.trouble) == bool(words)


def test_silence_has_words_too():
    assert "no answer from tcp://x:1 within 8 s" in str(Handshake("tcp://x:1").refusal(8.0))


def test_only_a_key_that_is_refused_is_final_for_those_who_come_back():
    handshake = Handshake("tcp://x:1")
    handshake.heard("disconnected")
    assert not isinstance(handshake.refusal(8.0), Unauthorised)
    handshake.heard("unauthorised")
    assert isinstance(handshake.refusal(8.0), Unauthorised)


def test_a_key_opens_the_door_it_was_made_for(tmp_path: Path):
    AllowList(tmp_path, "data_worker").admit("data_worker", "attic", PUBLIC)
    AllowList(tmp_path, "trainer", 1).admit("trainer", "attic", SECRET)
    doors = {
        "loader": AllowList(tmp_path, "data_worker"),
        "rank 1": AllowList(tmp_path, "trainer", 1),
        "rank 2": AllowList(tmp_path, "trainer", 2),
    }
    opened = {name: (bool(door(PUBLIC)), bool(door(SECRET))) for name, door in doors.items()}
    assert opened == {"loader": (True, False), "rank 1": (False, True), "rank 2": (False, False)}
    assert doors["rank 1"].ranks() == {1: "attic"}


def test_a_rank_is_given_once(tmp_path: Path):
    door = AllowList(tmp_path, "trainer", 1)
    door.admit("trainer", "attic", PUBLIC)
    with pytest.raises(ValueError, match="somebody else"):
        door.admit("trainer", "cellar", SECRET)
    with pytest.raises(ValueError, match="only trainer can"):
        door.admit("data_worker", "cellar", SECRET)
    assert door.revoke("trainer", "attic")
    door.admit("trainer", "cellar", SECRET)
    assert door.ranks() == {1: "cellar"}
