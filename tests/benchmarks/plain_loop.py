"""Training as anyone would write it: one process, one loop, no messages. What the graph is held to.

    python -m tests.benchmarks.plain_loop [--topology local] [--steps 60] [--json]

Model, batches and optimizer are those of the topology, for all its ranks in turn, so that losses
and weights must come out bit for bit as the graph's. Batches are made before the clock starts.
"""

import argparse
import hashlib
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import numpy as np
import torch
from torch import Tensor

from actors import topology as topologies
from actors.data import tokenizer
from actors.data.ordering import Draws
from actors.data.packing import Document, Packer, documents_of
from actors.data.prepare import obtain_tokenizer
from actors.data.sources import list_corpus
from actors.data.stages import STAGES, Options, SampleProblem, State, stage_names
from actors.optimizer.layout import group_of
from actors.parameters import parameters
from actors.topology import OptimizerGroup, Topology
from actors.trainer.reference import load_reference
from actors.trainer.step import noise_key
from kernels.model.config import ModelConfig, TrainConfig
from kernels.model.model import LoopLM
from kernels.model.objective import counted_targets, objective
from kernels.optimizers import adamw, adamw8bit, draws, foam, muon, muon8bit
from kernels.optimizers.clipping import clipped
from kernels.optimizers.codecs.blocks import Blocks
from kernels.optimizers.codecs.grid import Grid
from kernels.optimizers.codecs.named import named
from kernels.optimizers.isometry import isometric, isometric_ternary
from kernels.optimizers.quantised_state import zeros
from kernels.optimizers.schedules import learning_rate
from kernels.optimizers.state import SMALLEST_QUANTISED
from kernels.precision.packing import pack
from kernels.precision.ternary import quantise
from tests.benchmarks.plain_projection import PlainProjection

if TYPE_CHECKING:
    from kernels.optimizers.codecs.base import Codec


class Rows(NamedTuple):
    """What one rank trains on in one step."""

    tokens: Tensor  # int64 (rows, seq_len + 1)
    documents: Tensor
    text_bytes: int


class PlainLoop:
    """Master weights, moments and the loop over them."""

    def __init__(self, topology: Topology) -> None:
        self.topology = topology
        config = ModelConfig.of(msgspec.to_builtins(topology.model))
        self.model = LoopLM(config, "master")
        self.model.train_as(
            TrainConfig.of(msgspec.to_builtins(topology.train)), load_reference(topology, "cpu")
        )
        self.model.initialise(topology.seed)
        self.state: dict[str, dict[str, Tensor]] = {}
        self.memories: dict[tuple[str, int], Mapping[str, Tensor]] = {}  # of (parameter, rank)
        self.cleared: dict[str, int] = {}  # the step whose FIRE ended a parameter's moments
        self.matrices = {p.name: p.group == "matrices" for p in parameters(topology.model)}
        # Masters of dense parameters that others see a copy of, which the model holds.
        coded = topology.optimizer.dense_updates != "dense"
        self.masters = {
            p.name: self.model.get_parameter(p.name).detach().clone()
            for p in parameters(topology.model)
            if coded and p.kind == "dense" and p.numel >= SMALLEST_QUANTISED
        }
        self.projection = PlainProjection(topology, self.model)
        for parameter in parameters(topology.model):
            name, group = parameter.name, group_of(topology.optimizer, parameter)
            self.state[name] = (
                zeros(self.projection.declared(name))
                if group.projection == "galore"
                else _initial_state(parameter.shape, group)
            )

    def step(self, step: int, ranks: Sequence[Rows]) -> dict[str, Any]:
        """One step over the batches of all ranks; its figures."""
        counted = [int(counted_targets(rows.documents).sum()) for rows in ranks]
        total = sum(counted)
        weights = [float(np.float32(tokens / total)) for tokens in counted]
        grads: list[dict[str, Tensor]] = []
        loss_sum = 0.0
        for rank, (rows, tokens) in enumerate(zip(ranks, counted, strict=True)):
            self.projection.begin(step)
            loss_sum += self._accumulate(rows, tokens, step, rank)
            grads.append(self._grads())
        mean: dict[str, Tensor] = {}
        for name in self.matrices:
            each = [of_rank[name] for of_rank in grads]
            each = self.projection.travelling(step, name, each, weights)
            for rank, (sent, weight) in enumerate(zip(each, weights, strict=True)):
                share = self._sent(name, sent, step, rank) * weight
                mean[name] = mean[name] + share if rank else share
        self._optimise(step, mean)
        text_bytes = sum(rows.text_bytes for rows in ranks)
        return {
            "step": step,
            "loss": loss_sum / total,
            "bits_per_byte": loss_sum / math.log(2) / text_bytes,
            "tokens": total,
        }

    def _grads(self) -> dict[str, Tensor]:
        """One rank's gradients: projected ones, and all others whole."""
        found: dict[str, Tensor] = dict(self.projection.cores)
        for name, parameter in self.model.named_parameters():
            if name not in found:
                grad = parameter.grad
                found[name] = torch.zeros_like(parameter) if grad is None else grad
        return found

    def _sent(self, name: str, grad: Tensor, step: int, rank: int) -> Tensor:
        """What is left of a rank's gradient after its codec."""
        spec = self.topology.optimizer
        matrix = self.matrices[name]
        if not matrix and grad.numel() < SMALLEST_QUANTISED:
            return grad
        codec = named(spec.codec if matrix else spec.dense_codec, spec.codec_rank)
        shape = tuple(grad.shape)
        before = self.memories.get((name, rank)) or zeros(codec.memory(shape))
        key = draws.key(self.topology.seed, "codec", name, step, rank)
        payload, self.memories[name, rank] = codec.encode(grad, before, key)
        return codec.decode(payload, before, shape, key)

    def _accumulate(self, rows: Rows, counted: int, step: int, rank: int) -> float:
        self.model.zero_grad(set_to_none=True)
        train = self.topology.train
        loss_sum = 0.0
        starts = range(0, rows.tokens.shape[0], train.rows_per_trainer)
        for micro_batch, start in enumerate(starts):
            part = slice(start, start + train.rows_per_trainer)
            result = objective(
                self.model,
                rows.tokens[part],
                rows.documents[part],
                entropy_weight=train.exit_entropy_weight,
                noise=noise_key(self.topology.seed, step, rank, micro_batch),
            )
            (result.objective_sum / counted).backward()
            loss_sum += float(result.ce_sum)
        return loss_sum

    @torch.no_grad()
    def _optimise(self, step: int, mean: dict[str, Tensor]) -> None:
        schedule = self.topology.schedule
        for parameter in parameters(self.topology.model):
            name, group = parameter.name, group_of(self.topology.optimizer, parameter)
            lr = learning_rate(
                step,
                lr=group.lr,
                min_lr=group.min_lr,
                warmup=schedule.warmup,
                stable=schedule.stable,
                decay=schedule.decay,
            )
            weight, state = self.model.get_parameter(name), self.state[name]
            master = self.masters.get(name, weight)
            grad = clipped(mean[name], group.clip)
            if group.projection == "galore":
                new, self.state[name] = self.projection.moved(name, master, state, grad, lr, step)
            else:
                if group.projection == "gum":
                    grad = self.projection.whole(step, name, grad)
                    if self.projection.refreshes(step, name):
                        state = {key: torch.zeros_like(t) for key, t in state.items()}
                since = step - self.cleared.get(name, 0)
                new, self.state[name] = _updated(master, state, grad, group, lr, since)
            master.copy_(new)
            if step in self.topology.optimizer.fire_at and self.matrices[name]:
                self._fire(name, master, step)
            if name in self.masters:
                weight.add_(self._followed(name, master - weight, step))

    def _followed(self, name: str, behind: Tensor, step: int) -> Tensor:
        """How far what others see of a dense parameter goes after its master."""
        kinds: dict[str, Codec] = {
            "int8": Blocks(bits=8, stochastic=False),
            "int4": Blocks(stochastic=False),
            "two_bit": Grid(levels=4, rotation=256),
            "ternary": Grid(levels=3, rotation=256),
            "sign": Grid(levels=2, rotation=256),
        }
        codec, key = (
            kinds[self.topology.optimizer.dense_updates],
            draws.key(0, "update", name, step),
        )
        payload, _ = codec.encode(behind, {}, key)
        return codec.decode(payload, {}, tuple(behind.shape), key)

    @torch.no_grad()
    def _fire(self, name: str, master: Tensor, step: int) -> None:
        if any(fnmatchcase(name, pattern) for pattern in self.topology.optimizer.fire_exclude):
            return
        make = isometric_ternary if self.topology.model.ternary else isometric
        master.copy_(make(master, self.topology.optimizer.fire_method))
        self.cleared[name] = step
        for key, tensor in self.state[name].items():
            if key != "version" and not key.startswith("basis"):
                self.state[name][key] = torch.zeros_like(tensor)
        for rank in range(self.topology.actors.trainers):
            self.memories.pop((name, rank), None)

    @torch.no_grad()
    def weights_digest(self) -> str:
        """As in metrics.jsonl, computed from the masters."""
        whole = hashlib.sha256()
        for parameter in parameters(self.topology.model):
            sha = hashlib.sha256()
            master = self.model.get_parameter(parameter.name).detach()
            if parameter.kind == "ternary":
                ternary = quantise(master)
                sha.update(pack(ternary.codes).numpy().tobytes())
                sha.update(ternary.scale.numpy().tobytes())
            else:
                sha.update(master.numpy().tobytes())
            whole.update(sha.digest())
        return whole.hexdigest()


def _initial_state(shape: tuple[int, ...], group: OptimizerGroup) -> dict[str, Tensor]:
    match group.kind:
        case "muon" | "muon8bit":
            declared = muon8bit.declared(shape, _muon8bit_hyper(group, 1.0))
        case "adamw":
            declared = adamw.declared(shape)
        case "adamw8bit":
            declared = adamw8bit.declared(shape, _adamw8bit_hyper(group, 1.0))
        case "foam":
            declared = foam.declared(shape, _foam_hyper(group, 1.0))
    return zeros(declared)


def _updated(
    master: Tensor,
    state: dict[str, Tensor],
    grad: Tensor,
    group: OptimizerGroup,
    lr: float,
    step: int,
) -> tuple[Tensor, dict[str, Tensor]]:
    match group.kind:
        case "muon" if not group.neuron_beta2:
            return muon.update(master, state, grad, _muon8bit_hyper(group, lr).muon, step)
        case "muon" | "muon8bit":
            return muon8bit.update(master, state, grad, _muon8bit_hyper(group, lr), step)
        case "adamw":
            return adamw.update(master, state, grad, _adamw8bit_hyper(group, lr).adamw, step)
        case "adamw8bit":
            return adamw8bit.update(master, state, grad, _adamw8bit_hyper(group, lr), step)
        case "foam":
            return foam.update(master, state, grad, _foam_hyper(group, lr), step)


def _muon8bit_hyper(group: OptimizerGroup, lr: float) -> muon8bit.Muon8bitHyper:
    return muon8bit.Muon8bitHyper(
        muon=muon.MuonHyper(
            lr=lr,
            momentum=group.momentum,
            weight_decay=group.weight_decay,
            coefficients=group.coefficients,
            iterations=group.iterations,
            scaling=group.scaling,
        ),
        kind=group.map if group.kind == "muon8bit" else "float32",
        block=group.block or 2048,
        neuron_beta2=group.neuron_beta2,
    )


def _adamw8bit_hyper(group: OptimizerGroup, lr: float) -> adamw8bit.AdamW8bitHyper:
    plain = adamw.AdamWHyper(
        lr=lr,
        beta1=group.beta1,
        beta2=group.beta2,
        eps=group.eps,
        weight_decay=group.weight_decay,
    )
    return adamw8bit.AdamW8bitHyper(adamw=plain, block=group.block or 256)


def _foam_hyper(group: OptimizerGroup, lr: float) -> foam.FoamHyper:
    return foam.FoamHyper(
        lr=lr,
        level=group.level,
        beta1=group.beta1,
        beta2=group.beta2,
        eps=group.eps,
        alpha=group.alpha,
        rho=group.residual,
        second=group.second,
        weight_decay=group.weight_decay,
    )


def batches(topology: Topology, steps: int) -> Iterator[list[Rows]]:
    """The batches of every step, by rank: the same that the loader composes in strict order."""
    corpus, _ = list_corpus(topology.data.sources)
    encoder = tokenizer.load(obtain_tokenizer(corpus, topology)[1])
    training, _ = corpus.split(topology.data.held_out_share)
    draws = Draws(topology.seed, training)
    row_tokens = topology.model.seq_len + 1
    ranks = topology.actors.trainers
    each = topology.train.rows_per_trainer * topology.train.accumulation
    packer = Packer(row_tokens, each * ranks)
    for _ in range(steps):
        while (packed := packer.take()) is None:
            draw = draws.next()
            assert draw is not None
            options = Options(
                max_sample_bytes=topology.data.max_sample_bytes,
                encoder=encoder,
                seed=topology.seed,
                epoch=draw.epoch,
                augment_share=topology.data.augment_share,
            )
            state = before = State()
            try:
                for name in stage_names(topology.data):
                    before = state
                    state = STAGES[name](state, corpus.ref(draw.sample), options)
            except SampleProblem:
                continue
            assert state.tokens is not None
            packer.add(Document(draw.key, state.tokens, len(before.text)))
        documents = documents_of(packed.spans, each * ranks, row_tokens)
        yield [
            Rows(
                torch.from_numpy(packed.tokens[rank * each :][:each].astype(np.int64)),
                torch.from_numpy(documents[rank * each :][:each].astype(np.int64)),
                sum(packed.text_bytes[rank * each :][:each]),
            )
            for rank in range(ranks)
        ]


def main() -> None:
    """Train and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--topology", default="local")
    parser.add_argument("--set", action="append", default=["actors.trainers=1"])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    topology = topologies.load(options.topology, tuple(options.set))
    torch.set_num_threads(topology.train.threads)
    loop = PlainLoop(topology)
    prepared = list(batches(topology, options.steps))
    records: list[dict[str, Any]] = []
    for step, ranks in enumerate(prepared, start=1):
        began = time.perf_counter()
        record = loop.step(step, ranks)
        record["step_s"] = time.perf_counter() - began
        records.append(record)
        if not options.json:
            speed = record["tokens"] / record["step_s"]
            print(f"step {step}  loss {record['loss']:.4f}  {speed:,.0f} tokens/s")
    digest = loop.weights_digest()
    if options.json:
        print(json.dumps({"records": records, "weights_digest": digest}))
    else:
        print(f"weights_digest {digest}")


if __name__ == "__main__":
    main()
