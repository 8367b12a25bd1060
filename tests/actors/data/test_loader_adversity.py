"""Loader and workers in real processes, given bad samples, bad files and bad luck."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from actors import process
from actors.topology import DataSpec, RemoteSpec, Source
from protocol import messages as m
from protocol.keys import KeyFile
from protocol.transport import new_keypair
from tests.actors.data.small_graph import ROOT, Graph, exactly_once, graph, small
from tests.actors.data.test_loader import CODE

pytestmark = pytest.mark.system


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


def write(folder: Path, **files: str) -> Path:
    """Files by name, on top of a dozen harmless ones."""
    folder.mkdir(exist_ok=True)
    for i in range(12):
        (folder / f"fine_{i:02}.py").write_text("".join(CODE.format(i=i * k) for k in range(5)))
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text)
    return folder


def of(path: Path, **settings: object) -> DataSpec:
    source = Source(kind="directory", path=str(path))
    return DataSpec(sources=(source,), held_out_share=0.0, **settings)  # pyright: ignore[reportArgumentType]


def epochs(made: Graph) -> int:
    return int(made.sql("SELECT max(epoch) FROM documents")[0][0] or 0)


def run_epochs(made: Graph, count: int) -> int:
    """Ask for batches until that many epochs have begun; the next step."""
    step = 1
    while step == 1 or epochs(made) < count:
        made.batches(range(step, step + 1))
        made.replace_the_dead()
        step += 1
    return step


# --- samples that harm their workers --------------------------------------------------------------


def test_a_poisoned_sample_is_quarantined_by_name_and_the_run_goes_on(tmp_path: Path):
    code = write(tmp_path / "code", evil="x = 'POISON'\n" * 9)
    with graph(tmp_path / "run", small(of(code)), mischief=True) as made:
        asked = made.peer("trainer/0"), made.peer("trainer/1")
        for rank, node in enumerate(asked):
            node.send("batches", m.BatchRequest(step=9, rank=rank))
        deaths = 0

        def quarantined() -> bool:
            nonlocal deaths
            deaths += made.replace_the_dead()
            prepared = made.run.tokenizer.exists()
            return prepared and bool(made.sql("SELECT * FROM quarantined"))

        made.until(quarantined, "the poison to be noticed")
        assert deaths == 3
        ((_, reason, count),) = made.sql("SELECT * FROM quarantined")
        assert count == 3
        assert "died" in reason
        run_epochs(made, 2)
        assert not made.sql("SELECT * FROM delivered JOIN samples USING (sample) "
                            "WHERE name LIKE '%evil%'")  # fmt: skip
        events = [record for record in made.records if record["event"] == "sample quarantined"]
        assert [record["sample"] for record in events] == ["code/evil.py"]
    exactly_once(tmp_path / "run" / "ledger.sqlite")


def test_a_sample_that_never_returns_is_given_up(tmp_path: Path):
    code = write(tmp_path / "code", stuck="x = 'HANG'\n" * 9)
    wanted = small(of(code, lease_s=0.5, max_deaths_per_sample=2))
    with graph(tmp_path / "run", wanted, workers=3, mischief=True) as made:
        run_epochs(made, 2)
        ((_, reason, _),) = made.sql("SELECT * FROM quarantined")
        assert "was not done after 0.5 s" in reason
    exactly_once(tmp_path / "run" / "ledger.sqlite")


def test_slow_samples_are_handed_over_and_resumed_from_the_stage_reached(tmp_path: Path):
    names = [f"slow{i}" for i in range(4)]
    code = write(tmp_path / "code", **{name: f"x{name} = 'SLOW'\n" * 9 for name in names})
    with graph(tmp_path / "run", small(of(code, cutoff_ms=200.0)), mischief=True) as made:
        run_epochs(made, 2)
        made.until(lambda: (made.gauge("loader", "handed_over") or 0) > 0, "a hand-over")
        notes = [line.split() for line in made.notes.read_text().splitlines()]
        made.until(lambda: made.gauge("loader", "epoch") is not None, "figures")
        epochs_drawn = int(made.gauge("loader", "epoch") or 0) + 1  # a beat may be a moment old
    # Whoever goes on with a sample does not do again what was done: it is read once an epoch.
    drawn = 1 + epochs_drawn
    for name in names:
        stages = [stage for file, stage, _ in notes if file == f"{name}.py"]
        assert stages.count("tokenize") <= stages.count("verify") <= stages.count("read") <= drawn


def test_killed_while_at_work_again_and_again_nothing_changes(tmp_path: Path):
    code = write(tmp_path / "code", slow="x = 'SLOW'\n" * 9, slower="y = 'SLOW'\n" * 9)
    # Three kills may well hit the same slow sample, which is not to blame for them.
    wanted = small(of(code, max_deaths_per_sample=100))
    with graph(tmp_path / "calm", wanted) as calm:
        expected = calm.batches(range(1, 13))
    with graph(tmp_path / "rough", wanted, workers=2, mischief=True) as rough:
        found = []
        for step in range(1, 13):
            victim = f"data_worker/{step % 3}"
            rough.kill(victim)
            rough.start(victim, pool="slow" if step % 3 == 2 else "fast")
            found += rough.batches(range(step, step + 1))
        assert found == expected
    exactly_once(tmp_path / "rough" / "ledger.sqlite")


# --- files ----------------------------------------------------------------------------------------


def test_every_bad_file_is_counted_by_kind_and_the_good_ones_train(tmp_path: Path):
    code = write(
        tmp_path / "code",
        broken="def f(:\n",
        blank="\n\n",
        huge="x = 1\n" * 300,
        zero="x = '\0'\n",
    )
    (code / "latin.py").write_bytes(b"x = '\xe9'\n")
    (code / "binary.py").write_bytes(os.urandom(500) + b"\0" * 20)
    (code / "gone.py").write_text("x = 1\n" * 50)
    lines = tmp_path / "lines.jsonl"
    with lines.open("wb") as file:
        file.write(b'{"text": "good enough for one line of a batch"}\n')
        file.write(b"garbage\n" + b'{"body": 1}\n')
        file.write(b'{"text": "' + b"x" * 50_000_000 + b'"}\n')
    sources = (
        Source(kind="directory", path=str(code)),
        Source(kind="jsonl", path=str(lines), language="text"),
    )
    data = DataSpec(sources=sources, held_out_share=0.0, max_sample_bytes=1500)
    with graph(tmp_path / "run", small(data)) as made:
        made.until(made.run.tokenizer.exists, "the data to be prepared")
        (code / "gone.py").unlink()
        run_epochs(made, 2)
        kinds = dict(made.sql("SELECT kind, count(*) FROM refused GROUP BY kind"))
        assert kinds == {
            "does not compile": 1,
            "empty": 1,
            "too large": 2,
            "binary": 2,
            "not utf-8": 1,
            "vanished": 1,
            "not json": 1,
            "no such field": 1,
        }
        named = {record["sample"] for record in made.records if record["event"] == "sample refused"}
        assert {"code/broken.py", "lines.jsonl:4", "code/gone.py"} <= named
        delivered = dict(made.sql("SELECT name, 1 FROM delivered JOIN samples USING (sample)"))
        assert "lines.jsonl:1" in delivered
        assert len(delivered) == 13
        made.until(lambda: made.gauge("loader", "refused") == 10, "the gauge")
    exactly_once(tmp_path / "run" / "ledger.sqlite")


def failure(made: Graph) -> str:
    made.until(lambda: "loader" in made.goodbyes, "the loader to give up")
    assert made.processes["loader"].wait(10) == 1
    assert "Traceback" not in made.stderr("loader")
    return made.goodbyes["loader"]


def test_a_corpus_without_one_usable_sample_ends_the_run_in_words(tmp_path: Path):
    (tmp_path / "code").mkdir()
    for i in range(5):
        (tmp_path / "code" / f"{i}.py").write_text(f"def f{i}(:\n")
    with graph(tmp_path / "run", small(of(tmp_path / "code"))) as made:
        why = failure(made)
    assert "not one sample can be used (5 does not compile" in why


def test_an_empty_corpus_ends_the_run_in_words(tmp_path: Path):
    (tmp_path / "code").mkdir()
    with graph(tmp_path / "run", small(of(tmp_path / "code"))) as made:
        assert "no sample in any source" in failure(made)


def test_a_damaged_ledger_ends_the_run_in_words(tmp_path: Path):
    made = Graph(tmp_path / "run", small(of(write(tmp_path / "code"))))
    made.run.ledger.write_bytes(b"no ledger at all" * 1000)
    try:
        made.start("loader")
        assert "is damaged" in failure(made)
    finally:
        made.close()


def test_a_ledger_of_another_version_ends_the_run_in_words(tmp_path: Path):
    wanted = small(of(write(tmp_path / "code")))
    with graph(tmp_path / "run", wanted) as made:
        made.batch(1, 0)
    with sqlite3.connect(tmp_path / "run" / "ledger.sqlite") as db:
        db.execute("PRAGMA user_version = 7")
    db.close()
    with graph(tmp_path / "run", wanted) as made:
        assert "ledger format 7" in failure(made)


def test_a_corpus_smaller_than_one_batch_goes_round(tmp_path: Path):
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "only.py").write_text("x = 1\n")
    with graph(tmp_path / "run", small(of(tmp_path / "code"))) as made:
        tokens, documents, _ = made.batch(2, 1)
        assert len(set(map(tuple, documents))) >= 1
        assert max(documents[0]) >= 3
        assert len(tokens) == 2
    exactly_once(tmp_path / "run" / "ledger.sqlite")


def test_a_loader_killed_while_preparing_leaves_nobody_behind(tmp_path: Path):
    made = Graph(tmp_path / "run", small(DataSpec(), model=small(DataSpec()).model))
    children: list[int] = []

    def preparing() -> bool:
        pid = made.processes["loader"].pid
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
        children.extend(int(word) for word in text.split())
        return bool(children)

    try:
        made.start("loader")
        made.until(preparing, "the child that prepares")
        made.kill("loader")
        child = process.identity(children[0])
        made.until(lambda: child is None or not process.alive(child), "the child to go", 5.0)
        made.start("loader")
        made.start("data_worker/0")
        made.batch(1, 0)
    finally:
        made.close()


# --- other hosts ----------------------------------------------------------------------------------

ATTACH = """
import sys
from pathlib import Path
from actors.data.worker import serve_remote
from protocol.errors import Refused
from protocol.keys import KeyFile
try:
    sys.exit(serve_remote(KeyFile.read(Path(sys.argv[1])), sys.argv[2]))
except Refused as error:
    sys.exit(f"refused: {error}")
"""


def invited(made: Graph, label: str, path: Path) -> KeyFile:
    public, secret = new_keypair()
    made.until(lambda: "loader" in made.gauges, "the loader's first beat")
    request = m.InviteRequest(role="data_worker", public_key=public, label=label)
    made.supervisor.send("control", request, to="loader")
    found: list[m.Invitation] = []

    def answered() -> bool:
        found.extend(r.message for r in made.said if isinstance(r.message, m.Invitation))
        made.said.clear()
        return bool(found)

    made.until(answered, "an invitation")
    assert found[0].refused == ""
    key = KeyFile(
        role="data_worker",
        label=label,
        endpoint=found[0].endpoint,
        server_key=found[0].server_key,
        public_key=public,
        secret_key=secret,
    )
    key.write(path)
    return key


@pytest.fixture
def hosts() -> Iterator[list["subprocess.Popen[str]"]]:
    """Workers of other hosts, ended with the test."""
    started: list[subprocess.Popen[str]] = []
    yield started
    for worker in started:
        worker.kill()
        worker.wait()
        if worker.stderr is not None:
            worker.stderr.close()


def attach(path: Path, name: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", ATTACH, str(path), name],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def test_workers_of_other_hosts_deliver_leave_and_are_lost(
    tmp_path: Path, hosts: list["subprocess.Popen[str]"]
):
    wanted = small(of(write(tmp_path / "code")), remote=RemoteSpec(host="127.0.0.1"))
    with graph(tmp_path / "calm", wanted) as calm:
        expected = calm.batches(range(1, 21))
    made = Graph(tmp_path / "run", wanted)
    try:
        made.start("loader")
        invited(made, "box", tmp_path / "key")
        workers = [attach(tmp_path / "key", f"data_worker/box-{i}") for i in range(2)]
        hosts += workers
        found = made.batches(range(1, 6))
        workers[0].kill()
        found += made.batches(range(6, 11))
        made.kill("loader")
        made.start("loader")
        found += made.batches(range(11, 16))
        made.start("data_worker/0")
        workers[1].send_signal(signal.SIGTERM)
        assert workers[1].wait(10) == 0
        found += made.batches(range(16, 21))
        assert found == expected
        late = attach(tmp_path / "key", "data_worker/box-7")
        hosts.append(late)
        made.until(lambda: made.gauge("loader", "leased") is not None, "a beat")
        made.until(lambda: "data_worker/box-7" in str(made.records), "its log", 20.0)
        made.stop("loader")
        assert late.wait(10) == 0  # told that the run is over
    finally:
        made.close()


def test_a_stranger_is_refused_and_told_so(tmp_path: Path, hosts: list["subprocess.Popen[str]"]):
    wanted = small(of(write(tmp_path / "code")), remote=RemoteSpec(host="127.0.0.1"))
    made = Graph(tmp_path / "run", wanted)
    try:
        made.start("loader")
        key = invited(made, "box", tmp_path / "key")
        public, secret = new_keypair()
        strange = msgspec.structs.replace(key, public_key=public, secret_key=secret)
        strange.write(tmp_path / "strange")
        stranger = attach(tmp_path / "strange", "data_worker/box-0")
        hosts.append(stranger)
        made.until(lambda: stranger.poll() is not None, "the stranger to be sent away", 12.0)
        _, error = stranger.communicate()
        assert error.startswith("refused: ")
        assert secret not in error
        said = json.dumps(made.records)
        assert "refused" in said
        assert key.secret_key not in said
    finally:
        made.close()
