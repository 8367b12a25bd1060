"""What a forward pass keeps for its backward pass, counted from shapes alone. Pure.

Counted in kernels/model, and held against what autograd really saves by a test. A token filter
keeps less than is counted here, depending on what it drops.
"""

from actors.parameters import ffn_dim
from actors.topology import ModelSpec, TrainSpec

FP32 = 4
# The objective makes logits in pieces of this many elements and holds about three at a time.
_LOGIT_BYTES = 3 * FP32 * (1 << 19)


def activation_bytes(model: ModelSpec, rows: int, train: TrainSpec | None = None) -> int:
    """What the forward pass of `rows` rows keeps, with what the backward pass adds to it.

    Without `train` in its default precision.
    """
    tokens, C = rows * model.seq_len, model.dim
    layers = [_layer_bytes_per_token(model, train, layer) for layer in range(model.layers)]
    predictors = (model.predict_tokens - 1) * _predictor_bytes_per_token(model, train)
    if model.activation_checkpointing:
        # Each call's input, and the call that is made again.
        inputs = model.layers * model.loops * model.streams + 2 * (model.predict_tokens - 1)
        kept = tokens * (FP32 * inputs * C + max(layers, default=0))
    else:
        kept = tokens * (model.loops * sum(layers) + predictors)
    # States after every loop and predictor with their gradients, and the head's gradient.
    states = 2 * model.loops + 2 * (model.predict_tokens - 1)
    states += model.loops * model.streams if model.streams > 1 else 0
    head = FP32 * states * tokens * C + FP32 * model.vocab_size * C
    return kept + head + logit_bytes(model, rows)


def logit_bytes(model: ModelSpec, rows: int) -> int:
    """What the objective holds while it makes logits piece by piece."""
    return min(_LOGIT_BYTES, 3 * FP32 * rows * model.seq_len * model.vocab_size)


def _layer_bytes_per_token(model: ModelSpec, train: TrainSpec | None, layer: int) -> int:
    """Saved by one layer call for one token.

    fp32: the inputs of four norms, q, k, v, attention's result and the input of its SubLN (9 C),
    gate, up and the input of the second SubLN (3 F); with several residual streams their old and
    new states in both sublayers, and what was read from them. The inputs of qkv, o (C each),
    gate-up (C) and down (F) are int8 in ternary layers, unless another precision rounds them anew.
    """
    C, F, n = model.dim, ffn_dim(model), model.streams
    streams = FP32 * (3 * n + 2) * C if n > 1 else 0
    inputs = 2 * C * _input_bytes(model, train, layer, "attention")
    inputs += (C + F) * _input_bytes(model, train, layer, "ffn")
    return FP32 * (9 * C + 3 * F) + inputs + streams


def _predictor_bytes_per_token(model: ModelSpec, train: TrainSpec | None) -> int:
    """A predictor is a layer with a plain residual; in sequence, it joins two normed vectors."""
    C = model.dim
    own = _layer_bytes_per_token(model, train, -1)
    own -= FP32 * (3 * model.streams + 2) * C if model.streams > 1 else 0
    return own + (FP32 * 2 * C + 2 * C if model.prediction == "sequential" else 0)


def _input_bytes(model: ModelSpec, train: TrainSpec | None, layer: int, part: str) -> int:
    """Bytes an element of what a linear map keeps of its input."""
    if not model.ternary:
        return FP32
    if train is None or layer in train.precision_high_layers or layer < 0:
        return 1
    own = train.precision_attention if part == "attention" else train.precision_ffn
    return 1 if (own or train.precision) == "fp32" else FP32
