"""A model that holds codes only, kept equal to what the optimizer shards publish.

Shared by whoever computes with weights it does not own: trainers, rollouts, the command line.
Nothing is taken over before its digest has been checked on a private copy, so neither a damaged
message nor a shard that moved on can leave half an update behind.
"""

from collections.abc import Iterable, Mapping, Sequence

import msgspec
import numpy as np
import torch

from actors import downlink
from actors.checkpoints import Checkpoint, published_parameters
from actors.codecs import to_numpy
from actors.parameters import Parameter, parameters
from actors.published import Array, codec_of, digest, published_tensors, weights_digest
from actors.topology import ModelSpec
from kernels.model.config import ModelConfig
from kernels.model.model import LoopLM
from kernels.precision.packing import unpack_array
from protocol import flips
from protocol import messages as m
from protocol.errors import Malformed, ProtocolError
from protocol.messages import TensorRef
from protocol.tensors import Attached, read


class Mismatch(ProtocolError):
    """What came is not what its digest says, or does not lead on from what we hold."""


def read_codes(
    parameter: Parameter,
    message: m.Codes | m.Update,
    frames: Sequence[memoryview],
    attached: Attached | None,
) -> dict[str, Array]:
    """Private copies of a whole parameter's tensors, digest checked. Raises `ProtocolError`."""
    if message.codec != codec_of(parameter):
        raise Malformed(f"{parameter.name}: codec {message.codec!r}, not {codec_of(parameter)!r}")
    specs = published_tensors(parameter)
    found = _read_all(parameter, message.tensors, len(specs), frames, attached)
    tensors = {spec.name: array for spec, array in zip(specs, found, strict=True)}
    for spec in specs:
        _check_kind(parameter, tensors[spec.name], spec.dtype, spec.shape)
    _check_digest(parameter, tensors, message.digest)
    return tensors


class Replica:
    """A LoopLM in "codes" mode and the packed codes it was made from."""

    def __init__(self, spec: ModelSpec, device: str = "cpu") -> None:
        self.parameters = parameters(spec)
        self.named = {parameter.name: parameter for parameter in self.parameters}
        config = ModelConfig.of(msgspec.to_builtins(spec))
        self.model = LoopLM(config, mode="codes").to(device)
        self.device = device
        self._layers = self.model.ternary_layers()
        self._packed: dict[str, Array] = {}
        self._digests: dict[str, bytes] = {}

    def load(self, snapshot: Mapping[str, Mapping[str, Array]]) -> None:
        """Take over published tensors, by parameter. Their digests have been checked."""
        for name, tensors in snapshot.items():
            self._install(self.named[name], tensors, digest(self.named[name], tensors))

    def load_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Take over the weights of a checkpoint. Raises `CheckpointError`."""
        self.load(published_parameters(checkpoint, self.parameters))

    def apply(
        self,
        message: m.Update | m.Codes,
        frames: Sequence[memoryview],
        attached: Attached | None = None,
    ) -> None:
        """Take over an update of one parameter, or the whole of it.

        Raises `Mismatch` or another `ProtocolError`, and leaves the parameter as it was.
        """
        parameter = self.named.get(message.param)
        if parameter is None:
            raise Malformed(f"no parameter is called {message.param[:80]!r}")
        if message.codec == "flips":
            tensors = self._flipped(parameter, message, frames, attached)
        elif isinstance(message, m.Update) and message.codec in downlink.CODECS:
            tensors = self._moved(parameter, message, frames, attached)
        else:
            tensors = read_codes(parameter, message, frames, attached)
        self._install(parameter, tensors, bytes.fromhex(message.digest))

    def weights_digest(self) -> str:
        """SHA-256 of all weights, as in metrics.jsonl. Raises KeyError while some are missing."""
        return weights_digest(self._digests[parameter.name] for parameter in self.parameters)

    def _flipped(
        self,
        parameter: Parameter,
        message: m.Update | m.Codes,
        frames: Sequence[memoryview],
        attached: Attached | None,
    ) -> dict[str, Array]:
        old = self._packed.get(parameter.name)
        if old is None or parameter.kind != "ternary":
            raise Mismatch(f"{parameter.name}: flips, but there are no codes they could change")
        data, scale = _read_all(parameter, message.tensors, 2, frames, attached)
        _check_kind(parameter, data, "uint8", data.shape[:1])
        _check_kind(parameter, scale, "float32", ())
        packed = flips.decode(old, data.data, parameter.numel)
        tensors = {"packed": packed, "scale": scale}
        _check_digest(parameter, tensors, message.digest)
        return tensors

    def _moved(
        self,
        parameter: Parameter,
        message: m.Update,
        frames: Sequence[memoryview],
        attached: Attached | None,
    ) -> dict[str, Array]:
        if parameter.kind != "dense" or parameter.name not in self._digests:
            raise Mismatch(f"{parameter.name}: a step, but there is nothing it could move")
        found = _read_all(parameter, message.tensors, 2, frames, attached)
        old = to_numpy(self.model.get_parameter(parameter.name))
        try:
            new = downlink.moved(parameter.name, message.codec, message.version, old, found)
        except ValueError as error:
            raise Malformed(str(error)) from error
        tensors = {"dense": new}
        _check_digest(parameter, tensors, message.digest)
        return tensors

    @torch.no_grad()
    def _install(self, parameter: Parameter, tensors: Mapping[str, Array], sha: bytes) -> None:
        if parameter.kind == "ternary":
            try:
                codes = unpack_array(tensors["packed"], parameter.shape)
            except ValueError as error:
                raise Malformed(f"{parameter.name}: {error}") from error
            self._layers[parameter.name].load(torch.from_numpy(codes), float(tensors["scale"]))
            self._packed[parameter.name] = tensors["packed"]
        else:
            self.model.load_dense(parameter.name, torch.from_numpy(tensors["dense"]))
        self._digests[parameter.name] = sha


def _read_all(
    parameter: Parameter,
    refs: Sequence[TensorRef],
    count: int,
    frames: Sequence[memoryview],
    attached: Attached | None,
) -> list[Array]:
    if len(refs) != count:
        raise Malformed(f"{parameter.name}: {len(refs)} tensors where {count} are expected")
    return [np.array(read(ref, frames, attached)) for ref in refs]


def _check_kind(parameter: Parameter, array: Array, dtype: str, shape: Iterable[int]) -> None:
    if array.dtype != dtype or array.shape != tuple(shape):
        raise Malformed(
            f"{parameter.name}: {array.dtype} {array.shape}, expected {dtype} {tuple(shape)}"
        )


def _check_digest(parameter: Parameter, tensors: Mapping[str, Array], expected: str) -> None:
    if digest(parameter, tensors).hex() != expected:
        raise Mismatch(f"{parameter.name}: the digest does not match")
