"""Learning rates as a pure function of the step: warm-up, stable, decay.

Steps count from 1. Warm-up rises linearly and already moves at step 1; decay falls linearly and
reaches the minimum with its last step; beyond the end the rate stays there.
"""


def multiplier(step: int, *, warmup: int, stable: int, decay: int, floor: float) -> float:
    """Share of the peak learning rate at `step` >= 1; `floor` is that share at the end.

    Without decay steps the rate stays at its peak. Raises `ValueError` for a step below 1.
    """
    if step < 1:
        raise ValueError(f"steps count from 1, got {step}")
    if step <= warmup:
        return step / warmup
    done = step - warmup - stable
    if done <= 0 or decay == 0:
        return 1.0
    return floor if done >= decay else 1.0 - (1.0 - floor) * done / decay


def learning_rate(
    step: int, *, lr: float, min_lr: float, warmup: int, stable: int, decay: int
) -> float:
    """Learning rate at `step` between the peak `lr` and the end `min_lr`."""
    floor = min_lr / lr if lr else 0.0
    return lr * multiplier(step, warmup=warmup, stable=stable, decay=decay, floor=floor)
