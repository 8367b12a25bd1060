"""Which parameters FIRE makes isometries again, and after which steps. No torch.

`optimizer.fire_at` names steps, `optimizer.fire_method` how isometries are found. When a shard has
carried out the update of such a step, it replaces each matrix by the nearest isometry
(kernels/optimizers/isometry.py), clears its moments, and publishes the result as that step's
version. A ternary layer is treated in its master weights, which keep their mean magnitude, and made
ternary anew: trainers see a step in which many codes flip. A basis of a projection stays, for it is
not a moment; what a gradient codec remembers is forgotten. Bias corrections count from there; the
learning rate does not, it goes on with its schedule.
"""

from fnmatch import fnmatchcase

from actors.optimizer_tables import OptimizerSpec
from actors.parameters import Parameter


def fires(optimizer: OptimizerSpec, parameter: Parameter, step: int) -> bool:
    """Whether `parameter` is an isometry after `step`."""
    return step in optimizer.fire_at and is_touched(optimizer, parameter)


def steps_of_moments(optimizer: OptimizerSpec, parameter: Parameter, step: int) -> int:
    """How many gradients the moments of `parameter` hold with that of `step`: those since FIRE."""
    if not is_touched(optimizer, parameter):
        return step
    return step - max((fired for fired in optimizer.fire_at if fired < step), default=0)


def is_touched(optimizer: OptimizerSpec, parameter: Parameter) -> bool:
    """Whether FIRE takes this parameter: matrices of the stack that no pattern excludes."""
    return parameter.group == "matrices" and not any(
        fnmatchcase(parameter.name, pattern) for pattern in optimizer.fire_exclude
    )
