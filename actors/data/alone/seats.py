"""The worker processes of a loader: begun, heard, killed, replaced; what they made, in slots."""

import select
import socket
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from actors.data.alone import keeper, talk
from actors.data.alone.keeper import Kept
from actors.data.alone.payload import Bytes, unpack
from actors.data.alone.slots import Arena, Slot
from actors.data.alone.worker import Job

# A keeper that dies more often than this is not the samples' fault.
_KEEPERS = 5
# A lease without its state, generously; and how many freed slots a packet takes.
_TASK_BYTES, _FREED_AT_ONCE = 128, 4096
# Messages taken from one worker before the others get their turn.
_AT_ONCE = 64


class KeeperLost(RuntimeError):
    """Workers cannot be begun any more."""


@dataclass(slots=True)
class Seat:
    """One place for a worker, and who sits there."""

    index: int
    life: int = -1
    link: socket.socket | None = None
    is_buried: bool = True  # nobody is left to be mourned
    outgoing: deque[bytes] = field(default_factory=deque[bytes])
    freed: list[int] = field(default_factory=list[int])  # slots, to be told
    leased: dict[int, int] = field(default_factory=dict[int, int])  # slots in use: offset -> bytes
    pieces: list[bytearray] = field(default_factory=list[bytearray])
    name: str = ""  # what deciders call the worker

    def __post_init__(self) -> None:
        self.name = f"worker {self.index}"


@dataclass(slots=True)
class Made:
    """A value a worker made, not yet looked at."""

    value: talk.Value
    parts: list[bytearray] = field(default_factory=list[bytearray])  # where they came in pieces

    @property
    def nbytes(self) -> int:
        """Of memory it holds."""
        slots = sum(nbytes for _, nbytes in self.value.slots)
        return len(self.value.body) + slots + sum(map(len, self.parts))


@dataclass(frozen=True, slots=True)
class Heard:
    """A report, and the pieces that came before it."""

    report: talk.Report
    pieces: list[bytearray]


class Seats:
    """All workers. Belongs to one thread, but for `release`."""

    def __init__(self, count: int, region_bytes: int, job: Job) -> None:
        """Forks the keeper. Raises OSError."""
        self._arena = Arena(count, region_bytes)
        self._job = job
        self.seats = [Seat(index) for index in range(count)]
        self.by_name = {seat.name: seat for seat in self.seats}
        self.wanted = 0  # how many of them are to be taken
        self._kept: Kept | None = keeper.start(self._arena, job)
        self._keepers = 1
        self._poll = select.poll()
        self._poll.register(self._kept.link, select.POLLIN)
        self._by_fd: dict[int, Seat] = {}
        self._released: deque[tuple[int, int]] = deque()  # seat, offset: by any thread
        self._untold: set[int] = set()  # seats with free slots to hear of
        self._ends: dict[tuple[int, int], int] = {}

    # --- who sits there ---------------------------------------------------------------------------

    def fill(self) -> list[Seat]:
        """Begin workers where there are to be some. Those begun. Raises `KeeperLost`, OSError."""
        begun: list[Seat] = []
        for seat in self.seats[: self.wanted]:
            if seat.link is None and seat.is_buried:
                self._begin(seat)
                begun.append(seat)
        return begun

    def _begin(self, seat: Seat) -> None:
        self._take_back()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        seat.life += 1
        seat.link = ours
        seat.freed.clear()
        self._arena.notes[seat.index] = -1
        request = talk.Fork(seat.index, seat.life, tuple(seat.leased.items()))
        try:
            self._keeper().fork(request, theirs)
        except OSError:
            theirs.close()  # it has died: the end of this link says so, and somebody begins again
            self.hear_keeper()
        theirs.close()
        self._by_fd[ours.fileno()] = seat
        self._poll.register(ours, select.POLLIN)

    def _keeper(self) -> Kept:
        if self._kept is None:
            if self._keepers >= _KEEPERS:
                raise KeeperLost(
                    f"the process that keeps the workers has died {self._keepers} times; `dmesg` "
                    "tells whether the kernel was out of memory"
                )
            self._keepers += 1
            self._kept = keeper.start(self._arena, self._job)
            self._poll.register(self._kept.link, select.POLLIN)
        return self._kept

    def kill(self, seat: Seat) -> None:
        """End a worker that hangs; `hear` will say when it has."""
        if self._kept is not None:
            try:
                self._kept.kill(seat.index, seat.life)
            except OSError:
                return  # the keeper has gone, and takes its workers along

    def dismiss(self, seat: Seat) -> None:
        """A worker that is not needed any more."""
        self.send(seat, talk.encode(talk.Leave()))

    def working_on(self, seat: Seat) -> tuple[int, float]:
        """Lease a worker has noted, -1 for none, and when it began (monotonic seconds)."""
        note = self._arena.notes[seat.index]
        return int(note[0]), float(note[1]) / 1e9

    def how_it_ended(self, seat: Seat, life: int) -> int | None:
        """Exit code of a life; None when nobody has said yet."""
        return self._ends.pop((seat.index, life), None)

    # --- hearing ----------------------------------------------------------------------------------

    def watch(self, fd: int) -> None:
        """Wake up for this one too."""
        self._poll.register(fd, select.POLLIN)

    def wait(self, timeout_s: float | None) -> list[int]:
        """Descriptors with news."""
        ms = None if timeout_s is None else max(0, round(timeout_s * 1000))
        return [fd for fd, _ in self._poll.poll(ms)]

    def hear_keeper(self) -> None:
        """News of how workers ended, and of the keeper's own end."""
        while self._kept is not None:
            try:
                ended = self._kept.hear()
            except EOFError:
                self._poll.unregister(self._kept.link)
                self._kept.close()
                self._kept = None
                return
            if ended is None:
                return
            self._ends[ended.seat, ended.life] = ended.code

    def is_keeper(self, fd: int) -> bool:
        """Is it the keeper's?"""
        return self._kept is not None and fd == self._kept.link.fileno()

    def seat_of(self, fd: int) -> Seat | None:
        """Whose descriptor it is."""
        return self._by_fd.get(fd)

    def hear(self, seat: Seat) -> tuple[list[Heard], bool]:
        """What a worker says, and whether it still lives."""
        reports: list[Heard] = []
        link = seat.link
        assert link is not None
        for _ in range(_AT_ONCE):
            try:
                packet = link.recv(2 * talk.PACKET_BYTES)
            except BlockingIOError:
                self._flush(seat)
                return reports, True
            except ConnectionError:
                packet = b""
            if not packet:
                return reports, False
            match talk.FromWorker.decode(packet):
                case talk.Piece(index, data):
                    while len(seat.pieces) <= index:
                        seat.pieces.append(bytearray())
                    seat.pieces[index] += data
                case talk.Report() as report:
                    reports.append(Heard(report, seat.pieces))
                    seat.pieces = []
                case _:
                    pass
        return reports, True

    def made(self, seat: Seat, value: talk.Value, pieces: list[bytearray]) -> Made:
        """Take what a worker made: its slots are leased from now on."""
        if value.pieces:
            return Made(value, pieces)
        seat.leased.update(value.slots)
        return Made(value)

    def gone(self, seat: Seat) -> None:
        """A worker has ended: nobody sits there. What it made stays."""
        assert seat.link is not None
        self._poll.unregister(seat.link)
        del self._by_fd[seat.link.fileno()]
        seat.link.close()
        seat.link = None
        seat.is_buried = False
        seat.outgoing.clear()
        seat.pieces.clear()

    # --- speaking ---------------------------------------------------------------------------------

    def work(self, seat: Seat, tasks: list[talk.Task]) -> None:
        """Send leases, and word of slots that are free."""
        self._take_back()
        freed, seat.freed = seat.freed, []
        packet: list[talk.Task] = []
        nbytes = 0
        for task in tasks:
            size = _TASK_BYTES + (0 if task.state is None else len(task.state.body))
            if packet and nbytes + size > talk.PACKET_BYTES:
                self.send(seat, talk.encode(talk.Work(packet, [])))
                packet, nbytes = [], 0
            packet.append(task)
            nbytes += size
        for start in range(0, len(freed), _FREED_AT_ONCE):
            self.send(seat, talk.encode(talk.Work([], freed[start : start + _FREED_AT_ONCE])))
        if packet:
            self.send(seat, talk.encode(talk.Work(packet, [])))

    def tell_freed(self) -> None:
        """Word of free slots to those who have none but that to hear."""
        self._take_back()
        while self._untold:
            seat = self.seats[self._untold.pop()]
            if seat.freed and seat.link is not None:
                self.work(seat, [])

    def send(self, seat: Seat, packet: bytes) -> None:
        """Send when there is room; in order."""
        seat.outgoing.append(packet)
        self._flush(seat)

    def _flush(self, seat: Seat) -> None:
        if seat.link is None:
            seat.outgoing.clear()
            return
        while seat.outgoing:
            try:
                seat.link.send(seat.outgoing[0])
            except BlockingIOError:
                self._poll.modify(seat.link, select.POLLIN | select.POLLOUT)
                return
            except OSError:  # it is gone: `hear` notices
                seat.outgoing.clear()
                return
            seat.outgoing.popleft()
            if not seat.outgoing:
                self._poll.modify(seat.link, select.POLLIN)

    # --- values -----------------------------------------------------------------------------------

    def read(self, made: Made) -> Any:
        """The value; its slots are given back when the last array on them is gone."""
        value = made.value
        if value.pieces:
            *parts, body = made.parts
            return unpack(body, [np.frombuffer(part, np.uint8) for part in parts])
        lent: list[Bytes] = []
        for slot in value.slots:
            released = _Released(self._released, value.seat, slot[0])
            lent.append(self._arena.lend(value.seat, Slot(*slot), released))
        body = bytes(lent.pop()) if value.far else value.body
        return unpack(body, lent)

    def release(self, values: Sequence[Made]) -> None:
        """Nobody needs these."""
        for made in values:
            self._released.extend((made.value.seat, offset) for offset, _ in made.value.slots)

    def _take_back(self) -> None:
        while self._released:
            index, offset = self._released.popleft()
            seat = self.seats[index]
            if seat.leased.pop(offset, None) is not None:
                seat.freed.append(offset)
                self._untold.add(index)

    def close(self) -> None:
        """End everybody."""
        for seat in self.seats:
            if seat.link is not None:
                self.gone(seat)
        if self._kept is not None:
            self._kept.close()
            self._kept = None
        self._arena.close()


@dataclass(frozen=True, slots=True)
class _Released:
    """Says so when it is called: holds nothing that would keep a loader alive."""

    to: deque[tuple[int, int]]
    seat: int
    offset: int

    def __call__(self) -> None:
        """The slot is free."""
        self.to.append((self.seat, self.offset))
