"""Which licence a sample is under, as far as it says, and whether that is one of those wanted.

Asked in this order: the field that names it; an SPDX tag or the words of a well-known licence in
the sample's first lines; a LICENSE or COPYING file beside it or above. Names are SPDX's; "or" is
satisfied by one of its sides, "and" by both, exceptions ("with") change nothing. What says nothing
is under no licence.
"""

import fnmatch
import os
import re
from collections.abc import Sequence
from functools import lru_cache

_HEAD_CHARACTERS = 4096
_TAG = re.compile(r"SPDX-License-Identifier:\s*([^\s*/#\"'<>][^\n*/#\"'<>]*)")
_FILE = re.compile(r"(LICEN[CS]E|COPYING|UNLICENSE)([.\-_].*)?", re.IGNORECASE)
# What only that licence says, early on. More specific ones first.
_WORDS = (
    ("AGPL-3.0", "gnu affero general public license"),
    ("LGPL-2.1", r"gnu lesser general public license.{0,80}version 2\.1"),
    ("LGPL-3.0", "gnu lesser general public license"),
    ("GPL-3.0", r"gnu general public license.{0,80}version 3"),
    ("GPL-2.0", "gnu general public license"),
    ("Apache-2.0", r"apache license,? version 2\.0|apache license\s+version 2\.0"),
    ("MPL-2.0", r"mozilla public license,? (version |v\. ?)2\.0"),
    ("PSF-2.0", "python software foundation license|psf license agreement"),
    ("BSD-3-Clause", r"redistribution and use in source and binary forms.*neither the name"),
    ("BSD-2-Clause", "redistribution and use in source and binary forms"),
    ("ISC", "permission to use, copy, modify, and/or distribute this software for any purpose"),
    ("MIT", "permission is hereby granted, free of charge, to any person obtaining a copy"),
    ("Unlicense", "this is free and unencumbered software released into the public domain"),
    ("CC0-1.0", "cc0 1.0 universal"),
)
_PATTERNS = tuple((name, re.compile(words)) for name, words in _WORDS)


def is_wanted(expression: str, wanted: Sequence[str]) -> bool:
    """Is this SPDX expression satisfied by licences among `wanted`, which may hold `*`?"""
    tokens = re.findall(r"[()]|[^\s()]+", expression)
    return bool(tokens) and _any_of(tokens, [name.lower() for name in wanted])


def _any_of(tokens: list[str], wanted: list[str]) -> bool:
    found = _all_of(tokens, wanted)
    while tokens and tokens[0].upper() == "OR":
        tokens.pop(0)
        found = _all_of(tokens, wanted) or found
    return found


def _all_of(tokens: list[str], wanted: list[str]) -> bool:
    found = _one(tokens, wanted)
    while tokens and tokens[0].upper() == "AND":
        tokens.pop(0)
        found = _one(tokens, wanted) and found
    return found


def _one(tokens: list[str], wanted: list[str]) -> bool:
    if not tokens:
        return False
    first = tokens.pop(0)
    if first == "(":
        found = _any_of(tokens, wanted)
        if tokens and tokens[0] == ")":
            tokens.pop(0)
    else:
        name = first.lower().removesuffix("-only").removesuffix("-or-later").removesuffix("+")
        found = any(fnmatch.fnmatchcase(name, one) or first.lower() == one for one in wanted)
    if len(tokens) > 1 and tokens[0].upper() == "WITH":
        del tokens[:2]
    return found


def named(value: object) -> str:
    """An expression of what a field says: text, or a list of texts that all hold."""
    if isinstance(value, str):
        return value
    if isinstance(value, list | tuple):
        names = [str(one) for one in value if one]  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
        return " AND ".join(names)
    return ""


def told(text: str, path: str) -> str:
    """What a text or the files about it say; "" when nothing."""
    found = in_words(text[:_HEAD_CHARACTERS])
    return found or _around(os.path.dirname(path))


def in_words(head: str) -> str:
    """The licence that these words name or are; "" when none that is known."""
    tag = _TAG.search(head)
    if tag:
        return tag[1].strip().removesuffix("-->").strip()
    plain = re.sub(r"[\s*#/;\"]+", " ", head).lower()
    return next((name for name, words in _PATTERNS if words.search(plain)), "")


def _of_file(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return in_words(file.read(2 * _HEAD_CHARACTERS))
    except OSError:
        return ""


@lru_cache(maxsize=4096)
def _around(directory: str) -> str:
    try:
        names = sorted(os.listdir(directory))
    except OSError:
        names = []
    for name in names:
        found = _of_file(os.path.join(directory, name)) if _FILE.fullmatch(name) else ""
        if found:
            return found
    above = os.path.dirname(directory)
    return "" if above == directory or not directory else _around(above)
