"""What happens to a sample: read, verify, augment, tokenize, one after the other.

A stage is a function `(state, ref, options) -> state`. Between two stages a sample can be handed
to another worker, on another host too: its state is plain bytes. A stage either returns or raises
`SampleProblem`, which means that nobody can use this sample; what kills the process is not its
business (the loader counts deaths per sample).
"""

import io
import os
import stat
import tokenize as python_tokens
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec
import numpy as np
from numpy.typing import NDArray

from actors.data import augmentation
from actors.data.finding import kind_of
from actors.data.parquet import ColumnError, RowReader
from actors.data.rustc import Verifier
from actors.data.scarcity import memory_is_short
from actors.data.tokenizer import Encoder
from actors.topology import DataSpec
from protocol.messages import SampleRef


class SampleProblem(Exception):
    """This sample cannot be used, whoever tries: counted by `kind`, named in the log."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(f"{kind}: {detail}")
        self.kind = kind
        self.detail = detail


@dataclass(frozen=True, slots=True)
class State:
    """What the stages so far made of a sample: text until it is tokenized, then tokens."""

    text: bytes = b""  # UTF-8
    tokens: NDArray[np.int32] | None = None  # with <bos> and <eos>


@dataclass(frozen=True, slots=True)
class Options:
    """What stages need to know besides the sample."""

    max_sample_bytes: int
    encoder: Encoder | None = None  # only tokenize needs it
    seed: int = 0
    epoch: int = 0  # of the sample at hand; augmentation differs between epochs
    augment_share: float = 0.0
    rows: RowReader = field(default_factory=RowReader)
    rust: Verifier = field(default_factory=Verifier)


Stage = Callable[[State, SampleRef, Options], State]


def stage_names(data: DataSpec) -> tuple[str, ...]:
    """The stages of this configuration, in order. Those that would do nothing are left out."""
    wanted = {"verify": data.verify, "augment": data.augment_share > 0}
    return tuple(name for name in STAGES if wanted.get(name, True))


# --- read -----------------------------------------------------------------------------------------


def read(_state: State, ref: SampleRef, options: Options) -> State:
    """The sample's text, as UTF-8 with unix line ends."""
    try:
        if ref.row >= 0:
            text = _row_text(ref, options)
        elif ref.length >= 0:
            text = _line_text(ref, options)
        else:
            text = _decoded(_file_bytes(ref.path, options.max_sample_bytes), ref.language)
    except OSError as error:
        raise SampleProblem(kind_of(error), f"{ref.path}: {error.strerror or error}") from error
    if not text or text.isspace():
        raise SampleProblem("empty", "nothing but white space")
    if "\0" in text:
        raise SampleProblem("binary", f"a zero byte at character {text.index(chr(0))}")
    try:
        encoded = text.replace("\r\n", "\n").replace("\r", "\n").encode()
    except UnicodeEncodeError as error:  # half a surrogate pair, from a JSON escape
        raise SampleProblem("not utf-8", str(error)) from error
    if len(encoded) > options.max_sample_bytes:
        raise _too_large(len(encoded), options.max_sample_bytes)
    return State(text=encoded)


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


def _line_text(ref: SampleRef, options: Options) -> str:
    if ref.length > options.max_sample_bytes:
        raise _too_large(ref.length, options.max_sample_bytes)
    with open(ref.path, "rb") as file:
        file.seek(ref.offset)
        line = file.read(ref.length)
    if len(line) < ref.length:
        raise SampleProblem("truncated", f"{ref.path} ends within this line")
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
    return text


def _row_text(ref: SampleRef, options: Options) -> str:
    try:
        text = options.rows.read(ref.path, ref.field, ref.row)
    except ColumnError as error:
        raise SampleProblem("unreadable", str(error)) from error
    if text is None:
        raise SampleProblem("empty", "null")
    return text


def _too_large(size: int, limit: int) -> SampleProblem:
    return SampleProblem("too large", f"{size:,} bytes; data.max_sample_bytes is {limit:,}")


# --- verify ---------------------------------------------------------------------------------------


def verify(state: State, ref: SampleRef, options: Options) -> State:
    """The text, unchanged, if it compiles. Languages without a check here pass.

    Raises `rustc.CannotVerify` where this machine lacks what Rust needs.
    """
    problem = None
    if ref.language == "python":
        problem = compile_problem(state.text.decode())
    elif ref.language == "rust":
        problem = options.rust.problem(state.text)
    if problem is not None:
        raise SampleProblem(*problem)
    return state


def compile_problem(text: str) -> tuple[str, str] | None:
    """Kind and detail of what `compile()` has against this Python; None when nothing.

    Raises `MemoryError` when that is what there is too little of.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes and the like: still Python
        try:
            compile(text, "sample", "exec", dont_inherit=True)
        except SyntaxError as error:
            return "does not compile", f"line {error.lineno}: {error.msg}"
        except ValueError as error:
            return "does not compile", str(error)
        except (RecursionError, MemoryError, OverflowError) as error:
            if isinstance(error, MemoryError) and memory_is_short():
                raise
            return "too complex to compile", type(error).__name__
    return None


# --- augment --------------------------------------------------------------------------------------


def augment(state: State, ref: SampleRef, options: Options) -> State:
    """A share of the Python samples with local variables renamed; which ones, epoch decides."""
    if ref.language != "python":
        return state
    chance = augmentation.Chance(options.seed, options.epoch, ref.name)
    if chance.share() >= options.augment_share:
        return state
    renamed = augmentation.rename_locals(state.text.decode(), chance)
    if renamed is None or compile_problem(renamed) is not None:
        return state  # as it was: an augmentation that breaks code is none
    return State(text=renamed.encode())


# --- tokenize -------------------------------------------------------------------------------------


def tokenize(state: State, _ref: SampleRef, options: Options) -> State:
    """Tokens between <bos> and <eos>."""
    assert options.encoder is not None, "tokenize needs an encoder"
    tokens = options.encoder.document(state.text.decode())
    return State(text=state.text, tokens=tokens)


STAGES: dict[str, Stage] = {
    "read": read,
    "verify": verify,
    "augment": augment,
    "tokenize": tokenize,
}
