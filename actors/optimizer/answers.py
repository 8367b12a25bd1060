"""What a shard says: updates, whole parameters, needs, its part of a step, metrics.

Everything is made from the state, so it can be made again for whoever lost it.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from actors import subspace
from actors.bases import BasisSchedule
from actors.optimizer.instructions import Need
from actors.optimizer.publishing import News, flip_payload
from actors.optimizer.refreshing import basis_ref
from actors.optimizer.state import Counts, State
from actors.outbox import Outbox
from actors.published import Array, codec_of, published_tensors
from protocol import flips
from protocol import messages as m
from protocol.segments import Segment
from protocol.tensors import Frames, ref_in

# Tensors from this size on are sent as references into the state segment, smaller ones as frames.
BY_REFERENCE_BYTES = 1 << 16


class Answers:
    """The messages of one shard. Parameters are counted in the layout's order."""

    def __init__(
        self,
        state: State,
        shard: int,
        outbox: Outbox,
        segment: Segment | None,
        schedule: BasisSchedule,
    ) -> None:
        self._state, self._shard, self._schedule = state, shard, schedule
        self._outbox, self._segment = outbox, segment
        self._channel = f"exchange/{shard}"
        self._parameters = state.layout.parameters
        self._made: dict[int, tuple[int, str, tuple[Array, ...]]] = {}

    def remember(self, index: int, version: int, told: News) -> None:
        """What led to `version`: most likely it is sent in a moment."""
        self._made[index] = (version, told.codec, told.payload)

    def update(self, index: int, version: int, ranks: Iterable[int]) -> None:
        """Send what leads from `version` - 1 to `version`, or all of it if that base is gone.

        Nothing if `version` is gone itself: whoever asked has contributed to a later one since.
        """
        if not self._state.has(index, version):
            return
        parameter = self._parameters[index]
        if parameter.kind == "ternary" and not self._state.has(index, version - 1):
            for rank in ranks:
                self._whole(f"trainer/{rank}", index, version)
            return
        out = Frames()
        codec, payload = self._difference(index, version)
        tensors = tuple(out.add(array) for array in payload)
        if not payload:
            tensors = self._references(index, version, out)
        new = self._schedule.refreshes(version, parameter.name)
        message = m.Update(
            version=version,
            param=parameter.name,
            codec=codec,
            digest=self._state.digest(index, version).hex(),
            tensors=tensors,
            basis=self._basis(index, out) if new else None,
        )
        for rank in ranks:
            self._send(message, to=f"trainer/{rank}", frames=out.parts)

    def codes(self, to: str, version: int) -> None:
        """Send all parameters at `version`."""
        for index in range(len(self._parameters)):
            self._whole(to, index, version)

    def needs(self, need: Need) -> None:
        """Tell a rank what has not come."""
        message = m.StepNeeds(
            step=need.step, params=need.params, facts=need.facts, sketches=need.sketches
        )
        self._send(message, to=f"trainer/{need.rank}")

    def ask(self, ranks: Iterable[int], message: m.Message, frames: Sequence[Any]) -> None:
        """Send what the search for a basis has come to."""
        for rank in ranks:
            self._send(message, to=f"trainer/{rank}", frames=frames)

    def part(
        self, version: int, digests: Iterable[bytes], counts: Counts, absent: Sequence[int]
    ) -> None:
        """Tell shard 0 that this shard's part of `version` is durable."""
        message = m.ShardCommitted(
            version=version,
            shard=self._shard,
            digests=tuple(digest.hex() for digest in digests),
            flips=counts.flips,
            up_bytes=counts.up_bytes,
            down_bytes=counts.down_bytes,
            absent=tuple(absent) if any(absent) else (),
        )
        self._outbox.send("exchange/0", message, step=version)

    def metrics(self, to: str, after: int) -> None:
        """Send the records of the committed steps after `after`."""
        self._send(m.Metrics(records=tuple(self._state.records(max(after, 0)))), to=to)

    def _send(self, message: m.Message, *, to: str, frames: Sequence[Any] = ()) -> None:
        self._outbox.send(self._channel, message, to=to, frames=frames)

    def _whole(self, to: str, index: int, version: int) -> None:
        parameter = self._parameters[index]
        out = Frames()
        message = m.Codes(
            version=version,
            param=parameter.name,
            index=index,
            count=len(self._parameters),
            codec=codec_of(parameter),
            digest=self._state.digest(index, version).hex(),
            tensors=self._references(index, version, out),
            basis=self._basis(index, out) if to.startswith("trainer/") else None,
        )
        self._send(message, to=to, frames=out.parts)

    def _basis(self, index: int, out: Frames) -> m.BasisRef | None:
        """The basis as it is now: if newer than what it goes with, then the step after found it,
        and whoever computes that step again has no need of it before.
        """
        kept, name = self._state.kept(index), self._parameters[index].name
        if name not in self._schedule.names:
            return None
        version = int(kept[subspace.VERSION][0])
        if not version and not self._schedule.begins_random:
            return None
        tensors = {key: array for key, array in kept.items() if subspace.is_of_basis(key)}
        return basis_ref(tensors, version, out)

    def _difference(self, index: int, version: int) -> tuple[str, tuple[Array, ...]]:
        """Codec and payload of what leads to `version`: as it was made just now, or made again for
        somebody who lacks it. Steps of dense parameters cannot be: their master has moved on.
        """
        made, codec, payload = self._made.get(index, (-1, "", ()))
        if made == version:
            return codec, payload
        if self._parameters[index].kind == "dense":
            return "dense", ()
        old, new = (self._state.published(index, v) for v in (version - 1, version))
        found = flips.encode(old["packed"], new["packed"], self._parameters[index].numel)
        return "flips", flip_payload(found, new["scale"])

    def _references(self, index: int, version: int, out: Frames) -> tuple[m.TensorRef, ...]:
        """The published tensors: large ones where they lie, small ones copied into frames.

        What lies in the segment is overwritten two versions later; the digest would show it.
        """
        shown = self._state.published(index, version)
        slots = self._state.published_slots(index, version)
        refs: list[m.TensorRef] = []
        for spec in published_tensors(self._parameters[index]):
            if self._segment is not None and spec.nbytes >= BY_REFERENCE_BYTES:
                offset = slots[spec.name].offset
                refs.append(ref_in(self._segment, spec.dtype, spec.shape, offset))
            else:
                refs.append(out.add(shown[spec.name].copy()))
        return tuple(refs)
