"""Waits of a worker: functions that mostly wait, many at a time, in threads or an event loop.

The worker's line puts a sample in and goes on; when the wait is over the descriptor of `Waits`
turns readable and `over` gives the sample back. Threads and loop begin with the first wait, so a
worker whose steps all compute has neither.
"""

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Generator, Mapping, Sequence
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

from actors.data.alone.steps import Step
from protocol.waker import Waker

T = TypeVar("T")
Over = Callable[[Any, Exception | None], None]


class _Threads:
    """Up to so many threads, begun as they are needed: jobs go in, and that is all.

    `concurrent.futures` would make a future with its locks for each, at ten times the cost; most
    samples of a step that may wait do not, so what is spent on them is the worker's own time.
    """

    def __init__(self, most: int, name: str) -> None:
        self._most, self._name = most, name
        self._begun = self._pending = 0
        self._jobs: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._lock = threading.Lock()

    def put(self, job: Callable[[], None]) -> None:
        """Do this, which raises nothing, as soon as a thread is free."""
        with self._lock:
            self._pending += 1
            is_short = self._begun < min(self._pending, self._most)
            self._begun += is_short
        if is_short:
            name = f"{self._name}-{self._begun}"
            threading.Thread(target=self._run, name=name, daemon=True).start()
        self._jobs.put(job)

    def _run(self) -> None:
        while True:
            self._jobs.get()()
            with self._lock:
                self._pending -= 1


class Waits(Generic[T]):
    """All samples of a worker that wait."""

    def __init__(self, steps: Sequence[Step]) -> None:
        self._steps = steps
        self._pools: dict[int, _Threads] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._gates: dict[int, asyncio.Semaphore] = {}
        self._over: deque[T] = deque()
        self._waker = Waker()
        self._asleep = False  # the line: whoever's wait is over wakes it

    def fileno(self) -> int:
        """Readable when a wait may be over."""
        return self._waker.fd

    def begin(self, index: int, item: T, over: Over, value: Any, kept: Mapping[str, Any]) -> None:
        """Call step `index` with `value` beside the line. `over` gets what came of it, there."""
        step = self._steps[index]
        if step.is_async:
            future = asyncio.run_coroutine_threadsafe(
                self._gated(index, step.call(value, **kept)), self._running()
            )
            future.add_done_callback(lambda ended: self._ended(ended, item, over))
            return
        pool = self._pools.get(index)
        if pool is None:
            pool = self._pools[index] = _Threads(step.parallel, step.name)

        def job() -> None:
            try:
                outcome = step.call(value, **kept)
            except BaseException as error:  # noqa: BLE001 - it is the sample's, whatever it is
                self._over_with(item, over, None, error)
            else:
                self._over_with(item, over, outcome, None)

        pool.put(job)

    def _ended(self, future: Future[Any], item: T, over: Over) -> None:
        problem = future.exception()
        self._over_with(item, over, None if problem else future.result(), problem)

    def _over_with(self, item: T, over: Over, outcome: Any, problem: BaseException | None) -> None:
        if problem is not None and not isinstance(problem, Exception):
            problem = RuntimeError(repr(problem))
        over(outcome, problem)
        self._over.append(item)
        if self._asleep:
            self._waker.ring()

    def over(self) -> T | None:
        """A sample whose wait is over."""
        return self._over.popleft() if self._over else None

    @contextlib.contextmanager
    def asleep(self) -> Generator[bool]:
        """The line has nothing to do meanwhile; False: it has, a wait was over just before."""
        self._asleep = True
        try:
            yield not self._over
        finally:
            self._asleep = False
            self._waker.clear()

    def _running(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            threading.Thread(target=self._loop.run_forever, name="waits", daemon=True).start()
        return self._loop

    async def _gated(self, index: int, call: Coroutine[Any, Any, Any]) -> Any:
        gate = self._gates.setdefault(index, asyncio.Semaphore(self._steps[index].parallel))
        async with gate:
            return await call
