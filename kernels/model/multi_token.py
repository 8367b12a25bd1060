"""Predicting further ahead than the next token: multi-token prediction (section 4 of the notes).

The model itself predicts token t + 1 from position t. A predictor k = 1, 2, .. predicts t + k + 1,
with one layer of its own and the shared head. Two forms:

"parallel" (Gloeckle et al., arXiv 2404.19737): every predictor reads the last loop's state.
"sequential" (DeepSeek-V3, arXiv 2412.19437): predictor k reads what predictor k - 1 made (the first
the last loop's state) and the embedding of token t + k, which is known when t + k + 1 is asked for.

State means: before the final norm; each predictor has a norm of its own. Gloeckle's first head is
here the stack's last layer, so that the exits of the loop stay what they are without predictors.
Predictors have a plain residual whatever the stack has: the state they read is one stream.

A prediction counts when all tokens from t to its target lie in one document. Where t + k belongs to
another, its embedding is zero: nothing of another document is used to predict.
"""

from typing import NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from kernels.model.config import ModelConfig
from kernels.model.layers import Call, Layer, Linear, Mode, RmsNorm, linear
from kernels.model.loop import Apply, directly
from kernels.sparsity.token_filter import Kept

# Shapes: B rows, S = seq_len positions, T = S + 1 tokens of a row, C width, K predictors.


class Predictor(nn.Module):
    """One layer that sees one token further than what it reads from."""

    def __init__(self, config: ModelConfig, mode: Mode) -> None:
        super().__init__()
        C, eps = config.dim, config.norm_eps
        sequential = config.prediction == "sequential"
        self.embedding_norm = RmsNorm(C, eps) if sequential else None
        self.hidden_norm = RmsNorm(C, eps) if sequential else None
        # Columns: the embedding's first, as in DeepSeek-V3's files (its paper has them second).
        self.join: Linear | None = linear(config, 2 * C, C, mode) if sequential else None
        self.layer = Layer(config, mode)
        self.norm = RmsNorm(C, eps)

    @property
    def sequential(self) -> bool:
        """Whether it reads its predecessor and an embedding."""
        return self.join is not None

    def enter(self, h_BSC: Tensor, e_BSC: Tensor) -> Tensor:
        """What its layer is given: `h_BSC` itself, or joined with the embeddings `e_BSC`."""
        if self.join is None or self.embedding_norm is None or self.hidden_norm is None:
            return h_BSC
        both = torch.cat((self.embedding_norm(e_BSC), self.hidden_norm(h_BSC)), dim=-1)
        return self.join(both)

    def forward(self, h_BSC: Tensor, e_BSC: Tensor, call: Call, apply: Apply = directly) -> Tensor:
        """(B, S, C) -> (B, S, C), before its norm."""
        return apply(self.layer, self.enter(h_BSC, e_BSC), call)


def reach(documents_BT: Tensor, ahead: int) -> list[Tensor]:
    """For 1 .. `ahead`, bool (B, S): whether the token so far ahead is in the same document.

    So is every token in between, even where a number comes back later in the row.
    """
    same_BS = documents_BT[:, 1:] == documents_BT[:, :-1]
    out = [same_BS]
    for k in range(1, ahead):
        out.append(out[-1] & functional.pad(same_BS[:, k:], (0, k)))
    return out


def shifted(tokens_BT: Tensor, ahead: int) -> Tensor:
    """Tokens `ahead` of each position (B, S); 0 where the row does not go so far."""
    return functional.pad(tokens_BT[:, ahead:], (0, ahead - 1))


class Rows(NamedTuple):
    """Positions to learn from: what is read there, and what is to be predicted."""

    inputs: Tensor  # int64 (B, S)
    ahead: tuple[Tensor, ...]  # K + 1 times (B, S): the token 1, 2, .. further on; 0 beyond the row
    same: tuple[Tensor, ...]  # K + 1 times bool (B, S): whether that one counts

    @classmethod
    def of(cls, tokens_BT: Tensor, documents_BT: Tensor, predictors: int) -> Self:
        """All positions of rows of seq_len + 1 tokens, for a model and its predictors."""
        ahead = tuple(shifted(tokens_BT, k) for k in range(1, predictors + 2))
        return cls(tokens_BT[:, :-1], ahead, tuple(reach(documents_BT, predictors + 1)))

    def at(self, kept: Kept) -> "Rows":
        """Some of these positions."""
        ahead, same = (tuple(map(kept.take, tensors)) for tensors in (self.ahead, self.same))
        return Rows(kept.take(self.inputs), ahead, same)
