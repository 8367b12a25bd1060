"""All sockets of one process. The only file that knows ZeroMQ.

A `Node` belongs to one thread (`wake` and `pack` excepted). It is polled by a blocking loop
(`poll`) or driven by an event loop that watches `filenos` and calls `drain`. Input that is
malformed, forbidden or from a past life is counted and noted, never raised.

ZeroMQ's descriptors announce that *something* happened inside a socket, and any call on the
socket, a send included, may consume the announcement. So after readability, and after every send,
an event loop calls `drain`, and again while `pending` is true.

Not covered: redelivery. What was handed to a peer that then died is gone; the messages of this
protocol are asked for again by whoever needs them.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import zmq
from zmq.utils.monitor import recv_monitor_message

from protocol import codec, parcels, zap
from protocol.channels import Channel, address, channel
from protocol.clock import Clock, Deadline
from protocol.endpoints import check_endpoint, point, socket_options
from protocol.errors import EndpointError
from protocol.gate import Gate
from protocol.handshakes import EVENTS, Handshake
from protocol.keys import Admission, Admissions, Allow, ClientCurve, ServerCurve
from protocol.messages import WIRE_VERSION, Envelope, Message, Role
from protocol.parcels import Packed, Received, Sent
from protocol.waker import Waker

__all__ = ["Node", "Packed", "Received", "Sent", "new_keypair"]

# Messages taken from one socket before the others get their turn.
BATCH = 64

Side = Literal["router", "dealer", "pull", "push"]
Socket = zmq.Socket[bytes]


def new_keypair() -> tuple[str, str]:
    """A fresh CURVE pair: (public, secret), as Z85 text."""
    public, secret = zmq.curve_keypair()
    return public.decode(), secret.decode()


@dataclass(slots=True)
class _Port:
    """One socket and what is known about its far side."""

    name: str
    channel: Channel
    socket: Socket
    side: Side
    endpoint: str
    seq: int = 0
    monitor: Socket | None = None  # only where keys are used
    admissions: Admissions | None = None  # listening side with keys
    handshake: Handshake | None = None  # connecting side with keys


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
        self.name, self.incarnation = name, incarnation
        self.role: Role = role
        self.pending = False  # the last `drain` stopped at its bound
        self._clock = clock
        self._gate = Gate()
        self._ports: dict[str, _Port] = {}
        self._pollers: dict[frozenset[str] | None, zmq.Poller] = {}
        self._zap: Socket | None = None
        self._allow_of: dict[bytes, Allow] = {}
        self._waker = Waker()
        self._context = zmq.Context(io_threads=1)
        self._context.set(zmq.BLOCKY, 0)  # sockets that set no linger would not wait at all
        for cpu in io_cpus:
            self._context.set(zmq.THREAD_AFFINITY_CPU_ADD, cpu)

    # --- opening ---------------------------------------------------------------------------------

    def bind(self, name: str, endpoint: str, curve: ServerCurve | None = None) -> str:
        """Listen for `name`; returns the endpoint with its real port. Raises `EndpointError`.

        Each life listens on a file of its own and points the public name at it, so that a
        predecessor which closes late removes its own file and not ours.
        """
        spec = channel(name)
        check_endpoint(name, spec, endpoint, curve is not None)
        port = self._open(name, spec, "router" if spec.kind == "router" else "pull", endpoint)
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
                port.handshake = Handshake(endpoint)
                self._monitor(port)
            port.socket.connect(endpoint)
        except (zmq.ZMQError, OSError) as error:
            self._close_port(self._ports.pop(name), 0)
            raise EndpointError(f"cannot connect {name} to {endpoint}: {error}") from error

    def _open(self, name: str, spec: Channel, side: Side, endpoint: str) -> _Port:
        if name in self._ports:
            raise EndpointError(f"channel {name} is open already, at {self._ports[name].endpoint}")
        socket: Socket = self._context.socket(zmq.SocketType[side.upper()])
        tcp = endpoint.startswith("tcp://")
        for option, value in socket_options(spec, router=side == "router", tcp=tcp).items():
            socket.setsockopt(zmq.SocketOption[option], value)
        if side == "dealer" and not spec.curve:
            # Peers with keys get addresses from the ROUTER: nobody can take over another's.
            socket.setsockopt(zmq.ROUTING_ID, address(self.name, self.incarnation))
        port = self._ports[name] = _Port(name, spec, socket, side, endpoint)
        self._pollers.clear()
        return port

    def _guard(self, port: _Port, curve: ServerCurve) -> None:
        """Let only holders of listed keys in."""
        if self._zap is None:
            self._zap = self._context.socket(zmq.ROUTER)
            self._zap.setsockopt(zmq.LINGER, 0)
            self._zap.bind(zap.ENDPOINT)
        self._allow_of[port.name.encode()] = curve.allow
        port.admissions = Admissions(curve.allow)
        port.socket.setsockopt(zmq.CURVE_SERVER, 1)
        port.socket.setsockopt(zmq.CURVE_SECRETKEY, curve.secret_key.encode())
        port.socket.setsockopt(zmq.ZAP_DOMAIN, port.name.encode())
        self._monitor(port)

    def _monitor(self, port: _Port) -> None:
        watched = sum(zmq.Event[name] for name in EVENTS)
        port.monitor = port.socket.get_monitor_socket(watched)
        self._pollers.clear()

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
        return parcels.pack(name, self.role, message, frames)

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
        said = Envelope(WIRE_VERSION, packed.kind, self.name, self.incarnation, port.seq, step)
        head = codec.pack_envelope(said)
        sent = self._hand_over(port, [*parts, head, packed.body, *packed.frames], to)
        if sent is Sent.SENT:
            port.seq += 1
            self._gate.counts["sent"] += 1
            self._gate.counts["bytes_out"] += len(head) + packed.nbytes
        elif port.side == "push":
            port.seq += 1  # the receiver sees the gap
            self._gate.counts["dropped_telemetry"] += 1
        return sent

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
            poller = self._pollers[key] = zmq.Poller()
            for source in (self._waker.fd, *self._listening(key)):
                poller.register(source, zmq.POLLIN)
        ready = {socket for socket, _ in poller.poll(math.ceil(max(0.0, timeout_s) * 1000))}
        if self._waker.fd in ready:
            self._waker.clear()
        return self._take(ready)

    def drain(self, only: Collection[str] | None = None) -> list[Received]:
        """What has arrived, without waiting; `pending` tells whether there may be more."""
        self._waker.clear()
        return self._take(self._listening(only))

    def filenos(self, only: Collection[str] | None = None) -> list[int]:
        """Descriptors whose readability means: call `drain` with the same `only`."""
        fds = [int(socket.getsockopt(zmq.FD)) for socket in self._listening(only)]
        return [self._waker.fd, *fds]

    def wake(self) -> None:
        """Make a `poll` in the owning thread return. Any thread and any signal handler may."""
        self._waker.ring()

    def _listening(self, only: Collection[str] | None) -> list[Socket]:
        sockets = [] if self._zap is None else [self._zap]
        for port in self._ports.values():
            if port.monitor is not None:
                sockets.append(port.monitor)
            if port.side != "push" and (only is None or port.name in only):
                sockets.append(port.socket)
        return sockets

    def _take(self, ready: Collection[Socket | int]) -> list[Received]:
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
        admitted = self._admission(port, parts[0])
        buffers = [part.buffer for part in parts]
        return self._gate.let_in(port.name, port.channel, buffers, route=route, admitted=admitted)

    # --- keys ------------------------------------------------------------------------------------

    def _admission(self, port: _Port, part: zmq.Frame) -> Admission | None:
        """What the key behind this message entitles to; None where no keys are used."""
        if port.admissions is None:
            return None
        try:
            return port.admissions.of(str(part.get("User-Id")), self._clock.now())
        except zmq.ZMQError:
            return None

    def _answer_zap(self, socket: Socket) -> None:
        """Decide about the handshakes that wait."""
        for _ in range(BATCH):
            try:
                request = socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            delimiter = request.index(b"")
            verdict = zap.answer(request[delimiter + 1 :], self._allow_of)
            if verdict.refused:
                self._gate.drop("handshakes_refused", f"refused {verdict.refused}")
            else:
                self._gate.counts["handshakes_accepted"] += 1
            socket.send_multipart([*request[: delimiter + 1], *verdict.reply], zmq.NOBLOCK)
        self.pending = True

    def _read_monitor(self, port: _Port, monitor: Socket) -> None:
        """Keep track of how connections with keys fare."""
        while int(monitor.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
            number = recv_monitor_message(monitor, zmq.NOBLOCK)["event"]
            event = EVENTS[str(zmq.Event(number).name)]
            if port.handshake is not None:
                port.handshake.heard(event)
            elif event == "broken":
                words = f"{port.name}: a handshake failed: not CURVE, or for another server key"
                self._gate.drop("handshakes_refused", words)

    def handshake(self, name: str, patience_s: float) -> None:
        """Wait until `name`, connected with keys, is let in.

        Raises `Refused`, in words, when it is not, or when there is no answer in time.
        """
        port = self._ports[name]
        assert port.monitor is not None, f"{name} was not connected with keys"
        assert port.handshake is not None, f"{name} was not connected with keys"
        deadline = Deadline.after(self._clock, patience_s, f"handshake with {port.endpoint}")
        while not port.handshake.up:
            if port.handshake.final or deadline.passed():
                raise port.handshake.refusal(patience_s)
            if port.monitor.poll(math.ceil(deadline.left() * 1000)):
                self._read_monitor(port, port.monitor)

    def trouble(self, name: str) -> str:
        """Why the connection with keys to `name` is down, in words; "" when up or still trying."""
        handshake = self._ports[name].handshake
        return "" if handshake is None or handshake.up else handshake.trouble

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
        self._context.term()
        self._waker.close()

    def _close_port(self, port: _Port, linger_s: float | None) -> None:
        if port.monitor is not None:
            port.socket.disable_monitor()
            port.monitor.close(0)
        port.socket.close(None if linger_s is None else round(linger_s * 1000))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()
