"""Checkpoints on disk: written so that half of one is never taken for a whole, read with suspicion.

    checkpoints/step-00000100.tmp/    being written
    checkpoints/step-00000100/        complete
        manifest.json                 step, seed, digest of the weights, SHA-256 of every file
        matrices-0.safetensors ...    per group of parameters and shard: masters, optimizer state,
                                      published codes; tensors are named PARAMETER:TENSOR
        metrics.json                  the newest metrics records

A directory gets its final name after everything in it has been synced to disk, so a name without
`.tmp` means that writing ended. Whether the disk kept its word is what the digests are for:
`newest` reads every byte of a checkpoint before it is used, and skips damaged ones by name.

A file holds its parameters' versions in its own metadata, because a checkpoint made by a stop may
lie in the middle of a step: some parameters are then one version ahead of the manifest's step, and
published at both.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import msgspec
import numpy as np
from safetensors import SafetensorError, safe_open

from actors.parameters import Parameter
from actors.published import Array, TensorSpec, digest, published_tensors, weights_digest

# Bump when names or meanings change: another format is refused, not guessed.
FORMAT = 1
MANIFEST = "manifest.json"
METRICS = "metrics.json"
CLOSING = "closing.tmp"

_COMPLETE = re.compile(r"step-(\d{8,})")
_CHUNK = 1 << 22


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be used: says which file, what is wrong and what to do."""


class ParameterFacts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a file says about one of its parameters."""

    version: int
    # Per published version (as text: JSON keys are): digest in hex, then flips, bytes up, down.
    published: dict[str, tuple[str, int, int, int]]
    absent: dict[str, int] = {}  # published version -> ranks whose gradient is not in it, as bits


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a checkpoint is. `manifest.json` is this struct, and "sha256" of all the rest of it."""

    format: int
    step: int  # all parameters are at least here, and published at this version
    committed: int  # the last step with a metrics record: `step`, or one less after a stop
    seed: int
    trainers: int
    weights_digest: str  # of the published weights at `step`
    topology_digest: str  # of the resolved configuration, for information
    ledger: dict[str, int]  # position: batches of steps up to `step` are used up
    facts: dict[str, dict[str, dict[str, float]]]  # step -> rank -> what it said
    files: dict[str, str]  # name -> SHA-256


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A verified checkpoint."""

    path: Path
    manifest: Manifest

    @property
    def step(self) -> int:
        """The step it was made after."""
        return self.manifest.step

    def metrics(self) -> list[dict[str, Any]]:
        """The metrics records it carries, oldest first."""
        return json.loads((self.path / METRICS).read_bytes())

    def tensor_files(self) -> Iterator["TensorFile"]:
        """Its files of tensors, one after the other, each open while it is looked at."""
        return tensor_files(self.path, self.manifest.files)


class TensorFile:
    """One file of tensors, opened. Tensors are read when asked for."""

    def __init__(self, path: Path) -> None:
        """Raises `CheckpointError`."""
        self.path = path
        try:
            self._file = safe_open(path, framework="numpy")
            metadata = cast("dict[str, str]", self._file.metadata() or {})
            self.parameters = msgspec.json.decode(
                metadata.get("parameters", ""), type=dict[str, ParameterFacts]
            )
        except (OSError, SafetensorError, msgspec.MsgspecError) as error:
            raise CheckpointError(f"{path} cannot be read: {error}") from error

    def __enter__(self) -> "TensorFile":
        return self

    def __exit__(self, *_exc: object) -> None:
        self._file.__exit__(None, None, None)

    def tensor(self, parameter: str, spec: TensorSpec) -> Array:
        """The tensor `spec` of `parameter`. Raises `CheckpointError` when it is not there."""
        name = tensor_name(parameter, spec.name)
        try:
            array = cast("Array", self._file.get_tensor(name))
        except SafetensorError as error:
            raise CheckpointError(
                f"{self.path} holds no {name}: it was made with another model or optimizer "
                "than this run's topology asks for"
            ) from error
        if array.dtype != spec.dtype or array.shape != spec.shape:
            raise CheckpointError(
                f"{self.path}: {name} is {array.dtype} {array.shape}, expected {spec.dtype} "
                f"{spec.shape}: it was made with another model than this run's topology asks for"
            )
        return array

    def published(self, parameter: Parameter, version: int) -> dict[str, Array]:
        """The published tensors at `version`, their digest checked. Raises `CheckpointError`."""
        tensors = {
            spec.name: self.tensor(
                parameter.name, spec._replace(name=published_name(version, spec.name))
            )
            for spec in published_tensors(parameter)
        }
        said = self.parameters[parameter.name].published.get(str(version))
        if said is None or digest(parameter, tensors).hex() != said[0]:
            raise CheckpointError(f"{self.path}: {parameter.name} does not match its digest")
        return tensors


def tensor_files(directory: Path, names: Iterable[str]) -> Iterator[TensorFile]:
    """Those of `names` that are files of tensors, each open while it is looked at."""
    for name in sorted(names):
        if name.endswith(".safetensors"):
            with TensorFile(directory / name) as file:
                yield file


def tensor_name(parameter: str, tensor: str) -> str:
    """Name of a tensor in a file."""
    return f"{parameter}:{tensor}"


def published_name(version: int, tensor: str) -> str:
    """Name of a published tensor among its parameter's."""
    return f"published.{version}.{tensor}"


def memory_name(rank: int, tensor: str) -> str:
    """Name of a tensor that a rank's gradient codec remembers, among its parameter's."""
    return f"memory.{rank}.{tensor}"


# --- Reading --------------------------------------------------------------------------------------


def listing(directory: Path) -> list[Path]:
    """Directories of complete checkpoints, newest first. None when there is no such directory."""
    try:
        names = os.listdir(directory)
    except (FileNotFoundError, NotADirectoryError):
        return []
    found = [(int(match[1]), name) for name in names if (match := _COMPLETE.fullmatch(name))]
    return [directory / name for _, name in sorted(found, reverse=True)]


def verify(path: Path) -> Checkpoint:
    """The checkpoint in `path`, every byte of it checked. Raises `CheckpointError`."""
    checkpoint = Checkpoint(path, _read_manifest(path / MANIFEST))
    for name, expected in checkpoint.manifest.files.items():
        file = path / name
        try:
            found = file_digest(file)
        except OSError as error:
            raise CheckpointError(f"{file} cannot be read: {error.strerror}") from error
        if found != expected:
            raise CheckpointError(f"{file} is damaged: its SHA-256 is not the manifest's")
    return checkpoint


def newest(directory: Path, on_damaged: Callable[[str], object]) -> Checkpoint | None:
    """The newest checkpoint that is whole. Damaged ones are skipped, and said why."""
    for path in listing(directory):
        try:
            return verify(path)
        except CheckpointError as error:
            on_damaged(str(error))
    return None


def published_parameters(
    checkpoint: Checkpoint, parameters: Iterable[Parameter]
) -> dict[str, dict[str, Array]]:
    """The published weights of a checkpoint, by parameter. Raises `CheckpointError`.

    Checked against the manifest's digest of all weights.
    """
    wanted = {parameter.name: parameter for parameter in parameters}
    found: dict[str, dict[str, Array]] = {}
    for file in checkpoint.tensor_files():
        for name in file.parameters.keys() & wanted.keys():
            found[name] = file.published(wanted[name], checkpoint.step)
    lacking = wanted.keys() - found.keys()
    if lacking:
        raise CheckpointError(f"{checkpoint.path} holds no {', '.join(sorted(lacking)[:3])}")
    digests = (digest(parameter, found[name]) for name, parameter in wanted.items())
    if weights_digest(digests) != checkpoint.manifest.weights_digest:
        raise CheckpointError(f"{checkpoint.path}: the weights do not match the manifest's digest")
    return found


def _read_manifest(path: Path) -> Manifest:
    try:
        raw: dict[str, Any] = json.loads(path.read_bytes())
        signature = raw.pop("sha256", "")
        if raw.get("format") != FORMAT:
            raise CheckpointError(
                f"{path} has format {raw.get('format')!r}; this version reads format {FORMAT}: "
                "use the version of Trireme that wrote it"
            )
        if signature != _signature(raw):
            raise CheckpointError(f"{path} is damaged: its sha256 is not that of the rest")
        manifest = msgspec.convert(raw, Manifest)
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing") from None
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    for name in manifest.files:
        if Path(name).name != name:
            raise CheckpointError(f"{path} names {name!r}, which is not a file beside it")
    return manifest


def _signature(raw: Mapping[str, Any]) -> str:
    text = json.dumps(raw, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


# --- Writing --------------------------------------------------------------------------------------


_SAFETENSORS = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
}


def write_tensors(
    path: Path, specs: Iterable[TensorSpec], arrays: Iterable[Array], metadata: Mapping[str, str]
) -> str:
    """Write a safetensors file, one array after the other, and sync it. Raises `OSError`.

    `specs` say what `arrays` will yield; returns the file's SHA-256. Written by hand because the
    library wants all tensors in memory at once.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    at = 0
    for spec in specs:
        end = at + spec.nbytes
        kind = _SAFETENSORS[spec.dtype]
        header[spec.name] = {"dtype": kind, "shape": spec.shape, "data_offsets": (at, end)}
        at = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    sha = hashlib.sha256()
    with path.open("wb") as file:
        for part in (len(text).to_bytes(8, "little"), text):
            sha.update(part)
            file.write(part)
        for array in arrays:
            flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
            sha.update(flat)
            file.write(flat)
        file.flush()
        os.fsync(file.fileno())
    return sha.hexdigest()


def write_json(path: Path, value: Any) -> str:
    """Write a JSON file and sync it; its SHA-256. Raises `OSError`."""
    text = json.dumps(value, separators=(",", ":")).encode()
    _write_synced(path, text)
    return hashlib.sha256(text).hexdigest()


def complete(unfinished: Path, manifest: Manifest) -> Path:
    """Add the manifest, sync, and give the directory its final name. Raises `OSError`.

    An older complete checkpoint of the same step stays, and `unfinished` is removed.
    """
    final = unfinished.parent / f"step-{manifest.step:08d}"
    if (final / MANIFEST).exists():
        shutil.rmtree(unfinished)
        return final
    raw: dict[str, Any] = msgspec.to_builtins(manifest)
    text = json.dumps({**raw, "sha256": _signature(raw)}, indent=1)
    _write_synced(unfinished / MANIFEST, text.encode())
    _sync_directory(unfinished)
    if final.exists():  # without a manifest: what a prune that was cut short has left
        shutil.rmtree(final)
    unfinished.rename(final)
    _sync_directory(final.parent)
    return final


def unfinished_path(directory: Path, step: int) -> Path:
    """Where the checkpoint of `step` is put together."""
    return directory / f"step-{step:08d}.tmp"


def put_aside(directory: Path, step: int) -> list[Path]:
    """Take their names from checkpoints newer than `step`, which `newest` has found damaged.

    A run that goes on from `step` reaches theirs again, and then has to write them anew. Returns
    those that could not be renamed.
    """
    stuck: list[Path] = []
    for path in listing(directory):
        if int(path.name.removeprefix("step-")) <= step:
            continue
        aside = path.with_name(f"{path.name}.damaged")
        try:
            if aside.exists():
                shutil.rmtree(aside)
            path.rename(aside)
        except FileNotFoundError:
            continue  # another shard was quicker
        except OSError:
            stuck.append(path)
    return stuck


def prune(directory: Path, keep_last: int, upto: int, keep_every: int = 0) -> list[Path]:
    """Remove all but the newest `keep_last` complete checkpoints and those of every `keep_every`th
    step (0: none); up to `upto` also unfinished ones and those put aside.

    Returns what could not be removed. The manifest goes first: what is half removed is no
    checkpoint.
    """
    old = listing(directory)[keep_last:]
    doomed = [path for path in old if not keep_every or int(path.name[5:]) % keep_every]
    for path in (*directory.glob("*.tmp"), *directory.glob("step-*.damaged")):
        number = path.stem.removeprefix("step-")
        if path.name == CLOSING or (number.isdigit() and int(number) <= upto):
            doomed.append(path)
    stuck: list[Path] = []
    for path in doomed:
        try:
            (path / MANIFEST).unlink(missing_ok=True)
            shutil.rmtree(path)
        except OSError:
            stuck.append(path)
    return stuck


def file_digest(path: Path) -> str:
    """SHA-256 of a file, as hex. Raises `OSError`."""
    sha = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(_CHUNK):
            sha.update(part)
    return sha.hexdigest()


def _write_synced(path: Path, text: bytes) -> None:
    with path.open("wb") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
