"""Tokenizers: byte-level BPE, trained on the corpus at first use or given as a tokenizer.json.

Training takes seconds and a few hundred megabytes, so a child process does it (prepare.py) and
the result is kept in the user's cache under a digest of everything it depends on. `tokenizers` is
imported inside the functions that need it: the loader never does.
"""

import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
from numpy.typing import NDArray

from actors.data.filling import Cut

if TYPE_CHECKING:
    from tokenizers import Tokenizer

BOS, EOS, PAD = "<bos>", "<eos>", "<pad>"
SPECIALS = (BOS, EOS, PAD)
# Around the parts of a text whose middle comes last; in a tokenizer only where that is asked for.
FILLING = ("<fim_prefix>", "<fim_suffix>", "<fim_middle>")
# Three specials and one token for every byte: below this nothing can be encoded.
SMALLEST_VOCAB = len(SPECIALS) + 256

# Bump when training changes: cached tokenizers of other versions are not used.
_TRAINING_VERSION = 1
# More text hardly changes which pairs are frequent, but costs memory and minutes.
TRAINING_BYTES = 32 * 1024 * 1024

# Beginnings and ends of documents in the wild, best first.
_KNOWN_BOS = (BOS, "<s>", "<|begin_of_text|>", "<|startoftext|>", "[CLS]", "<|endoftext|>")
_KNOWN_EOS = (EOS, "</s>", "<|end_of_text|>", "<|endoftext|>", "[SEP]")
_KNOWN_FILLING = (
    FILLING,
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),
    ("<PRE>", "<SUF>", "<MID>"),
)

# An Encoding costs about 450 bytes a token. Pieces are cut where the byte-level pre-tokenizer cuts
# anyway (between text and white space), so the tokens are the same, memory stays flat, and small
# pieces stay in the cache: 3.9 MB/s in pieces of 4 kB, 3.4 MB/s whole.
_PIECE_CHARS = 4 * 1024
_SEAM = re.compile(r"(?<=\S)(?=\s)")


class TokenizerError(ValueError):
    """A tokenizer that cannot be used: says which file, why, and what would be accepted."""


class Encoder:
    """Text to tokens, always the same ones."""

    def __init__(
        self,
        tokenizer: "Tokenizer",
        *,
        in_pieces: bool,
        bos: int,
        eos: int,
        filling: tuple[int, int, int] | None = None,
    ) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        # A document that contains the text "<eos>" is not two documents.
        tokenizer.encode_special_tokens = True
        self._tokenizer = tokenizer
        self._in_pieces = in_pieces
        self.bos = bos
        self.eos = eos
        self._filling = filling

    def document(self, text: str) -> NDArray[np.int32]:
        """Tokens of a whole document, <bos> first and <eos> last."""
        return np.concatenate([_one(self.bos), *self._text(text), _one(self.eos)])

    def filled(self, cut: Cut) -> NDArray[np.int32]:
        """Tokens of a document whose middle comes last. Raises `TokenizerError`."""
        if self._filling is None:
            raise TokenizerError(_no_filling("this tokenizer.json"))
        prefix, suffix, middle = (_one(token) for token in self._filling)
        before, after = [prefix, *self._text(cut.prefix)], [suffix, *self._text(cut.suffix)]
        parts = [*after, *before] if cut.suffix_first else [*before, *after]
        return np.concatenate(
            [_one(self.bos), *parts, middle, *self._text(cut.middle), _one(self.eos)]
        )

    def _text(self, text: str) -> list[NDArray[np.int32]]:
        parts: list[NDArray[np.int32]] = []
        for piece in pieces(text) if self._in_pieces else (text,):
            # "Fast" leaves out offsets, which nobody asks for; `encode` has no such variant.
            (encoding,) = self._tokenizer.encode_batch_fast([piece], add_special_tokens=False)
            parts.append(np.array(encoding.ids, np.int32))
        return parts


def _one(token: int) -> NDArray[np.int32]:
    return np.array([token], np.int32)


def load(document: bytes) -> Encoder:
    """Encoder of a tokenizer.json's bytes. Raises `TokenizerError`."""
    tokenizer = _parse(document, "this tokenizer.json")
    bos, eos = special_ids(tokenizer, "this tokenizer.json")
    ours = all(tokenizer.token_to_id(token) == i for i, token in enumerate(SPECIALS))
    in_pieces = ours and _is_byte_level(document)
    filling = filling_ids(tokenizer)
    return Encoder(tokenizer, in_pieces=in_pieces, bos=bos, eos=eos, filling=filling)


def pieces(text: str) -> Iterator[str]:
    """`text` in parts of bounded length that tokenize independently (byte-level pre-tokenizer)."""
    start = 0
    while start < len(text):
        seam = _SEAM.search(text, start + _PIECE_CHARS)
        end = seam.start() if seam else len(text)
        yield text[start:end]
        start = end


def train(texts: Iterable[str], vocab_size: int, *, filling: bool = False) -> bytes:
    """A tokenizer.json trained on `texts`: the same texts give the same bytes.

    `filling`: with the tokens that `Encoder.filled` needs. Little text gives fewer than
    `vocab_size` tokens. Raises `TokenizerError` below `SMALLEST_VOCAB`.
    """
    if vocab_size < SMALLEST_VOCAB:
        raise TokenizerError(
            f"model.vocab_size = {vocab_size}: a byte-level tokenizer needs at least "
            f"{SMALLEST_VOCAB} tokens"
        )
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[*SPECIALS, *(FILLING if filling else ())],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer.to_str().encode()


def check_given(path: str, vocab_size: int, *, filling: bool = False) -> bytes:
    """The bytes of the user's tokenizer.json, if this model can use it. `filling`: as in `train`.

    Raises `TokenizerError`.
    """
    where = Path(path).expanduser()
    try:
        document = where.read_bytes()
    except OSError as error:
        raise TokenizerError(f"data.tokenizer: cannot read {where}: {error.strerror}") from error
    tokenizer = _parse(document, str(where))
    special_ids(tokenizer, str(where))
    if filling and filling_ids(tokenizer) is None:
        raise TokenizerError(_no_filling(str(where)))
    largest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
    if largest >= vocab_size:
        raise TokenizerError(
            f"data.tokenizer: {where} has token ids up to {largest}, but model.vocab_size is "
            f"{vocab_size}; set model.vocab_size to {largest + 1} or more"
        )
    return document


def special_ids(tokenizer: "Tokenizer", where: str) -> tuple[int, int]:
    """Ids of the tokens that begin and end documents. Raises `TokenizerError`."""
    found = [
        next((i for name in names if (i := tokenizer.token_to_id(name)) is not None), None)
        for names in (_KNOWN_BOS, _KNOWN_EOS)
    ]
    if found[0] is None or found[1] is None:
        what, names = ("begins", _KNOWN_BOS) if found[0] is None else ("ends", _KNOWN_EOS)
        raise TokenizerError(
            f"data.tokenizer: {where} has no token that {what} a document; "
            f"accepted: one of {', '.join(names)}"
        )
    return found[0], found[1]


def filling_ids(tokenizer: "Tokenizer") -> tuple[int, int, int] | None:
    """Ids of the tokens before prefix, suffix and middle; None when it has none."""
    for names in _KNOWN_FILLING:
        prefix, suffix, middle = (tokenizer.token_to_id(name) for name in names)
        if prefix is not None and suffix is not None and middle is not None:
            return prefix, suffix, middle
    return None


def _no_filling(where: str) -> str:
    accepted = "; ".join(", ".join(names) for names in _KNOWN_FILLING)
    return (
        f"data.fim_share: {where} has no tokens for parts of a text; accepted: one of {accepted}, "
        "or fim_share = 0"
    )


def digest_of(document: bytes) -> str:
    """What a tokenizer is known by."""
    return hashlib.sha256(document).hexdigest()


# --- The cache ------------------------------------------------------------------------------------


def cache_key(
    corpus_digest: str, vocab_size: int, held_out_share: float, *, filling: bool = False
) -> str:
    """Digest of everything a trained tokenizer depends on."""
    facts = f"{_TRAINING_VERSION} {corpus_digest} {vocab_size} {held_out_share!r} {TRAINING_BYTES}"
    facts += " filling" * filling
    return hashlib.sha256(facts.encode()).hexdigest()


def cache_path(key: str) -> Path:
    """Where the tokenizer with this key is kept: XDG_CACHE_HOME, or ~/.cache."""
    home = os.environ.get("XDG_CACHE_HOME", "")
    base = Path(home) if home.startswith("/") else Path.home() / ".cache"
    return base / "trireme" / "tokenizers" / f"{key}.json"


def read_cached(key: str) -> bytes | None:
    """The cached tokenizer; None when there is none, or only a damaged file."""
    try:
        document = cache_path(key).read_bytes()
        _parse(document, str(cache_path(key)))
    except (OSError, TokenizerError):
        return None
    return document


def write_whole(path: Path, document: bytes) -> None:
    """Write a file so that whoever looks finds all of it or nothing. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_bytes(document)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _parse(document: bytes, where: str) -> "Tokenizer":
    from tokenizers import Tokenizer

    try:
        msgspec.json.decode(document)
        return Tokenizer.from_buffer(document)
    except Exception as error:  # the library raises nothing narrower for what it does not like
        raise TokenizerError(
            f"data.tokenizer: {where} is not a tokenizer.json of Hugging Face tokenizers: {error}"
        ) from error


def _is_byte_level(document: bytes) -> bool:
    """Is the pre-tokenizer exactly the one `pieces` is right for?"""
    parts: dict[str, object] = msgspec.json.decode(document, type=dict[str, object])
    splitter = parts.get("pre_tokenizer")
    plain = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
    return (
        isinstance(splitter, dict)
        and {key: splitter.get(key) for key in plain} == plain
        and parts.get("normalizer") is None
    )
