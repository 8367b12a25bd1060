"""CURVE keys on disk: key files for invited hosts, and the allow-list a run keeps of them.

Keys are Z85 text. Secret halves are in files of mode 0600 and in no log: their classes hide them
in `repr`. Revoking a key is removing its file from the allow-list.
"""

import contextlib
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from protocol.errors import EndpointError
from protocol.messages import Role

_LABEL = re.compile(r"[A-Za-z0-9_.]{1,64}")
_Z85 = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"
KEY_CHARS = 40
# Roles that may be played on other hosts.
INVITED: tuple[Role, ...] = ("data_worker", "trainer", "standby")


@dataclass(frozen=True, slots=True)
class Admission:
    """What a key entitles its holder to: a role, and names that begin with `label`."""

    role: Role
    label: str

    def covers(self, name: str) -> bool:
        """Is `name` ("data_worker/LABEL" or "data_worker/LABEL-...") one the holder may bear?"""
        mine = f"{self.role}/{self.label}"
        return name == mine or name.startswith(f"{mine}-")


Allow = Callable[[str], Admission | None]


@dataclass(frozen=True, slots=True)
class ServerCurve:
    """Keys of a listening endpoint, and whom it lets in (asked at every handshake)."""

    public_key: str
    secret_key: str = field(repr=False)
    allow: Allow


@dataclass(frozen=True, slots=True)
class ClientCurve:
    """Keys of a connecting host, and the key of the server it expects to meet."""

    public_key: str
    secret_key: str = field(repr=False)
    server_key: str


class KeyFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an invited host holds: where to knock, whom to expect, and who it is."""

    role: Role
    label: str
    endpoint: str
    server_key: str
    public_key: str
    secret_key: str
    rank: int = -1  # of a trainer

    def __repr__(self) -> str:
        return f"KeyFile(role={self.role!r}, label={self.label!r}, endpoint={self.endpoint!r}, ...)"

    @property
    def channel(self) -> str:
        """What its holder connects to."""
        if self.role == "trainer":
            return f"rank/{self.rank}"
        return "standby" if self.role == "standby" else "remote"

    def curve(self) -> ClientCurve:
        """The keys, as `Node.connect` wants them."""
        return ClientCurve(self.public_key, self.secret_key, self.server_key)

    def write(self, path: Path) -> None:
        """Write to `path`, 0600, replacing nothing. Raises `FileExistsError`, `OSError`."""
        _write_private(path, msgspec.json.format(msgspec.json.encode(self)))

    @classmethod
    def read(cls, path: Path) -> "KeyFile":
        """The key in `path`. Raises `EndpointError`, which says what is wrong with the file."""
        try:
            mode = path.stat().st_mode
            text = path.read_bytes()
        except OSError as error:
            raise EndpointError(f"cannot read key file {path}: {error.strerror}") from error
        if mode & 0o077:
            raise EndpointError(f"key file {path} can be read by others: `chmod 600 {path}` first")
        try:
            found = msgspec.json.decode(text, type=cls)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise EndpointError(f"{path} is not a key file of `run.py invite`: {error}") from error
        for key in (found.server_key, found.public_key, found.secret_key):
            if not is_key(key):
                raise EndpointError(f"{path}: a key is not {KEY_CHARS} characters of Z85")
        return found


class ServerKeys(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The key pair of a run's remote endpoint, kept so that a restarted loader is the same one."""

    public_key: str
    secret_key: str

    def __repr__(self) -> str:
        return f"ServerKeys(public_key={self.public_key!r}, ...)"


def server_keys(path: Path, new_keypair: Callable[[], tuple[str, str]]) -> ServerKeys:
    """The pair stored at `path`, made now if it was not. Raises `EndpointError`, `OSError`."""
    if not path.exists():
        public_key, secret_key = new_keypair()
        made = ServerKeys(public_key=public_key, secret_key=secret_key)
        with contextlib.suppress(FileExistsError):  # made this moment by another of our endpoints
            _write_private(path, msgspec.json.encode(made))
    try:
        return msgspec.json.decode(path.read_bytes(), type=ServerKeys)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise EndpointError(f"{path} does not hold the run's key pair: {error}") from error


class _Allowed(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    role: Role
    label: str
    public_key: str
    rank: int = -1  # of a trainer


class AllowList:
    """A directory with one file per admitted key. Read anew at every question: files decide."""

    def __init__(self, directory: Path, role: Role | None = None, rank: int = -1) -> None:
        """`role`, `rank`: what holders must be to get in here; None: whatever they were invited as.
        A trainer is invited as one rank.
        """
        self._directory, self._role, self._rank = directory, role, rank

    def admit(self, role: Role, label: str, public_key: str) -> None:
        """Let the holder of `public_key` in. Raises `ValueError` for bad labels, roles, keys."""
        if role not in INVITED or role != (self._role or role):
            allowed = self._role or " or ".join(INVITED)
            raise ValueError(f"role {role!r} cannot be invited here; only {allowed} can")
        if not _LABEL.fullmatch(label):
            raise ValueError(f"label {label!r}: 1 to 64 letters, digits, '_' or '.'")
        if not is_key(public_key):
            raise ValueError(f"public key: {KEY_CHARS} characters of Z85 are needed")
        path = self._directory / f"{role}-{label}.json"
        if path.exists() and msgspec.json.decode(path.read_bytes(), type=_Allowed).public_key != (
            public_key
        ):
            raise ValueError(f"label {label!r} has been invited already; choose another --label")
        if role == "trainer" and self.ranks().get(self._rank, label) != label:
            raise ValueError(f"rank {self._rank} has just been given to somebody else; try again")
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        allowed = _Allowed(role=role, label=label, public_key=public_key, rank=self._rank)
        if not path.exists():
            _write_private(path, msgspec.json.encode(allowed))

    def labels(self, role: Role) -> list[str]:
        """Who has been invited as `role`."""
        return sorted(path.stem.removeprefix(f"{role}-") for path in self._files(role))

    def ranks(self) -> dict[int, str]:
        """Whose each rank is that somebody was invited as."""
        return {found.rank: found.label for found in self._read("trainer")}

    def _read(self, role: str = "") -> Iterator[_Allowed]:
        for path in self._files(role):
            try:
                yield msgspec.json.decode(path.read_bytes(), type=_Allowed)
            except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
                continue

    def _files(self, role: str = "") -> list[Path]:
        return sorted(self._directory.glob(f"{role}*.json"))

    def revoke(self, role: Role, label: str) -> bool:
        """Let that holder in no more. False when it was not on the list. Raises `OSError`."""
        if not _LABEL.fullmatch(label):
            return False
        path = self._directory / f"{role}-{label}.json"
        existed = path.exists()
        path.unlink(missing_ok=True)
        return existed

    def __call__(self, public_key: str) -> Admission | None:
        """What `public_key` entitles to now; None: nothing. Unreadable files admit nobody."""
        for found in self._read():
            if found.public_key == public_key:
                here = self._role is None or (found.role, found.rank) == (self._role, self._rank)
                return Admission(found.role, found.label) if here else None
        return None


class Admissions:
    """Remembers for a moment what an allow-list said, so that it can be asked at every message.

    Revoking a key thus reaches peers that are connected already.
    """

    # A revoked key is heard for at most this much longer.
    FRESH_S = 1.0

    def __init__(self, allow: Allow) -> None:
        self._allow = allow
        self._said: dict[str, tuple[float, Admission | None]] = {}

    def of(self, public_key: str, now: float) -> Admission | None:
        """What `public_key` entitles to. An allow-list that cannot be read admits nobody."""
        found = self._said.get(public_key)
        if found is None or now - found[0] > self.FRESH_S:
            try:
                found = (now, self._allow(public_key))
            except OSError:
                found = (now, None)
            self._said[public_key] = found
        return found[1]


def is_key(text: str) -> bool:
    """Is this the Z85 text of 32 bytes?"""
    return len(text) == KEY_CHARS and set(text) <= set(_Z85)


def z85(raw: bytes) -> str:
    """Z85 text of `raw`, whose length is a multiple of 4 (ZeroMQ RFC 32)."""
    if len(raw) % 4:
        raise ValueError(f"Z85 encodes multiples of 4 bytes, got {len(raw)}")
    out: list[str] = []
    for start in range(0, len(raw), 4):
        value = int.from_bytes(raw[start : start + 4], "big")
        out.extend(_Z85[value // 85**power % 85] for power in (4, 3, 2, 1, 0))
    return "".join(out)


def _write_private(path: Path, content: bytes) -> None:
    """Create `path`, 0600 from its first moment, complete from the moment it has its name."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    fd = os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.link(partial, path)  # unlike rename, fails when `path` exists
    finally:
        partial.unlink()
