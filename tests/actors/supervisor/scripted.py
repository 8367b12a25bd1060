"""Processes that do as a supervisor's rules tell them, under a manual clock."""

import signal
from typing import Any

from actors.process import Identity
from actors.supervisor.events import (
    Ended,
    Event,
    Fork,
    Forked,
    Heard,
    Instruction,
    Kill,
    Memory,
    Tick,
)
from actors.supervisor.supervision import Supervision
from protocol.clock import ManualClock
from tests.actors.supervisor.conftest import PLACES, SPEC


class World:
    """Processes that do as they are told, and a supervisor that is told what they do."""

    def __init__(self, memories: dict[str, Memory] | None = None) -> None:
        self.clock = ManualClock(100.0)
        self.decider = Supervision(SPEC, PLACES, now=self.clock.now(), memories=memories)
        self.alive: dict[str, tuple[int, Identity]] = {}
        self.told: list[Instruction] = []
        self.pids = 1000

    def tell(self, *events: Event) -> list[Instruction]:
        """Hand events over and obey forks and kills; returns all instructions of this call."""
        mine: list[Instruction] = []
        queue = list(events)
        while queue:
            given = self.decider.handle(queue.pop(0), self.clock.now())
            self.decider.check()
            mine += given
            for instruction in given:
                if isinstance(instruction, Fork):
                    assert instruction.name not in self.alive
                    self.pids += 1
                    who = Identity(self.pids, self.pids)
                    self.alive[instruction.name] = (instruction.incarnation, who)
                    queue.append(Forked(instruction.name, instruction.incarnation, who))
                elif isinstance(instruction, Kill) and instruction.signal == signal.SIGKILL:
                    self.alive.pop(instruction.name, None)
                    end = Ended(instruction.name, instruction.incarnation, "killed by SIGKILL")
                    queue.append(end)
        self.told += mine
        return mine

    def begin(self) -> list[Instruction]:
        return self.tell(Tick())

    def beat(self, name: str, **what: Any) -> list[Instruction]:
        return self.tell(Heard(name, self.alive[name][0], **what))

    def beat_all(self) -> None:
        for name in list(self.alive):
            self.beat(name)

    def up(self) -> "World":
        """Everybody runs."""
        self.begin()
        for _ in range(4):
            self.beat_all()
        assert self.decider.complete()
        return self

    def die(self, name: str, how: str = "killed by SIGSEGV") -> list[Instruction]:
        incarnation, _ = self.alive.pop(name)
        return self.tell(Ended(name, incarnation, how))

    def wait(self, s: float, *, beating: bool = True, every: float = 0.25) -> list[Instruction]:
        mine: list[Instruction] = []
        end = self.clock.now() + s
        while self.clock.now() < end:
            self.clock.advance(every)
            mine += self.tell(Tick())
            if beating:
                self.beat_all()
        return mine


def of(kind: type, instructions: list[Instruction]) -> list[Any]:
    return [one for one in instructions if isinstance(one, kind)]
