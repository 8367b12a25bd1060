"""One example of every message, and how golden files hold them.

A golden file is the message's parts, each after its length as four bytes, big endian. To add a
message: give it an example here and run `python -m tests.protocol.examples`, which writes missing
files and never touches existing ones. Changing an existing message means a new WIRE_VERSION: then
remove the files first.
"""

import struct
from pathlib import Path

import numpy as np

from protocol import messages as m
from protocol.channels import CHANNELS
from protocol.codec import KINDS, encode, pack_body
from protocol.messages import WIRE_VERSION, Envelope, Message, SampleRef, TensorRef

GOLDEN = Path(__file__).parents[2] / "protocol" / "golden"

TOKENS = np.arange(7, dtype=np.int32)
_TOKENS = TensorRef(dtype="int32", shape=(7,), frame=0)
_SEGMENT = "trireme-0123abcd-trainer.0-gradients"
_REF = SampleRef(name="lib/json/decoder.py", language="python", path="/corpus/json/decoder.py")
_DIGEST = "ab" * 32
_BASIS = m.BasisRef(
    version=3, digest=_DIGEST, tensors=(TensorRef(dtype="float16", shape=(2, 1), frame=0),)
)
_Z85 = "Yne@$w-vo<fVvi]a<NY6T1ed:M$fCG*[IaLV{hID"
_LEASE = {"lease": 42, "epoch": 1, "sample": 1234}

EXAMPLES: dict[str, tuple[Message, tuple[bytes, ...]]] = {
    type(message).__name__: (message, frames)
    for message, *frames_of in (
        (m.Hello(role="trainer", pid=4711, started_ticks=123456, host="node-1"),),
        (m.Welcome(peers={"loader": 0, "trainer/0": 2}),),
        (
            m.Beat(
                role="trainer",
                pid=4711,
                started_ticks=123456,
                host="node-1",
                state="running",
                progress=17,
                waiting_for="optimizer_shard/0",
                waiting_s=0.25,
                rss_bytes=60_000_000,
                gauges={"loss": 2.5},
            ),
        ),
        (m.PeerUp(name="trainer/0", incarnation=2),),
        (m.PeerDown(name="trainer/0", incarnation=1, reason="killed by signal 9"),),
        (m.Stop(reason="done", within_s=10.0),),
        (m.Goodbye(failed=""),),
        (m.RunDone(step=30, weights_digest=_DIGEST),),
        (m.JoinPool(pool="fast", host="node-2", shares_files=False),),
        (
            m.DataPlan(
                tokenizer_digest=_DIGEST,
                stages=("read", "verify", "augment", "tokenize"),
                cutoff_s=0.05,
                max_sample_bytes=4_000_000,
                heartbeat_s=0.25,
                options={"verify": True},
            ),
            b'{"version":"1.0"}',
        ),
        (m.LeaseRequest(pool="fast", credit=4, host="node-2"),),
        (
            m.Lease(**_LEASE, attempt=1, ref=_REF, stage=1, expires_s=30.0, cutoff_s=0.004),
            b"def f():\n    return 1\n",
        ),
        (m.SampleHandover(**_LEASE, stage=2, elapsed_s=0.07), b"def f():\n    return 1\n"),
        (m.SampleParked(**_LEASE),),
        (
            m.SampleReady(
                **_LEASE,
                tokens=_TOKENS,
                text_bytes=22,
                stage_s=(0.001, 0.002, 0.0, 0.003),
                waited_s=0.001,
            ),
            TOKENS.tobytes(),
        ),
        (m.SampleRefused(**_LEASE, kind="not utf-8", detail="byte 17 is 0xff"),),
        (m.WorkerLog(records=({"event": "joined", "level": "info", "n": 3},)),),
        (
            m.Guests(
                guests=(
                    m.Guest(
                        name="data_worker/node-2-0",
                        host="node-2",
                        pool="fast",
                        incarnation=0,
                        leased=2,
                        delivered=17,
                        silent_s=0.1,
                    ),
                )
            ),
        ),
        (m.BatchRequest(step=3, rank=1),),
        (
            m.Batch(
                step=3,
                rank=1,
                epoch=0,
                tokens=TensorRef(dtype="int32", shape=(1, 7), frame=0),
                documents=TensorRef(dtype="int32", shape=(1, 7), frame=1),
                text_bytes=20,
            ),
            TOKENS.tobytes(),
            bytes(28),
        ),
        (m.PromptRequest(count=2, draw=5),),
        (m.Prompts(draw=5, texts=("def f(",), names=("a.py:f",)), b'{"version":"1.0"}'),
        (m.CodesRequest(version=-1),),
        (
            m.Codes(
                version=2,
                param="layers.0.ffn.up.weight",
                index=3,
                count=11,
                codec="ternary2",
                digest=_DIGEST,
                tensors=(TensorRef(dtype="uint8", shape=(4,), frame=0),),
            ),
            b"\x01\x02\x03\x04",
        ),
        (
            m.StepFacts(
                step=3,
                rank=1,
                tokens=512,
                text_bytes=1800,
                loss_sum=1234.5,
                objective_sum=1300.25,
                step_s=0.5,
                data_wait_s=0.01,
                up_bytes=4096,
            ),
        ),
        (
            m.Sketch(
                step=3,
                rank=1,
                param="layers.0.ffn.up.weight",
                round=0,
                tokens=512,
                tensors=(TensorRef(dtype="float32", shape=(2, 1), frame=0),),
            ),
            bytes(8),
        ),
        (
            m.SketchRequest(
                step=3,
                param="layers.0.ffn.up.weight",
                round=1,
                tensors=(TensorRef(dtype="float32", shape=(2, 1), frame=0),),
            ),
            bytes(8),
        ),
        (
            m.NewBasis(step=3, param="layers.0.ffn.up.weight", basis=_BASIS),
            b"\x00\x00\x00\x3f",
        ),
        (
            m.Gradient(
                step=3,
                rank=1,
                param="norm.weight",
                codec="dense",
                basis=0,
                tokens=512,
                tensors=(TensorRef(dtype="float32", shape=(8,), segment=_SEGMENT, offset=64),),
            ),
        ),
        (
            m.Update(
                version=3,
                param="layers.0.ffn.up.weight",
                codec="flips",
                digest=_DIGEST,
                tensors=(TensorRef(dtype="uint8", shape=(3,), frame=1),),
                basis=_BASIS,
            ),
            b"\x00\x00\x00\x3f",
            b"\x28\xb5\x2f",
        ),
        (m.StepQuery(version=3, rank=1, lacking=("norm.weight",)),),
        (m.StepNeeds(step=3, params=("norm.weight",), facts=True),),
        (
            m.ShardCommitted(
                version=3, shard=1, digests=(_DIGEST,), flips=99, up_bytes=4096, down_bytes=120
            ),
        ),
        (m.CheckpointPart(version=30, shard=1, files={"shard-1.safetensors": _DIGEST}),),
        (m.MetricsRequest(after=2),),
        (m.Metrics(records=({"step": 3, "loss": 2.5},)),),
        (m.JoinRank(host="node-2"),),
        (m.RankPlan(topology='name = "local"\n', rank=1),),
        (
            m.Forward(channel="exchange/0", kind="MetricsRequest"),
            pack_body(m.MetricsRequest(after=3)),
        ),
        (m.FilesRequest(host="node-3", step=137, lacking_bytes=4096),),
        (
            m.Files(
                files=(
                    m.FileFacts(path="topology.toml", size=2048, modified_ns=1_700_000_000_000_000),
                )
            ),
        ),
        (m.PieceRequest(path="topology.toml", offset=0, size=4194304),),
        (m.Piece(path="topology.toml", offset=0), b"seed = 1\n"),
        (m.LogRecord(record={"event": "hello", "level": "info", "actor": "loader"}),),
        (
            m.RolloutReport(
                version=2,
                draw=5,
                prompt="def f(",
                rewards=(0.0, 1.0),
                compiled=1,
                completions=2,
                tokens=96,
                seconds=1.5,
            ),
        ),
        (m.StatusRequest(),),
        (m.Status(document="{}"),),
        (m.StopRequest(reason="asked"),),
        (m.KillRequest(pattern="trainer/*", signal=9),),
        (m.InviteRequest(role="data_worker", public_key=_Z85, label="attic"),),
        (m.Invitation(public_key=_Z85, endpoint="tcp://192.0.2.7:40000", server_key=_Z85),),
        (m.Answer(ok=True, text="killed trainer/0"),),
    )
    for frames in (tuple(frames_of),)
}


def parts_of(kind: str) -> list[bytes]:
    """The example of that kind as it travels, said by whoever may say it."""
    message, frames = EXAMPLES[kind]
    return [*encode(envelope_of(kind), message), *frames]


def envelope_of(kind: str) -> Envelope:
    roles = next(c.senders[KINDS[kind]] for c in CHANNELS.values() if KINDS[kind] in c.senders)
    role = min(roles)
    name = role if role in {"supervisor", "loader", "recorder"} else f"{role}/0"
    return Envelope(WIRE_VERSION, kind, name, 2, 7, 3)


def to_file(parts: list[bytes]) -> bytes:
    return b"".join(struct.pack(">I", len(part)) + part for part in parts)


def from_file(content: bytes) -> list[bytes]:
    parts: list[bytes] = []
    while content:
        (length,) = struct.unpack(">I", content[:4])
        parts.append(content[4 : 4 + length])
        content = content[4 + length :]
    return parts


if __name__ == "__main__":
    for kind in EXAMPLES:
        path = GOLDEN / f"{kind}.bin"
        if not path.exists():
            path.write_bytes(to_file(parts_of(kind)))
            print(f"wrote {path}")
