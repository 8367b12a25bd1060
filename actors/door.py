"""A door for other hosts: a tcp endpoint with CURVE, opened by the first invitation.

The loader has one for data workers and one for standbys, every stand-in one for the trainer of its
rank. Who was invited, the run's own keys and the doors' ports are kept in the run directory, so
whoever replaces the owner of a door opens the same one again and guests find it where it was.
"""

import socket
from collections.abc import Callable
from pathlib import Path

from actors.topology import RemoteSpec
from protocol.errors import EndpointError
from protocol.keys import AllowList, ServerCurve, server_keys
from protocol.messages import Invitation, InviteRequest, Role
from protocol.transport import new_keypair

# Binds a curve-protected endpoint; returns it with its real port. Raises `EndpointError`.
Bind = Callable[[str, ServerCurve], str]


class Door:
    """Opens and stays open. Lets in whom it has invited, and nobody with a key for another."""

    def __init__(
        self,
        keys: Path,
        spec: RemoteSpec,
        bind: Bind,
        *,
        role: Role = "data_worker",
        rank: int = -1,
        nth: int = 0,
    ) -> None:
        """`rank`: of the trainer that may enter. `nth`: counts a run's doors from 0, for their
        ports are in a row where the topology names one.
        """
        self._spec = spec
        self._bind = bind
        self._keys = keys
        self._wanted_port = spec.port + nth if spec.port else 0
        self._rank = rank
        ports = {"data_worker": "port", "trainer": f"port-trainer-{rank}"}
        self._port_file = keys / ports.get(role, f"port-{role}")
        self._allow = AllowList(keys / "allowed", role, rank)
        self._curve: ServerCurve | None = None
        self._port = 0

    @property
    def is_open(self) -> bool:
        """Does anything listen?"""
        return self._curve is not None

    @property
    def was_opened(self) -> bool:
        """Has this run invited anybody here, in whichever life of the door's owner?"""
        return self._port_file.exists()

    def open(self) -> None:
        """Listen, on the port of last time if there was one. Raises `EndpointError`."""
        if self._curve is not None:
            return
        try:
            self._keys.mkdir(mode=0o700, exist_ok=True)
            keys = server_keys(self._keys / "server.json", new_keypair)
            port = self._known_port()
        except OSError as error:
            raise EndpointError(f"{self._keys} cannot be used: {error.strerror}") from error
        curve = ServerCurve(keys.public_key, keys.secret_key, self._allow)
        try:
            actual = self._bind(f"tcp://{_bracketed(self._spec.host)}:{port or '*'}", curve)
        except EndpointError as error:
            hint = (
                "choose another remote.port, or 0 for any free one" if port else "see remote.host"
            )
            raise EndpointError(f"{error}; {hint}") from error
        self._port = int(actual.rpartition(":")[2])
        self._port_file.write_text(f"{self._port}\n", encoding="ascii")
        self._curve = curve

    def invite(self, request: InviteRequest) -> Invitation:
        """Let a key in, and say where to knock; or why not."""
        try:
            self._allow.admit(request.role, request.label, request.public_key)
            self.open()
        except (ValueError, EndpointError) as error:
            return refusal(request, str(error))
        except OSError as error:
            return refusal(request, f"{self._keys} cannot be written: {error.strerror}")
        assert self._curve is not None
        return Invitation(
            public_key=request.public_key,
            endpoint=self.endpoint,
            server_key=self._curve.public_key,
            rank=self._rank,
        )

    @property
    def endpoint(self) -> str:
        """Where others reach it, as far as this host can tell."""
        host = self._spec.host
        if host in ("0.0.0.0", "::", "*"):  # noqa: S104 - compared, not bound
            host = own_address()
        return f"tcp://{_bracketed(host)}:{self._port}"

    def _known_port(self) -> int:
        if not self._port_file.exists():
            return self._wanted_port
        text = self._port_file.read_text(encoding="ascii").strip()
        return int(text) if text.isdecimal() else self._wanted_port


def refusal(request: InviteRequest, why: str) -> Invitation:
    """Nobody is let in."""
    return Invitation(public_key=request.public_key, endpoint="", server_key="", refused=why)


def own_address() -> str:
    """The address other hosts most likely reach us by; 127.0.0.1 without a network."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # picks a route; nothing is sent
        except OSError:
            return "127.0.0.1"
        return str(probe.getsockname()[0])


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
