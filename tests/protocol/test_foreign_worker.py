"""Somebody who has read protocol/README.md and nothing else can write a data worker."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from protocol import messages as m
from protocol import tensors
from protocol.channels import CHANNELS, endpoint
from protocol.clock import Deadline, MonotonicClock
from protocol.keys import AllowList, KeyFile, ServerCurve
from protocol.transport import Node, Received, Sent, new_keypair
from tests.protocol.examples import GOLDEN, from_file

CLOCK = MonotonicClock()
README = (GOLDEN.parent / "README.md").read_text(encoding="utf-8")
SCRIPT = Path(__file__).with_name("foreign_worker.py")
NAME = "data_worker/attic-0"
PLAN = m.DataPlan(
    tokenizer_digest="ab" * 32,
    stages=("read", "verify", "augment", "tokenize"),
    cutoff_s=0.05,
    max_sample_bytes=1000,
    heartbeat_s=0.05,
    options={"credit": 1},
)


def hear(loader: Node, kind: type[m.Message]) -> Received:
    deadline = Deadline.after(CLOCK, 10.0, f"{kind.__name__} from the foreign worker")
    while True:
        deadline.check()
        for received in loader.poll(0.1):
            if isinstance(received.message, kind):
                return received


def lease(number: int, stage: int, path: str = "/nowhere") -> m.Lease:
    ref = m.SampleRef(name="a.py", language="python", path=path)
    return m.Lease(lease=number, epoch=0, sample=7, attempt=1, ref=ref, stage=stage, expires_s=30.0)


def tokens_of(received: Received) -> list[int]:
    assert isinstance(received.message, m.SampleReady)
    return tensors.read(received.message.tokens, received.frames).tolist()


def converse(loader: Node, channel: str, tmp_path: Path) -> None:
    """A loader's part: plan, leases at two stages, one that cannot be read, stop."""
    joined = hear(loader, m.JoinPool)
    assert (joined.sender, joined.channel) == (NAME, channel)

    def say(message: m.Message, *frames: bytes) -> None:
        assert loader.send(channel, message, to=NAME, frames=frames) is Sent.SENT

    say(PLAN, b'{"version":"1.0"}')
    request = hear(loader, m.LeaseRequest).message
    assert request == m.LeaseRequest(pool="slow", credit=1)
    say(lease(1, stage=1), b"print(1)\n")
    assert tokens_of(hear(loader, m.SampleReady)) == list(b"print(1)\n")
    source = tmp_path / "a.py"
    source.write_bytes(b"x = 2\n")
    say(lease(2, stage=0, path=str(source)))
    assert tokens_of(hear(loader, m.SampleReady)) == list(b"x = 2\n")
    say(lease(3, stage=0))
    refused = hear(loader, m.SampleRefused).message
    assert isinstance(refused, m.SampleRefused)
    assert (refused.lease, refused.kind) == (3, "unreadable")
    say(m.Stop(reason="done", within_s=1.0))
    hear(loader, m.Goodbye)
    assert loader.counters().keys().isdisjoint({"malformed", "forbidden", "other_versions"})


def test_it_works_on_this_host(tmp_path: Path):
    tmp_path.chmod(0o700)
    where = endpoint(tmp_path, "samples")
    with Node("loader", "loader", 0, CLOCK) as loader:
        loader.bind("samples", where)
        worker = subprocess.Popen([sys.executable, str(SCRIPT), "--socket", where, NAME])
        try:
            converse(loader, "samples", tmp_path)
            assert worker.wait(10) == 0
        finally:
            worker.kill()
            worker.wait()


def test_it_works_over_tcp_with_an_invitation(tmp_path: Path):
    server, guest = new_keypair(), new_keypair()
    allow = AllowList(tmp_path / "allowed")
    allow.admit("data_worker", "attic", guest[0])
    with Node("loader", "loader", 0, CLOCK) as loader:
        where = loader.bind("remote", "tcp://127.0.0.1:0", ServerCurve(*server, allow))
        path = tmp_path / "attic.json"
        KeyFile(
            role="data_worker",
            label="attic",
            endpoint=where,
            server_key=server[0],
            public_key=guest[0],
            secret_key=guest[1],
        ).write(path)
        worker = subprocess.Popen([sys.executable, str(SCRIPT), "--key", str(path), NAME])
        try:
            converse(loader, "remote", tmp_path)
            assert worker.wait(10) == 0
        finally:
            worker.kill()
            worker.wait()


def dumped(kind: str) -> list[bytes]:
    """The parts of the README's annotated dump of `kind`."""
    block = re.search(rf"```hexdump {kind}\n(.*?)```", README, re.DOTALL)
    assert block, f"README.md has no dump of {kind}"
    parts: list[bytes] = []
    for line in block[1].splitlines():
        if line.startswith("part"):
            parts.append(b"")
        else:
            parts[-1] += bytes.fromhex(line.partition(";")[0].replace(" ", ""))
    return parts


@pytest.mark.parametrize("kind", ["JoinPool", "Lease", "SampleReady"])
def test_the_readmes_dumps_are_real(kind: str):
    assert dumped(kind) == from_file((GOLDEN / f"{kind}.bin").read_bytes())


def test_the_readme_describes_every_message_and_field_of_its_conversation():
    for kind in CHANNELS["samples"].senders:
        section = re.search(rf"\n#### {kind.__name__}\b(.*?)(\n#|\Z)", README, re.DOTALL)
        assert section, f"README.md has no section on {kind.__name__}"
        for field in kind.__struct_fields__:
            assert f"`{field}`" in section[1], f"{kind.__name__}.{field} is not described"
    for struct in (m.TensorRef, m.SampleRef):
        for field in struct.__struct_fields__:
            assert f"`{field}`" in README


def test_the_tokens_of_the_foreign_worker_are_what_numpy_reads():
    assert np.frombuffer(b"\x01\x00\x00\x00", "<i4").tolist() == [1]
