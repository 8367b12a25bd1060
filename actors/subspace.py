"""Shapes in the small space of a projection. Arithmetic only, no torch.

As kernels/optimizers/projection.py has them: one-sided, on the shorter side of a matrix.
"""

from actors.optimizer_tables import OptimizerGroup
from actors.published import TensorSpec
from actors.stored import stored

Shape = tuple[int, ...]

# Names of the tensors that keep a basis, or begin so; what else an optimizer keeps are moments.
VERSION, BASIS = "version", "basis"
# Codes of a basis that share a scale.
BLOCK = 128
# Columns beyond the rank while a basis is sought.
OVERSAMPLE = 8


def rank_of(group: OptimizerGroup, shape: Shape) -> int:
    """Directions that a matrix of `shape` keeps."""
    return min(group.rank or -(-min(shape) // 4), *shape)


def basis_shape(group: OptimizerGroup, shape: Shape) -> tuple[int, int]:
    """(shorter side, rank)."""
    return min(shape), rank_of(group, shape)


def core_shape(group: OptimizerGroup, shape: Shape) -> tuple[int, int]:
    """A projected gradient: (rank, N) of a wide matrix, else (M, rank)."""
    rank = rank_of(group, shape)
    return (rank, shape[1]) if shape[0] < shape[1] else (shape[0], rank)


def basis_tensors(group: OptimizerGroup, shape: Shape) -> tuple[TensorSpec, ...]:
    """The tensors that keep the basis of a matrix of `shape`, in the order in which they travel."""
    kind = "linear" if group.basis == "int8" else group.basis
    return stored(BASIS, basis_shape(group, shape), kind, BLOCK)


def is_of_basis(name: str) -> bool:
    """Whether a tensor of an optimizer's state belongs to its basis rather than its moments."""
    return name == VERSION or name.split(".")[0] == BASIS
