"""A tcp cable between attached workers and their run that can be cut, muted and healed.

A thread of its own carries bytes both ways. That takes no privileges; what it cannot do is lose
single packets, which tcp would repeat anyway.
"""

import asyncio
import contextlib
import threading
from collections.abc import Callable

_CHUNK_BYTES = 1 << 16
_BEGIN_S = 10.0


class Cable:
    """Listens on a port of 127.0.0.1 and carries everything to another one."""

    def __init__(self, to_port: int) -> None:
        """Raises `TimeoutError` when it cannot begin to listen."""
        self.port = 0
        self._to_port = to_port
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._cut = False
        self._loop = asyncio.new_event_loop()
        self._listening = threading.Event()
        self._open: asyncio.Event
        self._over: asyncio.Event
        self._thread = threading.Thread(target=self._serve, name="cable", daemon=True)
        self._thread.start()
        if not self._listening.wait(_BEGIN_S):
            raise TimeoutError("the cable to attached workers does not begin to listen")

    # --- From the thread that uses it -------------------------------------------------------------

    def cut(self) -> None:
        """Break all connections and refuse new ones."""
        self._tell(self._break)

    def mute(self) -> None:
        """Carry nothing; connections stay."""
        self._tell(self._open.clear)

    def heal(self) -> None:
        """As good as new."""
        self._tell(self._mend)

    def close(self) -> None:
        """No more cable."""
        self._tell(self._over.set)
        self._thread.join(_BEGIN_S)

    def _tell(self, act: Callable[[], object]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(act)

    # --- In its own thread ------------------------------------------------------------------------

    def _serve(self) -> None:
        with contextlib.closing(self._loop):
            self._loop.run_until_complete(self._listen())

    async def _listen(self) -> None:
        self._open, self._over = asyncio.Event(), asyncio.Event()
        self._open.set()
        server = await asyncio.start_server(self._carry, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._listening.set()
        await self._over.wait()
        server.close()
        self._break()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        there: asyncio.StreamWriter | None = None
        try:
            if not self._cut:
                back, there = await asyncio.open_connection("127.0.0.1", self._to_port)
                self._writers |= {writer, there}
                await asyncio.gather(self._pump(reader, there), self._pump(back, writer))
        except (OSError, asyncio.CancelledError):
            pass  # one of the ends is gone, or the cable; so is the connection
        finally:
            self._tasks.discard(task)
            for end in (writer, there):
                if end is not None:
                    self._writers.discard(end)
                    end.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(_CHUNK_BYTES):
            await self._open.wait()
            writer.write(data)
            await writer.drain()
        raise ConnectionResetError

    def _break(self) -> None:
        self._cut = True
        for writer in self._writers:
            writer.transport.abort()

    def _mend(self) -> None:
        self._cut = False
        self._open.set()
