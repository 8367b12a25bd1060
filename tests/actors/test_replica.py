"""A replica follows the shards exactly, and takes over nothing that is not what it says."""

from pathlib import Path

import numpy as np
import pytest
import torch
from msgspec.structs import replace

from actors import checkpoints
from actors.optimizer import updates
from actors.parameters import Parameter, parameters
from actors.published import Array, codec_of, digest, published_tensors
from actors.replica import Mismatch, Replica, read_codes
from protocol import flips
from protocol import messages as m
from protocol.errors import Malformed, ProtocolError
from protocol.tensors import Frames
from tests.actors.exchange import Exchange, tiny

TOPOLOGY = tiny()
PARAMS = {parameter.name: parameter for parameter in parameters(TOPOLOGY.model)}
MATRIX = PARAMS["layers.0.attention.q.weight"]
VECTOR = PARAMS["norm.weight"]


def shown(parameter: Parameter, seed: int) -> dict[str, Array]:
    master = np.random.default_rng(seed).standard_normal(parameter.shape, np.float32)
    return updates.published(parameter, master)


def codes(parameter: Parameter, tensors: dict[str, Array]) -> tuple[m.Codes, list[memoryview]]:
    out = Frames()
    refs = tuple(out.add(tensors[spec.name]) for spec in published_tensors(parameter))
    message = m.Codes(
        version=0,
        param=parameter.name,
        index=0,
        count=1,
        codec=codec_of(parameter),
        digest=digest(parameter, tensors).hex(),
        tensors=refs,
    )
    return message, out.parts


def update(
    parameter: Parameter, old: dict[str, Array], new: dict[str, Array]
) -> tuple[m.Update, list[memoryview]]:
    out = Frames()
    data = flips.encode(old["packed"], new["packed"], parameter.numel).data
    refs = (out.add(np.frombuffer(data, np.uint8)), out.add(new["scale"]))
    message = m.Update(
        version=1,
        param=parameter.name,
        codec="flips",
        digest=digest(parameter, new).hex(),
        tensors=refs,
    )
    return message, out.parts


@pytest.fixture
def replica() -> Replica:
    found = Replica(TOPOLOGY.model)
    found.load({name: shown(parameter, 0) for name, parameter in PARAMS.items()})
    return found


def test_codes_and_scales_reach_the_model(replica: Replica):
    layer = replica.model.ternary_layers()[MATRIX.name]
    tensors = shown(MATRIX, 1)
    replica.apply(*codes(MATRIX, tensors))
    assert float(layer.scale) == float(tensors["scale"])
    assert torch.equal(layer.codes, torch.from_numpy(unpacked(tensors)).view(MATRIX.shape))
    replica.apply(*codes(VECTOR, shown(VECTOR, 1)))
    assert np.array_equal(replica.model.norm.weight.detach(), shown(VECTOR, 1)["dense"])


def unpacked(tensors: dict[str, Array]) -> Array:
    """Codes of a matrix whose size is a multiple of four."""
    places = np.array([0, 2, 4, 6], np.uint8)
    return ((tensors["packed"][:, None] >> places) & 3).reshape(-1).astype(np.int8) - 1


def test_flips_lead_to_the_same_weights_as_the_whole(replica: Replica):
    old, new = shown(MATRIX, 0), shown(MATRIX, 2)
    replica.apply(*update(MATRIX, old, new))
    by_flips = replica.weights_digest()
    replica.apply(*codes(MATRIX, new))
    assert replica.weights_digest() == by_flips


def test_flips_on_other_codes_are_refused_and_change_nothing(replica: Replica):
    before = replica.weights_digest()
    layer = replica.model.ternary_layers()[MATRIX.name]
    held = layer.codes.clone()
    with pytest.raises(ProtocolError):
        replica.apply(*update(MATRIX, shown(MATRIX, 5), shown(MATRIX, 6)))
    assert replica.weights_digest() == before
    assert torch.equal(layer.codes, held)


def test_flips_without_codes_are_refused():
    empty = Replica(TOPOLOGY.model)
    with pytest.raises(Mismatch):
        empty.apply(*update(MATRIX, shown(MATRIX, 0), shown(MATRIX, 1)))


def test_a_wrong_digest_is_refused():
    message, frames = codes(VECTOR, shown(VECTOR, 0))
    with pytest.raises(Mismatch):
        read_codes(VECTOR, replace(message, digest="00" * 32), frames, None)


@pytest.mark.parametrize(
    "change",
    [
        {"codec": "dense"},
        {"codec": "zip"},
        {"tensors": ()},
        {"param": "nobody"},
        {"digest": "not hex"},
        {"tensors": (m.TensorRef(dtype="float32", shape=(3,), frame=0),) * 2},
        {"tensors": (m.TensorRef(dtype="uint8", shape=(9,), segment="trireme-x-y"),) * 2},
    ],
)
def test_nonsense_is_a_protocol_error(replica: Replica, change: dict[str, object]):
    message, frames = codes(MATRIX, shown(MATRIX, 1))
    with pytest.raises(ProtocolError):
        replica.apply(replace(message, **change), frames)


def test_bytes_that_are_no_ternary_codes_are_refused(replica: Replica):
    tensors = shown(MATRIX, 1)
    tensors["packed"] = np.full_like(tensors["packed"], 0xFF)
    with pytest.raises(Malformed, match="value 3"):
        replica.apply(*codes(MATRIX, tensors))


def test_a_checkpoint_is_as_good_as_the_shards(tmp_path: Path):
    exchange = Exchange(tiny("steps=2"), directory=tmp_path)
    digest_at_end = exchange.run()
    exchange.settle()
    found = checkpoints.newest(tmp_path, pytest.fail)
    assert found is not None
    replica = Replica(exchange.topology.model)
    replica.load_checkpoint(found)
    assert replica.weights_digest() == digest_at_end
