"""The [data] tables of a topology: where samples come from, and what happens to them."""

from typing import Literal

from actors.table import Count, NotNegative, Positive, Seconds, Share, Size, Table


class Source(Table, frozen=True):
    """One place samples come from. Paths may hold ~ and globs."""

    # jsonl may be compressed (.gz, .zst); huggingface is a folder, saved or cloned
    kind: Literal["python_stdlib", "directory", "jsonl", "parquet", "huggingface"]
    path: str = ""
    pattern: str = "**/*.py"  # of a directory
    split: str = "train"  # of a huggingface folder
    field: str = "text"  # JSON key or column
    language: Literal["python", "rust", "text"] = "python"
    # How often a sample comes in an epoch: 2 is twice, 0.25 a quarter of the samples, other ones
    # in the next epoch. Exact: n samples come round(weight * n) times together.
    weight: Positive = 1.0


class DataSpec(Table, frozen=True):
    """Where samples come from and what happens to them."""

    sources: tuple[Source, ...] = (Source(kind="python_stdlib"),)
    order: Literal["strict", "ready"] = "strict"
    licences: tuple[str, ...] = ()  # SPDX names; samples of others are left out; (): any
    licence_field: str = ""  # JSON key or column that names a sample's licence; "": look into it
    near_duplicates: Share = 0.0  # as similar as this, all but one are left out; 0: none looked for
    verify: bool = True
    verify_every_n: Count = 1  # only every so many samples, in the order of the corpus
    min_compile_rate: Share = 0.0  # of those verified; a run below it stops
    max_bad_share: Share = 1.0  # of samples that cannot be used; a run above it stops
    augment_share: Share = 0.0  # of Python samples, per epoch, whose local variables are renamed
    fim_share: Share = 0.0  # of samples, per epoch, whose middle comes last (fill in the middle)
    stages: tuple[str, ...] = ()  # functions of your own, "module:function", before tokenizing
    cutoff_ms: Positive = 50.0  # a fast worker hands over a sample beyond it, until it is learned
    lease_s: Seconds = 30.0
    credit: Count = 4  # samples a worker may hold
    lookahead_batches: Count = 4  # steps composed ahead of the trainers
    held_out_share: Share = 0.02  # of the files; prompts for rollouts are cut from these
    max_sample_bytes: Size = 4_000_000
    max_deaths_per_sample: Count = 3
    worker_memory_mb: NotNegative = 2048.0  # that one sample may take; 0: as much as there is
    tokenizer: str = ""  # path of a tokenizer.json; "": trained on the corpus at first use
