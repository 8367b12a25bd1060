"""LoopLM: embedding, the looped stack, exit gate and head, and how its parameters come and go.

Parameter names, shapes and order are those of `actors/parameters.py`.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from kernels.model.config import ModelConfig, TrainConfig
from kernels.model.gathering import Sink
from kernels.model.hyper_connections import StreamsHead
from kernels.model.initialise import init_parameter
from kernels.model.layers import (
    Call,
    DenseLinear,
    Layer,
    Memory,
    Mode,
    RmsNorm,
    TernaryLinear,
    rotary_tables,
)
from kernels.model.loop import Apply, Trunk, checkpointed, directly, run_loops
from kernels.model.multi_token import Predictor, Rows
from kernels.precision.recipes import RECIPES
from kernels.precision.rounding import bfloat16_through
from kernels.precision.ternary import quantise


class _Weight(nn.Module):
    """A bare matrix that has the name `<module>.weight`."""

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(rows, columns))


class LoopLM(nn.Module):
    """A looped language model, built with all matrices zero: `initialise` or load values.

    `mode` says where ternary layers get their codes from (see `TernaryLinear`); it means nothing
    to a model with `ternary = False`.
    """

    def __init__(self, config: ModelConfig, mode: Mode = "master") -> None:
        super().__init__()
        self.config = config
        C, V = config.dim, config.vocab_size
        self.embedding = _Weight(V, C)
        self.layers = nn.ModuleList(
            Layer(config, mode, streams=config.streams) for _ in range(config.layers)
        )
        self.streams_head = StreamsHead(config.streams, C) if config.streams > 1 else None
        self.norm = RmsNorm(C, config.norm_eps)
        self.exit_gate = nn.Linear(C, 1)
        self.head = None if config.tie_embedding else _Weight(V, C)
        self.predictors = nn.ModuleList(
            Predictor(config, mode) for _ in range(config.predict_tokens - 1)
        )
        self.train_config = TrainConfig()
        self._reference: tuple[LoopLM | None] = (None,)  # in a tuple it is no part of this model
        self._ternary: dict[str, TernaryLinear] = {}
        self._linear: dict[str, TernaryLinear | DenseLinear] = {}
        for name, module in self.named_modules():
            if isinstance(module, TernaryLinear | DenseLinear):
                module.label = name
                self._linear[f"{name}.weight"] = module
            if isinstance(module, TernaryLinear):
                self._ternary[f"{name}.weight"] = module
        cos, sin = rotary_tables(torch.arange(config.seq_len), config.head_dim, config.rope_base)
        self.cos: Tensor
        self.sin: Tensor
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    @property
    def head_weight(self) -> Tensor:
        """The (V, C) matrix that turns states into logits."""
        weight = self.embedding.weight if self.head is None else self.head.weight
        return self._embedded(weight)

    def _embedded(self, values: Tensor) -> Tensor:
        """Of the embedding or the head, in the precision they are trained in."""
        rounds = self.train_config.precision_embedding == "bf16"
        return bfloat16_through(values) if rounds else values

    def ternary_layers(self) -> dict[str, TernaryLinear]:
        """The ternary layers by the name of their parameter, in order."""
        return self._ternary

    def hand_over(self, sinks: Mapping[str, Sink]) -> None:
        """From the next forward pass on, gradients of linear maps go to `sinks`, by the name of
        their parameter, use by use; those of all others to `.grad` as ever.

        Raises `KeyError` for what is no linear map.
        """
        for name, layer in self._linear.items():
            layer.sink = sinks.get(name)
        foreign = sinks.keys() - self._linear.keys()
        if foreign:
            raise KeyError(f"{sorted(foreign)[0]} is no linear map")

    @torch.no_grad()
    def initialise(self, seed: int) -> None:
        """Version 0: every parameter as `init_parameter` makes it from (seed, name)."""
        for name, parameter in self.named_parameters():
            value = init_parameter(name, parameter.shape, seed, self.config.init_std)
            layer = self._ternary.get(name)
            if layer is not None and layer.mode == "codes":
                layer.load(*quantise(value))
            else:
                parameter.copy_(value)

    @torch.no_grad()
    def load_dense(self, name: str, value: Tensor) -> None:
        """Overwrite one float parameter. Raises `ValueError` on another shape or a ternary name."""
        parameter = self.get_parameter(name)
        layer = self._ternary.get(name)
        if value.shape != parameter.shape or (layer is not None and layer.mode == "codes"):
            raise ValueError(
                f"{name} has shape {tuple(parameter.shape)} and "
                f"{'takes codes' if layer is not None else 'takes floats'}; "
                f"got {value.dtype} of shape {tuple(value.shape)}"
            )
        parameter.copy_(value)

    def requantise(self) -> None:
        """Bring all codes up to date with their masters. Every forward pass does it by itself."""
        for layer in self._ternary.values():
            layer.requantise()

    def train_as(self, config: TrainConfig, reference: "LoopLM | None" = None) -> None:
        """From now on `objective` trains this model in that way.

        `reference` is what the filter "excess" compares losses with: another model of the same
        vocabulary. Raises `ValueError` where the model cannot be trained so.
        """
        if config.filter == "excess":
            _check_reference(self.config, reference)
        for number, layer in enumerate(self.layers):
            assert isinstance(layer, Layer)
            attention = config.precision_of(number, "attention")
            ffn = config.precision_of(number, "ffn")
            if self.config.ternary and "fp4_dge" in (attention, ffn):
                raise ValueError(
                    'precision "fp4_dge" multiplies gradients by a slope at the full-precision '
                    "weight, which a trainer of ternary layers does not have: set model.ternary = "
                    "false, or another precision"
                )
            layer.multiply_by(RECIPES[attention], RECIPES[ffn])
        self.train_config = config
        self._reference = (reference,)

    @property
    def reference(self) -> "LoopLM | None":
        """The model whose losses the filter "excess" compares with."""
        return self._reference[0]

    def states(
        self,
        tokens_BS: Tensor,
        *,
        positions: Tensor | None = None,
        memory: Callable[[int, int], Memory] | None = None,
        requantise: bool = True,
    ) -> list[Tensor]:
        """h_1 .. h_T, each (B, S, C); see `trunk`."""
        return self.trunk(
            tokens_BS, positions=positions, memory=memory, requantise=requantise
        ).states

    def trunk(
        self,
        tokens_BS: Tensor,
        *,
        positions: Tensor | None = None,
        memory: Callable[[int, int], Memory] | None = None,
        requantise: bool = True,
        noise: int | None = None,
        rotary: tuple[Tensor, Tensor] | None = None,
        apply: Apply | None = None,
    ) -> Trunk:
        """What the loop makes of int64 tokens (B, S).

        `positions` (S,) or (B, S) default to 0 .. S - 1; `memory(loop, layer)` caches keys.
        Without `requantise` masters are promised not to have changed since it was last done.
        `noise` is the key of what a low precision draws. `rotary` takes the place of `positions`,
        and layers are called by `apply`.
        """
        if requantise:
            self.requantise()
        return run_loops(
            self.layers,
            self.norm,
            self.embed(tokens_BS),
            rotary or self.rotary(tokens_BS.shape[1], positions),
            loops=self.config.loops,
            apply=apply or self._way(memory is None),
            memory=memory,
            head=self.streams_head,
            noise=noise,
        )

    def predictions(
        self,
        trunk: Trunk,
        rows: Rows,
        *,
        rotary: tuple[Tensor, Tensor] | None = None,
        apply: Apply | None = None,
    ) -> list[Tensor]:
        """Each predictor's state, normed, (B, S, C). The other arguments are as for `trunk`."""
        call = Call(*(rotary or self.rotary(rows.inputs.shape[1])))
        apply = apply or self._way(True)
        h_BSC, out = trunk.last, list[Tensor]()
        for k, predictor in enumerate(self.predictors):
            assert isinstance(predictor, Predictor)
            if predictor.sequential:
                e_BSC = self.embed(rows.ahead[k]) * rows.same[k].unsqueeze(-1)
                h_BSC = made = predictor(h_BSC, e_BSC, call, apply)
            else:
                made = predictor(h_BSC, h_BSC, call, apply)
            out.append(predictor.norm(made))
        return out

    def _way(self, checkpointing: bool) -> Apply:
        wanted = self.config.activation_checkpointing and checkpointing
        return checkpointed if wanted and torch.is_grad_enabled() else directly

    def embed(self, tokens: Tensor) -> Tensor:
        """(...,) -> (..., C)."""
        return self._embedded(functional.embedding(tokens, self.embedding.weight))

    def rotary(self, count: int, positions: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """cos and sin of `positions` (S,) or (B, S); by default of the first `count`."""
        if positions is None:
            if self.config.seq_len >= count:
                return self.cos[:count], self.sin[:count]
            positions = torch.arange(count, device=self.cos.device)
        return rotary_tables(positions, self.config.head_dim, self.config.rope_base)

    def gates(self, h: Tensor) -> Tensor:
        """Logits of leaving after the turn that made `h` (..., C): (...,)."""
        return self.exit_gate(h).squeeze(-1)

    def logits(self, h: Tensor) -> Tensor:
        """(..., C) -> (..., V). The same head after every turn; the state is already normed."""
        return functional.linear(h, self.head_weight)

    def forward(self, tokens_BS: Tensor) -> Tensor:
        """Logits after every turn, (T, B, S, V). For training use `objective`, which is bounded."""
        return torch.stack([self.logits(h) for h in self.states(tokens_BS)])


def _check_reference(config: ModelConfig, reference: LoopLM | None) -> None:
    if reference is None:
        raise ValueError('train.filter = "excess" needs a reference model to compare losses with')
    if reference.config.vocab_size != config.vocab_size:
        raise ValueError(
            f"the reference model of train.filter has a vocabulary of {reference.config.vocab_size}"
            f", this one of {config.vocab_size}: it must have been trained with the same tokenizer"
        )
