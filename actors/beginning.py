"""From what a person asked for to a run directory that a launcher can drive, or a clear refusal.

Everything that can be found out before a process is started is found out here: a topology that
cannot be, data that is not there, a directory that cannot be written or is in use, a run that
cannot be resumed.
"""

import datetime
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from actors import checkpoints, hardware, leftovers, planner, preparing, process, rundir
from actors import topology as topologies
from actors.data import rebuilding
from actors.hardware import Hardware
from actors.optimizer import notes as steps_noted
from actors.rundir import RunDir, RunDirError
from actors.supervisor import segments
from actors.topology import Topology, TopologyError

RUNS = Path("runs")
LATEST = RUNS / "latest"
# What may change when a run goes on: how long it is, who does the work, how it is looked after, and
# in how many bits (the last part of a run in 4 bits is often done in more). Not what is learned
# from what: a run that goes on with other data or another model is another run.
_MAY_CHANGE = (
    "steps", "optimizer.fire_at", "elastic", "train.rows_per_trainer", "train.accumulation",
    "train.precision", "actors.", "rollout.", "supervision.", "checkpoint.", "recorder.", "remote.",
)  # fmt: skip
# What of that decides over the weights.
_DECIDES = "actors.trainers", "elastic", "train.rows_per_trainer", "train.accumulation"


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the command line said."""

    topology: str = ""  # name or file; "": local, or the run's own when it is resumed
    steps: int = 0  # 0: as the topology says
    run_dir: Path | None = None
    settings: tuple[str, ...] = ()
    require_hardware: bool = False
    fire: bool = False  # the first whole step that a resumed run makes ends with FIRE


@dataclass(slots=True)
class Begun:
    """A run directory, ready, and locked by us until `release`."""

    run: RunDir
    topology: Topology
    notes: list[str]  # for people
    lock: int
    living: bool = False  # the run goes on already; take it over
    resumed: bool = False

    def release(self) -> None:
        """Let another launcher have it."""
        os.close(self.lock)


def begin(wanted: Wanted, found: Hardware) -> Begun:
    """A new run. Raises `TopologyError`, `RunDirError`."""
    prepared = preparing.prepare(
        wanted.topology or "local",
        found,
        overrides=_settings(wanted),
        require_hardware=wanted.require_hardware,
    )
    _check_data(prepared.topology, prepared.source)
    path = wanted.run_dir or _new_path(prepared.topology.name)
    _check_nobody_lives(RunDir(path.absolute()))
    run = rundir.create(path.absolute())
    lock = _lock(run)
    # What a run that lay here before its directory was removed has left is not this one's.
    segments.remove(run.run_id)
    run.remove_socket_dir()
    _write_plan(run, prepared.topology, found)
    _is_latest(run)
    notes = [prepared.note] if prepared.note else []
    return Begun(run, prepared.topology, notes, lock)


def resume(wanted: Wanted, found: Hardware) -> Begun:
    """A run that exists: taken over while it lives, else begun again from its last checkpoint, or
    from the first step when it has not come as far as one.

    Raises `TopologyError`, `RunDirError`.
    """
    run = rundir.open_((wanted.run_dir or LATEST).resolve())
    rundir.writable(run)
    stored = _stored(run)
    topology = _changed(wanted, stored, run, found)
    changes = _differences(topologies.to_dict(stored), topologies.to_dict(topology))
    lock = _lock(run)
    if leftovers.living(run) and not run.outcome.exists():
        if changes:
            os.close(lock)
            raise RunDirError(
                f"{run.path} still runs: {', '.join(changes)} cannot change before it has ended"
            )
        if wanted.fire:
            os.close(lock)
            raise RunDirError(f"{run.path} still runs: --fire is for a run that has been stopped")
        _is_latest(run)
        return Begun(run, stored, [f"{run.path} still runs; taking it over"], lock, living=True)
    notes: list[str] = []
    try:
        anew = _nothing_saved(run)
        if wanted.fire:
            topology = _with_fire(topology, run)
        _check_data(topology, str(run.topology))
        rebuilding.rebuild(run, notes.append)
    except (TopologyError, RunDirError):
        os.close(lock)
        raise
    leftovers.clear(run)
    (run.path / rundir.COPY).unlink(missing_ok=True)
    if anew:
        _forget_steps(run)
    _write_plan(run, topology, found)
    _is_latest(run)
    notes.append(f"resuming {run.path}")
    if anew:
        notes.append("no checkpoint had been written yet: it begins again with step 1")
    notes += _changes_of_weights(stored, topology, changes)
    return Begun(run, topology, notes, lock, resumed=True)


def _changes_of_weights(stored: Topology, topology: Topology, changes: list[str]) -> list[str]:
    """Those by which the weights become others, in words."""
    said: list[str] = []
    if any(key in _DECIDES for key in changes):
        said.append(f"a step is {_rows(topology)} rows from here on (before: {_rows(stored)})")
    rounding = [key for key in changes if key.startswith("train.precision")]
    if rounding:
        said.append(f"from here on other {', '.join(rounding)}")
    if said:
        said[-1] += "; weights will not be those of a run that was never changed"
    return said


def _rows(topology: Topology) -> str:
    each = topology.train.rows_per_trainer * topology.train.accumulation
    return f"{topology.actors.trainers} x {each}"


# --- Directory ------------------------------------------------------------------------------------


def _new_path(name: str) -> Path:
    stamp = datetime.datetime.now().astimezone().strftime("%Y%m%d-%H%M%S")
    path = RUNS / f"{name}-{stamp}"
    number = 2
    while path.exists():
        path = RUNS / f"{name}-{stamp}-{number}"
        number += 1
    return path


def _is_latest(run: RunDir) -> None:
    """What commands look at without --run, where this is one of the runs they look among."""
    if run.path.parent.resolve() == RUNS.resolve():
        rundir.point_latest_at(run)


def _check_nobody_lives(run: RunDir) -> None:
    """Raise `RunDirError` when a run goes on whose directory has been removed under it."""
    left = [] if (run.path / "format").exists() else leftovers.living(run)
    if left:
        pids = " ".join(str(who.pid) for who in left)
        raise RunDirError(
            f"processes of an earlier run in {run.path} still live; end them (kill -9 {pids}), or "
            "name another directory with --run"
        )


def _lock(run: RunDir) -> int:
    try:
        lock = process.try_lock(run.launcher_lock)
    except OSError as error:
        raise RunDirError(f"{run.launcher_lock} cannot be opened: {error.strerror}") from error
    if lock is None and (run.path / rundir.COPY).exists():
        raise RunDirError(f"{run.path} is being kept by a standby; end its `run.py attach` first")
    if lock is None:
        raise RunDirError(
            f"{run.path} is being driven by another launcher; look at it with "
            f"`run.py status --run {run.path}`, end it with `run.py stop --run {run.path}`"
        )
    return lock


def _write_plan(run: RunDir, topology: Topology, found: Hardware) -> None:
    """Everything the supervisor needs to know, complete."""
    plan = planner.plan(topology, found)
    document: dict[str, Any] = msgspec.to_builtins(plan)
    try:
        rundir.write_atomically(run.topology, topologies.to_toml(topology))
        rundir.write_atomically(run.hardware, hardware.to_json(found) + "\n")
        text = msgspec.json.format(msgspec.json.encode(document), indent=1).decode()
        rundir.write_atomically(run.plan, text + "\n")
    except OSError as error:
        raise RunDirError(
            f"run directory {run.path} cannot be written: {error.strerror}"
        ) from error


def _nothing_saved(run: RunDir) -> bool:
    """Whether the run has never had a checkpoint. Raises `RunDirError` when it had, and none of
    them is one any more: what was learned is lost, and only a person can say that it may be.
    """
    if any(run.checkpoints.glob("step-*/manifest.json")):
        return False
    lost = sorted(path.name for path in run.checkpoints.glob("step-*") if path.suffix != ".tmp")
    if lost:
        raise RunDirError(
            f"{run.path} cannot be resumed: there is no complete checkpoint in {run.checkpoints}, "
            f"only what is left of {', '.join(lost[:3])}; start a new run"
        )
    return True


def _forget_steps(run: RunDir) -> None:
    """Remove what steps that nobody saved have left, so that the run is the one it would have been.

    Logs stay, and the keys of those who were invited. Raises OSError.
    """
    for path in (run.ledger, run.metrics, run.rollouts, run.experiences):
        for found in run.path.glob(f"{path.name}*"):  # a database's log, and older lines
            found.unlink()
    for found in run.journal.glob("*"):
        found.unlink()


# --- Topology -------------------------------------------------------------------------------------


def _settings(wanted: Wanted) -> tuple[str, ...]:
    steps = (f"steps={wanted.steps}",) if wanted.steps else ()
    return (*wanted.settings, *steps)


def _stored(run: RunDir) -> Topology:
    try:
        text = run.topology.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RunDirError(f"{run.topology} cannot be read: {error}") from error
    return topologies.decode(text, source=str(run.topology))


def _changed(wanted: Wanted, stored: Topology, run: RunDir, found: Hardware) -> Topology:
    """The stored topology with what is now wanted, where that may change and is said by name: what
    a named topology says otherwise, and --set does not, is a mistake. Raises `TopologyError`.
    """
    other = [one for one in wanted.settings if one.partition("=")[0].strip() != "steps"]
    asked = stored
    if wanted.topology:
        asked = preparing.prepare(
            wanted.topology,
            found,
            overrides=_settings(wanted),
            require_hardware=wanted.require_hardware,
        ).topology
    elif other:
        asked = topologies.override(stored, tuple(other), source="--set")
    differing = _differences(topologies.to_dict(stored), topologies.to_dict(asked))
    kept = [key for key in differing if not key.startswith(_MAY_CHANGE)]
    if kept:
        may = ", ".join(key + "*" * key.endswith(".") for key in _MAY_CHANGE)
        raise TopologyError(
            f"{run.topology}: a resumed run keeps what it learns from what; what is asked for "
            f"differs in {', '.join(kept)}; what may change: {may}"
        )
    said = {one.partition("=")[0].strip() for one in wanted.settings}
    unsaid = [key for key in differing if key not in {*said, "steps", "optimizer.fire_at"}]
    if unsaid:
        raise TopologyError(
            f"{run.topology}: {wanted.topology} says otherwise of {', '.join(unsaid)}; name "
            "what is to change with --set, or leave --topology away"
        )
    return topologies.override(stored, _settings(wanted), source=str(run.topology))


def _with_fire(topology: Topology, run: RunDir) -> Topology:
    """The topology with FIRE at the end of the first step that no parameter has begun yet: a stop
    can leave some of them one step ahead. Raises `TopologyError`, `RunDirError`.
    """
    newest = next(iter(checkpoints.listing(run.checkpoints)), None)
    if newest is None:
        raise RunDirError(f"--fire: {run.path} has no checkpoint yet; resume without it")
    try:
        files = [path.name for path in newest.iterdir()]
        versions = {
            name: about.version
            for file in checkpoints.tensor_files(newest, files)
            for name, about in file.parameters.items()
        }
        after = min(versions.values())
        noted = steps_noted.indexed(run.journal, after, lambda _why: None).reached(versions, after)
    except (OSError, checkpoints.CheckpointError) as error:
        raise RunDirError(f"--fire: {error}; resume without it") from error
    step = max(noted, *versions.values()) + 1
    if step > topology.steps:
        raise TopologyError(
            f"{run.topology}: --fire, but all {topology.steps} steps have been made; "
            f"accepted: with --steps {step} or more"
        )
    steps = tuple(sorted({*topology.optimizer.fire_at, step}))
    optimizer = msgspec.structs.replace(topology.optimizer, fire_at=steps)
    return msgspec.structs.replace(topology, optimizer=optimizer)


def _differences(one: dict[str, Any], two: dict[str, Any], prefix: str = "") -> list[str]:
    """Dotted keys in which two topologies differ."""
    found: list[str] = []
    for key in sorted({*one, *two}):
        left, right = one.get(key), two.get(key)
        if isinstance(left, dict) and isinstance(right, dict):
            found += _differences(left, right, f"{prefix}{key}.")  # pyright: ignore[reportUnknownArgumentType]
        elif left != right:
            found.append(f"{prefix}{key}")
    return found


def _check_data(topology: Topology, source: str) -> None:
    """Raise `TopologyError` when the data of a run, or what it compares with, is not there."""
    from actors.data import checks
    from actors.reference import reference_problem

    problems = checks.check(topology)
    if topology.train.filter_reference:
        why = reference_problem(topology.train.filter_reference, topology.data.tokenizer)
        problems = [*problems, *([f"train.filter_reference: {why}"] if why else [])]
    if problems:
        raise TopologyError(f"{source}: " + "; ".join(problems))
