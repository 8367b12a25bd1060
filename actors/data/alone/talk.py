"""What a loader of its own, its keeper and its workers say to each other.

    loader -> keeper   Fork(seat, life) with the worker's end of a socket       Kill(seat)
    keeper -> loader   Ended(seat, life, code)
    loader -> worker   Work(tasks, freed)
    worker -> loader   Report(parked, over, done, bad)

These links join forks of one program, so there is nothing to negotiate: msgpack arrays over
sequenced-packet sockets, one message a packet. What is too long for a packet lies in a slot of
shared memory, or is cut in pieces where no slot is free.
"""

import msgspec

# A packet must fit the smallest send buffer that kernels give (212,992 bytes, half of it for
# bookkeeping); reports are sent when they grow beyond the first, and nothing exceeds the second.
REPORT_BYTES = 32 * 1024
PACKET_BYTES = 96 * 1024


class _Said(msgspec.Struct, array_like=True, tag=True, forbid_unknown_fields=True):
    """Base of all messages."""


# --- keeper ---------------------------------------------------------------------------------------


class Fork(_Said):
    """Become a worker. The packet carries its end of the socket."""

    seat: int
    life: int
    taken: tuple[tuple[int, int], ...]  # slots of the seat's region that are still in use


class Kill(_Said):
    """End whoever sits there, at once."""

    seat: int
    life: int


class Ended(_Said):
    """A worker is no more."""

    seat: int
    life: int
    code: int  # exit code, or minus the signal
    max_rss_bytes: int


# --- worker ---------------------------------------------------------------------------------------


class Value(msgspec.Struct, array_like=True):
    """A packed value: its body, here or in a slot, and where its large parts are."""

    body: bytes
    seat: int = -1  # whose region the slots are in
    slots: tuple[tuple[int, int], ...] = ()  # offset and bytes of each large part
    far: bool = False  # the body is the last of the slots
    pieces: int = 0  # of `Piece`s that came before, instead of slots: parts, then the body


class Task(msgspec.Struct, array_like=True):
    """A lease."""

    lease: int
    epoch: int
    sample: int
    stage: int  # the first still to be done
    cutoff_s: float
    state: Value | None  # what the stages before it made


class Work(_Said):
    """Samples to work on, in this order, and slots nobody uses any more."""

    tasks: list[Task]
    freed: list[int]


class Leave(_Said):
    """Finish nothing, go."""


class Done(msgspec.Struct, array_like=True):
    """A finished sample."""

    lease: int
    value: Value
    line_s: float  # the worker was busy with it, here
    total_s: float  # from its begin to its end here, waits included


class Over(msgspec.Struct, array_like=True):
    """Past the cut-off: somebody else goes on at `stage`."""

    lease: int
    stage: int
    state: Value
    line_s: float
    total_s: float


class Bad(msgspec.Struct, array_like=True):
    """A sample nobody can use."""

    lease: int
    kind: str
    detail: str


class Report(_Said):
    """What became of leases, in the order of these fields."""

    parked: list[int]  # leases whose sample waits, while the worker works on others
    over: list[Over]
    done: list[Done]
    bad: list[Bad]
    cpu_s: float  # that the worker has computed since the last, or stood ready to


class Piece(_Said):
    """A part, or a part of one, of the next value in the report that follows."""

    index: int  # of the part
    data: bytes


FromKeeper = msgspec.msgpack.Decoder(Ended)
ToKeeper: msgspec.msgpack.Decoder[Fork | Kill] = msgspec.msgpack.Decoder(Fork | Kill)
ToWorker: msgspec.msgpack.Decoder[Work | Leave] = msgspec.msgpack.Decoder(Work | Leave)
FromWorker: msgspec.msgpack.Decoder[Report | Piece] = msgspec.msgpack.Decoder(Report | Piece)
encode = msgspec.msgpack.Encoder().encode
