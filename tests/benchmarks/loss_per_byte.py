"""What gradients may travel as, and what it costs: held-out loss beside bytes, at two widths.

    python -m tests.benchmarks.loss_per_byte [--dims 64,128] [--rates 1] [--seeds 1] [--json]

Every way trains the same tokens from the same weights with Muon, in the plain loop, whose losses
are bit for bit the graph's; its loss is the mean over the seeds, at the best of the rates (factors
on the matrices' learning rate), each way's own. Bytes are those of one step's gradients; what they
are compared with is bfloat16.
"""

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from actors import evaluation
from actors import topology as topologies
from actors.ablation.rows import BASELINE, COMMON, MUON, schedule
from actors.data.prepare import obtain_tokenizer
from actors.data.sources import list_corpus
from actors.parameters import unique_count
from actors.plan_memory import wire
from actors.rollout.writing import Pen
from actors.topology import Topology
from actors.trained import Trained
from tests.benchmarks.plain_loop import PlainLoop, Rows, batches

HELD_OUT_TOKENS = 16384
_LR = ("optimizer.matrices.lr", "optimizer.matrices.min_lr")
_GALORE = "optimizer.matrices.projection=galore", "optimizer.matrices.refresh_every=20"
_DOWN = ("optimizer.dense_updates=two_bit",)
_GUM = "optimizer.matrices.projection=gum", "optimizer.matrices.refresh_every=20"


class Way(NamedTuple):
    """One row."""

    name: str
    settings: tuple[str, ...]
    rank_share: int = 0  # columns of factors: dim over this


def _both(codec: str, dense: str = "") -> tuple[str, ...]:
    return f"optimizer.codec={codec}", f"optimizer.dense_codec={dense or codec}"


WAYS = (
    Way("dense", ()),
    Way("int8", _both("int8")),
    Way("int4", _both("int4")),
    Way("int4_rotated", _both("int4_rotated", "int4")),
    Way("int4_feedback", _both("int4_feedback")),
    Way("two_bit", _both("two_bit")),
    Way("two_bit_scaled, ternary_scaled", _both("two_bit_scaled", "ternary_scaled")),
    Way("ternary", _both("ternary")),
    Way("ternary_rotated", _both("ternary_rotated")),
    Way("ternary_scaled", _both("ternary_scaled")),
    Way("ternary_scaled, two_bit down", (*_both("ternary_scaled"), *_DOWN)),
    Way("sign", _both("sign")),
    Way("sign_rotated", _both("sign_rotated")),
    Way("power_int4, ternary_scaled", _both("power_int4", "ternary_scaled"), 4),
    Way("galore, ternary_scaled", (*_both("dense", "ternary_scaled"), *_GALORE)),
    Way("gum, ternary_scaled", (*_both("dense", "ternary_scaled"), *_GUM)),
)


class Corpus(NamedTuple):
    """What all ways of one width and seed train on and are held to."""

    seed: int
    batches: list[list[Rows]]
    held_out: evaluation.Rows
    pen: Pen


def settings_of(way: Way, dim: int, steps: int, rate: float) -> tuple[str, ...]:
    """Those of an ablation's Muon, with the way's own."""
    muon = {key: float(value) for key, _, value in (text.partition("=") for text in MUON[1:3])}
    rates = tuple(f"{key}={muon[key] * rate:g}" for key in _LR)
    ranks = (f"optimizer.codec_rank={dim // way.rank_share}",) if way.rank_share else ()
    size = f"model.dim={dim}", f"model.heads={max(1, dim // 32)}"
    run = *COMMON, *schedule(steps), *size
    return (*run, *BASELINE, *MUON, *rates, *ranks, *way.settings)


def corpus_of(topology: Topology, steps: int) -> Corpus:
    """Batches, held-out rows and the tokenizer of both."""
    found, _ = list_corpus(topology.data.sources)
    encoder = obtain_tokenizer(found, topology)[1]
    pen = Pen(encoder)
    untrained = Trained(topology, _model(topology), pen, 0, "")
    rows = evaluation.held_out_rows(untrained, found, encoder, HELD_OUT_TOKENS)
    return Corpus(topology.seed, list(batches(topology, steps)), rows, pen)


def _model(topology: Topology) -> Any:
    return PlainLoop(topology).model


def train(topology: Topology, corpus: Corpus) -> float:
    """Held-out loss after all batches."""
    loop = PlainLoop(topology)
    for step, ranks in enumerate(corpus.batches, start=1):
        loop.step(step, ranks)
    trained = Trained(topology, loop.model, corpus.pen, len(corpus.batches), "")
    return float(evaluation.losses(trained, corpus.held_out)["loss"])


def measure(
    way: Way, dim: int, corpora: Sequence[Corpus], rates: Sequence[float]
) -> dict[str, Any]:
    """Losses at all rates, and the best of them."""
    steps = len(corpora[0].batches)
    began = time.perf_counter()
    topology = _load(way, dim, steps)
    up = wire(topology).up_bytes_per_step  # sketches for new bases included
    losses = {
        rate: [train(_load(way, dim, steps, rate, corpus.seed), corpus) for corpus in corpora]
        for rate in rates
    }
    best = min(rates, key=lambda rate: statistics.fmean(losses[rate]))
    return {
        "way": way.name,
        "loss": statistics.fmean(losses[best]),
        "rate": best,
        "losses": {f"x{rate:g}": losses[rate] for rate in rates},
        "bytes": up,
        "times_fewer_than_bf16": 2 * unique_count(topology.model) / up,
        "took_s": time.perf_counter() - began,
    }


def _load(way: Way, dim: int, steps: int, rate: float = 1.0, seed: int = 0) -> Topology:
    return topologies.load("local", (*settings_of(way, dim, steps, rate), f"seed={seed}"))


def width(
    dim: int, steps: int, rates: Sequence[float], seeds: int, names: Sequence[str]
) -> dict[str, Any]:
    """All ways at one width, the first of them what the others are compared with."""
    corpora = [corpus_of(_load(WAYS[0], dim, steps, seed=seed), steps) for seed in range(seeds)]
    chosen = [way for way in WAYS if way is WAYS[0] or not names or way.name in names]
    rows = [measure(way, dim, corpora, rates) for way in chosen]
    for row in rows:
        row["loss_over_dense"] = row["loss"] / rows[0]["loss"] - 1
    return {"dim": dim, "steps": steps, "seeds": seeds, "rows": rows}


def show(found: dict[str, Any]) -> None:
    """A table of one width."""
    print(f"dim {found['dim']}, {found['steps']} steps, {found['seeds']} seed(s)")
    print(f"{'gradients as':31} {'KB':>7} {'of bf16':>8} {'loss':>7} {'':>7}  rate")
    for row in found["rows"]:
        print(
            f"{row['way']:31} {row['bytes'] / 1e3:7.0f} {row['times_fewer_than_bf16']:7.1f}x "
            f"{row['loss']:7.4f} {row['loss_over_dense']:+7.2%}  x{row['rate']:g}"
            f"  {_means(row['losses'])}",
            flush=True,
        )


def _means(losses: dict[str, list[float]]) -> str:
    """Of each rate, where there are several."""
    means = (f"{rate} {statistics.fmean(of):.4f}" for rate, of in losses.items())
    return "  ".join(means) if len(losses) > 1 else ""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dims", default="64,128")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rates", default="1")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--only", default="", help="Names of ways, separated by semicolons.")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rates = [float(rate) for rate in options.rates.split(",")]
    names = [name.strip() for name in options.only.split(";") if name.strip()]
    found: list[dict[str, Any]] = []
    for dim in map(int, options.dims.split(",")):
        found.append(width(dim, options.steps, rates, options.seeds, names))
        if not options.json:
            show(found[-1])
    if options.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
