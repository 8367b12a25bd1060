"""All sockets of one process. The only file that knows ZeroMQ.

A `Node` belongs to one thread (`wake` excepted). It is polled by a blocking loop (`poll`) or
driven by an event loop that watches `filenos` and calls `drain`. Input that is malformed,
forbidden or from a past life is counted and noted, never raised.

The descriptors of ZeroMQ are edge-like: they announce that *something* happened inside a socket,
and any call on the socket, a send included, may consume the announcement. So after readability,
and after every send, an event loop calls `drain`, and again while `pending` is true.

Not covered: redelivery. What was handed to a peer that then died is gone; the messages of this
protocol are asked for again by whoever needs them.
"""

import math
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Literal, Self

import zmq
from zmq.utils.monitor import recv_monitor_message

from protocol import codec, zap
from protocol.channels import Channel, address, channel
from protocol.clock import Clock, Deadline
from protocol.endpoints import check_endpoint, point
from protocol.errors import EndpointError, Malformed, Refused, Unsendable, VersionMismatch
from protocol.gate import Gate
from protocol.keys import Admission, ClientCurve, ServerCurve
from protocol.messages import WIRE_VERSION, Envelope, Message, Role

# Messages taken from one socket before the others get their turn.
BATCH = 64
# A revoked key that is still connected stops being heard after this.
ADMISSION_FRESH_S = 1.0
HANDSHAKE_MS = 5000
# tcp only: a peer behind a dead link or a forgetful NAT is dropped after TIMEOUT.
HEARTBEAT_MS, HEARTBEAT_TIMEOUT_MS = 2000, 6000

_WATCHED = (
    zmq.EVENT_CONNECTED
    | zmq.EVENT_CONNECT_RETRIED
    | zmq.EVENT_DISCONNECTED
    | zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
)


class Sent(StrEnum):
    """What became of a message. Only SENT messages are on their way."""

    SENT = "sent"
    NO_PEER = "no peer"  # nobody of that name has been heard on this channel, or it has gone
    FULL = "full"  # the queue to that peer is at its high-water mark: try again later


@dataclass(frozen=True, slots=True)
class Received:
    """One message that passed every check. `frames` are views, valid as long as they are kept."""

    channel: str
    sender: str
    role: Role
    incarnation: int
    envelope: Envelope
    message: Message
    frames: tuple[memoryview, ...]


@dataclass(frozen=True, slots=True)
class Packed:
    """A message that has been checked and encoded, but for its envelope."""

    channel: str
    kind: str
    body: bytes
    frames: tuple[codec.Buffer, ...]
    nbytes: int


@dataclass(slots=True)
class _Port:
    """One socket and what is known about its far side."""

    name: str
    channel: Channel
    socket: "zmq.Socket[bytes]"
    side: Literal["router", "dealer", "pull", "push"]
    endpoint: str
    curve: ServerCurve | None = None
    monitor: "zmq.Socket[bytes] | None" = None
    seq: int = 0
    up: bool = False  # handshake done; only known where there is a monitor
    trouble: str = ""
    admitted: dict[str, tuple[float, Admission | None]] = field(
        default_factory=dict[str, "tuple[float, Admission | None]"]
    )


def new_keypair() -> tuple[str, str]:
    """A fresh CURVE pair: (public, secret), as Z85 text."""
    public, secret = zmq.curve_keypair()
    return public.decode(), secret.decode()


class Node:
    """The sockets of one life of one actor."""

    def __init__(
        self,
        name: str,
        role: Role,
        incarnation: int,
        clock: Clock,
        *,
        io_cpus: Collection[int] = (),
    ) -> None:
        """`io_cpus`: where ZeroMQ's own thread may run; anywhere when empty."""
        self.name = name
        self.role: Role = role
        self.incarnation = incarnation
        self.pending = False  # the last `drain` stopped at its bound
        self._clock = clock
        self._gate = Gate()
        self._ports: dict[str, _Port] = {}
        self._pollers: dict[frozenset[str] | None, zmq.Poller] = {}
        self._zap: zmq.Socket[bytes] | None = None
        self._allow: list[ServerCurve] = []
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._context = zmq.Context(io_threads=1)
        for cpu in io_cpus:
            self._context.set(zmq.THREAD_AFFINITY_CPU_ADD, cpu)
        self._context.set(zmq.BLOCKY, 0)

    # --- opening ---------------------------------------------------------------------------------

    def bind(self, name: str, endpoint: str, curve: ServerCurve | None = None) -> str:
        """Listen for `name`; returns the endpoint with its real port. Raises `EndpointError`.

        ipc endpoints must lie in a directory that only this user can enter. Each life listens on
        a file of its own and points the public name at it, so that a predecessor which closes
        late removes its own file and not ours.
        """
        spec = channel(name)
        check_endpoint(name, spec, endpoint, curve is not None)
        side = "router" if spec.kind == "router" else "pull"
        port = self._open(name, spec, side, endpoint)
        try:
            if curve is not None:
                self._guard(port, curve)
            if endpoint.startswith("ipc://"):
                own = f"{endpoint}.{self.incarnation}"
                port.socket.bind(own)
                point(Path(endpoint[6:]), Path(own[6:]))
            else:
                port.socket.bind(endpoint)
                port.endpoint = port.socket.getsockopt_string(zmq.LAST_ENDPOINT)
        except (zmq.ZMQError, OSError) as error:
            self._close_port(self._ports.pop(name), 0)
            raise EndpointError(f"cannot listen on {endpoint} for {name}: {error}") from error
        return port.endpoint

    def connect(self, name: str, endpoint: str, curve: ClientCurve | None = None) -> None:
        """Speak to whoever binds `name`, now or later. Raises `EndpointError`."""
        spec = channel(name)
        check_endpoint(name, spec, endpoint, curve is not None)
        port = self._open(name, spec, "dealer" if spec.kind == "router" else "push", endpoint)
        try:
            if curve is not None:
                port.socket.setsockopt(zmq.CURVE_SERVERKEY, curve.server_key.encode())
                port.socket.setsockopt(zmq.CURVE_PUBLICKEY, curve.public_key.encode())
                port.socket.setsockopt(zmq.CURVE_SECRETKEY, curve.secret_key.encode())
                port.monitor = port.socket.get_monitor_socket(_WATCHED)
            port.socket.connect(endpoint)
        except (zmq.ZMQError, OSError) as error:
            self._close_port(self._ports.pop(name), 0)
            raise EndpointError(f"cannot connect {name} to {endpoint}: {error}") from error

    def _open(
        self, name: str, spec: Channel, side: Literal["router", "dealer", "pull", "push"], at: str
    ) -> _Port:
        if name in self._ports:
            raise EndpointError(f"channel {name} is open already, at {self._ports[name].endpoint}")
        kinds = {"router": zmq.ROUTER, "dealer": zmq.DEALER, "pull": zmq.PULL, "push": zmq.PUSH}
        socket: zmq.Socket[bytes] = self._context.socket(kinds[side])
        options = {
            zmq.SNDHWM: spec.high_water,
            zmq.RCVHWM: spec.high_water,
            zmq.LINGER: round(spec.linger_s * 1000),
            zmq.MAXMSGSIZE: spec.max_part_bytes,
            zmq.HANDSHAKE_IVL: HANDSHAKE_MS,
            zmq.RECONNECT_IVL: 20,
            zmq.RECONNECT_IVL_MAX: 500,
        }
        if side == "router":
            options |= {zmq.ROUTER_MANDATORY: 1, zmq.ROUTER_HANDOVER: 1}
        if at.startswith("tcp://"):
            options |= {
                zmq.HEARTBEAT_IVL: HEARTBEAT_MS,
                zmq.HEARTBEAT_TIMEOUT: HEARTBEAT_TIMEOUT_MS,
                zmq.HEARTBEAT_TTL: HEARTBEAT_TIMEOUT_MS,
                zmq.TCP_KEEPALIVE: 1,
                zmq.CONNECT_TIMEOUT: HANDSHAKE_MS,
                zmq.RECONNECT_IVL: 100,
                zmq.RECONNECT_IVL_MAX: 2000,
            }
        for option, value in options.items():
            socket.setsockopt(option, value)
        if side == "dealer" and not spec.curve:
            # Peers with keys get addresses from the ROUTER: nobody can take over another's.
            socket.setsockopt(zmq.ROUTING_ID, address(self.name, self.incarnation))
        port = self._ports[name] = _Port(name, spec, socket, side, at)
        self._pollers.clear()
        return port

    def _guard(self, port: _Port, curve: ServerCurve) -> None:
        """Let only holders of listed keys in."""
        if self._zap is None:
            self._zap = self._context.socket(zmq.ROUTER)
            self._zap.setsockopt(zmq.LINGER, 0)
            self._zap.bind(zap.ENDPOINT)
        port.curve = curve
        self._allow.append(curve)
        port.socket.setsockopt(zmq.CURVE_SERVER, 1)
        port.socket.setsockopt(zmq.CURVE_SECRETKEY, curve.secret_key.encode())
        port.socket.setsockopt(zmq.ZAP_DOMAIN, zap.DOMAIN)
        port.monitor = port.socket.get_monitor_socket(_WATCHED)

    # --- speaking --------------------------------------------------------------------------------

    def send(
        self,
        name: str,
        message: Message,
        *,
        to: str = "",
        frames: Sequence[codec.Buffer] = (),
        step: int = 0,
    ) -> Sent:
        """Hand a message to ZeroMQ. Never blocks. `to` matters where this process binds.

        Telemetry that finds no room is dropped and counted. Raises `Unsendable` for messages that
        no receiver would accept.
        """
        return self.send_packed(self.pack(name, message, frames), to=to, step=step)

    def pack(self, name: str, message: Message, frames: Sequence[codec.Buffer] = ()) -> Packed:
        """Check and encode a message for channel `name`. Any thread may. Raises `Unsendable`."""
        spec, kind = channel(name), type(message).__name__
        if not spec.allows(self.role, message):
            raise Unsendable(f"{self.name} may not say {kind} on {name}: see channels.py")
        if len(frames) > codec.MAX_FRAMES:
            raise Unsendable(f"{kind} with {len(frames)} frames; the limit is {codec.MAX_FRAMES}")
        body = codec.pack_body(message)
        sizes = [memoryview(frame).nbytes for frame in frames]
        if max(sizes, default=0) > spec.max_part_bytes:
            raise Unsendable(
                f"{kind} with a frame of {max(sizes)} bytes on {name}; the limit is "
                f"{spec.max_part_bytes}"
            )
        return Packed(name, kind, body, tuple(frames), len(body) + sum(sizes))

    def send_packed(self, packed: Packed, *, to: str = "", step: int = 0) -> Sent:
        """`send` for a message packed before."""
        port = self._ports[packed.channel]
        parts: list[codec.Buffer] = []
        if port.side == "router":
            route = self._gate.route(port.name, to)
            if route is None:
                self._gate.counts["no_peer"] += 1
                return Sent.NO_PEER
            parts.append(route)
        envelope = Envelope(WIRE_VERSION, packed.kind, self.name, self.incarnation, port.seq, step)
        head = codec.pack_envelope(envelope)
        result = self._hand_over(port, [*parts, head, packed.body, *packed.frames], to)
        if result is Sent.SENT:
            port.seq += 1
            self._gate.counts["sent"] += 1
            self._gate.counts["bytes_out"] += len(head) + packed.nbytes
        elif port.side == "push":
            port.seq += 1  # the receiver sees the gap
            self._gate.counts["dropped_telemetry"] += 1
        return result

    def _hand_over(self, port: _Port, parts: list[codec.Buffer], to: str) -> Sent:
        try:
            port.socket.send_multipart(parts, zmq.NOBLOCK, copy=True)
        except zmq.Again:
            self._gate.counts["full"] += 1
            return Sent.FULL
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            self._gate.forget_route(port.name, to)
            self._gate.counts["no_peer"] += 1
            return Sent.NO_PEER
        return Sent.SENT

    # --- hearing ---------------------------------------------------------------------------------

    def poll(self, timeout_s: float, only: Collection[str] | None = None) -> list[Received]:
        """Wait up to `timeout_s` for input and return a bounded batch of it, maybe empty.

        `only`: channels to listen to; what comes on others stays queued. Returns early, empty,
        after `wake`.
        """
        key = None if only is None else frozenset(only)
        poller = self._pollers.get(key)
        if poller is None:
            poller = self._pollers[key] = self._make_poller(key)
        ready: set[zmq.Socket[bytes] | int] = {
            socket for socket, _ in poller.poll(math.ceil(max(0.0, timeout_s) * 1000))
        }
        if self._wake_fd in ready:
            self._clear_wake()
        return self._take(ready)

    def drain(self, only: Collection[str] | None = None) -> list[Received]:
        """What has arrived, without waiting; `pending` tells whether there may be more."""
        self._clear_wake()
        return self._take(set(self._listening(None if only is None else frozenset(only))))

    def filenos(self, only: Collection[str] | None = None) -> list[int]:
        """Descriptors whose readability means: call `drain` with the same `only`."""
        sockets = self._listening(None if only is None else frozenset(only))
        return [self._wake_fd, *(int(socket.getsockopt(zmq.FD)) for socket in sockets)]

    def wake(self) -> None:
        """Make a `poll` in the owning thread return. The one method other threads may call."""
        os.eventfd_write(self._wake_fd, 1)

    def _clear_wake(self) -> None:
        try:
            os.eventfd_read(self._wake_fd)
        except BlockingIOError:
            return  # nobody called

    def _listening(self, only: frozenset[str] | None) -> "list[zmq.Socket[bytes]]":
        sockets = [] if self._zap is None else [self._zap]
        for port in self._ports.values():
            if port.monitor is not None:
                sockets.append(port.monitor)
            if port.side != "push" and (only is None or port.name in only):
                sockets.append(port.socket)
        return sockets

    def _make_poller(self, only: frozenset[str] | None) -> zmq.Poller:
        poller = zmq.Poller()
        poller.register(self._wake_fd, zmq.POLLIN)
        for socket in self._listening(only):
            poller.register(socket, zmq.POLLIN)
        return poller

    def _take(self, ready: "set[zmq.Socket[bytes] | int]") -> list[Received]:
        """Read what is there from the sockets in `ready`."""
        self.pending = False
        if self._zap is not None and self._zap in ready:
            self._answer_zap(self._zap)
        taken: list[Received] = []
        for port in self._ports.values():
            if port.monitor is not None and port.monitor in ready:
                self._read_monitor(port, port.monitor)
            if port.side == "push" or port.socket not in ready:
                continue
            for _ in range(BATCH):
                try:
                    received = self._receive(port)
                except zmq.Again:
                    break
                if received is not None:
                    taken.append(received)
            else:
                self.pending = True
        return taken

    def _receive(self, port: _Port) -> Received | None:
        """One message, or None when it was dropped. Raises `zmq.Again` when nothing is there."""
        route = port.socket.recv(zmq.NOBLOCK) if port.side == "router" else None
        part = port.socket.recv(zmq.NOBLOCK, copy=False)
        parts = [part]
        while part.more:
            part = port.socket.recv(zmq.NOBLOCK, copy=False)
            if len(parts) < 3 + codec.MAX_FRAMES:  # one too many is enough to be refused
                parts.append(part)
        counts = self._gate.counts
        counts["received"] += 1
        counts["bytes_in"] += sum(len(part) for part in parts)
        try:
            decoded = codec.decode([part.buffer for part in parts])
        except Malformed as error:
            self._gate.malformed(port.name, str(error))
            return None
        except VersionMismatch as error:
            counts["other_versions"] += 1
            self._gate.note(f"{port.name}: {error}")
            return None
        admitted = None if port.curve is None else self._admission(port, port.curve, parts[0])
        role = self._gate.judge(port.name, port.channel, decoded, route=route, admitted=admitted)
        if role is None:
            return None
        said = decoded.envelope
        return Received(
            port.name, said.sender, role, said.incarnation, said, decoded.message, decoded.frames
        )

    # --- keys ------------------------------------------------------------------------------------

    def _admission(self, port: _Port, curve: ServerCurve, part: zmq.Frame) -> Admission | None:
        """What the key behind this message entitles to; asked again every second."""
        try:
            key = str(part.get("User-Id"))
        except zmq.ZMQError:
            return None
        now = self._clock.now()
        asked_at, admission = port.admitted.get(key, (-math.inf, None))
        if now - asked_at > ADMISSION_FRESH_S:
            admission = curve.allow(key)
            port.admitted[key] = (now, admission)
        return admission

    def _answer_zap(self, socket: "zmq.Socket[bytes]") -> None:
        """Decide about the handshakes that wait."""
        for _ in range(BATCH):
            try:
                request = socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            empty = request.index(b"")
            verdict = zap.answer(request[empty + 1 :], self._allow[-1].allow)
            if verdict.refused:
                self._gate.counts["handshakes_refused"] += 1
                self._gate.note(f"refused {verdict.refused}")
            else:
                self._gate.counts["handshakes_accepted"] += 1
            socket.send_multipart([*request[: empty + 1], *verdict.reply], zmq.NOBLOCK)

    def _read_monitor(self, port: _Port, monitor: "zmq.Socket[bytes]") -> None:
        """Keep track of how a connection with keys fares."""
        while int(monitor.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
            event = recv_monitor_message(monitor, zmq.NOBLOCK)
            kind = event["event"]
            if kind == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                port.up, port.trouble = True, ""
            elif port.curve is not None:
                if kind in (
                    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL,
                    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL,
                ):
                    self._gate.counts["handshakes_refused"] += 1
                    self._gate.note(
                        f"{port.name}: a handshake failed: wrong server key, or not CURVE"
                    )
            elif kind == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
                port.trouble = f"{port.endpoint} refuses this key: it was never invited, or revoked"
            elif kind == zmq.EVENT_CONNECT_RETRIED and not port.up:
                port.trouble = port.trouble or f"nobody listens at {port.endpoint}"
            elif kind == zmq.EVENT_DISCONNECTED:
                if not port.up and not port.trouble:
                    port.trouble = (
                        f"{port.endpoint} broke off the handshake: it is not the server this key "
                        "file was made for, or does not speak this protocol"
                    )
                port.up = False

    def handshake(self, name: str, timeout_s: float) -> None:
        """Wait until `name`, connected with keys, is let in.

        Raises `Refused`, in words, when it is not, or when there is no answer in time.
        """
        port = self._ports[name]
        assert port.monitor is not None, f"{name} was not connected with keys"
        deadline = Deadline.after(self._clock, timeout_s, f"handshake with {port.endpoint}")
        while not port.up:
            left_s = deadline.left()
            if port.monitor.poll(math.ceil(left_s * 1000)):
                self._read_monitor(port, port.monitor)
            if port.up:
                return
            if "refuses" in port.trouble or "broke off" in port.trouble or left_s == 0.0:
                raise Refused(
                    port.trouble
                    or f"no answer from {port.endpoint} within {timeout_s:g} s: wrong address, "
                    "a firewall in between, or the key file belongs to another run"
                )

    def connected(self, name: str) -> bool:
        """Is the connection with keys to `name` up at this moment?"""
        return self._ports[name].up

    # --- the rest --------------------------------------------------------------------------------

    def refuse_older(self, name: str, incarnation: int) -> None:
        """Drop whatever lives of `name` before `incarnation` still say, and forget their routes."""
        self._gate.refuse_older(name, incarnation)

    def knows(self, name: str, peer: str) -> bool:
        """Has `peer` been heard on the channel `name` bound here, so that `send` can reach it?"""
        return self._gate.route(name, peer) is not None

    def counters(self) -> dict[str, int]:
        """Messages and bytes since the start, and what was dropped why."""
        return dict(self._gate.counts)

    def take_notices(self) -> list[tuple[str, int]]:
        """What was dropped or refused since the last call, in words, each with its count."""
        return self._gate.take_notices()

    def close(self, linger_s: float | None = None) -> None:
        """Close all sockets. What is still queued gets up to `linger_s` (None: as per channel)."""
        while self._ports:
            self._close_port(self._ports.popitem()[1], linger_s)
        self._pollers.clear()
        if self._zap is not None:
            self._zap.close()
            self._zap = None
        if not self._context.closed:
            self._context.term()
            os.close(self._wake_fd)

    def _close_port(self, port: _Port, linger_s: float | None) -> None:
        if port.monitor is not None:
            port.socket.disable_monitor()
            port.monitor.close(0)
        port.socket.close(None if linger_s is None else round(linger_s * 1000))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()
