"""When a matrix gets a new basis: a pure function of the step. No torch in this file.

A refresh costs the trainer a full gradient of that matrix and the owner two QRs and an SVD, so
refreshes of different matrices fall on different steps. Steps count from 1; GaLore's t is
step - 1. With period T the first of `count` matrices refreshes at t = 0, T, 2T, ... as published,
the i-th at t = phase, phase + T, ... with phase = i T / count, and all of them at t = 0, because
without a basis there is nothing to project with (`at_start=False` leaves that to a random one).
The refresh comes before that same step's gradient is projected.
"""


def phase(index: int, count: int, period: int) -> int:
    """Steps by which matrix `index` of `count` lags behind the first: 0 <= phase < period."""
    return index * period // count


def refreshes(step: int, index: int, count: int, period: int, *, at_start: bool = True) -> bool:
    """Whether matrix `index` of `count` gets a new basis before the gradient of `step`.

    Raises ValueError for a period below 1, a step below 1 or an index that is not below count.
    """
    if period < 1 or step < 1 or not 0 <= index < count:
        raise ValueError(
            f"need period >= 1, step >= 1 and 0 <= index < count, got period {period}, "
            f"step {step}, index {index}, count {count}"
        )
    since = step - 1 - phase(index, count, period)
    return (since >= 0 and since % period == 0) or (at_start and step == 1)


def basis_version(step: int, index: int, count: int, period: int, *, at_start: bool = True) -> int:
    """Step whose gradient the basis used at `step` comes from; 0: none, or the random one."""
    since = step - 1 - phase(index, count, period)
    if refreshes(step, index, count, period, at_start=at_start):
        return step
    if since >= 0:
        return step - since % period
    return 1 if at_start else 0
