"""A trainer of another host: the same `Trainer`, behind one tcp connection to its stand-in.

It comes with a key, is told topology and rank, and works until the run ends. When it loses touch
(the network, the stand-in, the run's host) it begins anew as a later life, as often as it takes:
whatever a trainer holds can be asked for again. Gradients and updates travel as frames.
"""

import datetime
import gc
import itertools
import os
import select
import sys
from collections.abc import Sequence
from typing import Any, Literal

import torch

from actors import topology as topologies
from actors.loop import Mailbox, Remote
from actors.seat import Seat
from actors.standin.forwarding import unwrapped, wrapped
from actors.topology import SupervisionSpec, TopologyError
from actors.trainer.process import TICK_S, prepare_torch, turn
from actors.trainer.trainer import ShardsDisagree, Trainer
from protocol.clock import Deadline, MonotonicClock
from protocol.errors import Malformed, Refused, Unauthorised
from protocol.keys import KeyFile
from protocol.messages import Forward, JoinRank, Message, RankPlan
from protocol.transport import Received

# The rank is asked for this often until it is ours.
JOIN_S = 0.5
# After so long without a word there is no run any more. Longer than whoever looks after its host
# takes to resume it.
FORSAKEN_S = 600.0
# Between two attempts to come back.
RETRY_S = 1.0

_LOST = "lost touch with the run"
_NOT_OURS = "lets us in and does not give us the rank: whoever attached later with this key has it"

# How a visit ended: the run is over or we were told to leave; touch was lost; it never began.
Fate = Literal["over", "lost", "refused"]


class _Forwarding:
    """An outbox whose messages go through the stand-in."""

    def __init__(self, mailbox: Mailbox, channel: str) -> None:
        self._mailbox, self._channel = mailbox, channel

    def send(
        self,
        channel: str,
        message: Message,
        *,
        to: str = "",
        frames: Sequence[Any] = (),
        step: int = 0,
    ) -> None:
        """See `Outbox`. A trainer only speaks to those who bind: `to` is never needed."""
        del to
        forward, parts = wrapped(channel, message, frames)
        self._mailbox.send(self._channel, forward, frames=parts, step=step)


class _Visit:
    """One life of the trainer, from the handshake on."""

    def __init__(self, key: KeyFile, mailbox: Mailbox, device: str) -> None:
        self._key, self._mailbox, self._device = key, mailbox, device
        self._clock = MonotonicClock()
        self._channel = key.channel
        self._early: list[Received] = []
        self._host = -1  # incarnation of the stand-in that gave us the rank
        self._replaced = False

    def live(self) -> Fate:
        """Ask for the rank, then train."""
        plan = self._ask()
        if plan is not None:
            self._train(plan)
        if self._replaced or self._mailbox.forsaken:
            return "refused" if plan is None else "lost"
        return "over"

    def _ask(self) -> RankPlan | None:
        """What the stand-in says; None when we are to leave before."""
        mailbox = self._mailbox
        again = Deadline(self._clock, self._clock.now(), "an answer")
        while mailbox.stopping is None:
            mailbox.progress(f"rank {self._key.rank} to be ours")
            if again.passed():
                again = Deadline.after(self._clock, JOIN_S, "an answer")
                mailbox.send(self._channel, JoinRank(host=os.uname().nodename))
            for item in mailbox.receive(TICK_S):
                if isinstance(item.message, RankPlan):
                    self._host = item.incarnation
                    return item.message
        return None

    def _train(self, plan: RankPlan) -> None:
        try:
            topology = topologies.decode(plan.topology, source="the run's topology")
        except TopologyError as error:
            raise Malformed(f"{error}; start every host of a run from the same release") from error
        torch.set_num_threads(topology.train.threads)
        mailbox = self._mailbox
        mailbox.log.info("trainer attached", rank=plan.rank, device=self._device)
        trainer = Trainer(
            topology,
            plan.rank,
            _Forwarding(mailbox, self._channel),
            self._clock,
            device=self._device,
            progress=mailbox.progress,
        )

        def hear(item: Received) -> None:
            if item.incarnation != self._host:
                self._replaced = True  # by a stand-in that does not know us
            elif isinstance(item.message, Forward):
                sender = item.message.sender
                try:
                    message, frames = unwrapped(item.message, item.frames, sender)
                except Malformed:
                    trainer.malformed += 1
                else:
                    trainer.hear(sender, message, frames)
            else:
                trainer.hear(item.sender, item.message)

        try:
            while mailbox.stopping is None and not self._replaced:
                turn(trainer, mailbox, hear)
        finally:
            trainer.close()


def serve_remote(key: KeyFile, name: str, *, endpoint: str = "", device: str = "cpu") -> int:
    """Be the trainer that `key` was made for, until the run ends or somebody sends SIGTERM.

    `endpoint` replaces the one in the key file (""): hosts may be reached by several addresses.
    Raises `Refused`, in words, when it is not let in, or no more, and `Malformed` for a run of
    another release.
    """
    prepare_torch(1, device)
    remote = Remote(endpoint or key.endpoint, key.curve(), channel=key.channel)
    clock = MonotonicClock()
    # Later visits are later lives, but not later than those of somebody who attached after us.
    began = int(datetime.datetime.now(datetime.UTC).timestamp() * 1000)
    forsaken: Deadline | None = None
    for visit in itertools.count():
        fate, why = _visit(key, name, remote, device, began + visit)
        if fate == "over":
            return 0
        if fate == "lost" or forsaken is None:
            forsaken = Deadline.after(clock, FORSAKEN_S, "a run to come back to")
        if forsaken.passed() or (visit == 0 and fate == "refused"):
            raise Refused(why)
        sys.stderr.write(f"{why}; trying again\n")
        gc.collect()  # a model that is held by its own hooks, maybe on a GPU without room for two
        select.select([], [], [], RETRY_S)
    raise AssertionError("never")


def _visit(
    key: KeyFile, name: str, remote: Remote, device: str, incarnation: int
) -> tuple[Fate, str]:
    """One life, and in words how it ended."""
    seat = Seat(
        run_dir="",
        run_id="",
        socket_dir="",
        name=name,
        role="trainer",
        index=key.rank,
        incarnation=incarnation,
        device=device,
    )
    try:
        with Mailbox(seat, (), remote=remote, supervision=SupervisionSpec()) as mailbox:
            try:
                fate = _Visit(key, mailbox, device).live()
            except ShardsDisagree as error:
                mailbox.close(failed=str(error))
                return "over", str(error)
            return fate, _LOST if fate == "lost" else f"{remote.endpoint} {_NOT_OURS}"
    except Unauthorised:
        raise
    except Refused as error:
        return "refused", str(error)
