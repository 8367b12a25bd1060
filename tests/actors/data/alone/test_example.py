"""The README's example of a loader in one's own script: runs, is killed, and goes on."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from actors import process

ROOT = Path(__file__).parents[4]
EXAMPLE = Path(__file__).with_name("example.py")
BATCHES = 2 * 2000 // 50


def begin(checkpoint: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(EXAMPLE), str(checkpoint)],
        env=process.environment(OMP_NUM_THREADS="1"),
        stdout=subprocess.PIPE,
        text=True,
    )


def lines(program: subprocess.Popen[str], count: int) -> list[str]:
    assert program.stdout is not None
    return [program.stdout.readline().strip() for _ in range(count)]


@pytest.mark.system
@pytest.mark.slow
def test_the_example_trains_and_a_killed_one_goes_on_to_the_same_numbers(tmp_path: Path):
    with begin(tmp_path / "calm.pt") as program:
        calm = lines(program, BATCHES)
        assert program.wait(60) == 0
    assert float(calm[-1].split()[3]) < 0.5 * float(calm[0].split()[3])
    with begin(tmp_path / "rough.pt") as program:
        found = lines(program, 47)
        program.kill()
        program.communicate()
    with begin(tmp_path / "rough.pt") as program:
        assert program.stdout is not None
        rest = [line.strip() for line in program.stdout]
        assert program.wait(60) == 0
    # It may have taken a step more than it had told us of when it was killed.
    seen = BATCHES - len(rest)
    assert 46 <= seen <= 48
    assert [line.partition("samples")[2] for line in found[: min(seen, 47)] + rest] == [
        line.partition("samples")[2] for line in calm[: min(seen, 47)] + calm[seen:]
    ]


def test_the_readme_shows_this_example():
    readme = (ROOT / "README.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    shown = [block for block in blocks if "from actors.data import Loader" in block]
    assert shown == [EXAMPLE.read_text()]
