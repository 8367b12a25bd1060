"""What the tables of a topology file are made of: their base, and the values that keys accept."""

from typing import Annotated

import msgspec
from msgspec import Meta

# What a key accepts. Upper bounds only keep a slip of the finger from asking for the impossible.
Count = Annotated[int, Meta(ge=1, le=100_000)]
CountOrNone = Annotated[int, Meta(ge=0, le=100_000)]
Width = Annotated[int, Meta(ge=1, le=1_000_000)]
Steps = Annotated[int, Meta(ge=0, le=1_000_000_000)]
Size = Annotated[int, Meta(ge=1, le=2**40)]
Port = Annotated[int, Meta(ge=0, le=65535)]
Positive = Annotated[float, Meta(gt=0)]
NotNegative = Annotated[float, Meta(ge=0)]
Seconds = Annotated[float, Meta(gt=0)]
Share = Annotated[float, Meta(ge=0, le=1)]
Decay = Annotated[float, Meta(ge=0, lt=1)]
Name = Annotated[
    str,
    Meta(pattern="^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$", description="of letters, digits, _ . and -"),
]


class Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of every table of a topology file."""
