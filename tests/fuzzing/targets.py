"""What reads bytes that others wrote, and how each says no.

A target is given bytes and must return, or raise one of the errors it declares. Anything else is
a finding.
"""

import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Generator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from actors import checkpoints, topology
from actors.checkpoints import CheckpointError, Manifest, TensorFile
from actors.data.corpus import Corpus, SourceFile
from actors.data.database import LedgerError
from actors.data.feed import Composition, Fact, Refusal, Shape
from actors.data.ledger import Ledger, tokens_of
from actors.data.packing import Document, Packer
from actors.published import TensorSpec
from actors.topology import TopologyError
from protocol import codec, flips, tensors
from protocol.errors import EndpointError, ProtocolError
from protocol.keys import KeyFile
from protocol.messages import TensorRef
from tests.protocol.examples import EXAMPLES, parts_of

# Between the parts of a message; fuzzers may lose or double it like anything else.
CUT = b"\xc1\xfe--part--\xfe\xc1"
SHAPE = Shape(ranks=1, rows=2, row_tokens=4, steps=10, lookahead=1)
_CODES = 1000


@dataclass(frozen=True, slots=True)
class Target:
    """Something that reads."""

    name: str
    seeds: tuple[bytes, ...]
    read: Callable[[bytes], object]
    refuses: tuple[type[Exception], ...]
    watched: tuple[str, ...]  # files whose lines count as coverage

    def survives(self, data: bytes) -> bool:
        """Whether it was read at all. Raises what it must not raise."""
        try:
            self.read(data)
        except self.refuses:
            return False
        return True


@contextmanager
def targets() -> Generator[tuple[Target, ...]]:
    """All of them; what they need on disk goes when the block ends."""
    memory = Path("/dev/shm")
    directory = Path(tempfile.mkdtemp("", "fuzz-", memory if memory.is_dir() else None))
    try:
        yield (
            _messages(),
            _flips(),
            _topologies(),
            _manifests(directory),
            _tensor_files(directory),
            _ledgers(directory),
            _keys(directory),
        )
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _messages() -> Target:
    def read(data: bytes) -> None:
        decoded = codec.decode(data.split(CUT))
        frames = [memoryview(frame) for frame in decoded.frames]
        for field in decoded.message.__struct_fields__:
            value = getattr(decoded.message, field)
            for ref in value if isinstance(value, tuple) else (value,):
                if isinstance(ref, TensorRef) and not ref.segment:
                    tensors.read(ref, frames)

    seeds = tuple(CUT.join(parts_of(kind)) for kind in EXAMPLES)
    watched = ("protocol/codec.py", "protocol/tensors.py", "protocol/messages.py")
    return Target("messages", seeds, read, (ProtocolError,), watched)


def _flips() -> Target:
    codes = np.random.default_rng(0).integers(0, 3, _CODES, np.uint8)
    few, many = codes.copy(), np.random.default_rng(1).integers(0, 3, _CODES, np.uint8)
    few[::97] = 0
    old = _packed(codes)
    seeds = (flips.encode(old, _packed(now), _CODES).data for now in (few, many, codes))
    return Target(
        "flips",
        tuple(bytes(seed) for seed in seeds),
        lambda data: flips.decode(old, data, _CODES),
        (ProtocolError,),
        ("protocol/flips.py",),
    )


def _packed(codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Four codes of two bits to a byte."""
    return (codes.reshape(-1, 4) << np.array([0, 2, 4, 6], np.uint8)).sum(1).astype(np.uint8)


def _topologies() -> Target:
    def read(data: bytes) -> None:
        topology.decode(data.decode("utf-8", "replace"), source="fuzzed.toml")

    seeds = tuple(path.read_bytes() for path in sorted(topology.TOPOLOGIES.glob("*.toml")))
    watched = ("actors/strict_toml.py", "actors/topology.py", "actors/topology_rules.py")
    return Target("topologies", seeds, read, (TopologyError,), watched)


# --- Checkpoints ----------------------------------------------------------------------------------


def _manifest(sha: str) -> Manifest:
    return Manifest(
        format=checkpoints.FORMAT,
        step=4,
        committed=4,
        seed=0,
        trainers=1,
        weights_digest="ab" * 32,
        topology_digest="cd" * 32,
        ledger={"step": 4},
        facts={"5": {"0": {"tokens": 3.0}}},
        files={checkpoints.METRICS: sha},
    )


def _manifests(directory: Path) -> Target:
    unfinished = checkpoints.unfinished_path(directory, 4)
    unfinished.mkdir()
    sha = checkpoints.write_json(unfinished / checkpoints.METRICS, [])
    whole = checkpoints.complete(unfinished, _manifest(sha))
    seed = (whole / checkpoints.MANIFEST).read_bytes()

    def read(data: bytes) -> None:
        (whole / checkpoints.MANIFEST).write_bytes(data)
        checkpoints.verify(whole)

    return Target("manifests", (seed,), read, (CheckpointError,), ("actors/checkpoints.py",))


def _tensor_files(directory: Path) -> Target:
    path = directory / "dense-0.safetensors"
    specs = (TensorSpec("a:master", "float32", (2, 3)), TensorSpec("a:square", "float32", (2, 3)))
    facts = {"a": {"version": 4, "published": {"4": ("ab" * 32, 0, 0, 0)}}}
    checkpoints.write_tensors(
        path,
        specs,
        [np.ones((2, 3), np.float32), np.zeros((2, 3), np.float32)],
        {"parameters": msgspec.json.encode(facts).decode()},
    )
    seed = path.read_bytes()

    def read(data: bytes) -> None:
        path.write_bytes(data)
        with TensorFile(path) as file:
            for name in ("master", "square"):
                file.tensor("a", TensorSpec(name, "float32", (2, 3)))

    return Target("tensor files", (seed,), read, (CheckpointError,), ("actors/checkpoints.py",))


# --- The ledger -----------------------------------------------------------------------------------


def _ledgers(directory: Path) -> Target:
    path = directory / "ledger.sqlite"
    seed = _ledger(path)

    def read(data: bytes) -> None:
        for name in ("ledger.sqlite-wal", "ledger.sqlite-shm"):
            (directory / name).unlink(missing_ok=True)
        path.write_bytes(data)
        with Ledger(path, incarnation=1) as ledger:
            ledger.corpus()
            recorded = ledger.recorded()
            for step in range(1, 3):
                ledger.spans(step, SHAPE)
                batch = ledger.batch(step, 0)
                if batch is not None:
                    tokens_of(batch[0], SHAPE)
            ledger.refused_by_kind()
            ledger.quarantined_by_kind()
            assert recorded.next_step >= 1

    watched = ("actors/data/ledger.py", "actors/data/database.py")
    return Target("ledgers", (seed,), read, (LedgerError,), watched)


def _ledger(path: Path) -> bytes:
    with Ledger(path) as ledger:
        files = (SourceFile("a.py", "/a.py", "python", "file", "", 10),)
        place = np.array([-1])
        file, copies = np.array([0], np.int32), np.array([0], np.int16)
        ledger.store_corpus(Corpus(files, file, place + 1, place, place, copies, "digest"))
        packer = Packer(4, 2)
        for sample in range(8):
            packer.add(Document((0, sample), np.arange(7, dtype=np.int32), 9))
        for step in range(1, 3):
            packed = packer.take()
            assert packed is not None
            keys = dict.fromkeys(span.key for span in packed.spans if span.start == 0)
            began = tuple((key, Fact(7, 9, 0)) for key in keys)
            refused = (Refusal((0, 90 + step), "empty", ""),)
            ledger.commit(Composition(step, packed, began, refused, 0), SHAPE)
        ledger.quarantine(55, "3 workers", 3)
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return path.read_bytes()


def _keys(directory: Path) -> Target:
    path = directory / "guest.key"
    key = "a" * 40
    KeyFile(
        role="data_worker",
        label="guest",
        endpoint="tcp://127.0.0.1:1",
        server_key=key,
        public_key=key,
        secret_key=key,
    ).write(path)
    seed = path.read_bytes()

    def read(data: bytes) -> None:
        path.write_bytes(data)
        with suppress(OSError):
            path.chmod(0o600)
        KeyFile.read(path)

    return Target("key files", (seed,), read, (EndpointError,), ("protocol/keys.py",))
