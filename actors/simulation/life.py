"""One simulated process: its computing thread, its death, its sleep.

A process computes in turns. A turn happens at one moment of simulated time; what it does in the
course of a long computation is put further along the clock (`ahead`), as events of this process,
so a death in between takes what had not happened yet.
"""

import random
from collections import deque
from typing import TYPE_CHECKING, Any, Protocol

from actors.process import Identity
from actors.simulation.timeline import Act
from protocol.messages import Role

if TYPE_CHECKING:
    from actors.simulation.mailbox import SimMailbox
    from actors.simulation.world import World

_NEVER = float("inf")


class Died(BaseException):
    """The process is killed at this very instruction."""


class Exit(BaseException):
    """The process ends by itself. No `Exception`: actors must not catch it."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class Shell(Protocol):
    """What a process runs: a thin layer that hands events to deciders and carries out what they
    say."""

    def proceed(self) -> float:
        """Hear what has come and act. Seconds until the next turn, unless a message comes."""
        ...

    def ended(self) -> None:
        """The process is gone: let go of what the operating system would take back."""
        ...


class Life:
    """A process. `world.end` is how it dies."""

    def __init__(
        self, world: "World", name: str, role: Role, incarnation: int, *, host: str = ""
    ) -> None:
        """`host`: "" is the run's own."""
        self.world, self.name, self.incarnation = world, name, incarnation
        self.role: Role = role
        self.host = host
        self.who = world.new_identity()
        self.chance = random.Random(f"{world.setting.seed} {name} {incarnation}")  # noqa: S311 - replayed by its seed
        self.alive, self.frozen, self.hung = True, False, False
        self.frozen_until = 0.0
        self.zombie = False  # declared dead though it lives
        self.backlog: deque[tuple[Act, tuple[Any, ...]]] = deque()
        self.ahead = 0.0
        self.echo_until = 0.0  # every other message is said twice
        self.doom = 0  # instructions until it is killed; 0: it is not
        self.box: SimMailbox  # from its first turn on
        self.shell: Shell | None = None  # from its first turn on
        self._busy_until = 0.0
        self._turn_at = _NEVER

    def __repr__(self) -> str:
        return f"{self.name}#{self.incarnation}"

    def now(self) -> float:
        """Its own clock: further than the world's in the middle of a computation."""
        return self.world.timeline.now() + self.ahead

    def later(self, s: float, act: Act, *args: Any) -> None:
        """`act` happens in this process, `s` seconds from its now."""
        self.world.timeline.at(self.now() + s, self, act, *args)

    def op(self) -> None:
        """An instruction that others or successors may notice. Raises `Died` when it is the last,
        and then it does not happen."""
        if self.doom:
            self.doom -= 1
            if not self.doom:
                raise Died

    def echoes(self) -> bool:
        """Whether the message at hand is to be said twice."""
        return self.now() < self.echo_until and self.chance.random() < 0.5

    # --- turns ------------------------------------------------------------------------------------

    def wake(self, s: float = 0.0) -> None:
        """Have a turn in `s` seconds, or as soon as the present computation is over."""
        when = max(self.world.timeline.now() + s, self._busy_until)
        if when < self._turn_at:
            self._turn_at = when
            self.world.timeline.at(when, self, self._turn, when)

    def _turn(self, when: float) -> None:
        if when != self._turn_at or self.hung:
            return  # another one came first
        self._turn_at = _NEVER
        if self.shell is None:
            self.shell = self.world.shell_of(self)
        s = self.shell.proceed()
        self._busy_until = self.now()
        self.ahead = 0.0
        self.wake(s)

    # --- sleep ------------------------------------------------------------------------------------

    def freeze(self) -> None:
        """SIGSTOP."""
        self.frozen = True

    def thaw(self) -> None:
        """SIGCONT: what was due meanwhile happens now, in order."""
        self.frozen = False
        while self.backlog:
            act, args = self.backlog.popleft()
            self.world.timeline.after(0.0, self, act, *args)

    def hang(self) -> None:
        """The computing thread stands still; the one with the sockets goes on."""
        self.hung = True

    def recover(self) -> None:
        """It computes again."""
        self.hung, self._turn_at = False, _NEVER
        self.wake()


def identity(number: int) -> Identity:
    """A process that cannot be confused with one of this machine: pids end at 2**22."""
    return Identity(pid=2**40 + number, ticks=number)
