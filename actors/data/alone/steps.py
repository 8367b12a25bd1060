"""The functions a sample goes through, one after the other, and the chance they draw from.

A step is a function of one value that returns the next. Three things may be said of it: it is
`waiting` (for a network, a disk, a program), so that others go on meanwhile; it is `async def`,
which says the same; and it has a parameter `rng`, so it is handed a `numpy.random.Generator`.

All chance is a function of (seed, epoch, sample, step): the module-level generators of `random`,
`numpy.random` and torch are seeded anew before every step, so what a sample becomes does not depend
on which worker it met, after which others, or how many workers there are. Not covered: steps that
wait run beside each other in threads, where module-level generators cannot be anybody's own; they
draw from `rng`.
"""

import functools
import hashlib
import importlib
import inspect
import random
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

# As many as a server takes from one client without complaint.
PARALLEL = 32


@dataclass(frozen=True, slots=True)
class Waiting:
    """A function that mostly waits."""

    function: Callable[..., Any]
    parallel: int  # calls at a time, in each worker


def waiting(function: Callable[..., Any] | str, parallel: int = PARALLEL) -> Waiting:
    """Say that `function` waits: up to `parallel` samples of a worker are in it at a time.

    It is called from threads, so it has to be safe for that; `async def` functions need not be.
    """
    if parallel < 1:
        raise ValueError(f"waiting: parallel is {parallel}; accepted: 1 or more")
    return Waiting(resolve(function), parallel)


@dataclass(frozen=True, slots=True)
class Step:
    """One function of the chain."""

    name: str
    call: Callable[..., Any]
    takes_rng: bool
    parallel: int  # 0: it computes
    is_async: bool
    may_draw: bool = True  # from somebody's generator


StepLike = Callable[..., Any] | Waiting | str


def resolve(what: Callable[..., Any] | str) -> Callable[..., Any]:
    """The function, or the one that "module:name" names. Raises `ValueError`."""
    if not isinstance(what, str):
        return what
    module, _, name = what.partition(":")
    try:
        return functools.reduce(getattr, name.split("."), importlib.import_module(module))
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{what!r} names no function ({error}); accepted: module:name") from error


def step_of(what: StepLike) -> Step:
    """Raises `ValueError`, TypeError."""
    parallel = what.parallel if isinstance(what, Waiting) else 0
    call = what.function if isinstance(what, Waiting) else resolve(what)
    if not callable(call):
        raise TypeError(
            f"stage {call!r} cannot be called; accepted: a function of one value, waiting(f), or "
            "module:name"
        )
    is_async = inspect.iscoroutinefunction(call) or inspect.iscoroutinefunction(type(call).__call__)
    return Step(
        name=getattr(call, "__name__", type(call).__name__),
        call=call,
        takes_rng=_takes_rng(call),
        parallel=parallel or (PARALLEL if is_async else 0),
        is_async=is_async,
    )


def _takes_rng(call: Callable[..., Any]) -> bool:
    try:
        return "rng" in inspect.signature(call).parameters
    except (TypeError, ValueError):  # of some C functions nobody knows the parameters
        return False


class Chance:
    """Seeds what a step may draw from."""

    def __init__(self, seed: int, *, modules: bool) -> None:
        """`modules`: the generators of `random`, `numpy.random` and torch too."""
        self._seed = seed % 2**64
        self._modules = modules

    def key(self, epoch: int, sample: int, step: int) -> bytes:
        """16 bytes that depend on all of that."""
        facts = struct.pack("<QQQQ", self._seed, epoch % 2**64, sample % 2**64, step)
        return hashlib.blake2b(facts, digest_size=16).digest()

    def generator(self, epoch: int, sample: int, step: int) -> np.random.Generator:
        """A generator of the step's own."""
        key = np.frombuffer(self.key(epoch, sample, step), np.uint64)
        return np.random.Generator(np.random.Philox(key=key))

    def seed_modules(self, epoch: int, sample: int, step: int) -> None:
        """Everybody's generators, for a step that runs on its own."""
        if not self._modules:
            return
        number = int.from_bytes(self.key(epoch, sample, step)[:8], "little")
        random.seed(number)
        np.random.seed(number % 2**32)
        torch = sys.modules.get("torch")
        if torch is not None:
            # As torch.manual_seed does, at an eightieth of the cost: workers have no other device.
            torch.default_generator.manual_seed(number % 2**63)
