"""`run.py chaos` on real processes: a short one, whose whole report must be as it should."""

import json
import subprocess
from pathlib import Path

import pytest

from tests.harness import ROOT, python

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(400)]


def test_a_run_under_faults_is_the_run_in_peace(tmp_path: Path):
    out = tmp_path / "chaos"
    limits = ("--seed", "1", "--kills", "8", "--steps", "20", "--no-torchrun")
    done = subprocess.run(
        python("run.py", "chaos", *limits, "--json", "--out", str(out)),
        check=False,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=380,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert report["passed"]
    assert all(finding["ok"] for finding in report["findings"])
    assert len({fault["number"] for fault in report["faults"]}) == 8
    assert report == json.loads((out / "report.json").read_text())
    assert "<svg" in (out / "report.html").read_text()
    assert (out / "disturbed.jsonl").exists()


def test_what_cannot_be_is_refused_in_words(tmp_path: Path):
    for arguments, said in (
        (("--kind", "earthquake"), "there are kill,"),
        (("--out", str(tmp_path)), "is there already"),
        (("--topology", "nowhere"), "nowhere"),
        (("--kills", "0"), "--kills"),
    ):
        done = subprocess.run(
            python("run.py", "chaos", *arguments),
            check=False,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 2
        assert said in done.stderr
        assert "Traceback" not in done.stderr
