"""Reading checkpoints that may be half there, damaged, foreign or hostile."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from safetensors.numpy import load_file

from actors import checkpoints
from actors.checkpoints import FORMAT, CheckpointError, Manifest, TensorFile
from actors.published import TensorSpec

SPECS = (
    TensorSpec("a:master", "float32", (3, 5)),
    TensorSpec("a:published.4.packed", "uint8", (4,)),
    TensorSpec("a:published.4.scale", "float32", ()),
    TensorSpec("a:codes", "int8", (0,)),
)


def arrays() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [(rng.standard_normal(s.shape) * 50).astype(s.dtype) for s in SPECS]


def make(directory: Path, step: int) -> Path:
    """A complete checkpoint."""
    unfinished = checkpoints.unfinished_path(directory, step)
    unfinished.mkdir()
    about = json.dumps({"a": {"version": step, "published": {}}})
    name = "matrices-0.safetensors"
    files = {
        name: checkpoints.write_tensors(unfinished / name, SPECS, arrays(), {"parameters": about}),
        "metrics.json": checkpoints.write_json(unfinished / "metrics.json", [{"step": step}]),
    }
    return checkpoints.complete(unfinished, manifest(step, files))


def manifest(step: int, files: dict[str, str]) -> Manifest:
    return Manifest(
        format=FORMAT,
        step=step,
        committed=step,
        seed=0,
        trainers=1,
        weights_digest="",
        topology_digest="",
        ledger={"step": step},
        facts={},
        files=files,
    )


def test_files_are_what_the_library_reads(tmp_path: Path):
    path = make(tmp_path, 4)
    found = load_file(path / "matrices-0.safetensors")
    for spec, array in zip(SPECS, arrays(), strict=True):
        assert found[spec.name].dtype == spec.dtype
        assert np.array_equal(found[spec.name], array)


def test_what_was_written_is_read(tmp_path: Path):
    found = checkpoints.verify(make(tmp_path, 4))
    assert found.step == 4
    assert found.metrics() == [{"step": 4}]
    (file,) = found.tensor_files()
    assert file.parameters["a"].version == 4
    raw = json.loads((found.path / "manifest.json").read_text())
    assert raw["step"] == 4
    assert set(raw["files"]) == {"matrices-0.safetensors", "metrics.json"}


def test_newest_is_newest_and_unfinished_ones_do_not_count(tmp_path: Path):
    for step in (4, 12, 8):
        make(tmp_path, step)
    checkpoints.unfinished_path(tmp_path, 20).mkdir()
    (tmp_path / "step-notes").mkdir()
    (tmp_path / "step-00000099").write_text("a file")
    steps = [path.name for path in checkpoints.listing(tmp_path)]
    assert steps == ["step-00000099", "step-00000012", "step-00000008", "step-00000004"]
    damaged: list[str] = []
    found = checkpoints.newest(tmp_path, damaged.append)
    assert found is not None
    assert found.step == 12
    assert len(damaged) == 1


def test_no_directory_means_no_checkpoints(tmp_path: Path):
    assert checkpoints.listing(tmp_path / "nothing") == []
    assert checkpoints.newest(tmp_path / "nothing", pytest.fail) is None


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [truncate, flip, empty, Path.unlink])
@pytest.mark.parametrize("name", ["manifest.json", "metrics.json", "matrices-0.safetensors"])
def test_a_damaged_checkpoint_is_skipped_by_name(
    tmp_path: Path, damage: Callable[[Path], None], name: str
):
    make(tmp_path, 4)
    damage(make(tmp_path, 8) / name)
    said: list[str] = []
    found = checkpoints.newest(tmp_path, said.append)
    assert found is not None
    assert found.step == 4
    assert len(said) == 1
    assert f"step-00000008/{name}" in said[0]


def test_another_format_is_refused_with_what_to_do(tmp_path: Path):
    path = make(tmp_path, 4)
    raw = json.loads((path / "manifest.json").read_text())
    raw.pop("sha256")
    raw["format"] = 99
    raw["sha256"] = checkpoints._signature(raw)
    (path / "manifest.json").write_text(json.dumps(raw))
    with pytest.raises(CheckpointError, match="format 99; this version reads format 1"):
        checkpoints.verify(path)


def test_garbage_for_a_manifest_is_an_error_with_its_name(tmp_path: Path):
    path = make(tmp_path, 4)
    draw = random.Random(3)
    texts = [b"[]", b"{}", b"null", b'{"sha256": 3}', b"\xff\xfe", b"{" * 50_000, b"[" * 100_000]
    texts += [draw.randbytes(draw.randrange(200)) for _ in range(100)]
    for text in texts:
        (path / "manifest.json").write_bytes(text)
        with pytest.raises(CheckpointError, match=r"manifest\.json"):
            checkpoints.verify(path)


def test_a_manifest_cannot_lead_outside_of_its_directory(tmp_path: Path):
    secret = tmp_path / "secret.safetensors"
    secret.write_bytes(b"x")
    path = make(tmp_path, 4)
    digest = checkpoints.file_digest(secret)
    raw = msgspec.to_builtins(manifest(4, {"../secret.safetensors": digest}))
    raw["sha256"] = checkpoints._signature(raw)
    (path / "manifest.json").write_text(json.dumps(raw))
    with pytest.raises(CheckpointError, match=r"manifest\.json"):
        checkpoints.verify(path)


def test_garbage_for_tensors_is_an_error_with_its_name(tmp_path: Path):
    path = make(tmp_path, 4) / "matrices-0.safetensors"
    whole = path.read_bytes()
    draw = random.Random(4)
    for text in [b"", whole[:20], whole[:-1], b"\xff" * 100, *map(draw.randbytes, range(50))]:
        path.write_bytes(text)
        with pytest.raises(CheckpointError, match="matrices-0"):
            TensorFile(path)


def test_missing_and_misshapen_tensors_are_named(tmp_path: Path):
    with TensorFile(make(tmp_path, 4) / "matrices-0.safetensors") as file:
        with pytest.raises(CheckpointError, match="holds no a:momentum"):
            file.tensor("a", TensorSpec("momentum", "float32", (3, 5)))
        with pytest.raises(
            CheckpointError, match=r"is float32 \(3, 5\), expected float32 \(5, 3\)"
        ):
            file.tensor("a", TensorSpec("master", "float32", (5, 3)))


def test_completing_twice_leaves_the_first(tmp_path: Path):
    first = make(tmp_path, 4)
    stamp = (first / "manifest.json").stat().st_ino
    assert make(tmp_path, 4) == first
    assert (first / "manifest.json").stat().st_ino == stamp
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000004"]


def test_pruning_keeps_the_newest_and_clears_what_is_unfinished(tmp_path: Path):
    for step in (4, 8, 12, 100_000_000):
        make(tmp_path, step)
    for step in (10, 200_000_000):
        checkpoints.unfinished_path(tmp_path, step).mkdir()
    (tmp_path / checkpoints.CLOSING).mkdir()
    assert checkpoints.prune(tmp_path, 2, upto=100_000_000) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "step-00000012",
        "step-100000000",
        "step-200000000.tmp",
    ]


def test_every_so_many_steps_one_stays_for_good(tmp_path: Path):
    for step in (4, 8, 12, 16, 20):
        make(tmp_path, step)
    assert checkpoints.prune(tmp_path, 1, upto=20, keep_every=8) == []
    assert [path.name for path in checkpoints.listing(tmp_path)] == [
        "step-00000020",
        "step-00000016",
        "step-00000008",
    ]


def test_damaged_checkpoints_make_room_for_new_ones_of_their_steps(tmp_path: Path):
    make(tmp_path, 4)
    flip(make(tmp_path, 8) / "matrices-0.safetensors")
    found = checkpoints.newest(tmp_path, lambda _why: None)
    assert found is not None
    assert checkpoints.put_aside(tmp_path, found.step) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "step-00000004",
        "step-00000008.damaged",
    ]
    checkpoints.verify(make(tmp_path, 8))
    checkpoints.prune(tmp_path, keep_last=2, upto=8)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000004", "step-00000008"]


def test_a_prune_that_was_cut_short_leaves_no_checkpoint(tmp_path: Path):
    make(tmp_path, 4)
    path = make(tmp_path, 8)
    (path / "manifest.json").unlink()
    found = checkpoints.newest(tmp_path, lambda why: None)
    assert found is not None
    assert found.step == 4
    make(tmp_path, 8)
    assert checkpoints.verify(path).step == 8
