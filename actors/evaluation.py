"""How good a trained model is on held-out files: bits per byte, and how much of it compiles.

The same held-out files, rows and prompts for every model of a run: all are functions of the
names of the files and the run's seed, so figures of two checkpoints can be compared.
"""

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from actors.data.corpus import Corpus
from actors.data.prompts import Prompts
from actors.data.stages import Options, SampleProblem, State, read
from actors.data.tokenizer import load as load_tokenizer
from actors.rates import wilson
from actors.rollout.judge import Judge
from actors.rollout.writing import begin, seeds_of
from actors.trained import Trained
from kernels.model.objective import objective

# Rows computed at once. Nothing but memory and speed depends on it.
BATCH_ROWS = 8
# Prompts are drawn apart from those of training runs, whose draws start at 0.
FIRST_DRAW = 1 << 60

IntArray = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Rows:
    """Held-out text as the model reads it: rows of seq_len + 1 tokens, one document or more each.

    `tokens` and `documents` are (rows, seq_len + 1); a target counts when it belongs to the
    document of the token before it.
    """

    tokens: IntArray
    documents: IntArray
    files: int
    text_bytes: int  # of the files, scaled to the targets that count


def held_out_rows(
    trained: Trained, corpus: Corpus, tokenizer_json: bytes, limit_tokens: int
) -> Rows:
    """Up to `limit_tokens` tokens of held-out files, whole rows. May be none."""
    encoder = load_tokenizer(tokenizer_json)
    width = trained.topology.model.seq_len + 1
    tokens: list[NDArray[np.int32]] = []
    documents: list[NDArray[np.int32]] = []
    count, text_bytes = 0, 0
    for number, text in enumerate(_texts(trained, corpus)):
        if count >= limit_tokens:
            break
        one = encoder.document(text)
        tokens.append(one)
        documents.append(np.full(len(one), number, np.int32))
        count += len(one)
        text_bytes += len(text.encode())
    rows = min(count, limit_tokens) // width
    if rows == 0:
        empty = np.empty((0, width), np.int64)
        return Rows(empty, empty, 0, 0)
    kept = rows * width
    table = np.concatenate(tokens)[:kept].reshape(rows, width).astype(np.int64)
    belongs = np.concatenate(documents)[:kept].reshape(rows, width).astype(np.int64)
    counted = int((belongs[:, 1:] == belongs[:, :-1]).sum())
    # Bytes behind the targets that count: bytes per token are about the same everywhere.
    return Rows(table, belongs, int(belongs.max()) + 1, round(text_bytes * counted / count))


def _texts(trained: Trained, corpus: Corpus) -> Iterator[str]:
    """Held-out samples that can be read, in an order of their own."""
    options = Options(max_sample_bytes=trained.topology.data.max_sample_bytes)
    _, held = corpus.split(trained.topology.data.held_out_share)
    for sample in np.random.default_rng(trained.topology.seed).permutation(held):
        try:
            yield read(State(), corpus.ref(int(sample)), options).text.decode()
        except SampleProblem:
            continue


@torch.no_grad()
def losses(trained: Trained, rows: Rows) -> dict[str, Any]:
    """Cross entropy over the targets that count, per loop and of the last loop."""
    total = torch.zeros(trained.topology.model.loops, dtype=torch.float64)
    counted = 0
    for start in range(0, len(rows.tokens), BATCH_ROWS):
        part = slice(start, start + BATCH_ROWS)
        found = objective(
            trained.model,
            torch.from_numpy(rows.tokens[part]),
            torch.from_numpy(rows.documents[part]),
            entropy_weight=0.0,
        )
        total += found.loop_ce_sums.double()
        counted += found.counted
    by_loop = [float(value) / max(1, counted) for value in total]
    bits = float(total[-1]) / math.log(2) / max(1, rows.text_bytes)
    return {
        "files": rows.files,
        "tokens": counted,
        "bytes": rows.text_bytes,
        "loss": by_loop[-1] if counted else None,
        "bits_per_byte": bits if counted else None,
        "loss_by_loop": by_loop,
    }


def compile_rate(trained: Trained, corpus: Corpus, prompts: int, judge: Judge) -> dict[str, Any]:
    """The share of completions that compile and say something. Raises `ScorerUnavailable`."""
    spec = trained.topology.rollout
    reasons: Counter[str] = Counter()
    good = total = 0
    source = _prompts(trained, corpus)
    for draw in range(FIRST_DRAW, FIRST_DRAW + prompts):
        drawn = source.draw(draw, 1)
        if not drawn:
            break
        seeds = seeds_of(trained.topology.seed, trained.step, draw, spec.group)
        generation = begin(trained.model, trained.pen, [drawn[0].text], spec, seeds)
        while generation.advance():
            pass
        for completion in generation.completions():
            written = trained.pen.write(completion.tokens)
            verdict = judge.score(drawn[0].text, written.text, finished=written.finished)
            reasons[verdict.reason] += 1
            good += int(verdict.reward)
            total += 1
    rate = wilson(good, total)
    return {
        "prompts": total // max(1, spec.group),
        "completions": total,
        "compile_rate": rate.value if total else None,
        "low": rate.low,
        "high": rate.high,
        "reasons": dict(reasons),
    }


def _prompts(trained: Trained, corpus: Corpus) -> Prompts:
    options = Options(max_sample_bytes=trained.topology.data.max_sample_bytes)
    _, held = corpus.split(trained.topology.data.held_out_share)
    python = [int(sample) for sample in held if corpus.file(int(sample)).language == "python"]

    def text_of(sample: int) -> tuple[str, str] | None:
        try:
            text = read(State(), corpus.ref(sample), options).text.decode()
        except SampleProblem:
            return None
        return corpus.name(sample), text

    limit = trained.topology.model.seq_len * 2  # as the loader has it: a token is some characters
    return Prompts(trained.topology.seed, python, text_of, limit)
