"""A run on Rust, verified by rustc. `python -m tests.benchmarks.rust` does more of it."""

from pathlib import Path

import pytest

from actors.data import rustc
from actors.data.rustc import CannotVerify
from tests.benchmarks.rust import train
from tests.rust_sources import NoSources, rust_sources
from tests.system.conftest import SMALL

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    try:
        rustc.check_machine()
        return rust_sources(tmp_path_factory.mktemp("rust"), "library/core/src/num")
    except (NoSources, CannotVerify) as error:
        pytest.skip(str(error))


def test_a_run_on_rust_trains_on_what_compiles_and_says_how_much_does(
    tmp_path: Path, sources: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    # The library's files do not compile alone; these do.
    for i in range(40):
        text = f"pub fn add_{i}(x: u64) -> u64 {{ x + {i} }}\n" * (1 + i % 3 == 1)
        (tmp_path / f"own_{i}.rs").write_text(text or f"pub const X: u64 = {i};\n")
    result = train(tmp_path / "run", [sources, tmp_path], 50, SMALL)
    assert result.steps == 50
    assert result.last_loss < result.first_loss
    assert 0 < result.compiled < result.verified
    assert result.bad["does not compile"] == result.verified - result.compiled
    assert result.parked > 0
