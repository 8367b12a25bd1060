"""What happens to a sample: read, verify, augment, your own stages, tokenize, one after the other.

A stage is a function `(state, ref, options) -> state`. Between two stages a sample can be handed
to another worker, on another host too: its state is plain bytes. A stage either returns or raises
`SampleProblem`, which means that nobody can use this sample; what kills the process is not its
business (the loader counts deaths per sample).

A stage of somebody's own is a function of the text, named in the topology ("module:function"). It
may take `rng` (a `numpy.random.Generator` that depends on seed, epoch and sample alone), `name` and
`language` as well; it returns the text to go on with, or None to leave the sample out. What it
makes of code is verified again.
"""

import functools
import importlib
import inspect
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from actors.data import augmentation, filling
from actors.data.questions import Question
from actors.data.reading import read
from actors.data.sample import Options, SampleProblem, State
from actors.data.scarcity import memory_is_short
from actors.topology import DataSpec
from protocol.messages import SampleRef

__all__ = [
    "STAGES",
    "Options",
    "SampleProblem",
    "Stage",
    "StageError",
    "State",
    "augment",
    "compile_problem",
    "is_verified",
    "own",
    "question",
    "read",
    "stage_names",
    "tokenize",
    "verify",
]

Stage = Callable[[State, SampleRef, Options], State]
Asking = Callable[[str, State, SampleRef, Options], Question | None]
# Languages that `verify` knows.
VERIFIED = frozenset({"python", "rust"})
_KNOWN_PARAMETERS = ("rng", "name", "language")
_DETAIL_CHARACTERS = 200


class StageError(ValueError):
    """A stage that cannot be had: names it, and says what would be accepted."""


def stage_names(data: DataSpec) -> tuple[str, ...]:
    """The stages of this configuration, in order. Those that would do nothing are left out."""
    names = ["read"]
    names += ["verify"] * data.verify
    names += ["augment"] * (data.augment_share > 0)
    names += data.stages
    return (*names, "tokenize")


# --- verify ---------------------------------------------------------------------------------------


def verify(state: State, ref: SampleRef, options: Options) -> State:
    """The text, unchanged, if it compiles. Languages without a check here pass, and so do samples
    whose turn it is not.

    Raises `rustc.CannotVerify` where this machine lacks what Rust needs.
    """
    if is_verified(options.sample, ref.language, options.verify_every_n):
        problem = _problem(state, ref, options)
        if problem is not None:
            raise SampleProblem(*problem)
    return state


def question(stage: str, state: State, ref: SampleRef, options: Options) -> Question | None:
    """What this stage would wait for another program to answer; None: it computes by itself.

    To be asked beside the worker's line; when the answer has been told, the stage is not long.
    Raises `rustc.CannotVerify`.
    """
    if stage != "verify" or ref.language != "rust":
        return None
    if not is_verified(options.sample, ref.language, options.verify_every_n):
        return None
    return None if options.rust.knows(state.text) else Question(state.text, options.rust)


def is_verified(sample: int, language: str, every_n: int) -> bool:
    """Is this one of the samples that are looked at?"""
    return language in VERIFIED and sample % every_n == 0


def _problem(state: State, ref: SampleRef, options: Options) -> tuple[str, str] | None:
    if ref.language == "rust":
        return options.rust.problem(state.text)
    return compile_problem(state.text.decode()) if ref.language == "python" else None


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


# --- stages of one's own --------------------------------------------------------------------------


@functools.cache
def own(name: str) -> Stage:
    """The stage that a topology names as "module:function". Raises `StageError`."""
    module, _, function = name.partition(":")
    try:
        found: Any = getattr(importlib.import_module(module), function)
        parameters = inspect.signature(found).parameters
    except (ImportError, AttributeError, TypeError, ValueError, SyntaxError) as error:
        raise StageError(
            f"data.stages: {name} is not to be had: {error}; accepted: a function of a module that "
            "Python finds (set PYTHONPATH, or install it)"
        ) from error
    wanted = [known for known in _KNOWN_PARAMETERS if known in parameters]

    def stage(state: State, ref: SampleRef, options: Options) -> State:
        facts = {"name": ref.name, "language": ref.language}
        known: dict[str, Any] = {key: facts[key] for key in wanted if key in facts}
        if "rng" in wanted:
            chance = augmentation.Chance(options.seed, options.epoch, ref.name)
            known["rng"] = np.random.Generator(np.random.Philox(chance.bits(name)))
        try:
            text = found(state.text.decode(), **known)
        except Exception as error:  # whatever somebody's own function raises
            detail = f"{type(error).__name__}: {error}"[:_DETAIL_CHARACTERS]
            raise SampleProblem(f"fails in {name}", detail) from error
        return _checked(name, text, state, ref, options)

    return stage


def _checked(name: str, text: Any, state: State, ref: SampleRef, options: Options) -> State:
    """What somebody's stage returned, if it can be gone on with."""
    if text is None:
        raise SampleProblem(f"left out by {name}", "")
    if not isinstance(text, str) or not text or text.isspace() or "\0" in text:
        what = "nothing but white space" if isinstance(text, str) else type(text).__name__
        raise SampleProblem(f"fails in {name}", f"it returned {what}; accepted: text, or None")
    if len(text) > options.max_sample_bytes:  # before there are two of it
        raise SampleProblem("too large", f"{len(text):,} characters after {name}")
    try:
        made = State(text=text.encode())
    except UnicodeEncodeError as error:
        raise SampleProblem(f"fails in {name}", str(error)) from error
    if len(made.text) > options.max_sample_bytes:
        raise SampleProblem("too large", f"{len(made.text):,} bytes after {name}")
    looked_at = is_verified(options.sample, ref.language, options.verify_every_n)
    if options.verify and looked_at and made.text != state.text:
        problem = _problem(made, ref, options)
        if problem is not None:
            raise SampleProblem(f"broken by {name}", f"{problem[0]}: {problem[1]}")
    return made


# --- tokenize -------------------------------------------------------------------------------------


def tokenize(state: State, ref: SampleRef, options: Options) -> State:
    """Tokens between <bos> and <eos>; of a share of the samples with their middle last."""
    assert options.encoder is not None, "tokenize needs an encoder"
    text = state.text.decode()
    if options.fim_share:
        chance = augmentation.Chance(options.seed, options.epoch, ref.name)
        cut = filling.cut(text, chance, options.fim_share)
        if cut is not None:
            return State(text=state.text, tokens=options.encoder.filled(cut))
    return State(text=state.text, tokens=options.encoder.document(text))


STAGES: dict[str, Stage] = {
    "read": read,
    "verify": verify,
    "augment": augment,
    "tokenize": tokenize,
}
