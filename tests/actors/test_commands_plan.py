"""`run.py plan` as a person or a script meets it."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from actors import hardware, hwloc
from actors.commands.plan import plan

FILES = Path(__file__).parent.parent / "hardware"


def run(*arguments: str) -> Result:
    return CliRunner().invoke(plan, arguments)


def on(name: str) -> str:
    return f"--hardware={FILES / name}.xml"


@pytest.mark.parametrize("name", ["config_a", "config_b", "config_c"])
def test_json_is_one_document_and_nothing_else(name: str):
    result = run("--topology", name, on(name), "--json")
    assert result.exit_code == 0
    assert result.stderr == ""
    document = json.loads(result.stdout)
    assert document["topology"] == name
    assert not document["hardware"]["emulated"]


def test_a_table_for_people_groups_workers_and_explains():
    result = run("--topology", "config_a", on("config_a"))
    assert result.exit_code == 0
    assert "data_worker/0 .. 15 fast" in result.stdout
    assert "36-47" in result.stdout
    assert "1,317,559,297 unique parameters, 5,270,237,188 applied per token" in result.stdout
    assert "a bf16 all-reduce would send" in result.stdout
    assert "optimizer shards on the CPU: Newton-Schulz takes 49.7 TFLOP" in result.stdout
    assert max(map(len, result.stdout.splitlines()[2:20])) <= 160
    table = {cells[1].strip(): cells for cells in map(_cells, result.stdout.splitlines()) if cells}
    assert table["trainer/0"][-2].strip() == "17.0 GB", "of the 20 it may have"
    assert table["optimizer_shard/0"][-2].strip() == "-"


def _cells(line: str) -> list[str]:
    return line.split("│") if line.startswith("│") else []


def test_emulation_is_said_in_the_first_line():
    result = run("--topology", "config_b", on("two_cores"))
    assert result.stdout.startswith("config_b emulated: 2 GPU(s) (RTX 4090) wanted, 0 found")


def test_this_machine_is_the_default():
    assert run("--json").exit_code == 0


def test_a_runs_hardware_file_serves_as_well(tmp_path: Path):
    file = tmp_path / "hardware.json"
    file.write_text(hardware.to_json(hwloc.read_file(FILES / "config_b.xml")))
    result = run("--topology", "config_b", "--hardware", str(file), "--json")
    assert json.loads(result.stdout)["hardware"]["found"]["gpus"] == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--topology", "confg_b"], "did you mean `config_b`?"),
        (["--topology", "config_b", "--set", "model.dimm=3"], "did you mean `dim`?"),
        (
            ["--topology", "config_b", on("two_cores"), "--require-hardware"],
            "--require-hardware, but",
        ),
        (["--hardware", "/absent.xml"], "/absent.xml: cannot be read"),
        (["--hardware", "/absent.json"], "/absent.json: "),
        ([f"--hardware={__file__}"], "not XML"),
        (["--topology", "/"], "cannot be read"),
    ],
)
def test_bad_input_ends_with_2_and_words(arguments: list[str], words: str):
    result = run(*arguments, "--json")
    assert result.exit_code == 2
    assert words in result.stderr
    assert "Traceback" not in result.output
    assert result.stdout == ""
