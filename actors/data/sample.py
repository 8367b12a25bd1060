"""What stages hand from one to the next, and what they know besides. No I/O."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from actors.data.parquet import RowReader
from actors.data.rustc import Verifier
from actors.data.tokenizer import Encoder


class SampleProblem(Exception):
    """This sample cannot be used, whoever tries: counted by `kind`, named in the log."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(f"{kind}: {detail}")
        self.kind = kind
        self.detail = detail


@dataclass(frozen=True, slots=True)
class State:
    """What the stages so far made of a sample: text until it is tokenized, then tokens."""

    text: bytes = b""  # UTF-8
    tokens: NDArray[np.int32] | None = None  # with <bos> and <eos>


@dataclass(frozen=True, slots=True)
class Options:
    """What stages need to know besides the sample."""

    max_sample_bytes: int
    encoder: Encoder | None = None  # only tokenize needs it
    seed: int = 0
    epoch: int = 0  # of the sample at hand; augmentation differs between epochs
    sample: int = 0
    augment_share: float = 0.0
    fim_share: float = 0.0
    verify: bool = False  # again, after stages of somebody's own
    verify_every_n: int = 1
    licences: tuple[str, ...] = ()
    licence_field: str = ""
    rows: RowReader = field(default_factory=RowReader)
    rust: Verifier = field(default_factory=Verifier)
