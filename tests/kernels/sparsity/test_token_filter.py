"""Choosing tokens, and attention of those chosen over all."""

import pytest
import torch
from torch import Tensor

from kernels.sparsity import attention, token_filter
from kernels.sparsity.attention import kept_attention
from kernels.sparsity.tape import causal_attention
from kernels.sparsity.token_filter import Kept, kept_count, select


def normal(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (token_filter, attention):
        monkeypatch.setattr(module, "CHUNK", 4)


def test_the_highest_of_each_row_are_kept_in_their_order():
    kept = select(torch.tensor([[1.0, 5.0, 3.0, 4.0], [9.0, 9.0, 9.0, 9.0]]), 2)
    assert kept.index.tolist() == [[1, 3], [0, 1]]
    assert kept.flat.tolist() == [1, 3, 4, 5]
    assert kept.flat_rest.tolist() == [0, 2, 6, 7]
    assert kept.mask().tolist() == [[False, True, False, True], [True, True, False, False]]
    x = torch.arange(8.0).view(2, 4)
    assert kept.take(x).tolist() == [[1, 3], [4, 5]]
    assert kept.take_rest(x).tolist() == [[0, 2], [6, 7]]


def test_equal_scores_and_nothing_that_counts_still_keep_the_same_number():
    kept = select(torch.full((3, 5), -torch.inf), 2)
    assert kept.index.tolist() == [[0, 1]] * 3


@pytest.mark.parametrize(
    ("share", "count"), [(0.6, 6), (0.04, 1), (1.0, 10), (0.25, 2), (0.999, 10)]
)
def test_the_number_kept_is_a_share_of_the_positions(share: float, count: int):
    assert kept_count(share, 10) == count


def test_gradients_of_what_was_taken_lie_where_it_was():
    kept = select(normal(2, 6), 3)
    x = normal(2, 6, 5).requires_grad_()
    assert torch.autograd.gradcheck(kept.take, (x,))
    (dx,) = torch.autograd.grad(kept.take(x).sum(), x)
    assert torch.equal(dx, kept.mask()[..., None].expand(-1, -1, 5).double())


def reference(q: Tensor, k: Tensor, v: Tensor, kept: Kept) -> Tensor:
    """All queries, dropped keys and values detached; then the kept rows."""
    mask = kept.mask()[:, :, None, None]
    k, v = (torch.where(mask, x, x.detach()) for x in (k, v))
    return kept.take(causal_attention(q, k, v))


@pytest.mark.parametrize("count", [1, 5, 8, 11, 13])
@pytest.mark.parametrize("known", [True, False])
@pytest.mark.usefixtures("small_chunks")
def test_kept_rows_over_all_keys_have_the_values_and_gradients_of_the_detached(
    count: int, known: bool
):
    B, S, H, D = 3, 13, 2, 6
    kept = select(normal(B, S, seed=1), count)
    inputs = [normal(B, S, H, D, seed=2 + i).requires_grad_() for i in range(3)]
    wanted = reference(inputs[0], inputs[1], inputs[2], kept)
    dy = normal(*wanted.shape, seed=9)
    wanted_grads = torch.autograd.grad(wanted, inputs, dy)

    q, k, v = (kept.take(x).transpose(1, 2) for x in inputs)
    other_k, other_v = (kept.take_rest(x.detach()).transpose(1, 2) for x in inputs[1:])
    y = wanted.detach().transpose(1, 2) if known else None
    got = kept_attention(q, k, v, (other_k, other_v), kept, y).transpose(1, 2)
    torch.testing.assert_close(got, wanted)
    for a, b in zip(torch.autograd.grad(got, inputs, dy), wanted_grads, strict=True):
        torch.testing.assert_close(a, b)


def test_filtering_keys_for_the_queries_gradient_too_would_be_wrong():
    """Why dQ sees all keys (section 6a): without them it points elsewhere."""
    B, S, H, D = 2, 40, 2, 8
    kept = select(normal(B, S), 24)
    q, k, v = (normal(B, S, H, D, seed=1 + i).requires_grad_() for i in range(3))
    right = torch.autograd.grad(reference(q, k, v, kept).square().sum(), q)[0]
    alone = causal_attention(*(kept.take(x) for x in (q, k, v)))
    wrong = torch.autograd.grad(alone.square().sum(), q)[0]
    assert (wrong - right).norm() > 0.3 * right.norm()
