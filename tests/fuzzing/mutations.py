"""Bytes, changed at random: bits, numbers, lengths, pieces of other inputs."""

import random
from collections.abc import Sequence

_NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 2**63 - 1, 2**64 - 1)
_WORDS = (
    b"\xc0", b"\xc1", b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff",
    b"\x00", b"\xff" * 8, b"null", b"[", b"{", b"}", b'"', b"-1", b"1e999", b"NaN", b"\\u0000",
    b"\xf0\x9f\x92\xa3", b"\n[", b"=", b"'''", b"true", b"0x",
)  # fmt: skip
# Longer ones are slow and show nothing new.
MOST_BYTES = 1 << 16


def mutated(chance: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """`data` with one to six changes."""
    changed = bytearray(data)
    for _ in range(chance.randint(1, 6)):
        chance.choice(_CHANGES)(chance, changed, others)
    return bytes(changed[:MOST_BYTES])


def _flip(chance: random.Random, data: bytearray, _others: Sequence[bytes]) -> None:
    if data:
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)


def _byte(chance: random.Random, data: bytearray, _others: Sequence[bytes]) -> None:
    if data:
        data[chance.randrange(len(data))] = chance.randrange(256)


def _number(chance: random.Random, data: bytearray, _others: Sequence[bytes]) -> None:
    width = chance.choice((1, 2, 4, 8))
    value = chance.choice(_NUMBERS) & (256**width - 1)
    at = chance.randint(0, len(data))
    data[at : at + width] = value.to_bytes(width, chance.choice(("big", "little")))


def _word(chance: random.Random, data: bytearray, _others: Sequence[bytes]) -> None:
    at = chance.randint(0, len(data))
    data[at : at + chance.randrange(3)] = chance.choice(_WORDS)


def _cut(chance: random.Random, data: bytearray, _others: Sequence[bytes]) -> None:
    at = chance.randint(0, len(data))
    del data[at : at + chance.randint(1, 1 + len(data) // 4)]


def _repeat(chance: random.Random, data: bytearray, _others: Sequence[bytes]) -> None:
    start = chance.randint(0, len(data))
    piece = data[start : start + chance.randint(1, 64)]
    at = chance.randint(0, len(data))
    data[at:at] = piece * chance.choice((1, 1, 2, 20))


def _graft(chance: random.Random, data: bytearray, others: Sequence[bytes]) -> None:
    other = chance.choice(others)
    start = chance.randint(0, len(other))
    at = chance.randint(0, len(data))
    data[at : at + chance.randrange(32)] = other[start : start + chance.randint(1, 128)]


_CHANGES = (_flip, _byte, _number, _word, _cut, _repeat, _graft)
