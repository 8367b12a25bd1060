"""From a topology's name to the topology that runs here. What every command starts with.

find -> decode -> settings of [hardware] and [emulation] -> resolve -> cut micro-batches to the
GPU's memory -> all other settings
"""

import msgspec

from actors import planner
from actors import topology as topologies
from actors.hardware import Hardware
from actors.matching import resolve
from actors.topology import Topology


class Prepared(msgspec.Struct, frozen=True):
    """A topology ready to be planned and run."""

    topology: Topology
    note: str | None  # one line when something else runs than the file says
    source: str  # the file


def prepare(
    name_or_path: str,
    hardware: Hardware,
    *,
    overrides: tuple[str, ...] = (),
    require_hardware: bool = False,
) -> Prepared:
    """Topology by name or file, fitted to `hardware`, with `overrides` (`a.b=c`) put on top.

    Settings speak about what runs: `--set model.dim=64` changes the model that runs, emulated or
    not. Only those of [hardware] and [emulation] come before the fitting. Raises `TopologyError`.
    """
    early = tuple(o for o in overrides if o.lstrip().startswith(("hardware.", "emulation.")))
    late = tuple(o for o in overrides if o not in early)
    text, source = topologies.find_topology(name_or_path)
    wanted = topologies.decode(text, source=source, overrides=early)
    fitted, note = resolve(wanted, hardware, require_hardware)
    cut = fit_gpu_memory(fitted, hardware)
    if cut is not fitted:
        before, after = fitted.train, cut.train
        room = f"{before.gpu_memory_gb:g} GB of " if before.gpu_memory_gb else ""
        note = (
            f"{fitted.name}: {before.rows_per_trainer} rows at a time do not fit into {room}the "
            f"GPU's memory; {after.rows_per_trainer} rows x {after.accumulation} micro-batches "
            f"take the place of {before.rows_per_trainer} x {before.accumulation}, the same step"
        )
    if late:
        cut = topologies.override(cut, late, source=source)
    return Prepared(topologies.absolute_paths(cut), note, source)


def fit_gpu_memory(topology: Topology, hardware: Hardware) -> Topology:
    """The topology with fewer rows and more micro-batches per step where a GPU needs that.

    The step stays the same mathematically. Unchanged when it fits, or when nothing would.
    """
    plan, bound = planner.plan(topology, hardware), topology.train.gpu_memory_gb
    excess = planner.gpu_excess(plan, hardware, bound)
    smaller = planner.smaller_batch(topology, max(excess.values(), default=0))
    if smaller is None:
        return topology
    rows, accumulation = smaller
    train = msgspec.structs.replace(
        topology.train, rows_per_trainer=rows, accumulation=accumulation
    )
    return msgspec.structs.replace(topology, train=train)
