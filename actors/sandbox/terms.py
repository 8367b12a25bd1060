"""What is asked of a sandbox and what it answers: limits, outcomes, means, levels of safety.

SandboxError
|- TooLittle    this machine cannot hold what was asked for  -> tell a person, do not run it
`- NotStarted   the program was never executed               -> a fault of machine or caller
"""

from typing import Literal

import msgspec

MB = 1 << 20

Status = Literal["ok", "exit", "signal", "timeout", "memory", "output"]
Kind = Literal["bubblewrap", "namespaces", "landlock", "limits"]
# parse: a trusted program reads untrusted text.  compile: the text may name files and make the
# program misbehave.  execute: the program itself is hostile.
Level = Literal["parse", "compile", "execute"]
Hold = Literal[
    "memory",  # address space of a process
    "cpu",  # processor time of a process
    "time",  # by the wall clock
    "output",  # bytes of stdout and stderr
    "files",  # nothing can be read but what was named, nothing written but the private scratch
    "names",  # what else exists cannot even be seen
    "network",  # no socket
    "processes",  # as many as allowed; none outlives the program
    "signals",  # other processes can be neither signalled nor traced
    "privileges",  # not root, no capability, no way to get one
    "calls",  # system calls that only harm are refused
]

HOLDS: tuple[Hold, ...] = (
    "memory", "cpu", "time", "output", "files", "names", "network", "processes", "signals",
    "privileges", "calls",
)  # fmt: skip
_LIMITS: tuple[Hold, ...] = ("memory", "cpu", "time", "output")
NEEDS: dict[Level, tuple[Hold, ...]] = {
    "parse": _LIMITS,
    "compile": (*_LIMITS, "files", "network", "processes"),
    "execute": (*_LIMITS, "files", "network", "processes", "signals", "privileges", "calls"),
}
# An interpreter, which the jail is before it becomes the program, needs this much.
MIN_MEMORY = 48 * MB


class SandboxError(Exception):
    """Something about the sandbox itself, never about what the program did."""


class TooLittle(SandboxError):
    """This machine cannot hold what was asked for: says what, why, and what to do."""


class NotStarted(SandboxError):
    """The program was not executed: says at which stage and why."""


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What a program may use. The defaults suit a small program that computes."""

    wall_s: float = 10.0  # from its first instruction; of a served one, per request
    cpu_s: float = 10.0  # of each process, rounded up to seconds; of a served one, per request
    memory_bytes: int = 512 * MB  # address space of each process
    processes: int = 1  # at once; 1: it cannot fork
    threads: int = 1  # at once, those of all processes together, the first of each included
    output_bytes: int = MB  # stdout and stderr, each; of a served one, per answer
    scratch_bytes: int = 0  # a private place to write, gone at the end; 0: nothing can be written
    descriptors: int = 64

    def __post_init__(self) -> None:
        positive = ("wall_s", "cpu_s", "processes", "threads", "output_bytes")
        for name in positive:
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)!r}")
        if self.memory_bytes < MIN_MEMORY:
            raise ValueError(f"memory_bytes must be at least {MIN_MEMORY}, got {self.memory_bytes}")
        if self.scratch_bytes < 0:
            raise ValueError(f"scratch_bytes must not be negative, got {self.scratch_bytes}")
        if self.descriptors < 8:
            raise ValueError(f"descriptors must be at least 8, got {self.descriptors}")

    @property
    def tasks(self) -> int:
        """Threads at once, at least one for each process."""
        return max(self.threads, self.processes)


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """How a program ended.

    `memory` is what the evidence says (a killed program, one that used nearly all, or one whose
    last words are about memory): being refused memory is something a program may also survive.
    """

    status: Status
    code: int  # exit code, or minus the signal that killed it
    stdout: bytes
    stderr: bytes
    seconds: float  # from its first instruction to its end
    cpu_s: float
    peak_memory: int  # bytes resident, of its largest process
    detail: str  # in words: "used up 2 s of time", "exit code 1"


class Means(msgspec.Struct, frozen=True):
    """What this machine offers for a sandbox, found out by trying."""

    kind: Kind
    user_namespace: bool = False  # one is made: for whoever is not root
    holds: tuple[Hold, ...] = ()
    lacks: dict[Hold, str] = {}  # and why
    refused: dict[str, str] = {}  # better means, and why they are not to be had

    @property
    def name(self) -> str:
        """In words."""
        names: dict[Kind, str] = {
            "bubblewrap": "bubblewrap",
            "namespaces": "own namespaces",
            "landlock": "Landlock and a filter of system calls",
            "limits": "resource limits only",
        }
        return names[self.kind]

    def missing(self, level: Level) -> tuple[Hold, ...]:
        """What `level` needs and this lacks."""
        return tuple(hold for hold in NEEDS[level] if hold not in self.holds)
