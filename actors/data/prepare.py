"""What has to be done once per run before the first sample: list the corpus, get a tokenizer.

A program of its own, started by the loader and gone before the first batch: training a tokenizer
and looking into parquet files take memory that the loader would never give back.

    python -m actors.data.prepare RUN_DIR INCARNATION PARENT

Its results are the corpus in the ledger and tokenizer.json in the run directory; its last line of
output is a report in JSON, with `problem` set when a person has to put something right.
"""

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np

from actors import process, topology
from actors.data import duplicates, rustc, stages, tokenizer
from actors.data.corpus import Corpus, IntArray, held_out_score
from actors.data.database import LedgerError
from actors.data.duplicates import MissingLibrary
from actors.data.ledger import Ledger
from actors.data.sources import SourceError, list_corpus
from actors.data.stages import Options, SampleProblem, State, read
from actors.data.tokenizer import TokenizerError
from actors.rundir import RunDir
from actors.topology import Topology


class Report(msgspec.Struct, frozen=True):
    """What was prepared, for the loader's log."""

    problem: str = ""
    samples: int = 0
    corpus: str = ""  # digest
    left_out: dict[str, int] = {}
    examples: dict[str, list[str]] = {}
    tokenizer: str = ""  # "given", "cached" or "trained"
    seconds: float = 0.0


def prepare(run: RunDir, incarnation: int) -> Report:
    """Do what is still missing.

    Raises `SourceError`, `TokenizerError`, `LedgerError`, `StageError`, `MissingLibrary`,
    `rustc.CannotVerify`, OSError.
    """
    began = time.monotonic()
    wanted = topology.decode(run.topology.read_text(encoding="utf-8"), source=str(run.topology))
    report = Report()
    if wanted.data.verify and any(one.language == "rust" for one in wanted.data.sources):
        rustc.check_machine()
    for name in wanted.data.stages:
        stages.own(name)
    if wanted.data.near_duplicates:
        duplicates.check()
    with Ledger(run.ledger, incarnation=incarnation) as ledger:
        corpus = ledger.corpus()
        if corpus is None:
            corpus, skipped = list_corpus(wanted.data.sources)
            repeats = repetitions(corpus, wanted)
            ledger.store_corpus(corpus, repeats, skipped.counts)
            if repeats:
                skipped.counts["near-duplicate"] = len(repeats)
            report = Report(left_out=dict(skipped.counts), examples=skipped.examples)
    how = "kept"
    if not run.tokenizer.exists():
        how, document = obtain_tokenizer(corpus, wanted)
        tokenizer.write_whole(run.tokenizer, document)
    return msgspec.structs.replace(
        report,
        samples=len(corpus),
        corpus=corpus.digest,
        tokenizer=how,
        seconds=round(time.monotonic() - began, 3),
    )


def obtain_tokenizer(corpus: Corpus, wanted: Topology) -> tuple[str, bytes]:
    """How it was got, and the tokenizer.json. Raises `TokenizerError`, `SourceError`."""
    size, filling = wanted.model.vocab_size, wanted.data.fim_share > 0
    if wanted.data.tokenizer:
        return "given", tokenizer.check_given(wanted.data.tokenizer, size, filling=filling)
    key = tokenizer.cache_key(corpus.digest, size, wanted.data.held_out_share, filling=filling)
    cached = tokenizer.read_cached(key)
    if cached is not None:
        return "cached", cached
    training, _ = corpus.split(wanted.data.held_out_share)
    training = training[corpus.copies[training] == 0]
    texts = _texts(corpus, training, wanted.data.max_sample_bytes)
    document = tokenizer.train(texts, size, filling=filling)
    try:
        tokenizer.write_whole(tokenizer.cache_path(key), document)
    except OSError as error:  # the run has it all the same
        sys.stderr.write(f"the tokenizer could not be cached: {error}\n")
    return "trained", document


def repetitions(corpus: Corpus, wanted: Topology) -> dict[int, int]:
    """Samples that nearly repeat others, each with what it repeats; copies with what they copy.

    Raises `MissingLibrary`.
    """
    if not wanted.data.near_duplicates:
        return {}
    training, held_out = corpus.split(wanted.data.held_out_share)
    order = np.concatenate([held_out, training])
    options = Options(max_sample_bytes=wanted.data.max_sample_bytes)
    found = duplicates.find(
        _readable(corpus, order[corpus.copies[order] == 0], options), wanted.data.near_duplicates
    )
    again = np.flatnonzero(corpus.copies)
    gone = {_place(corpus, sample): other for sample, other in found.items()}
    copied = {i: gone[p] for i in again.tolist() if (p := _place(corpus, i)) in gone}
    return {**found, **copied}


def _place(corpus: Corpus, sample: int) -> tuple[int, int, int]:
    columns = (corpus.file_ids, corpus.offsets, corpus.positions)
    file, offset, position = (int(column[sample]) for column in columns)
    return file, offset, position


def _readable(corpus: Corpus, samples: IntArray, options: Options) -> Iterator[tuple[int, str]]:
    for sample in samples.tolist():
        try:
            yield sample, read(State(), corpus.ref(sample), options).text.decode()
        except SampleProblem:
            continue  # refused by name when a worker reads it


def _texts(corpus: Corpus, training: IntArray, max_sample_bytes: int) -> Iterator[str]:
    """Up to `TRAINING_BYTES` of training text; which samples, their names decide.

    Raises `SourceError` when not one can be read.
    """
    options = Options(max_sample_bytes=max_sample_bytes)
    scores = np.array([held_out_score(corpus.name(int(i))) for i in training], np.uint64)
    budget = tokenizer.TRAINING_BYTES
    problem = ""
    for sample in training[np.argsort(~scores, kind="stable")]:
        try:
            text = read(State(), corpus.ref(int(sample)), options).text
        except SampleProblem as error:
            problem = problem or f"{corpus.name(int(sample))}: {error}"
            continue
        yield text.decode()
        budget -= len(text)
        if budget <= 0:
            return
    if budget == tokenizer.TRAINING_BYTES:
        raise SourceError(
            f"data.sources: not one of {len(training):,} samples can be read ({problem}); "
            "name sources that hold UTF-8 text"
        )


def main(run_dir: str, incarnation: str, parent: str) -> int:
    """The child process. 0: prepared; 2: a person has to put something right."""
    process.die_with_parent()
    if os.getppid() != int(parent):
        return 1  # it died before we could ask to be told
    process.set_name("trireme-prepare")
    try:
        report = prepare(RunDir(Path(run_dir)), int(incarnation))
    except (SourceError, TokenizerError, LedgerError, topology.TopologyError) as error:
        report = Report(problem=str(error))
    except (rustc.CannotVerify, stages.StageError, MissingLibrary) as error:
        report = Report(problem=str(error))
    except OSError as error:
        report = Report(problem=f"{error.filename or run_dir}: {error.strerror or error}")
    sys.stdout.write(msgspec.json.encode(report).decode() + "\n")
    return 2 if report.problem else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:4]))
