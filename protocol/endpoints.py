"""Which addresses may be used, and how sockets on them are set up.

Local sockets lie in a private directory; tcp is only spoken with keys.
"""

import os
import stat
from pathlib import Path

from protocol.channels import Channel
from protocol.errors import EndpointError

# sun_path has 108 bytes; a listener adds its incarnation.
MAX_PATH_BYTES = 100
# A peer that connects and then says nothing intelligible is dropped after this.
HANDSHAKE_MS = 5000
# tcp only: a peer behind a dead link or a forgetful NAT is dropped after the timeout.
HEARTBEAT_MS, HEARTBEAT_TIMEOUT_MS = 2000, 6000


def check_endpoint(name: str, channel: Channel, endpoint: str, keys: bool) -> None:
    """Raise `EndpointError` unless channel `name` may be reached at `endpoint`."""
    scheme, separator, rest = endpoint.partition("://")
    if not separator or scheme not in {"ipc", "tcp"} or not rest:
        raise EndpointError(f"{endpoint!r}: an endpoint is ipc://PATH or tcp://HOST:PORT")
    if channel.curve and not keys:
        raise EndpointError(f"channel {name} is never opened without keys")
    if scheme == "tcp":
        if not (channel.curve and keys):
            raise EndpointError(f"{endpoint}: tcp is only spoken with keys, and {name} has none")
        return
    path = Path(rest)
    if len(os.fsencode(path)) > MAX_PATH_BYTES:
        raise EndpointError(
            f"{path}: longer than the {MAX_PATH_BYTES} bytes a socket path may have; set TMPDIR "
            "to a shorter directory"
        )
    try:
        found = path.parent.stat()
    except OSError as error:
        raise EndpointError(f"socket directory {path.parent}: {error.strerror}") from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise EndpointError(
            f"socket directory {path.parent} must belong to this user and be closed to others: "
            f"`chmod 700 {path.parent}`"
        )


def point(public: Path, own: Path) -> None:
    """Make `public` lead to `own`, in one instant."""
    link = own.with_name(f"{own.name}.link")
    link.unlink(missing_ok=True)
    link.symlink_to(own.name)
    link.replace(public)


def socket_options(channel: Channel, *, router: bool, tcp: bool) -> dict[str, int]:
    """ZeroMQ's options, by name, of a socket of `channel`. No mark and no wait is unlimited."""
    options = {
        "SNDHWM": channel.high_water,
        "RCVHWM": channel.high_water,
        "LINGER": round(channel.linger_s * 1000),
        "MAXMSGSIZE": channel.max_part_bytes,
        "HANDSHAKE_IVL": HANDSHAKE_MS,
        # A replaced local peer is back in tens of milliseconds, and trying costs microseconds.
        "RECONNECT_IVL": 100 if tcp else 20,
        "RECONNECT_IVL_MAX": 2000 if tcp else 40,
    }
    if router:
        # A new connection takes over the address of a dead one that nobody has noticed yet. Not
        # where peers come with keys: there the ROUTER makes up addresses, and none may be stolen.
        options |= {"ROUTER_MANDATORY": 1, "ROUTER_HANDOVER": 0 if channel.curve else 1}
    if tcp:
        options |= {
            "HEARTBEAT_IVL": HEARTBEAT_MS,
            "HEARTBEAT_TIMEOUT": HEARTBEAT_TIMEOUT_MS,
            "HEARTBEAT_TTL": HEARTBEAT_TIMEOUT_MS,
            "TCP_KEEPALIVE": 1,
            "CONNECT_TIMEOUT": HANDSHAKE_MS,
        }
    return options
