"""The list of a model's parameters: names, shapes and what kind each is.

Everything that lays out memory, splits work between optimizer shards or counts bytes on the wire
reads this list, most of it in processes without torch. `tests/actors/test_parameters.py` holds it
against the model itself: same names, same shapes, same order.
"""

import math
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Literal

from actors.topology import ModelSpec

Kind = Literal["ternary", "dense"]
Group = Literal["matrices", "dense"]

# Widths of feed-forward layers are multiples of this: matrix units like it.
FFN_MULTIPLE = 64


@dataclass(frozen=True, slots=True)
class Parameter:
    """One tensor that is learned.

    `kind` says how it travels: "ternary" as 2-bit codes and a scale, "dense" as float32.
    `group` says who optimises it: "matrices" are the hidden ones (Muon), "dense" all else (AdamW).
    """

    name: str
    shape: tuple[int, ...]
    kind: Kind
    group: Group

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def decays(self) -> bool:
        """Whether weight decay may pull it to zero: not a gain, whose neutral value is one, nor a
        bias or any other vector.
        """
        return len(self.shape) >= 2


def ffn_dim(model: ModelSpec) -> int:
    """Width of the feed-forward layers: as configured, or 8/3 of dim, rounded up to a multiple."""
    if model.ffn_dim:
        return model.ffn_dim
    return -(-8 * model.dim // (3 * FFN_MULTIPLE)) * FFN_MULTIPLE


def parameters(model: ModelSpec) -> tuple[Parameter, ...]:
    """Every parameter of `model`, in the one order all parts agree on: that of the forward pass."""
    C, V = model.dim, model.vocab_size
    dense = [_dense("embedding.weight", V, C)]
    for layer in range(model.layers):
        dense += _layer(model, f"layers.{layer}", model.streams)
    if model.streams > 1:
        dense += _streams("streams_head", model.streams, model.streams * C, 1)
    dense += [
        _dense("norm.weight", C),
        _dense("exit_gate.weight", 1, C),
        _dense("exit_gate.bias", 1),
    ]
    if not model.tie_embedding:
        dense.append(_dense("head.weight", V, C))
    for k in range(model.predict_tokens - 1):
        dense += _predictor(model, f"predictors.{k}")
    return tuple(dense)


def _predictor(model: ModelSpec, name: str) -> list[Parameter]:
    """A layer that predicts one token further, always with a plain residual."""
    C = model.dim
    enter: list[Parameter] = []
    if model.prediction == "sequential":
        enter = [
            _dense(f"{name}.embedding_norm.weight", C),
            _dense(f"{name}.hidden_norm.weight", C),
            Parameter(f"{name}.join.weight", (C, 2 * C), _matrix_kind(model), "matrices"),
        ]
    layer = _layer(model, f"{name}.layer", streams=1)
    return [*enter, *layer, _dense(f"{name}.norm.weight", C)]


def _matrix_kind(model: ModelSpec) -> Kind:
    return "ternary" if model.ternary else "dense"


def _layer(model: ModelSpec, name: str, streams: int) -> list[Parameter]:
    C, F = model.dim, ffn_dim(model)

    def matrix(leaf: str, rows: int, columns: int) -> Parameter:
        return Parameter(f"{name}.{leaf}.weight", (rows, columns), _matrix_kind(model), "matrices")

    def connection(leaf: str) -> list[Parameter]:
        if streams == 1:
            return []
        return _streams(f"{name}.{leaf}", stream_logits(model), streams * C, 3)

    return [
        *connection("attention_streams"),
        _dense(f"{name}.attention_norm_in.weight", C),
        matrix("attention.q", C, C),
        matrix("attention.k", C, C),
        matrix("attention.v", C, C),
        _dense(f"{name}.attention.sub_norm.weight", C),
        matrix("attention.o", C, C),
        _dense(f"{name}.attention_norm_out.weight", C),
        *connection("ffn_streams"),
        _dense(f"{name}.ffn_norm_in.weight", C),
        matrix("ffn.gate", F, C),
        matrix("ffn.up", F, C),
        _dense(f"{name}.ffn.sub_norm.weight", F),
        matrix("ffn.down", C, F),
        _dense(f"{name}.ffn_norm_out.weight", C),
    ]


def stream_logits(model: ModelSpec) -> int:
    """Logits per token of one sublayer's maps between residual streams (mHC)."""
    n = model.streams
    return 2 * n + (n * n if model.stream_mixing == "sinkhorn" else math.factorial(n))


def _streams(name: str, logits: int, inputs: int, alphas: int) -> list[Parameter]:
    return [
        _dense(f"{name}.phi", logits, inputs),
        _dense(f"{name}.b", logits),
        _dense(f"{name}.alpha", alphas),
    ]


def _dense(name: str, *shape: int) -> Parameter:
    return Parameter(name, shape, "dense", "dense")


def unique_count(model: ModelSpec) -> int:
    """Parameters that exist, each counted once."""
    return sum(p.numel for p in parameters(model))


def applied_count(model: ModelSpec) -> int:
    """Parameters one token meets in a training step: layers, norm, gate and head once per loop.

    The embedding as such is a lookup and does not count; tied, it is also the head and does.
    Predictors of further tokens are met once each, and each with the head.
    """
    head = model.vocab_size * model.dim
    lookup = 0 if model.tie_embedding else head
    predictors = [_predictor(model, str(k)) for k in range(model.predict_tokens - 1)]
    ahead = sum(p.numel for predictor in predictors for p in predictor)
    return model.loops * (unique_count(model) - lookup - ahead) + ahead + len(predictors) * head


def partition(params: tuple[Parameter, ...], shards: int) -> tuple[tuple[Parameter, ...], ...]:
    """`params` cut into `shards` consecutive runs, the largest of them as small as possible.

    Size is counted in elements, because what a shard must have room for is state. A pure function
    of its arguments. Raises `ValueError` when there are more shards than parameters.
    """
    if not 1 <= shards <= len(params):
        raise ValueError(
            f"cannot cut {len(params)} parameters into {shards} shards: "
            f"accepted are 1 to {len(params)}; lower actors.optimizer_shards"
        )
    sizes = [p.numel for p in params]
    low, high = max(sizes), sum(sizes)
    while low < high:  # the smallest bound under which few enough runs suffice
        middle = (low + high) // 2
        if len(_cuts(sizes, middle)) < shards:
            high = middle
        else:
            low = middle + 1
    cuts = _cuts(sizes, low)
    # A tight bound may need fewer runs than there are shards: give every shard something.
    for cut in range(len(params) - 1, 0, -1):
        if len(cuts) == shards - 1:
            break
        if cut not in cuts:
            cuts.append(cut)
    edges = [0, *sorted(cuts), len(params)]
    return tuple(params[a:b] for a, b in pairwise(edges))


def _cuts(sizes: list[int], bound: int) -> list[int]:
    """Where to cut so that no run exceeds `bound`, filling each run before the next begins."""
    cuts: list[int] = []
    total = 0
    for index, size in enumerate(sizes):
        if total + size > bound:
            cuts.append(index)
            total = 0
        total += size
    return cuts


def offsets(params: tuple[Parameter, ...], itemsize: int = 4) -> tuple[int, ...]:
    """Byte offset of each parameter when all lie back to back, and the total at the end."""
    return tuple(accumulate((p.numel * itemsize for p in params), initial=0))
