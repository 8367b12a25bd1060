"""The reward of a completion: 1 when prompt and completion together are Python that says something.

Pure: text in, verdict out. `compile()` of text nobody has read may exhaust memory, the processor or
the C stack, so `judge.py` has this run in a child process with limits (`scorer.py`); nothing is
ever executed.

What is compiled is the prompt followed by the completion. A completion that ended by itself (the
end-of-text token) must compile as it stands. One that was cut off by the length limit is first cut
back, since its last line may stop in the middle of a word:

1. the last physical line goes, unless it is terminated;
2. while the parser says that the text is *unfinished* (and only then: an open bracket or string, a
   header without its block, a `try` without its handlers), one more line goes.

A mistake anywhere before the end is therefore never cut away. What is left must parse, compile and
contribute something (`substance.py`).
"""

import ast
import warnings
from dataclasses import dataclass
from typing import Literal

from actors.rollout.substance import substance

# Prompt and completion together. Ours are some kilobytes; anything larger is not worth a parser.
MAX_TEXT_CHARACTERS = 1 << 16
# Lines given up at most in step 2: each costs a parse of the whole.
MAX_CUTS = 100
# `codeop` keeps this flag of CPython's parser: raise "incomplete input" when the text merely stops.
ALLOW_INCOMPLETE_INPUT = 0x4000
DETAIL_CHARACTERS = 160

Reason = Literal[
    "good",
    "empty",
    "only comments",
    "trivial",
    "repeats the prompt",
    "leaves the function hollow",
    "not UTF-8",
    "null byte",
    "too large",
    "too deep",
    "unfinished",
    "does not parse",
    "does not compile",
    "scorer died",
]


@dataclass(frozen=True, slots=True)
class Verdict:
    """How one completion scored."""

    reason: Reason
    compiled: bool = False  # parses and compiles, trivial or not
    kept: int = 0  # characters of the completion that were judged
    detail: str = ""  # the compiler's words

    @property
    def reward(self) -> float:
        """1.0 for a good completion, else 0.0."""
        return 1.0 if self.reason == "good" else 0.0


def score(prompt: str, completion: str | bytes, *, finished: bool) -> Verdict:
    """Judge one completion. `finished`: it ended by itself, not by the length limit.

    Never raises for any text. May exhaust memory or processor time: call it behind limits.
    """
    if isinstance(completion, bytes):
        completion = completion.decode("utf-8", "replace")
    prompt, completion = _unix_lines(prompt), _unix_lines(completion)
    if refusal := _unfit(prompt, completion):
        return refusal
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the judged text: invalid escapes and the like
        try:
            return _judge(prompt, completion, finished=finished)
        except (RecursionError, MemoryError) as error:
            return Verdict("too deep", detail=type(error).__name__)


def _unix_lines(text: str) -> str:
    """Line ends as the compiler sees them, so that its line numbers are ours."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _unfit(prompt: str, completion: str) -> Verdict | None:
    """Refusals that need no parser."""
    if len(prompt) + len(completion) > MAX_TEXT_CHARACTERS:
        return Verdict("too large", detail=f"more than {MAX_TEXT_CHARACTERS} characters")
    if "\x00" in completion:
        return Verdict("null byte")
    if not completion.strip():
        return Verdict("empty")
    return None


def _judge(prompt: str, completion: str, *, finished: bool) -> Verdict:
    kept, tree = completion, None
    if not finished:
        kept = completion[: completion.rfind("\n") + 1]
    for _ in range(MAX_CUTS):
        if _undecodable(kept):
            return Verdict("not UTF-8", kept=len(kept))
        try:
            tree = _parse(prompt + kept)
            break
        except SyntaxError as error:
            if finished or "incomplete input" not in error.msg:
                return Verdict("does not parse", kept=len(kept), detail=_words(error))
        if not kept:
            break
        kept = kept[: kept.rstrip("\n").rfind("\n") + 1]
    if tree is None or not kept.strip():
        return Verdict("unfinished")
    try:
        compile(tree, "<completion>", "exec", dont_inherit=True)
    except (SyntaxError, ValueError) as error:
        return Verdict("does not compile", kept=len(kept), detail=_words(error))
    if _only_comments(kept):
        return Verdict("only comments", compiled=True, kept=len(kept))
    found = substance(tree, prompt)
    reason: Reason = "good" if found == "substantial" else found
    return Verdict(reason, compiled=True, kept=len(kept))


def _undecodable(text: str) -> bool:
    """Bytes that were no UTF-8 show as U+FFFD after decoding, or as lone surrogates."""
    return "\ufffd" in text or any("\ud800" <= character <= "\udfff" for character in text)


def _parse(text: str) -> ast.Module:
    flags = ast.PyCF_ONLY_AST | ALLOW_INCOMPLETE_INPUT
    try:
        tree = compile(text, "<completion>", "exec", flags, dont_inherit=True)
    except ValueError as error:  # 3.11's word for null bytes in the prompt
        raise SyntaxError(str(error)) from error
    assert isinstance(tree, ast.Module)
    return tree


def _only_comments(text: str) -> bool:
    """No line says anything but blanks and comments."""
    return all(not line.strip() or line.lstrip().startswith("#") for line in text.split("\n"))


def _words(error: Exception) -> str:
    if isinstance(error, SyntaxError):
        return f"line {error.lineno}: {error.msg}"[:DETAIL_CHARACTERS]
    return str(error)[:DETAIL_CHARACTERS]
