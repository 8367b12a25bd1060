"""Numbers that are not finite: found cheaply, and refused before anything is built on them."""

import math

from torch import Tensor


class NotFinite(ValueError):
    """What is to be worked with, or came of it, holds values that are not finite."""


def is_finite(x: Tensor) -> bool:
    """Whether every element is.

    One sum tells, as infinity and NaN never cancel; only where it is not finite, which that of
    large numbers may be as well, is each element looked at.
    """
    return math.isfinite(x.sum().item()) or bool(x.isfinite().all())
