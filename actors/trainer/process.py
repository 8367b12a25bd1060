"""The process of one trainer: a mailbox around `Trainer`, and the device it computes on.

Everything it needs comes from others or, what gradient codecs remember, lies in a segment that
outlives it; so it neither saves nor restores anything. Told to stop, it
leaves: a stop is only looked at between two steps, when either all gradients of a step have been
sent or none.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from actors import codec_memory, leftovers
from actors.checkpoints import CheckpointError
from actors.codec_memory import CodecMemory, MemoryLost
from actors.diverged import Diverged
from actors.gradient_slots import GradientSlots
from actors.loop import Mailbox
from actors.parameters import parameters
from actors.rundir import RunDir
from actors.seat import Seat
from actors.topology import Topology, TopologyError
from actors.trainer.trainer import ShardsDisagree, Trainer
from protocol import segments
from protocol.clock import MonotonicClock
from protocol.errors import SegmentError
from protocol.messages import Stop
from protocol.segments import Segment, segment_name
from protocol.tensors import Attached
from protocol.transport import Received

# How often rules that depend on time are looked at while nothing comes.
TICK_S = 0.05


def main(seat: Seat) -> int:
    """Live as `seat` says until told to stop; the exit code."""
    prepare_torch(seat.threads, seat.device)
    topology = seat.topology()
    shards = [f"exchange/{k}" for k in range(topology.actors.optimizer_shards)]
    connect = ("control", "telemetry", "batches", *shards)
    gradients = segment_name(seat.run_id, seat.name, "gradients")
    with Mailbox(seat, connect) as mailbox, Attached(f"trireme-{seat.run_id}-") as attached:
        segment = _segment(gradients, mailbox)
        remembered: Segment | None = None
        try:
            remembered = _memory(seat, topology)
            trainer = Trainer(
                topology,
                seat.index,
                mailbox,
                MonotonicClock(),
                slots=None if segment is None else _slots(segment, topology),
                memory=None if remembered is None else CodecMemory(topology, remembered),
                attached=attached,
                device=seat.device,
                progress=mailbox.progress,
            )
            while mailbox.stopping is None:
                turn(trainer, mailbox, lambda m: trainer.hear(m.sender, m.message, m.frames))
        except (ShardsDisagree, MemoryLost, Diverged, CheckpointError, TopologyError) as error:
            mailbox.log.error("the run cannot go on", why=str(error))  # noqa: TRY400 - no bug
            mailbox.close(failed=str(error))
            return 1
        finally:
            for mapped in (segment, remembered):
                if mapped is not None:
                    mapped.close()
        mailbox.log.info("trainer leaves", reason=mailbox.stopping.reason)
    if mailbox.forsaken == "orphaned":
        leftovers.clear_last(RunDir(Path(seat.run_dir)), within_s=0.0)
    return 0


def turn(trainer: Trainer, mailbox: Mailbox, hear: Callable[[Received], None]) -> None:
    """Hear what has come, then compute if everything is there."""
    ready = trainer.may_compute
    if not ready:
        mailbox.progress(trainer.rounds.waiting_for())
    for item in mailbox.receive(0.0 if ready else TICK_S):
        if not isinstance(item.message, Stop):
            hear(item)
    mailbox.step = max(trainer.rounds.step, 0)
    trainer.tick()
    if trainer.may_compute and mailbox.stopping is None:
        mailbox.progress()
        trainer.compute()
    mailbox.gauge("step", trainer.rounds.version)
    mailbox.gauge("repairs", trainer.repairs)
    mailbox.gauge("malformed_bodies", trainer.malformed)


def _segment(name: str, mailbox: Mailbox) -> Segment | None:
    """This trainer's gradient slots; without them gradients travel as frames."""
    try:
        return segments.attach(name)
    except SegmentError as error:
        mailbox.log.warning("gradients travel as frames", why=str(error))
        return None


def _slots(segment: Segment, topology: Topology) -> GradientSlots:
    return GradientSlots(segment, parameters(topology.model), topology.optimizer)


def _memory(seat: Seat, topology: Topology) -> Segment | None:
    """What this rank's codecs remember, if they do: it stays when this process goes.

    Raises `MemoryLost`.
    """
    if not codec_memory.segment_bytes(topology):
        return None
    try:
        return segments.attach(segment_name(seat.run_id, seat.name, "memory"))
    except SegmentError as error:
        raise MemoryLost(
            f"{error}: it holds what the gradient codec remembers; stop the run, then resume it"
        ) from error


def prepare_torch(threads: int, device: str) -> None:
    """The same bits every time, from so many threads."""
    torch.set_num_threads(threads)
    if device != "cpu":
        # Read when cuBLAS starts, which is later than this.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.cuda.set_device(device)
    # The same switch as use_deterministic_algorithms, without its import of all of inductor, which
    # takes seconds in every new trainer.
    torch.set_deterministic_debug_mode("error")
    # Filling fresh memory is for finding bugs; nothing here reads what it has not written.
    deterministic: Any = torch.utils.deterministic
    deterministic.fill_uninitialized_memory = False
