"""What a token filter saves: time of a step's backward pass with and without it.

    python -m tests.benchmarks.token_filter [--keep 0.6] [--rounds 7] [--set dim=256] [--json]

Backward is what a step takes beyond its forward pass alone, so everything that a filter needs is in
it: scores, choice, the second run over kept tokens. Ways take turns; medians are reported.
"""

import argparse
import gc
import json
import statistics
import time
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from kernels.model.config import ModelConfig, TrainConfig
from kernels.model.model import LoopLM
from kernels.model.objective import objective

MODEL = ModelConfig(dim=256, layers=3, heads=4, loops=2, vocab_size=2048, seq_len=256)
ROWS = 4


def step_s(model: LoopLM, tokens: Tensor, *, learn: bool) -> float:
    """Seconds of one forward pass, with its backward pass if `learn`."""
    documents = torch.zeros_like(tokens)
    began = time.process_time()
    with torch.set_grad_enabled(learn):
        result = objective(model, tokens, documents, entropy_weight=0.05)
        if learn:
            (result.objective_sum / result.counted).backward()
    took = time.process_time() - began
    for parameter in model.parameters():
        parameter.grad = None
    return took


def measure(config: ModelConfig, keep: float, rounds: int) -> dict[str, Any]:
    """Medians over `rounds`."""
    model = LoopLM(config, "codes")
    model.initialise(0)
    generator = torch.Generator().manual_seed(1)
    shape = (ROWS, config.seq_len + 1)
    tokens = torch.randint(0, config.vocab_size, shape, generator=generator)
    ways = {
        "unfiltered": TrainConfig(),
        "loss_only": TrainConfig(filter="loss", filter_keep=keep, filter_backward="loss_only"),
        "gathered": TrainConfig(filter="loss", filter_keep=keep),
    }
    times: dict[str, list[float]] = {name: [] for name in ("forward", *ways)}
    for round_ in range(rounds + 1):
        took = {"forward": step_s(model, tokens, learn=False)}
        for name, train in ways.items():
            model.train_as(train)
            took[name] = step_s(model, tokens, learn=True)
        model.train_as(TrainConfig())
        if round_:  # the first warms up
            for name, seconds in took.items():
                times[name].append(seconds)
        gc.collect()
    median = {name: statistics.median(values) for name, values in times.items()}
    backward = {name: median[name] - median["forward"] for name in ways}
    return {
        "keep": keep,
        "forward_s": median["forward"],
        "backward_s": backward,
        "backward_share": {n: s / backward["unfiltered"] for n, s in backward.items()},
        "step_share": {n: median[n] / median["unfiltered"] for n in ways},
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep", type=float, default=0.6)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=INT")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    changes = dict(setting.split("=", 1) for setting in options.set)
    torch.set_num_threads(1)
    config = replace(MODEL, **{name: int(value) for name, value in changes.items()})
    found = measure(config, options.keep, options.rounds)
    if options.json:
        print(json.dumps(found))
        return
    print(f"forward {found['forward_s']:.3f} s, {1 - options.keep:.0%} of tokens filtered")
    for name, share in found["backward_share"].items():
        print(
            f"{name:12} backward {found['backward_s'][name]:.3f} s ({share - 1:+.1%}), "
            f"step {found['step_share'][name] - 1:+.1%}"
        )


if __name__ == "__main__":
    main()
