"""What a LoopLM is made of. Field names are those of the topology's [model] table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, Self

from kernels.model.hyper_connections import MOST_PERMUTED_STREAMS, MOST_STREAMS, Mixing
from kernels.precision.recipes import RECIPES, Precision
from kernels.sparsity.token_filter import Backward, Score

# Widths of feed-forward layers are multiples of this: matrix units like it.
FFN_MULTIPLE = 64

Prediction = Literal["parallel", "sequential"]

# Fields of which there must be at least one.
_COUNTS = ("dim", "layers", "heads", "loops", "vocab_size", "seq_len", "predict_tokens")


def _known(cls: type[Any], table: Mapping[str, Any]) -> dict[str, Any]:
    names = {field.name for field in fields(cls)}
    return {name: value for name, value in table.items() if name in names}


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """How a model is trained. Field names are those of the topology's [train] table."""

    prediction_weight: float = 0.3  # of all further predictions together
    precision: Precision = "fp32"  # of the products in the stack's linear maps
    precision_attention: Precision | Literal[""] = ""  # of those of attention; "": as `precision`
    precision_ffn: Precision | Literal[""] = ""
    precision_embedding: Literal["fp32", "bf16"] = "fp32"  # and of the head
    precision_high_layers: Sequence[int] = ()  # layers that stay in fp32
    filter: Score = "none"  # by what score tokens are kept in the backward pass
    filter_keep: float = 0.6  # the share of each row's tokens that is
    filter_backward: Backward = "gathered"  # or another way, to compare: see `filtered`

    def __post_init__(self) -> None:
        for name in ("precision", "precision_attention", "precision_ffn"):
            value = getattr(self, name)
            if value not in RECIPES and (value or name == "precision"):
                raise ValueError(f"train.{name} is {value!r}; accepted: {', '.join(RECIPES)}")
        if not 0.0 < self.filter_keep <= 1.0:
            raise ValueError(
                f"train.filter_keep is {self.filter_keep}; accepted: more than 0, and 1 at most"
            )
        if self.prediction_weight < 0.0:
            raise ValueError(
                f"train.prediction_weight must be 0 or more, got {self.prediction_weight}"
            )

    @classmethod
    def of(cls, table: Mapping[str, Any]) -> Self:
        """From a mapping, such as a topology's train table; fields unknown here are left alone."""
        return cls(**_known(cls, table))

    def precision_of(self, layer: int, part: Literal["attention", "ffn"]) -> Precision:
        """Of one half of a layer of the stack."""
        if layer in self.precision_high_layers:
            return "fp32"
        own = self.precision_attention if part == "attention" else self.precision_ffn
        return own or self.precision


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """A LoopLM (Ouro) of ternary layers (BitNet b1.58). Raises `ValueError` when impossible."""

    dim: int
    layers: int
    heads: int
    loops: int
    ffn_dim: int = 0  # 0: 8/3 of dim, rounded up to a multiple of 64
    vocab_size: int = 50257
    seq_len: int = 1024
    rope_base: float = 10000.0
    norm_eps: float = 1e-5
    init_std: float = 0.02
    tie_embedding: bool = True
    ternary: bool = True  # False: full-precision linear layers, for comparison
    activation_checkpointing: bool = False
    streams: int = 1  # residual streams (mHC); 1: a plain residual
    stream_mixing: Mixing = "sinkhorn"
    predict_tokens: int = 1  # tokens predicted at every position; 1: the next
    prediction: Prediction = "parallel"

    def __post_init__(self) -> None:
        for name in _COUNTS:
            if getattr(self, name) < 1:
                raise ValueError(f"model.{name} must be at least 1, got {getattr(self, name)}")
        if self.dim % (2 * self.heads):
            raise ValueError(
                f"model.dim = {self.dim} cannot be split into {self.heads} heads of even width "
                "(rotary embedding turns pairs): make it a multiple of twice model.heads"
            )
        if self.predict_tokens > self.seq_len:
            raise ValueError(
                f"model.predict_tokens = {self.predict_tokens} looks further than a row of "
                f"model.seq_len = {self.seq_len}: accepted are 1 to {self.seq_len}"
            )
        most = MOST_STREAMS if self.stream_mixing == "sinkhorn" else MOST_PERMUTED_STREAMS
        if not 1 <= self.streams <= most:
            raise ValueError(
                f'model.streams = {self.streams} with stream_mixing = "{self.stream_mixing}": '
                f"accepted are 1 (a plain residual) to {most}"
            )

    @classmethod
    def of(cls, table: Mapping[str, Any]) -> Self:
        """From a mapping, such as a topology's model table; fields unknown here are left alone."""
        return cls(**_known(cls, table))

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.dim // self.heads

    @property
    def hidden(self) -> int:
        """Width of the feed-forward layers."""
        return self.ffn_dim or -(-8 * self.dim // (3 * FFN_MULTIPLE)) * FFN_MULTIPLE
