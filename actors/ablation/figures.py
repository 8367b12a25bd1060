"""Figures of a row that need its model: held-out loss, and what its technique is about.

Each trial's checkpoint is loaded as any command loads one. All of this runs on one thread of the
CPU after the run, so it disturbs nothing that is timed. Imports torch.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple, cast

import msgspec
import torch
from safetensors import safe_open
from torch import Tensor

from actors import checkpoints, evaluation, trained
from actors.ablation.rows import Figure
from actors.ablation.trials import Trial
from actors.data.sources import list_corpus
from actors.optimizer.layout import block_of, group_of
from actors.parameters import parameters
from actors.replica import Replica
from actors.trained import Trained
from kernels.model.config import TrainConfig
from kernels.model.model import LoopLM
from kernels.model.objective import objective
from kernels.model.stream_gain import stream_gain
from kernels.optimizers import quantised_state
from kernels.optimizers.isometry import relative_defect
from kernels.sampling.speculate import speculate

HELD_OUT_TOKENS = 16384
_ROWS = 8  # of held-out text that techniques are tried on
_ROUNDS = 5
_PROMPTS, _PROMPT_TOKENS, _NEW_TOKENS = 8, 32, 32

Own = dict[str, float]


class _Look(NamedTuple):
    """What figures are measured on."""

    trial: Trial
    found: Trained
    tokens: Tensor  # int64 (_ROWS, seq_len + 1), held out
    documents: Tensor

    @property
    def model(self) -> LoopLM:
        """What was trained."""
        return self.found.model

    @property
    def config(self) -> TrainConfig:
        """How it was trained."""
        return TrainConfig.of(msgspec.to_builtins(self.trial.topology.train))


class Measured(NamedTuple):
    """Of one trial."""

    held_out: dict[str, Any]  # loss, bits_per_byte
    looks: list[tuple[int, float]]  # held-out loss after some steps, the last included
    own: Own


def measure(trial: Trial, figures: tuple[Figure, ...]) -> Measured:
    """Held-out loss and the row's own figures. Raises `NothingTrained`."""
    torch.set_num_threads(1)
    found = trained.newest(trial.run, lambda _: None)
    corpus, _ = list_corpus(trial.topology.data.sources)
    rows = evaluation.held_out_rows(
        found, corpus, trial.run.tokenizer.read_bytes(), HELD_OUT_TOKENS
    )
    some = slice(0, _ROWS)
    tokens, documents = (torch.from_numpy(x[some]) for x in (rows.tokens, rows.documents))
    look = _Look(trial, found, tokens, documents)
    own: Own = {"isometry_defect": _isometry(look)}
    for figure in figures:
        own |= _FIGURES[figure](look)
    looks = [
        (step, evaluation.losses(replace(found, model=model, step=step), rows)["loss"])
        for step, model in _earlier(trial, found.step)
    ]
    checkpoints.prune(trial.run.checkpoints, 1, found.step)
    held_out = evaluation.losses(found, rows)
    return Measured(held_out, [*looks, (found.step, held_out["loss"])], own)


def _earlier(trial: Trial, last: int) -> Iterator[tuple[int, LoopLM]]:
    """The model at each checkpoint before the last, oldest first."""
    replica = Replica(trial.topology.model)
    for path in reversed(checkpoints.listing(trial.run.checkpoints)):
        checkpoint = checkpoints.verify(path)
        if checkpoint.step < last:
            replica.load_checkpoint(checkpoint)
            yield checkpoint.step, replica.model


def _isometry(look: _Look) -> float:
    """How far masters are from a multiple of an isometry: 0 is one, 1 is of rank nothing."""
    matrices = {p.name for p in parameters(look.trial.topology.model) if p.group == "matrices"}
    masters = _tensors(look.trial, "master")
    return statistics.fmean(relative_defect(masters[name]) for name in matrices)


def _tensors(trial: Trial, tensor: str) -> dict[str, Tensor]:
    """A tensor of every parameter that has it, from the newest checkpoint."""
    found: dict[str, Tensor] = {}
    for path in sorted(checkpoints.listing(trial.run.checkpoints)[0].glob("*.safetensors")):
        with cast("Any", safe_open(path, framework="pt")) as file:
            names: list[str] = list(file.keys())
            for name in names:
                parameter, _, what = name.rpartition(":")
                if what == tensor:
                    found[parameter] = file.get_tensor(name)
    return found


def _gain(look: _Look) -> Own:
    """How much streams are amplified over the depth of the stack."""
    gain = stream_gain(look.model, look.tokens[:, :-1])
    return {"gain_forward": gain.forward, "gain_backward": gain.backward, "mixed_share": gain.left}


def _filter(look: _Look) -> Own:
    """The share of targets that are learnt from, and of the backward pass's time that is left.

    Backward is all that a step takes beyond its forward pass; medians of the thread's own time.
    """
    unfiltered = replace(look.config, filter="none")
    ways = {"forward": unfiltered, "plain": unfiltered, "filtered": look.config}
    times: dict[str, list[float]] = {name: [] for name in ways}
    learnt = counted = 1
    for _ in range(_ROUNDS + 1):
        for name, config in ways.items():
            look.model.train_as(config)
            began = time.thread_time()
            with torch.set_grad_enabled(name != "forward"):
                result = _objective(look, 0)
                if name != "forward":
                    result.objective_sum.backward()
            times[name].append(time.thread_time() - began)
            look.model.zero_grad(set_to_none=True)
            learnt, counted = result.learnt, result.counted
    forward, plain, filtered = (statistics.median(times[name][1:]) for name in ways)
    look.model.train_as(TrainConfig())
    return {
        "kept_share": learnt / max(counted, 1),
        "backward_time_share": (filtered - forward) / (plain - forward),
    }


def _rounding(look: _Look) -> Own:
    """Error of the matrices' gradients, relative to their size, that low precision makes."""
    exact = _gradients(look, replace(look.config, precision="fp32", **_ALL_HIGH))
    rounded = _gradients(look, look.config)
    error = sum(_squares(rounded[n] - g) for n, g in exact.items())
    size, other = (sum(map(_squares, grads.values())) for grads in (exact, rounded))
    dot = sum(float((rounded[n] * g).sum()) for n, g in exact.items())
    return {
        "gradient_error": (error / size) ** 0.5,
        "gradient_cosine": dot / (size * other) ** 0.5,
    }


_ALL_HIGH: dict[str, Any] = {
    "precision_attention": "",
    "precision_ffn": "",
    "precision_embedding": "fp32",
}


def _gradients(look: _Look, config: TrainConfig) -> dict[str, Tensor]:
    look.model.train_as(replace(config, filter="none"))
    matrices = [p.name for p in parameters(look.trial.topology.model) if p.group == "matrices"]
    leaves = [look.model.get_parameter(name) for name in matrices]
    grads = torch.autograd.grad(_objective(look, 1).objective_sum, leaves)
    look.model.train_as(TrainConfig())
    return dict(zip(matrices, grads, strict=True))


def _squares(x: Tensor) -> float:
    return float(x.square().sum())


def _objective(look: _Look, noise: int) -> Any:
    return objective(look.model, look.tokens, look.documents, entropy_weight=0.05, noise=noise)


def _state(look: _Look) -> Own:
    """Error of one more requantisation of 8-bit momentum, relative to its size.

    In between comes a step in a random direction, as long as those that made this momentum were.
    """
    codes, scales = (_tensors(look.trial, f"momentum.{part}") for part in ("codes", "scale"))
    generator = torch.Generator().manual_seed(0)
    error = size = 0.0
    for parameter in parameters(look.trial.topology.model):
        if parameter.name not in codes:
            continue
        group = group_of(look.trial.topology.optimizer, parameter)
        kind, block = group.map, block_of(group)
        code = codes[parameter.name]
        shape = tuple(code.shape)  # that of a projected gradient, where it is projected
        momentum = quantised_state.dequantise(code, scales[parameter.name], kind, block, shape)
        fresh = torch.randn(shape, generator=generator)
        share = (1.0 - group.momentum) * (_squares(momentum) / max(_squares(fresh), 1e-30)) ** 0.5
        moved = momentum * group.momentum + fresh * share
        coded = quantised_state.quantise(moved, kind, block)
        again = quantised_state.dequantise(*coded, kind, block, shape)
        error += _squares(again - moved)
        size += _squares(moved)
    return {"momentum_error": (error / size) ** 0.5} if size else {}  # small ones stay in fp32


def _drafts(look: _Look) -> Own:
    """What the model's own predictors save when it decodes held-out text on its own."""
    drafted = accepted = made = passes = 0
    for row in look.tokens[:_PROMPTS]:
        start = row[: min(_PROMPT_TOKENS, len(row) // 2)]
        prompt = [int(token) for token in start]
        spoken = speculate(look.model, prompt, max_new_tokens=_NEW_TOKENS)
        drafted, accepted = drafted + spoken.drafted, accepted + spoken.accepted
        made, passes = made + len(spoken.completion.tokens), passes + spoken.passes
    return {
        "accepted_draft_share": accepted / max(drafted, 1),
        "tokens_per_pass": made / max(passes, 1),
    }


_FIGURES: Mapping[Figure, Callable[[_Look], Own]] = {
    "gain": _gain,
    "filter": _filter,
    "rounding": _rounding,
    "state": _state,
    "isometry": lambda _look: {},  # every row has it
    "drafts": _drafts,
}
