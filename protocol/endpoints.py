"""Which addresses may be used: local sockets in a private directory, tcp only with keys."""

import os
import stat
from pathlib import Path

from protocol.channels import Channel
from protocol.errors import EndpointError

# sun_path has 108 bytes; a listener adds its incarnation.
MAX_PATH_BYTES = 100


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
