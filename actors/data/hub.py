"""Folders in the manner of Hugging Face `datasets`: which files hold a split's rows.

Two kinds are met. What `save_to_disk` wrote has a state.json that names its Arrow files, and a
dataset_dict.json above it when there are several splits. What was cloned or downloaded from the
hub has parquet or .jsonl files, and the split in their names or in those of their directories
(`data/train-00000-of-00002.parquet`, `validation/0.jsonl`); where no name says any split, all is
"train". The library itself is not needed.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path

import msgspec

_SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_NAMES = {name: split for split, names in _SPLITS.items() for name in names}
_NUMBERED = re.compile(r"(\w+)-\d{5}-of-\d{5}\..*")  # as the hub names them, whatever the split
_DATA = (".parquet", ".jsonl", ".jsonl.gz", ".jsonl.zst", ".json.gz", ".json.zst")


class _File(msgspec.Struct):
    filename: str


class _State(msgspec.Struct):
    data_files: list[_File] = msgspec.field(name="_data_files")


class FolderError(ValueError):
    """A folder that holds no such split: says what it holds."""


def files(folder: str, split: str) -> list[str]:
    """Paths of the files with a split's rows, in order. Raises `FolderError`, OSError."""
    root = Path(folder)
    try:
        if (root / "dataset_dict.json").exists():
            splits = msgspec.json.decode((root / "dataset_dict.json").read_bytes())["splits"]
            if split not in splits:
                raise _missing(folder, split, splits)
            root = root / split
        if (root / "state.json").exists():
            state = msgspec.json.decode((root / "state.json").read_bytes(), type=_State)
            return [str(root / file.filename) for file in state.data_files]
    except (msgspec.DecodeError, KeyError, TypeError) as error:
        raise FolderError(f"{root}: not as `save_to_disk` writes it: {error}") from error
    return _of_hub(root, split)


def _of_hub(root: Path, split: str) -> list[str]:
    found: list[str] = []
    for directory, inner, names in os.walk(root):
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        below = os.path.relpath(directory, root)
        found += [os.path.normpath(os.path.join(below, name)) for name in names]
    found = sorted(path for path in found if path.endswith(_DATA))
    if not found:
        raise FolderError(
            f"{root} holds neither what `save_to_disk` writes nor any {', '.join(_DATA)} file"
        )
    # Of one format: a repository may hold the same rows in several.
    formats = [[path for path in found if path.endswith(suffix)] for suffix in (_DATA[0], _DATA)]
    chosen = next(paths for paths in formats if paths)
    by_split = {path: _split_of(path) for path in chosen}
    if not any(by_split.values()):
        by_split = dict.fromkeys(chosen, "train")
    mine = [str(root / path) for path, its in by_split.items() if its == split]
    if not mine:
        raise _missing(str(root), split, sorted({its for its in by_split.values() if its}))
    return mine


def _split_of(path: str) -> str:
    """The split that a path names, the file's name first; "" when none."""
    numbered = _NUMBERED.fullmatch(os.path.basename(path))
    if numbered:
        return _NAMES.get(numbered[1], numbered[1])
    for part in reversed(path.split(os.sep)):
        words = re.split(r"[^a-z]+", part.lower())
        for split, names in _SPLITS.items():
            if any(name in words for name in names):
                return split
    return ""


def _missing(folder: str, split: str, splits: Sequence[str]) -> FolderError:
    return FolderError(f"{folder} has no split {split!r}; accepted: {', '.join(splits) or 'none'}")
