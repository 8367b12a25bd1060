"""What goes wrong in a simulated run: a list that follows from the seed, and can be cut shorter.

kill      SIGKILL                              doom      SIGKILL, so many instructions later
exit      a crash                              freeze    SIGSTOP for a while
hang      its computing thread stands still    suspend   the whole machine is stopped for a while
presume   declared dead though it lives: frozen, replaced, then thawed
stall     a connection delivers nothing for a while
cut       the same, and then it breaks: what was said meanwhile is lost
echo      it says every other message twice
curse     each of its lives ends after so many instructions, for a while or for good
launcher  launcher and supervisor die together, and come back later
stupor    launcher and supervisor are stopped together, longer than actors wait for them
stop      an operator ends the run; it is resumed
host      the machine is lost, memory and all; the run is resumed from its files
"""

import random
from dataclasses import dataclass
from typing import Literal

from actors.simulation.setting import Setting

Kind = Literal[
    "kill",
    "doom",
    "exit",
    "freeze",
    "hang",
    "suspend",
    "presume",
    "cut",
    "stall",
    "echo",
    "curse",
    "launcher",
    "stupor",
    "stop",
    "host",
]
MOST = 9

# How often each kind is drawn.
_WEIGHTS: dict[Kind, int] = {
    "kill": 16,
    "doom": 24,
    "exit": 4,
    "freeze": 10,
    "hang": 4,
    "suspend": 2,
    "presume": 6,
    "cut": 8,
    "stall": 6,
    "echo": 8,
    "curse": 2,
    "launcher": 2,
    "stupor": 2,
    "stop": 2,
    "host": 3,
}
# How many seconds it lasts: one of these, or anything between two.
_ONE_OF: dict[Kind, tuple[float, ...]] = {
    "freeze": (0.3, 1.5, 4.0, 9.0),
    "hang": (0.3, 1.5, 4.0, 9.0),
    "suspend": (0.6, 3.0, 12.0),
    "launcher": (0.5, 2.0, 5.0, 8.0),
    "stupor": (0.5, 2.0, 5.0, 8.0),
    "curse": (1.0, 4.0, 60.0),
}
_BETWEEN: dict[Kind, tuple[float, float]] = {
    "presume": (0.2, 4.0),
    "cut": (0.05, 3.0),
    "stall": (0.05, 3.0),
    "echo": (0.5, 4.0),
    "host": (0.0, 1.0),  # which share of what it has not synced it loses
}
# Which connection; how many instructions; how many steps the ledger forgets.
_NUMBERS: dict[Kind, tuple[int, int]] = {
    "doom": (1, 60),
    "curse": (1, 40),
    "cut": (0, 7),
    "stall": (0, 7),
    "host": (0, 3),
}
_OF_ALL = ("suspend", "launcher", "stupor", "stop", "host")
# Deaths of one actor in one schedule: fewer than rationing forgives, so that a run that fails is
# a finding.
_DEATHS = 3


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that goes wrong, at `at` seconds."""

    at: float
    kind: Kind
    target: str = ""
    s: float = 0.0  # how long it lasts
    n: int = 0  # see _NUMBERS

    def __str__(self) -> str:
        details = [self.target] if self.target else []
        details += [f"for {self.s:.2f} s"] if self.s else []
        details += [f"n = {self.n}"] if self.n else []
        return f"{self.at:7.3f} {self.kind} {', '.join(details)}"


def drawn(setting: Setting) -> list[Fault]:
    """The faults of that setting's seed, in order of time."""
    chance = random.Random(f"faults {setting.seed}")  # noqa: S311 - replayed by its seed
    count = chance.randint(1, MOST)
    targets, talkers = _targets(setting), _talkers(setting)
    deaths: dict[str, int] = {}
    found: list[Fault] = []
    launches = 0
    kinds = list(_WEIGHTS)
    for kind in chance.choices(kinds, [_WEIGHTS[k] for k in kinds], k=count):
        target = chance.choice(talkers if kind in ("cut", "stall") else targets)
        at = round(chance.uniform(0.0, setting.calm_s()), 3)
        if kind in ("stop", "host"):  # late enough for a checkpoint to resume from
            at = round(setting.calm_s() * chance.uniform(0.5, 1.0), 3)
        fault = _one(chance, kind, target, at, setting)
        if fault.kind == "curse" and (target == "supervisor" or "far" in target):
            continue  # nobody rations these
        if fault.kind in ("kill", "doom", "exit", "freeze", "hang", "presume", "launcher"):
            who = "supervisor" if fault.kind == "launcher" else fault.target
            deaths[who] = deaths.get(who, 0) + 1
            if deaths[who] > _DEATHS:
                continue
        if fault.kind in ("stop", "host"):
            launches += 1
            if launches > 1:
                continue
        found.append(fault)
    return sorted(found, key=lambda fault: fault.at)


def _targets(setting: Setting) -> list[str]:
    """Whom things happen to; those with more to lose more often."""
    shards = [f"optimizer_shard/{k}" for k in range(setting.shards)]
    trainers = [f"trainer/{rank}" for rank in range(setting.ranks)]
    workers = [f"data_worker/{i}" for i in range(setting.fast + setting.slow)]
    remote = [f"data_worker/far-{i}" for i in range(setting.remote)]
    rollouts = [f"rollout/{i}" for i in range(setting.rollouts)]
    once = [*trainers, *workers, *remote, *rollouts, "recorder"]
    return [*shards * 4, *trainers, *["loader"] * 5, *["supervisor"] * 2, *once]


def _talkers(setting: Setting) -> list[str]:
    """Whose connections break: those who dial, most of all those whom others wait for."""
    shards = [f"optimizer_shard/{k}" for k in range(1, setting.shards)]
    trainers = [f"trainer/{rank}" for rank in range(setting.ranks)]
    workers = [f"data_worker/{i}" for i in range(setting.fast + setting.slow)]
    remote = [f"data_worker/far-{i}" for i in range(setting.remote)]
    rollouts = [f"rollout/{i}" for i in range(setting.rollouts)]
    once = [*workers, *rollouts, "loader", "optimizer_shard/0", "recorder"]
    return [*shards * 2, *trainers * 2, *remote * 2, *once]


def _one(chance: random.Random, kind: Kind, target: str, at: float, setting: Setting) -> Fault:
    lasts_s = 0.0
    if kind in _ONE_OF:
        lasts_s = chance.choice(_ONE_OF[kind])
    elif kind in _BETWEEN:
        lasts_s = round(chance.uniform(*_BETWEEN[kind]), 2)
    if kind == "presume":
        target = _presumable(chance, target, setting)
    number = chance.randint(*_NUMBERS[kind]) if kind in _NUMBERS else 0
    return Fault(at, kind, "" if kind in _OF_ALL else target, lasts_s, number)


def _presumable(chance: random.Random, target: str, setting: Setting) -> str:
    """Who may be replaced while it still lives. Not shards, nor trainers that share memory with
    them: their successors begin after their end has been seen, and that is what protects them."""
    role = target.partition("/")[0]
    if role in ("loader", "data_worker", "rollout", "recorder") and "far" not in target:
        return target
    if role == "trainer" and not setting.slots:
        return target
    return chance.choice(["loader", "loader", "data_worker/0"])
