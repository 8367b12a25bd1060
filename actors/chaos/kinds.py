"""What chaos does to a run: kinds of faults, whom they strike, and the draw of a whole schedule.

Pure: the same seed and the same run make the same schedule.
"""

import fnmatch
import random
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

# What is expected to follow.
Effect = Literal[
    "replaced",  # the life ends and another one takes its place
    "unharmed",  # nobody needs to notice
    "resumed",  # the launcher is gone as well: a person says `run.py --resume`
    "failed",  # the run ends with the reason in words; a person mends it and resumes
]

ACTORS = ("loader", "recorder", "trainer/*", "optimizer_shard/*", "rollout/*", "data_worker/*")
# Share of a run's steps in which faults happen.
_SPAN = 0.88
# Those whose sockets a second thread owns: their computing thread can be stuck by itself.
_THREADED = ("trainer/*", "optimizer_shard/*", "data_worker/*")
# Whoever looks for their traces must not find another one's.
_ALONE = ("disk", "ledger", "checkpoint")
_EVERYBODY = (*ACTORS, "supervisor", "forkserver/*")


@dataclass(frozen=True, slots=True)
class Kind:
    """One way in which things go wrong."""

    name: str
    what: str  # for people
    targets: tuple[str, ...]  # patterns of names; (): the whole run
    effect: Effect
    weight: int
    needs: str = ""  # what the machine must give; see means.py


KINDS = (
    Kind("kill", "SIGKILL", _EVERYBODY, "replaced", 30),
    Kind("several", "SIGKILL to several at the same moment", _EVERYBODY, "replaced", 10),
    Kind("freeze", "SIGSTOP for longer than every timeout, then SIGCONT", ACTORS, "replaced", 8),
    Kind("nap", "SIGSTOP for less than any timeout, then SIGCONT", _EVERYBODY, "unharmed", 6),
    Kind("stun", "SIGSTOP of the supervisor for longer than the launcher waits for it",
         ("supervisor",), "replaced", 3),
    Kind("term", "SIGTERM", ACTORS, "replaced", 5),
    Kind("exit", "its own exit in the middle of its work", ACTORS, "replaced", 5, "ptrace"),
    Kind("segfault", "a segmentation fault", ACTORS, "replaced", 5),
    Kind("gil", "its computing thread stands still and keeps the interpreter's lock", _THREADED,
         "replaced", 4, "ptrace"),
    Kind("hang", "its computing thread stands still, its sockets answer", _THREADED, "replaced", 4,
         "ptrace"),
    Kind("memory", "the kernel kills it for want of memory", ("data_worker/*",), "replaced", 3,
         "cgroup"),
    Kind("starve", "no memory is left for it to allocate", ("data_worker/*",), "replaced", 3,
         "rlimit"),
    Kind("link", "connections of workers elsewhere break, and are refused for a while", (),
         "unharmed", 4, "guests"),
    Kind("mute", "connections of workers elsewhere carry nothing for a while", (), "unharmed", 3,
         "guests"),
    Kind("guests", "a host with attached workers is lost, and comes back", (), "unharmed", 2,
         "guests"),
    Kind("disk", "the disk is full for a while", (), "failed", 2, "mount"),
    Kind("checkpoint", "the newest checkpoint is damaged, and the machine lost", (), "resumed", 2),
    Kind("ledger", "a page of the ledger is damaged", (), "failed", 1),
    Kind("launcher", "SIGKILL to launcher and supervisor together", (), "resumed", 3),
    Kind("machine", "SIGKILL to everything, memory gone; files stay", (), "resumed", 2),
)  # fmt: skip
BY_NAME = {kind.name: kind for kind in KINDS}


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault of a schedule. It is due when the run has committed `after_step`, and not before
    `at_s` seconds of its life."""

    number: int
    kind: str
    targets: tuple[str, ...]
    after_step: int
    at_s: float = 0.0
    lasts_s: float = 0.0
    alone: bool = True  # everybody has recovered from earlier ones first

    @property
    def effect(self) -> Effect:
        """What is expected to follow."""
        return BY_NAME[self.kind].effect


@dataclass(frozen=True, slots=True)
class Terms:
    """What a schedule is drawn for."""

    seed: int
    kills: int
    steps: int
    names: tuple[str, ...]  # everybody in the run
    silence_s: float  # an actor that says nothing for this long is replaced
    possible: frozenset[str]  # kinds that this machine can do
    only: str = "*"  # pattern: whom to strike
    every_s: float = 0.0  # at most one fault in this time; 0: as the steps come


def draw(terms: Terms) -> list[Fault]:
    """The schedule: each possible kind once, as far as there are faults for it; then by weight."""
    chance = random.Random(f"chaos {terms.seed}")  # noqa: S311 - a schedule is drawn again by seed
    kinds = [kind for kind in KINDS if kind.name in terms.possible and _whom(kind, terms)]
    if not kinds:
        return []
    chosen = list(kinds) if terms.kills >= 2 * len(kinds) else []
    more = terms.kills - len(chosen)
    chosen += chance.choices(kinds, [kind.weight for kind in kinds], k=more)
    chance.shuffle(chosen)
    return [_fault(chance, number, kind, terms) for number, kind in enumerate(chosen)]


def _fault(chance: random.Random, number: int, kind: Kind, terms: Terms) -> Fault:
    # The first step is committed, so that there is something to lose; the last are still to come,
    # so that there is time for what has to wait.
    share = _SPAN * (number + chance.random()) / terms.kills
    after = 1 + int(share * max(0, terms.steps - 3))
    if kind.effect in ("resumed", "failed"):
        after = max(after, terms.steps // 3)  # there is a checkpoint to resume from
    return Fault(
        number,
        kind.name,
        _targets(chance, kind, terms),
        after,
        at_s=round(terms.every_s * (number + 0.5 + 0.5 * chance.random()), 2),
        lasts_s=round(_lasts_s(chance, kind, terms.silence_s), 2),
        alone=kind.name in _ALONE or chance.random() < 0.6,
    )


def _whom(kind: Kind, terms: Terms) -> list[str]:
    """Whom a fault of that kind can strike. Faults of the whole run have no name to match."""
    if not kind.targets:
        return ["*"] if terms.only == "*" else []
    found = [name for name in terms.names if _matches(name, kind.targets)]
    return fnmatch.filter(found, terms.only)


def _targets(chance: random.Random, kind: Kind, terms: Terms) -> tuple[str, ...]:
    names = _whom(kind, terms)
    if not kind.targets:
        return ()
    if kind.name != "several":
        return (_one(chance, names),)
    count = min(len(names), chance.randint(2, 4))
    return tuple(chance.sample(sorted(names), count))


def _one(chance: random.Random, names: Sequence[str]) -> str:
    """A role first, then one of it: a dozen data workers are no more interesting than one."""
    roles = sorted({name.partition("/")[0] for name in names})
    role = chance.choice(roles)
    return chance.choice([name for name in names if name.partition("/")[0] == role])


def _lasts_s(chance: random.Random, kind: Kind, silence_s: float) -> float:
    match kind.name:
        case "freeze" | "stun":
            return silence_s * (2.0 + chance.random())
        case "nap":
            return silence_s * 0.3 * chance.random()
        case "link" | "mute" | "guests":
            return 0.3 + 3.0 * chance.random()
        case "disk":
            return 2.0 + 2.0 * chance.random()
        case "launcher":
            return 1.5 * chance.random()
        case _:
            return 0.0


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def impossible(reasons: Collection[str], kinds: Iterable[Kind] = KINDS) -> set[str]:
    """Names of the kinds that need something of which `reasons` says that it is missing."""
    return {kind.name for kind in kinds if kind.needs in reasons}
