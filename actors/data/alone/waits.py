"""Waits of a worker: functions that mostly wait, many at a time, in threads or an event loop.

The worker's line puts a sample in and goes on; when the wait is over the descriptor of `Waits`
turns readable and `over` gives the sample back. Threads and loop begin with the first wait, so a
worker whose steps all compute has neither.
"""

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, TypeVar

from actors.data.alone.steps import Step
from protocol.waker import Waker

T = TypeVar("T")
Over = Callable[[Any, Exception | None], None]


class Waits(Generic[T]):
    """All samples of a worker that wait."""

    def __init__(self, steps: Sequence[Step]) -> None:
        self._steps = steps
        self._pools: dict[int, ThreadPoolExecutor] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._gates: dict[int, asyncio.Semaphore] = {}
        self._over: deque[T] = deque()
        self._waker = Waker()

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
        else:
            pool = self._pools.get(index)
            if pool is None:
                pool = self._pools[index] = ThreadPoolExecutor(step.parallel, step.name)
            future = pool.submit(step.call, value, **kept)
        future.add_done_callback(lambda ended: self._ended(ended, item, over))

    def _ended(self, future: Future[Any], item: T, over: Over) -> None:
        problem = future.exception()
        if problem is None:
            over(future.result(), None)
        else:
            over(None, problem if isinstance(problem, Exception) else RuntimeError(repr(problem)))
        self._over.append(item)
        self._waker.ring()

    def over(self) -> T | None:
        """A sample whose wait is over."""
        if not self._over:
            self._waker.clear()
        return self._over.popleft() if self._over else None

    def _running(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            threading.Thread(target=self._loop.run_forever, name="waits", daemon=True).start()
        return self._loop

    async def _gated(self, index: int, call: Coroutine[Any, Any, Any]) -> Any:
        gate = self._gates.setdefault(index, asyncio.Semaphore(self._steps[index].parallel))
        async with gate:
            return await call
