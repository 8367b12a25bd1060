"""Who is believed, and where they are reached: the deciding half of the transport.

A message that decoded is still dropped, and counted, when its sender may not say it on that
channel ("forbidden"), when it claims to be somebody else ("forbidden"), or when it comes from a
life that is known to be over ("zombies"). Nothing here raises: input is the peers' fault.

Not covered: repetitions. Deciders recognise them by what messages say; `seq` helps to tell.
"""

from collections import Counter
from collections.abc import Sequence
from typing import TypeVar

from protocol import codec
from protocol.channels import Channel, address, role_of
from protocol.codec import Decoded
from protocol.errors import Malformed, VersionMismatch
from protocol.keys import Admission
from protocol.messages import Role
from protocol.parcels import Received

K = TypeVar("K")
V = TypeVar("V")

# Names remembered per channel. Command lines come and go under new names; the least recently
# heard are forgotten. A run has hundreds of actors.
MAX_NAMES = 4096
# Different notices kept between two readings; more are only counted. Peers choose their words.
MAX_NOTICES, MAX_NOTICE_CHARS = 50, 400


class Gate:
    """Incarnations, routes, counters and notices of one process."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._notices: Counter[str] = Counter()
        self._newest: dict[str, int] = {}
        self._routes: dict[str, dict[str, bytes]] = {}
        self._heard_seq: dict[tuple[str, str, int], int] = {}

    def let_in(
        self,
        at: str,
        channel: Channel,
        parts: Sequence[codec.Buffer],
        *,
        route: bytes | None,
        admitted: Admission | None,
    ) -> Received | None:
        """The message in `parts`, or None when it was dropped. Arguments as for `judge`."""
        self.counts["received"] += 1
        self.counts["bytes_in"] += sum(len(part) for part in parts)
        try:
            decoded = codec.decode(parts)
        except Malformed as error:
            self.drop("malformed", f"{at}: {error}")
            return None
        except VersionMismatch as error:
            self.drop("other_versions", f"{at}: {error}")
            return None
        role = self.judge(at, channel, decoded, route=route, admitted=admitted)
        if role is None:
            return None
        said = decoded.envelope
        return Received(
            at, said.sender, role, said.incarnation, said, decoded.message, decoded.frames
        )

    def judge(
        self,
        at: str,
        channel: Channel,
        decoded: Decoded,
        *,
        route: bytes | None,
        admitted: Admission | None,
    ) -> Role | None:
        """Role of the sender when the message may come in, else None.

        `at` is the channel's full name; `route` the ROUTER's address of the sender, None on other
        sockets; `admitted` what its key entitles it to, on channels with keys.
        """
        envelope = decoded.envelope
        sender = envelope.sender
        role = role_of(sender)
        if role is None or not self._is_who_it_says(at, channel, decoded, route, admitted):
            self.drop("forbidden", f"{at}: a message in the name of {sender!r} from somebody else")
            return None
        if not channel.allows(role, decoded.message):
            self.drop("forbidden", f"{at}: {sender} may not say {envelope.kind} here")
            return None
        newest = self._newest.get(sender, -1)
        if envelope.incarnation < newest:
            story = f"{at}: {sender} #{envelope.incarnation} still speaks; #{newest} replaced it"
            self.drop("zombies", story)
            return None
        if envelope.incarnation > newest:
            self.refuse_older(sender, envelope.incarnation)
        if route is not None:
            _remember(self._routes.setdefault(at, {}), sender, route)
        elif channel.kind == "pull":
            self._count_gap(at, decoded)
        return role

    def _is_who_it_says(
        self,
        at: str,
        channel: Channel,
        decoded: Decoded,
        route: bytes | None,
        admitted: Admission | None,
    ) -> bool:
        envelope = decoded.envelope
        if channel.kind == "pull":
            return True  # PUSH has no address; the socket lies in a 0700 directory
        if route is None:  # we are the DEALER: only the binder answers
            _, slash, index = at.partition("/")
            expected = f"{channel.binder}/{index}" if slash else channel.binder
            return envelope.sender == expected
        if channel.curve:
            return admitted is not None and admitted.covers(envelope.sender)
        return route == address(envelope.sender, envelope.incarnation)

    def route(self, at: str, name: str) -> bytes | None:
        """Address of the newest life of `name` heard on `at`; None: not heard there."""
        return self._routes.get(at, {}).get(name)

    def forget_route(self, at: str, name: str) -> None:
        """The address no longer leads anywhere."""
        self._routes.get(at, {}).pop(name, None)

    def refuse_older(self, name: str, incarnation: int) -> None:
        """From now on drop whatever lives of `name` before `incarnation` say."""
        if incarnation <= self._newest.get(name, -1):
            return
        _remember(self._newest, name, incarnation)
        for routes in self._routes.values():
            routes.pop(name, None)

    def drop(self, counter: str, story: str) -> None:
        """Count something that was not let in, and keep its story for the log."""
        self.counts[counter] += 1
        self.note(story)

    def note(self, text: str) -> None:
        """Keep a notice for the log; repetitions are counted, not stored."""
        text = text[:MAX_NOTICE_CHARS]
        if text in self._notices or len(self._notices) < MAX_NOTICES:
            self._notices[text] += 1

    def take_notices(self) -> list[tuple[str, int]]:
        """Notices since the last call, each with how often it happened."""
        taken = list(self._notices.items())
        self._notices.clear()
        return taken

    def _count_gap(self, at: str, decoded: Decoded) -> None:
        """Telemetry may be lost, but not unnoticed: gaps in a sender's seq are counted.

        From the first one heard: what came before it may have reached an earlier life of ours.
        """
        envelope = decoded.envelope
        key = (at, envelope.sender, envelope.incarnation)
        missing = envelope.seq - self._heard_seq.get(key, envelope.seq - 1) - 1
        if missing > 0:
            self.counts["telemetry_gaps"] += missing
        _remember(self._heard_seq, key, envelope.seq)


def _remember(table: dict[K, V], key: K, value: V) -> None:
    """Store as the most recent entry; beyond `MAX_NAMES` the least recent one goes."""
    table.pop(key, None)
    table[key] = value
    if len(table) > MAX_NAMES:
        del table[next(iter(table))]
