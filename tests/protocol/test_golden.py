"""The bytes of the wire are frozen."""

import pytest

from protocol.codec import KINDS, decode
from tests.protocol.examples import EXAMPLES, GOLDEN, envelope_of, from_file, parts_of, to_file


def test_every_message_has_an_example_and_a_golden_file():
    assert sorted(EXAMPLES) == sorted(KINDS)
    assert sorted(path.stem for path in GOLDEN.glob("*.bin")) == sorted(KINDS)


@pytest.mark.parametrize("kind", sorted(EXAMPLES))
def test_the_wire_has_not_changed(kind: str):
    """Changing this means that peers no longer understand us: bump WIRE_VERSION."""
    assert to_file(parts_of(kind)) == (GOLDEN / f"{kind}.bin").read_bytes()


@pytest.mark.parametrize("kind", sorted(EXAMPLES))
def test_a_golden_file_decodes_to_its_example(kind: str):
    decoded = decode(from_file((GOLDEN / f"{kind}.bin").read_bytes()))
    message, frames = EXAMPLES[kind]
    assert decoded.message == message
    assert decoded.envelope == envelope_of(kind)
    assert tuple(bytes(frame) for frame in decoded.frames) == frames
