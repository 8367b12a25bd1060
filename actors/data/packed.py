"""Compressed .jsonl files, made fit for reading single lines in any order.

Neither gzip nor zstd can be entered in the middle. So a compressed file is read through once and
written again into the user's cache, in blocks that are compressed one by one (`zstd -d` reads them
too): about the same size, and any line costs the decompression of its block, a third of a
millisecond. The cache is known by path, size and time of the original; it may be deleted whenever
no run uses it.
"""

import gzip
import hashlib
import os
import struct
import zlib
from array import array
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import IO

import numpy as np
import zstandard

from actors.data.corpus import Rows

# Of the files written here.
SUFFIX = ".trireme.zst"
_BLOCK_BYTES = 256 * 1024
_LEVEL = 3
# A line beyond this is left out: no sample is that large, and it would have to be held whole.
_LONGEST_BYTES = 64 * 1024 * 1024
# Each block begins with the number of its first line.
_FIRST_LINE = struct.Struct("<q")
_CHUNK_BYTES = 1024 * 1024
_MAGIC = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}


class PackError(ValueError):
    """A compressed file that cannot be read: says which, and why."""


def kind_of_file(path: str) -> str:
    """ "gzip", "zstd", or "" when it is not compressed. Raises OSError."""
    with open(path, "rb") as file:
        head = file.read(4)
    return next((kind for magic, kind in _MAGIC.items() if head.startswith(magic)), "")


def pack(path: str, cache: Path) -> tuple[str, Rows]:
    """The file to read lines from, and its lines. Raises `PackError`, OSError.

    Of each line: where its block starts and how long that is, and the line's number.
    """
    facts = os.stat(path)
    name = f"{os.path.abspath(path)}\0{facts.st_size}\0{facts.st_mtime_ns}"
    target = cache / f"{hashlib.sha256(name.encode()).hexdigest()[:32]}{SUFFIX}"
    if not target.exists():
        cache.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.{os.getpid()}")
        try:
            _write_blocks(path, partial)
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)
    return str(target), _rows(target)


def line(path: str, offset: int, length: int, number: int) -> bytes:
    """Line `number` (from 1) of the original, out of the block at `offset`. Raises OSError."""
    block = _block(path, offset, length)
    first: int
    (first,) = _FIRST_LINE.unpack_from(block)
    lines = block[_FIRST_LINE.size :].split(b"\n")
    if not 0 <= number - first < len(lines):
        raise OSError(_not_as_packed(path, "another number of lines"))
    return lines[number - first]


@lru_cache(maxsize=8)
def _block(path: str, offset: int, length: int) -> bytes:
    with open(path, "rb") as file:
        file.seek(offset)
        packed = file.read(length)
    plain = zstandard.ZstdDecompressor().decompressobj()
    try:
        block = plain.decompress(packed)
    except zstandard.ZstdError as error:
        raise OSError(_not_as_packed(path, str(error))) from error
    if not plain.eof or len(block) < _FIRST_LINE.size:
        raise OSError(_not_as_packed(path, "it ends too soon"))
    return block


def _not_as_packed(path: str, what: str) -> str:
    return f"{path} is damaged ({what}); delete it, it will be made again"


def _write_blocks(path: str, target: Path) -> None:
    compressor = zstandard.ZstdCompressor(level=_LEVEL)
    with target.open("wb") as out:
        for first, text in _blocks(path):
            out.write(compressor.compress(_FIRST_LINE.pack(first) + text))


def _blocks(path: str) -> Iterator[tuple[int, bytes]]:
    """Whole lines, and the number of the first of them."""
    first, rest, too_long = 1, b"", False
    for chunk in _plain(path):
        if too_long:  # an empty line stands for it
            _, newline, more = chunk.partition(b"\n")
            too_long, rest = not newline, newline + more
        else:
            rest += chunk
        end = rest.rfind(b"\n")
        if end < 0 and len(rest) > _LONGEST_BYTES:
            too_long, rest = True, b""
        elif end >= 0 and len(rest) >= _BLOCK_BYTES:
            yield first, rest[:end]
            first += rest.count(b"\n", 0, end) + 1
            rest = rest[end + 1 :]
    if rest:
        yield first, rest


def _plain(path: str) -> Iterator[bytes]:
    """What a compressed file holds. Raises `PackError`, OSError."""
    try:
        if kind_of_file(path) == "gzip":
            with gzip.open(path, "rb") as stream:
                while chunk := stream.read(_CHUNK_BYTES):
                    yield chunk
            return
        with open(path, "rb") as file:
            yield from _frames(file)
    except (EOFError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError) as error:
        raise PackError(f"{path} is not whole: {error}; get it again") from error


def _frames(file: IO[bytes]) -> Iterator[bytes]:
    """What zstd frames hold. Raises `EOFError` when the last one is cut short."""
    plain = None
    while chunk := file.read(_CHUNK_BYTES):
        while chunk:
            plain = plain or zstandard.ZstdDecompressor().decompressobj()
            yield plain.decompress(chunk)
            chunk = plain.unused_data
            if plain.eof:
                plain = None
    if plain is not None:
        raise EOFError("it ends too soon")


def _rows(target: Path) -> Rows:
    """The lines of a packed file that are not blank."""
    offsets, lengths, numbers = array("q"), array("q"), array("q")
    with target.open("rb") as file:
        offset, plain, text = 0, zstandard.ZstdDecompressor().decompressobj(), b""
        chunk = file.read(_CHUNK_BYTES)
        while chunk:
            text += plain.decompress(chunk)
            if not plain.eof:
                chunk = file.read(_CHUNK_BYTES)
                continue
            chunk = plain.unused_data or file.read(_CHUNK_BYTES)
            end = file.tell() - len(chunk)
            (first,) = _FIRST_LINE.unpack_from(text)
            for i, words in enumerate(text[_FIRST_LINE.size :].split(b"\n")):
                if words.strip():
                    offsets.append(offset)
                    lengths.append(end - offset)
                    numbers.append(first + i)
            offset, plain, text = end, zstandard.ZstdDecompressor().decompressobj(), b""
    return Rows(*(np.array(column, np.int64) for column in (offsets, lengths, numbers)))
