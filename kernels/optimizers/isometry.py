"""FIRE: between two stages of training, make weights isometries again (2602.08040).

Trained weights lose the even spectrum they began with, and with it the ability to learn something
new. FIRE replaces each by the nearest matrix with orthonormal rows or columns, its polar factor,
times sqrt(d_out / d_in); optimizer state is then cleared (zero bytes, see state.py), and with it
the count of steps that corrects its bias. The function is not kept: the loss jumps and falls below.
The paper also restarts the learning rate; here the caller's schedule goes on, as one that begins
anew half-way would never come to its decay.

The polar factor comes from the cubic Newton-Schulz iteration X <- 1.5 X - 0.5 X X^T X (not Muon's
quintic, which does not converge) or from an SVD. A singular value s of the Frobenius-normalised
matrix grows 1.5-fold per iteration until it nears 1, so the small ones decide: a Gaussian 768 x 768
is at a median of 0.22 after the paper's 5 iterations, at 0.96 after 10, all at 1 after 30. Here
iterations go on until the defect is small. An exactly zero singular value stays zero; the SVD would
invent a direction for it.

Ternary layers. Forward sees codes T = round(W / g) and one scale g = mean |W|. Codes do not change
when W is multiplied by a number, so FIRE decides the codes and we are free to choose g: the master
is projected and then rescaled to the g it had. The layer keeps its output scale, which the norms
around it were trained for, whereas sqrt(d_out / d_in) would replace a learned scale by a constant.
What is seen by forward is then not an isometry but the ternary rounding of one.
"""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Literal

import torch
from torch import Tensor

from kernels.optimizers.finite import NotFinite, is_finite
from kernels.precision.sums import absolute_mean, frobenius_norm

# Never projected unless asked for: the scale of these is what they have learned, and a tied head
# would be stretched by sqrt(vocabulary / width).
EXCLUDED = ("embedding.*", "head.*", "exit_gate.*", "*norm*")
# Enough for a condition number of 1.5^60 * 1e-1, far beyond what float32 can tell from singular.
MOST_ITERATIONS = 60
# Per singular value; float32 rounding leaves about 1e-12.
SMALL_DEFECT = 1e-9


def is_projected(name: str, shape: Sequence[int], exclude: Sequence[str] = EXCLUDED) -> bool:
    """Whether FIRE takes this parameter: matrices only, and none that a pattern excludes."""
    return len(shape) == 2 and not any(fnmatchcase(name, pattern) for pattern in exclude)


def polar(
    w_MN: Tensor,
    method: Literal["newton_schulz", "svd"] = "newton_schulz",
    iterations: int | None = None,
) -> Tensor:
    """The nearest matrix with orthonormal rows (M <= N) or columns, in the dtype of `w_MN`.

    `iterations` fixes their number; None goes on until the defect is below SMALL_DEFECT per
    singular value. By Newton-Schulz a zero matrix stays zero. Raises `NotFinite` when an entry
    is not, or an SVD does not converge.
    """
    if not is_finite(w_MN):
        raise NotFinite(
            "cannot project onto isometries: the weight holds values that are not finite"
        )
    if method == "svd":
        try:
            u, _, vh = torch.linalg.svd(w_MN, full_matrices=False)
        except torch.linalg.LinAlgError as error:  # pyright: ignore[reportPrivateImportUsage]
            raise NotFinite(f"cannot project onto isometries: {error}") from error
        return u @ vh
    tall = w_MN.shape[0] > w_MN.shape[1]
    x = w_MN.mT if tall else w_MN
    norm = frobenius_norm(x)
    x = x / torch.where(norm > 0, norm, 1.0)
    for _ in range(MOST_ITERATIONS if iterations is None else iterations):
        gram = x @ x.mT
        if iterations is None and _defect(gram) <= SMALL_DEFECT * gram.shape[0]:
            break
        x = 1.5 * x - 0.5 * (gram @ x)
    return x.mT if tall else x


def isometric(
    w_MN: Tensor,
    method: Literal["newton_schulz", "svd"] = "newton_schulz",
    iterations: int | None = None,
) -> Tensor:
    """What FIRE makes of a dense weight (out, in): sqrt(out / in) times its polar factor."""
    out, into = w_MN.shape
    return polar(w_MN, method, iterations) * (out / into) ** 0.5


def isometric_ternary(
    master_MN: Tensor,
    method: Literal["newton_schulz", "svd"] = "newton_schulz",
    iterations: int | None = None,
) -> Tensor:
    """What FIRE makes of a ternary layer's master: the polar factor with the old mean |W|."""
    projected = polar(master_MN, method, iterations)
    scale = absolute_mean(projected)
    return projected * (absolute_mean(master_MN) / torch.where(scale > 0, scale, 1.0))


def defect(w_MN: Tensor) -> float:
    """DfI: squared Frobenius distance of W^T W from I, W's rows or columns, whichever are fewer.

    Of the weight as given: divide by sqrt(out / in) first what `isometric` has scaled.
    """
    x = w_MN if w_MN.shape[0] <= w_MN.shape[1] else w_MN.mT
    return _defect(x @ x.mT)


def relative_defect(w_MN: Tensor) -> float:
    """The defect per singular value, at the scale of W that makes it least: 0 for any c x isometry.

    With s the squared singular values, 1 - mean(s)^2 / mean(s^2): between 0 and 1, and comparable
    over shapes and over layers whose scale was learned.
    """
    x = w_MN if w_MN.shape[0] <= w_MN.shape[1] else w_MN.mT
    gram = x @ x.mT
    mean, square = gram.diagonal().mean(), gram.square().sum() / gram.shape[0]
    return float(1.0 - mean.square() / torch.where(square > 0, square, 1.0))


def _defect(gram: Tensor) -> float:
    identity = torch.eye(gram.shape[0], dtype=gram.dtype, device=gram.device)
    return float((gram - identity).square().sum())
