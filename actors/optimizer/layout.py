"""Where everything a shard owns lies in its shared memory segment. Arithmetic only, no torch.

    header       who made this and for what; the committed step; the redo marker
    facts        what the trainers said about the two newest steps, by parity
    ring         metrics records of the last `RING_RECORDS` committed steps
    meta         per parameter: version, and per published version: tag, flips, bytes up and down,
                 ranks that were absent
    digests      per parameter and published version: SHA-256
    parameters   per parameter: master, the optimizer's state, two published versions
    redo         one record, as large as the largest parameter's master and state

The supervisor makes the segment (it needs `total_bytes`), the shard lives in it, and the segment
outlives the shard. A technique that must remember something more declares another tensor in
`state_tensors`: the layout, the redo record and the checkpoint follow.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import msgspec
import numpy as np

from actors import subspace
from actors.parameters import Parameter, parameters, partition
from actors.published import TensorSpec, published_tensors
from actors.slots import Cursor, Slot
from actors.stored import stored
from actors.topology import OptimizerGroup, OptimizerSpec, Topology

# Bump when bytes move: a segment of another version is refused rather than misread.
LAYOUT_VERSION = 1
MAGIC = 0x74726972656D6531  # "trireme1"
# A recorder that was away for this many steps still gets every record.
RING_RECORDS = 256
# Step, length, and a JSON object of some thirty figures, with room to spare.
RING_SLOT_BYTES = 4096
HEADER_WORDS = 16
META_WORDS = 16
FACT_WORDS = 8

# Codes that share a scale, where a topology does not say.
BLOCKS = {"muon8bit": 2048, "adamw8bit": 256}


@dataclass(frozen=True, slots=True)
class Places:
    """Where one parameter's tensors lie. Dicts are in declared order."""

    parameter: Parameter
    kept: dict[str, Slot]  # "master" and the optimizer's state
    published: tuple[dict[str, Slot], dict[str, Slot]]  # by parity of the version
    redo: dict[str, Slot]  # the kept tensors again, within the redo record


@dataclass(frozen=True, slots=True)
class Layout:
    """The whole segment of one shard."""

    shard: int
    ranks: int
    seed: int
    header: Slot
    facts: Slot
    ring: Slot
    meta: Slot
    digests: Slot
    places: tuple[Places, ...]
    total_bytes: int
    digest: bytes  # of names, shapes and types: two layouts with one digest are interchangeable

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """This shard's parameters, in order."""
        return tuple(place.parameter for place in self.places)


def _muon(group: OptimizerGroup, parameter: Parameter) -> tuple[TensorSpec, ...]:
    return TensorSpec("momentum", "float32", parameter.shape), *_neurons(group, parameter)


def _muon8bit(group: OptimizerGroup, parameter: Parameter) -> tuple[TensorSpec, ...]:
    codes = stored("momentum", parameter.shape, group.map, block_of(group))
    return *codes, *_neurons(group, parameter)


def _neurons(group: OptimizerGroup, parameter: Parameter) -> tuple[TensorSpec, ...]:
    """NorMuon's mean square of each row."""
    if not group.neuron_beta2:
        return ()
    return (TensorSpec("neurons", "float32", (parameter.shape[0], 1)),)


def _adamw(_group: OptimizerGroup, parameter: Parameter) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(name, "float32", parameter.shape) for name in ("mean", "square"))


def _adamw8bit(group: OptimizerGroup, parameter: Parameter) -> tuple[TensorSpec, ...]:
    shape, block = parameter.shape, block_of(group)
    return *stored("mean", shape, "dynamic", block), *stored("square", shape, "unsigned", block)


def _foam(group: OptimizerGroup, parameter: Parameter) -> tuple[TensorSpec, ...]:
    shape = parameter.shape
    if len(shape) >= 2:
        shape = (*shape[:-1], -(-shape[-1] // 2**group.level))
    return tuple(TensorSpec(name, "float32", shape) for name in ("mean", "square"))


# What each kind of optimizer remembers of a parameter, as kernels/optimizers declares it (a test
# holds the two together: nothing here may import a kernel). All zeros is the state before step 1.
KINDS: dict[str, Callable[[OptimizerGroup, Parameter], tuple[TensorSpec, ...]]] = {
    "muon": _muon,
    "muon8bit": _muon8bit,
    "adamw": _adamw,
    "adamw8bit": _adamw8bit,
    "foam": _foam,
}


def _basis(group: OptimizerGroup, parameter: Parameter) -> tuple[TensorSpec, ...]:
    """The basis of a projection, and the step it comes from."""
    version = TensorSpec(subspace.VERSION, "int64", (1,))
    return version, *subspace.basis_tensors(group, parameter.shape)


def _galore(group: OptimizerGroup, parameter: Parameter) -> tuple[TensorSpec, ...]:
    core = subspace.core_shape(group, parameter.shape)
    small = Parameter(parameter.name, core, parameter.kind, parameter.group)
    moments = KINDS[group.kind](group, small)
    count = (TensorSpec("count", "int64", (1,)),) if group.kind.startswith("adamw") else ()
    return *_basis(group, parameter), *moments, *count


def block_of(group: OptimizerGroup) -> int:
    """Codes that share a scale."""
    return group.block or BLOCKS[group.kind]


def group_of(optimizer: OptimizerSpec, parameter: Parameter) -> OptimizerGroup:
    """The optimizer settings of `parameter`."""
    group = optimizer.matrices if parameter.group == "matrices" else optimizer.dense
    return group if parameter.decays else msgspec.structs.replace(group, weight_decay=0.0)


def state_tensors(optimizer: OptimizerSpec, parameter: Parameter) -> tuple[TensorSpec, ...]:
    """What the optimizer remembers of `parameter` from step to step."""
    group = group_of(optimizer, parameter)
    match group.projection:
        case "galore":
            return _galore(group, parameter)
        case "gum":
            return *_basis(group, parameter), *KINDS[group.kind](group, parameter)
        case "none":
            return KINDS[group.kind](group, parameter)


def kept_tensors(optimizer: OptimizerSpec, parameter: Parameter) -> tuple[TensorSpec, ...]:
    """Everything that an update replaces: the master weights and the optimizer's state."""
    master = TensorSpec("master", "float32", parameter.shape)
    return master, *state_tensors(optimizer, parameter)


def state_layout(topology: Topology, shard: int) -> Layout:
    """Layout of the segment of `shard`. A pure function of its arguments."""
    owned = partition(parameters(topology.model), topology.actors.optimizer_shards)[shard]
    ranks = topology.actors.trainers
    cursor = Cursor()
    header = cursor.take("int64", (HEADER_WORDS,))
    facts = cursor.take("int64", (2, ranks, FACT_WORDS))
    ring = cursor.take("uint8", (RING_RECORDS, RING_SLOT_BYTES))
    meta = cursor.take("int64", (len(owned), META_WORDS))
    digests = cursor.take("uint8", (len(owned), 2, 32))
    kept = [cursor.take_all(kept_tensors(topology.optimizer, p)) for p in owned]
    published = [
        (cursor.take_all(published_tensors(p)), cursor.take_all(published_tensors(p)))
        for p in owned
    ]
    redo_start, end = cursor.at, cursor.at
    places: list[Places] = []
    for parameter, mine, shown in zip(owned, kept, published, strict=True):
        record = Cursor(redo_start)
        redo = record.take_all(kept_tensors(topology.optimizer, parameter))
        places.append(Places(parameter, mine, shown, redo))
        end = max(end, record.at)
    return Layout(
        shard=shard,
        ranks=ranks,
        seed=topology.seed,
        header=header,
        facts=facts,
        ring=ring,
        meta=meta,
        digests=digests,
        places=tuple(places),
        total_bytes=end,
        digest=_digest(topology, places, end),
    )


def checkpoint_bytes(topology: Topology, shard: int) -> int:
    """The most that a checkpoint of `shard` takes on disk; what codecs remember comes on top.

    One made by a stop holds both published versions, so it is all but what an update needs to redo.
    """
    return sum(
        np.dtype(slot.dtype).itemsize * math.prod(slot.shape)
        for places in state_layout(topology, shard).places
        for slots in (places.kept, *places.published)
        for slot in slots.values()
    )


def _digest(topology: Topology, places: Iterable[Places], total_bytes: int) -> bytes:
    text = json.dumps(
        [
            LAYOUT_VERSION,
            topology.actors.trainers,
            total_bytes,
            [topology.optimizer.codec, topology.optimizer.codec_rank],
            [[p.parameter.name, p.parameter.kind, p.kept, p.published] for p in places],
        ]
    )
    return hashlib.sha256(text.encode()).digest()
