"""A rank's gradients on their way up: encoded by their codec, with the memory that it keeps."""

from collections.abc import Sequence

from torch import Tensor

from actors.codec_memory import CodecMemory, MemoryLost
from actors.codecs import codec_for, key_of, to_numpy, to_torch
from actors.diverged import REMEDY, Diverged
from actors.parameters import Parameter
from actors.published import Array
from actors.topology import Topology
from actors.uplink import codec_of, memory_tensors, payload_tensors
from kernels.optimizers.finite import NotFinite


class Uplink:
    """Encodes the gradients of one rank."""

    def __init__(
        self, topology: Topology, rank: int, memory: CodecMemory | None, device: str
    ) -> None:
        self._topology, self._rank = topology, rank
        self._memory, self._device = memory, device

    def codec(self, parameter: Parameter) -> str:
        """Name of the codec of `parameter`."""
        return codec_of(self._topology.optimizer, parameter)

    def encode(
        self, step: int, parameter: Parameter, gradient: Tensor, *, whole: bool = False
    ) -> Sequence[Array]:
        """What travels for the gradient of `step`, whose memory is kept before this returns.

        `gradient` is what a projection left of it, if there is one; `whole` as in
        `uplink.travelling_shape`. The arrays may share memory with `gradient`. Raises `MemoryLost`,
        or `Diverged` where a codec finds no finite payload.
        """
        optimizer = self._topology.optimizer
        if self.codec(parameter) == "dense":
            return (to_numpy(gradient.float()),)
        before = self._remembered(step - 1, parameter)
        try:
            payload, after = codec_for(optimizer, parameter).encode(
                gradient,
                {name: to_torch(array, self._device) for name, array in before.items()},
                key_of(self._topology.seed, parameter, step, self._rank),
            )
        except NotFinite as error:
            raise Diverged(
                f"the gradient of {parameter.name} cannot be encoded at step {step} "
                f"(trainer/{self._rank}): {error}; {REMEDY}"
            ) from error
        if self._memory is not None and before:
            kept = {name: to_numpy(tensor) for name, tensor in after.items()}
            self._memory.write(parameter.name, step, kept)
        specs = payload_tensors(optimizer, parameter, whole=whole)
        return [to_numpy(payload[spec.name]) for spec in specs]

    def _remembered(self, version: int, parameter: Parameter) -> dict[str, Array]:
        if not memory_tensors(self._topology.optimizer, parameter):
            return {}
        if self._memory is None:
            raise MemoryLost(
                f'codec "{self.codec(parameter)}" remembers errors from step to step, and there is '
                "no shared memory to keep them in: stop the run and resume it"
            )
        return dict(self._memory.read(parameter.name, version))
