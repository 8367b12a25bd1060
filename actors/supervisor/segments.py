"""The run's shared memory: made before the actors start, removed after the last has gone.

Whoever dies meanwhile, the bytes stay: that is what lets a shard be replaced within a step.
"""

from collections.abc import Callable

from actors.topology import Topology
from protocol import segments
from protocol.errors import SegmentError
from protocol.segments import segment_name


def wanted(run_id: str, topology: Topology) -> dict[str, int]:
    """Names and bytes of all segments of a run."""
    from actors import codec_memory, gradient_slots
    from actors.optimizer import layout

    sizes: dict[str, int] = {}
    for shard in range(topology.actors.optimizer_shards):
        name = segment_name(run_id, f"optimizer_shard/{shard}", "state")
        sizes[name] = layout.state_layout(topology, shard).total_bytes
    gradients = gradient_slots.segment_bytes(topology.model, topology.optimizer)
    memory = codec_memory.segment_bytes(topology)
    for trainer in range(topology.actors.remote_ranks.start):  # others share no memory with us
        sizes[segment_name(run_id, f"trainer/{trainer}", "gradients")] = gradients
        if memory:
            sizes[segment_name(run_id, f"trainer/{trainer}", "memory")] = memory
    return sizes


def make(sizes: dict[str, int], pulse: Callable[[], object] = lambda: None) -> None:
    """Create what is missing; what is there stays as it is. `pulse` is called meanwhile.

    Raises `SegmentError`.
    """
    for name, nbytes in sizes.items():
        pulse()
        try:
            found = segments.attach(name)
        except SegmentError:
            segments.create(name, nbytes, pulse).close()
            continue
        fits = found.nbytes == nbytes
        found.close()
        if not fits:
            raise SegmentError(
                f"segment {name} holds {found.nbytes} bytes where {nbytes} are needed: it was made "
                f"for another topology; stop what uses it and remove /dev/shm/{name}"
            )


def remove(run_id: str, pulse: Callable[[], object] | None = None) -> list[str]:
    """Remove all segments of a run; returns those that could not be.

    With `pulse`, which is called meanwhile, nobody may use them any more.
    """
    stuck: list[str] = []
    for name in segments.listing(f"trireme-{run_id}-"):
        try:
            if pulse is None:
                segments.unlink(name)
            else:
                segments.discard(name, pulse)
        except SegmentError:
            stuck.append(name)
    return stuck
