"""Writing a shard's state to disk while training goes on.

A thread copies one parameter after the other and writes it. The computing thread, before it changes
a parameter that has not been copied yet, has it copied first (`preserve`): copy on write, so the
files show all parameters as they were when the checkpoint began, and a step is delayed by one copy
of a parameter at most.
"""

import errno
import json
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from actors.checkpoints import (
    file_digest,
    memory_name,
    published_name,
    tensor_name,
    write_tensors,
)
from actors.codec_memory import CodecMemory, MemoryLost
from actors.optimizer.layout import kept_tensors
from actors.optimizer.state import State
from actors.published import Array, TensorSpec, published_tensors
from actors.topology import OptimizerSpec
from actors.uplink import memory_tensors


@dataclass(frozen=True, slots=True)
class Written:
    """What a shard has put on disk, or why it has not."""

    version: int  # what all its parameters had reached
    closing: bool
    files: dict[str, str] = field(default_factory=dict[str, str])
    failed: str = ""


class Running(Protocol):
    """Work under way: a thread, or its place in a simulation."""

    def join(self, timeout: float | None = None) -> None:
        """Wait for its end, up to `timeout` seconds."""
        ...

    def is_alive(self) -> bool:
        """Whether it goes on."""
        ...


Background = Callable[[Callable[[], None]], Running]


def in_thread(work: Callable[[], None]) -> Running:
    """Begin `work` on a thread of its own, which does not outlive the process."""
    thread = threading.Thread(target=work, name="checkpoint", daemon=True)
    thread.start()
    return thread


class ShardWriter:
    """Writes checkpoints of one shard, one at a time. Methods belong to the computing thread."""

    def __init__(
        self,
        state: State,
        optimizer: OptimizerSpec,
        background: Background = in_thread,
        memories: Sequence[CodecMemory] = (),
    ) -> None:
        """`memories`: what the codecs of every rank remember."""
        self._state, self._memories = state, memories
        self._optimizer = optimizer
        self._lock = threading.Lock()
        self._pending: set[int] = set()
        self._copies: dict[int, dict[str, Array]] = {}
        self._begun: list[int] = []  # every parameter's version when this began
        self._versions: list[tuple[int, ...]] = []
        self._background = background
        self._thread: Running | None = None
        self._result: Written | None = None

    @property
    def busy(self) -> bool:
        """Whether a checkpoint is being written, or its result has not been fetched."""
        return self._thread is not None

    def start(self, directory: Path, *, closing: bool) -> None:
        """Begin to write the state as it is now. Made because of a stop, both published versions go
        with it, for it may lie between two steps.
        """
        assert not self.busy
        versions = self._state.versions()
        begun, self._begun = min(versions), versions
        self._versions = [
            tuple(
                v
                for v in ((version - 1, version) if closing else (version,))
                if self._state.has(index, v)
            )
            for index, version in enumerate(versions)
        ]
        metadata = [self._facts(index, version) for index, version in enumerate(versions)]
        with self._lock:
            self._pending = set(range(len(versions)))
            self._copies = {}
        self._result = None
        self._thread = self._background(lambda: self._write(directory, begun, closing, metadata))

    def preserve(self, index: int) -> None:
        """The parameter is about to change: copy what is still to be written of it."""
        if self._pending:
            with self._lock:
                if index in self._pending:
                    self._copies[index] = self._copy(index)

    def poll(self, wait_s: float = 0.0) -> Written | None:
        """The result, once the thread has ended; each is returned once."""
        if self._thread is None:
            return None
        self._thread.join(wait_s)
        if self._thread.is_alive():
            return None
        self._thread = None
        if self._result is None:
            raise RuntimeError("the thread that writes checkpoints has died (see stderr)")
        return self._result

    # --- on the thread ---------------------------------------------------------------------------

    def _write(
        self, directory: Path, version: int, closing: bool, metadata: list[dict[str, Any]]
    ) -> None:
        files: dict[str, str] = {}
        try:
            directory.mkdir(parents=True, exist_ok=True)
            for name, members in self._groups().items():
                # Under another name first: a successor of this shard may write the same again.
                fresh = directory / f"{name}.part"
                about = {self._state.layout.places[i].parameter.name: metadata[i] for i in members}
                text = json.dumps(about, separators=(",", ":"))
                files[name] = write_tensors(
                    fresh, self._specs(members), self._arrays(members), {"parameters": text}
                )
                _read_back(fresh, files[name])
                fresh.replace(directory / name)
            self._result = Written(version, closing, files)
        except OSError as error:
            self._result = Written(version, closing, failed=f"{error.strerror}: {directory}")
            self._remove(directory)
        except MemoryLost as error:
            self._result = Written(version, closing, failed=str(error))
            self._remove(directory)
        finally:
            with self._lock:
                self._pending.clear()
                self._copies.clear()

    def _groups(self) -> dict[str, list[int]]:
        groups: dict[str, list[int]] = {}
        for index, place in enumerate(self._state.layout.places):
            name = f"{place.parameter.group}-{self._state.layout.shard}.safetensors"
            groups.setdefault(name, []).append(index)
        return groups

    def _specs(self, members: list[int]) -> Iterator[TensorSpec]:
        """What `_arrays` yields, named as in the file."""
        for index in members:
            parameter = self._state.layout.places[index].parameter
            for spec in kept_tensors(self._optimizer, parameter):
                yield spec._replace(name=tensor_name(parameter.name, spec.name))
            for version in self._versions[index]:
                for spec in published_tensors(parameter):
                    name = published_name(version, spec.name)
                    yield spec._replace(name=tensor_name(parameter.name, name))
            for rank in range(len(self._memories)):
                for spec in memory_tensors(self._optimizer, parameter):
                    name = memory_name(rank, spec.name)
                    yield spec._replace(name=tensor_name(parameter.name, name))

    def _arrays(self, members: list[int]) -> Iterator[Array]:
        for index in members:
            yield from self._take(index).values()

    def _take(self, index: int) -> dict[str, Array]:
        """The parameter's tensors as they were at the start: a copy nobody changes."""
        with self._lock:
            copied = self._copies.pop(index, None)
            return self._copy(index) if copied is None else copied

    def _copy(self, index: int) -> dict[str, Array]:
        """With the lock held: all that is to be written of a parameter, in the files' order."""
        self._pending.discard(index)
        tensors = {name: array.copy() for name, array in self._state.kept(index).items()}
        for version in self._versions[index]:
            for name, array in self._state.published(index, version).items():
                tensors[published_name(version, name)] = array.copy()
        parameter = self._state.layout.places[index].parameter.name
        for rank, memory in enumerate(self._memories):
            if memory.remembers(parameter):
                for name, array in memory.read(parameter, self._begun[index]).items():
                    tensors[memory_name(rank, name)] = array.copy()
        return tensors

    def _facts(self, index: int, version: int) -> dict[str, Any]:
        published = {
            str(v): (self._state.digest(index, v).hex(), *self._state.counts(index, v))
            for v in self._versions[index]
        }
        absent = {
            str(v): bits for v in self._versions[index] if (bits := self._state.absent(index, v))
        }
        return {"version": version, "published": published} | ({"absent": absent} if absent else {})

    def _remove(self, directory: Path) -> None:
        for name in self._groups():
            for path in (directory / name, directory / f"{name}.part"):
                try:
                    path.unlink(missing_ok=True)
                except OSError:
                    return


def _read_back(path: Path, sha: str) -> None:
    """Raise `OSError` unless the disk gives back what was written: for that, the kernel has to
    forget its own copy first."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if file_digest(path) != sha:
        raise OSError(errno.EIO, f"{path.name} reads back otherwise than it was written")
