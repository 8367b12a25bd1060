"""Schedules: a setting, its faults, and the verdict. One seed is one schedule, always the same."""

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from actors.simulation import faults as trouble
from actors.simulation.faults import Fault
from actors.simulation.life import Life
from actors.simulation.setting import Setting
from actors.simulation.truth import Violation
from actors.simulation.world import World

# Simulated seconds in which a run without further trouble must finish: a dozen of the longest
# waits there are, one after the other.
PATIENCE_S = 90.0
# A broken connection is made again after this.
_REDIAL_S = 0.1
# A connection of another host on which nothing arrives for this long is given up by ZeroMQ.
_TCP_SILENCE_S = 6.0


@dataclass(slots=True)
class Verdict:
    """How a schedule ended."""

    seed: int
    numbers: tuple[int, ...]  # which of the seed's faults happened
    faults: list[Fault]
    violation: Violation | None
    ends: list[str]
    simulated_s: float
    events: int
    checks: int
    story: list[str] = field(default_factory=list[str])

    def replay(self) -> str:
        """The command that shows it again."""
        numbers = ",".join(map(str, self.numbers))
        return f"python run.py simulate --seed {self.seed} --only {numbers or '-1'} --story"


def run(
    seed: int,
    *,
    only: Sequence[int] | None = None,
    faults: Sequence[Fault] | None = None,
    setting: Setting | None = None,
    story: bool = False,
) -> Verdict:
    """Run the schedule of that seed: with `only` those of its faults, by number, or with others."""
    setting = setting or Setting.drawn(seed)
    drawn = list(trouble.drawn(setting) if faults is None else faults)
    numbers = tuple(n for n in range(len(drawn)) if only is None or n in only)
    chosen = [drawn[n] for n in numbers]
    where = "/dev/shm" if Path("/dev/shm").is_dir() else None  # noqa: S108 - a fresh directory
    directory = Path(tempfile.mkdtemp(prefix="trireme-simulated-", dir=where))
    world = World(setting, directory, story=story)
    violation: Violation | None = None
    try:
        world.disk.remember_ledgers = setting.order == "strict" and any(
            fault.kind == "host" and fault.n for fault in chosen
        )
        for fault in chosen:
            world.timeline.at(fault.at, None, _happens, world, fault)
        world.run(max((fault.at + fault.s for fault in chosen), default=0.0) + PATIENCE_S)
        world.truth.require(world.over, "every wait ends", world.waits())
    except Violation as found:
        violation = found
        world.tell(f"VIOLATION {found}")
    finally:
        world.close()
        shutil.rmtree(directory, ignore_errors=True)
    return Verdict(
        seed,
        numbers,
        chosen,
        violation,
        world.ends,
        world.timeline.now(),
        world.timeline.events,
        world.truth.checks,
        world.story or [],
    )


def _happens(world: World, fault: Fault) -> None:
    if not world.over and world.outcome is None:
        world.tell(f"FAULT {str(fault).strip()}")
        _apply(world, fault)


def _apply(world: World, fault: Fault) -> None:
    match fault.kind:
        case "suspend":
            world.launcher.pulse = world.timeline.now() + fault.s
            for life in list(world.lives.values()):
                if not life.host:
                    _freeze(world, life, fault.s)
        case "stupor":
            supervisor = world.supervisor
            world.launcher.pulse = world.timeline.now() + fault.s
            if supervisor is not None and supervisor.alive:
                _freeze(world, supervisor, fault.s)
        case "launcher":
            world.launcher.leave(fault.s)
        case "stop":
            world.stop()
        case "host":
            world.lose_host(fault.n, stale=fault.s > 0.5, damage=fault.s > 0.75)
        case _:
            life = world.of(fault.target)
            if life is not None:
                _to_life(world, life, fault)


def _to_life(world: World, life: Life, fault: Fault) -> None:
    match fault.kind:
        case "kill":
            world.end(life, "killed by SIGKILL")
        case "exit":
            world.end(life, "exit code 3")
        case "doom":
            life.doom = fault.n
        case "curse":
            world.curse(fault.target, fault.s, fault.n)
        case _:
            _to_the_living(world, life, fault)


def _to_the_living(world: World, life: Life, fault: Fault) -> None:
    match fault.kind:
        case "freeze":
            _freeze(world, life, fault.s)
        case "hang":
            life.hang()
            world.timeline.after(fault.s, life, life.recover)
        case "presume":
            world.presume_dead(life, fault.s)
        case "echo":
            life.echo_until = world.timeline.now() + fault.s
        case "cut" | "stall":
            names = world.wire.channels(life)
            if names:
                name = names[fault.n % len(names)]
                world.wire.stall(life, name, fault.s)
                if fault.kind == "cut":
                    world.timeline.after(fault.s, None, world.wire.cut, life, name, _REDIAL_S)
        case _:
            raise AssertionError(fault)


def _freeze(world: World, life: Life, s: float) -> None:
    until = world.timeline.now() + s
    if until <= life.frozen_until:
        return
    life.freeze()
    life.frozen_until = until
    world.timeline.at(until, None, _thaw, world, life)
    if s > _TCP_SILENCE_S:
        world.timeline.after(_TCP_SILENCE_S, None, _give_up_tcp, world, life, s - _TCP_SILENCE_S)


def _thaw(world: World, life: Life) -> None:
    if life.frozen and world.timeline.now() >= life.frozen_until:
        life.thaw()


def _give_up_tcp(world: World, life: Life, back_s: float) -> None:
    """ZeroMQ's own heartbeats, which only tcp connections have."""
    if life.host:
        world.wire.cut(life, "remote", back_s)
    for link in world.wire.links_to(life, "remote"):
        world.wire.cut(link.dealer, "remote", back_s)


def shrunk(verdict: Verdict, *, story: bool = False) -> Verdict:
    """The same violation with as few of the seed's faults as this can find: first halves, then
    single faults are left out, as long as it is still violated.
    """
    assert verdict.violation is not None
    best, size = verdict, max(1, len(verdict.faults) // 2)
    while True:
        smaller = None
        for start in range(0, len(best.numbers), size):
            fewer = best.numbers[:start] + best.numbers[start + size :]
            found = run(verdict.seed, only=fewer, story=story)
            if found.violation is not None and found.violation.what == verdict.violation.what:
                smaller = found
                break
        if smaller is not None:
            best = smaller
        elif size == 1:
            return best
        else:
            size = max(1, size // 2)
