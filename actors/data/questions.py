"""What samples ask of other programs, beside a worker's line: the waiting moves, the work does not.

The compiler runs on the worker's own core in either case. While it does, the worker goes on with
other samples, so that a quick one does not wait behind seconds of compiling.
"""

import queue
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from actors.data.rustc import Verdict, Verifier, compile_problem

T = TypeVar("T")

# Compilers of one worker at a time. They share its core: each more makes all of them later.
MOST = 2


@dataclass(frozen=True, slots=True)
class Question:
    """Does this Rust compile?"""

    text: bytes
    verifier: Verifier

    def ask(self) -> Verdict:
        """Blocks until there is an answer; from any thread. Raises `CannotVerify`."""
        return compile_problem(self.text)

    def tell(self, answer: Verdict) -> None:
        """Take the answer to where the stage will look for it; on the line."""
        self.verifier.tell(self.text, answer)


@dataclass(slots=True)
class _Asked(Generic[T]):
    item: T
    question: Question
    answer: Verdict | None = None
    problem: Exception | None = None


class Questions(Generic[T]):
    """Samples of a worker that wait for an answer, at most `MOST`.

    All methods belong to the line. The threads live as long as the process, because the sandbox
    ends with the thread that began it; the first question starts them.
    """

    def __init__(self, ring: Callable[[], object]) -> None:
        """`ring`: called from another thread when there is an answer."""
        self._ring = ring
        self._threads: list[threading.Thread] = []
        self._asked: queue.SimpleQueue[_Asked[T]] = queue.SimpleQueue()
        self._over: deque[_Asked[T]] = deque()
        self.waiting = 0

    @property
    def is_full(self) -> bool:
        """No further question now."""
        return self.waiting >= MOST

    def ask(self, item: T, question: Question) -> None:
        """Have it answered; `item` comes back by `over`."""
        self.waiting += 1
        if len(self._threads) < self.waiting:
            thread = threading.Thread(target=self._serve, name="question", daemon=True)
            thread.start()
            self._threads.append(thread)
        self._asked.put(_Asked(item, question))

    def over(self) -> T | None:
        """Somebody whose question has been answered, and told. Raises what asking raised."""
        if not self._over:
            return None
        asked = self._over.popleft()
        self.waiting -= 1
        if asked.problem is not None:
            raise asked.problem
        assert asked.answer is not None
        asked.question.tell(asked.answer)
        return asked.item

    def _serve(self) -> None:
        while True:
            asked = self._asked.get()
            try:
                asked.answer = asked.question.ask()
            except Exception as error:  # noqa: BLE001 - raised again on the line
                asked.problem = error
            self._over.append(asked)
            self._ring()
