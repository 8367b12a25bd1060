"""The rollout's weights: a whole snapshot of one version, checked, then put into the model.

Parts arrive as references into the shards' memory, which may move on while it is read. So every
part is copied and its digest compared; what does not agree is as if it had never come.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from actors.parameters import Parameter, parameters, partition
from actors.published import Array, digest, published_tensors
from actors.snapshots import Ask, Snapshot, SnapshotCollector
from actors.topology import Topology
from kernels.model.model import LoopLM
from kernels.precision.packing import unpack_array
from protocol import tensors
from protocol.errors import Malformed, SegmentError
from protocol.messages import Codes
from protocol.tensors import Attached
from protocol.transport import Received

Published = Mapping[str, Array]


class Intake:
    """Collects one snapshot from all shards."""

    def __init__(self, topology: Topology, attached: Attached) -> None:
        params = parameters(topology.model)
        owned = partition(params, topology.actors.optimizer_shards)
        self.refused = 0  # parts that were damaged, or overtaken by the next step
        self._attached = attached
        self._parameters = {parameter.name: parameter for parameter in params}
        self._collector: SnapshotCollector[Published] = SnapshotCollector(
            [[parameter.name for parameter in own] for own in owned]
        )

    def asks(self, now: float) -> list[Ask]:
        """Which shards to send a `CodesRequest` now, for which version."""
        return self._collector.asks(now)

    def shard_up(self, shard: int) -> None:
        """That shard lives anew."""
        self._collector.shard_up(shard)

    def take(self, received: Received) -> None:
        """Take one `Codes` message; any other is none of our business."""
        message = received.message
        if not isinstance(message, Codes) or not received.channel.startswith("exchange/"):
            return
        parameter = self._parameters.get(message.param)
        if parameter is None:
            self.refused += 1
            return
        try:
            published = _checked(parameter, message, received.frames, self._attached)
        except (Malformed, SegmentError):
            self.refused += 1
            return
        shard = int(received.channel.partition("/")[2])
        self._collector.add(shard, message.version, message.param, published)

    def result(self) -> Snapshot[Published] | None:
        """The snapshot once it is whole."""
        return self._collector.result()


def _checked(
    parameter: Parameter, message: Codes, frames: Sequence[memoryview], attached: Attached
) -> Published:
    """Copies of the parameter's tensors. Raises `Malformed` and `SegmentError`."""
    specs = published_tensors(parameter)
    if len(message.tensors) != len(specs):
        raise Malformed(f"{parameter.name}: {len(message.tensors)} tensors, not {len(specs)}")
    copies: dict[str, Array] = {}
    for spec, ref in zip(specs, message.tensors, strict=True):
        if (ref.dtype, ref.shape) != (spec.dtype, spec.shape):
            raise Malformed(f"{parameter.name}: {ref.dtype} {ref.shape} is not its {spec.name}")
        copies[spec.name] = np.array(tensors.read(ref, frames, attached))
    if digest(parameter, copies).hex() != message.digest:
        raise Malformed(f"{parameter.name}: its digest is not that of version {message.version}")
    return copies


def load(model: LoopLM, params: Sequence[Parameter], published: Mapping[str, Published]) -> None:
    """Put a snapshot into a model of mode "codes". Raises `ValueError` where it does not fit."""
    layers = model.ternary_layers()
    for parameter in params:
        arrays = published[parameter.name]
        if parameter.kind == "ternary":
            codes = unpack_array(arrays["packed"], parameter.shape)
            layers[parameter.name].load(torch.from_numpy(codes), float(arrays["scale"]))
        else:
            model.load_dense(parameter.name, torch.from_numpy(arrays["dense"]))
