"""The first stage: a sample's text, from a file, a line, a row, or a line of a packed file."""

import io
import os
import stat
import tokenize as python_tokens

import msgspec

from actors.data import licences, packed
from actors.data.finding import kind_of
from actors.data.parquet import ColumnError
from actors.data.sample import Options, SampleProblem, State
from protocol.messages import SampleRef


def read(_state: State, ref: SampleRef, options: Options) -> State:
    """The sample's text, as UTF-8 with unix line ends, if its licence is one of those wanted."""
    licence: object = None
    try:
        if ref.path.endswith(packed.SUFFIX):
            text, licence = _of_line(
                packed.line(ref.path, ref.offset, ref.length, ref.row), ref, options
            )
        elif ref.row >= 0:
            text, licence = _row_text(ref, options)
        elif ref.length >= 0:
            text, licence = _line_text(ref, options)
        else:
            text = _decoded(_file_bytes(ref.path, options.max_sample_bytes), ref.language)
    except OSError as error:
        raise SampleProblem(kind_of(error), f"{ref.path}: {error.strerror or error}") from error
    if not text or text.isspace():
        raise SampleProblem("empty", "nothing but white space")
    if "\0" in text:
        raise SampleProblem("binary", f"a zero byte at character {text.index(chr(0))}")
    if options.licences:
        _check_licence(licence, text, ref, options)
    try:
        encoded = text.replace("\r\n", "\n").replace("\r", "\n").encode()
    except UnicodeEncodeError as error:  # half a surrogate pair, from a JSON escape
        raise SampleProblem("not utf-8", str(error)) from error
    if len(encoded) > options.max_sample_bytes:
        raise _too_large(len(encoded), options.max_sample_bytes)
    return State(text=encoded)


def _check_licence(licence: object, text: str, ref: SampleRef, options: Options) -> None:
    found = licences.named(licence) if options.licence_field else licences.told(text, ref.path)
    if not licences.is_wanted(found, options.licences):
        wanted = ", ".join(options.licences)
        raise SampleProblem("licence", f"{found or 'none known'}; data.licences accepts {wanted}")


def _file_bytes(path: str, limit: int) -> bytes:
    # Non-blocking: a fifo that took the file's place would otherwise never open.
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        facts = os.fstat(file.fileno())
        if not stat.S_ISREG(facts.st_mode):
            raise SampleProblem("not a file", path)
        if facts.st_size > limit:
            raise _too_large(facts.st_size, limit)
        data = file.read(limit + 1)  # it may have grown since
    if len(data) > limit:
        raise _too_large(len(data), limit)
    return data


def _decoded(data: bytes, language: str) -> str:
    """Text of a file. Python may declare another encoding than UTF-8; that is honoured."""
    if b"\0" in data[:4096] and not data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise SampleProblem("binary", "zero bytes near the start")
    encoding = "utf-8-sig"
    if language == "python":
        try:
            encoding, _ = python_tokens.detect_encoding(io.BytesIO(data).readline)
        except SyntaxError as error:  # an unknown name, or undecodable first lines
            raise SampleProblem("not utf-8", str(error)) from error
    try:
        return data.decode(encoding)
    except (UnicodeDecodeError, LookupError) as error:
        raise SampleProblem("not utf-8", str(error)) from error


def _line_text(ref: SampleRef, options: Options) -> tuple[str, object]:
    if ref.length > options.max_sample_bytes:
        raise _too_large(ref.length, options.max_sample_bytes)
    with open(ref.path, "rb") as file:
        file.seek(ref.offset)
        line = file.read(ref.length)
    if len(line) < ref.length:
        raise SampleProblem("truncated", f"{ref.path} ends within this line")
    return _of_line(line, ref, options)


def _of_line(line: bytes, ref: SampleRef, options: Options) -> tuple[str, object]:
    """Text of a JSON line, and what it says of its licence."""
    try:
        row: object = msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise SampleProblem("not json", str(error)) from error
    if not isinstance(row, dict):
        raise SampleProblem("not json", f"a JSON object was expected, got {type(row).__name__}")
    fields: dict[str, object] = row  # pyright: ignore[reportUnknownVariableType]
    if ref.field not in fields:
        raise SampleProblem("no such field", f"no {ref.field!r}; it has {', '.join(fields)[:200]}")
    text = fields[ref.field]
    if not isinstance(text, str):
        raise SampleProblem("no such field", f"{ref.field!r} holds {type(text).__name__}, not text")
    return text, fields.get(options.licence_field)


def _row_text(ref: SampleRef, options: Options) -> tuple[str, object]:
    licence: object = None
    try:
        text = options.rows.read(ref.path, ref.field, ref.row)
        if options.licence_field:
            licence = options.rows.value(ref.path, options.licence_field, ref.row)
    except ColumnError as error:
        raise SampleProblem("unreadable", str(error)) from error
    if text is None:
        raise SampleProblem("empty", "null")
    return text, licence


def _too_large(size: int, limit: int) -> SampleProblem:
    return SampleProblem("too large", f"{size:,} bytes; data.max_sample_bytes is {limit:,}")
