"""The loader's side of standbys: who is let in, what is there for them, and how far they are.

They come and ask, so nobody ever waits for one: a slow one copies what is there by the time it
asks again. Every answer is a short look at a directory, or one piece of a file.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from actors import checkpoints
from actors.data.database import LedgerError
from actors.door import Door, refusal
from actors.loop_async import AsyncMailbox
from actors.rundir import RunDir
from actors.standby import catalogue
from actors.standby.mirror import PIECE_BYTES
from actors.topology import Topology
from protocol import messages as m
from protocol.clock import Clock
from protocol.errors import EndpointError

if TYPE_CHECKING:
    from actors.data.copying import Copying
    from actors.data.ledger import Ledger
    from protocol.transport import Received

CHANNEL = "standby"
# Checkpoints that are handed out: one that is being copied outlives the next.
CHECKPOINTS = 2


class Shelf:
    """Hands out what `catalogue` names, and nothing else."""

    def __init__(
        self, run: RunDir, topology: Topology, mailbox: AsyncMailbox, clock: Clock
    ) -> None:
        self._run, self._mailbox, self._clock = run, mailbox, clock
        self._door = Door(
            run.keys,
            topology.remote,
            lambda endpoint, curve: mailbox.bind(CHANNEL, endpoint, curve),
            role="standby",
            nth=1 + len(topology.actors.remote_ranks),
        )
        self._ledger: Ledger | None = None
        self._copying: Copying | None = None
        self._heard: dict[str, float] = {}

    def open(self) -> None:
        """Let those in again who have been invited."""
        if not self._door.was_opened:
            return
        try:
            self._door.open()
        except EndpointError as error:
            self._mailbox.log.error("no standby can return", why=str(error))  # noqa: TRY400

    def serve(self, ledger: "Ledger") -> None:
        """The ledger holds its corpus: where steps are noted, so are its changes from now on.

        Raises `LedgerError`.
        """
        self._ledger = ledger
        if self._run.journal.is_dir():
            self._copying = ledger.note_in(self._run.journal)

    def invite(self, request: m.InviteRequest) -> m.Invitation:
        """Let a key in. From the next checkpoint on steps are noted."""
        answer = self._door.invite(request)
        if answer.refused or self._copying is not None:
            return answer
        try:
            self._run.journal.mkdir(exist_ok=True)
            if self._ledger is not None:
                self._copying = self._ledger.note_in(self._run.journal)
        except (OSError, LedgerError) as error:
            return refusal(request, f"{self._run.journal} cannot be written: {error}")
        return answer

    def hear(self, received: "Received") -> None:
        """A standby speaks."""
        name, message = received.sender, received.message
        match message:
            case m.FilesRequest():
                if name not in self._heard:
                    self._mailbox.log.info("standby attached", standby=name, host=message.host)
                self._heard[name] = self._clock.now()
                label = name.partition("/")[2]
                self._mailbox.gauge(f"standby {label}: step", message.step)
                self._mailbox.gauge(f"standby {label}: lacking_bytes", message.lacking_bytes)
                self._mailbox.send(CHANNEL, m.Files(files=tuple(self._files())), to=name)
            case m.PieceRequest(path=path, offset=offset, size=size):
                self._heard[name] = self._clock.now()
                found = self._piece(path, offset, min(size, PIECE_BYTES))
                piece = m.Piece(path=path, offset=offset)
                self._mailbox.send(CHANNEL, piece, to=name, frames=[found])
            case m.Goodbye():
                self._heard.pop(name, None)
                self._mailbox.gauge(f"standby {name.partition('/')[2]}: silent_s", -1.0)
                self._mailbox.log.info("standby left", standby=name)
            case _:
                pass

    def show(self) -> None:
        """Since when nothing has been heard of whom; what has gone wrong."""
        if self._copying is not None and self._copying.failed:
            why = self._copying.failed
            self._mailbox.log.warning("no copy of the ledger for standbys", why=why)
            self._copying = None  # the next invitation tries again
        now = self._clock.now()
        for name, heard in self._heard.items():
            self._mailbox.gauge(f"standby {name.partition('/')[2]}: silent_s", now - heard)

    def dismiss(self, stop: m.Stop) -> None:
        """The run ends."""
        for name in self._heard:
            self._mailbox.send(CHANNEL, stop, to=name)

    # --- what there is ----------------------------------------------------------------------------

    def _files(self) -> list[m.FileFacts]:
        run = self._run
        paths = [*catalogue.SMALL, catalogue.METRICS]
        if run.journal.is_dir():
            paths += [f"journal/{path.name}" for path in run.journal.iterdir()]
        for saved in checkpoints.listing(run.checkpoints)[:CHECKPOINTS]:
            paths += _of_checkpoint(saved)
        wanted = catalogue.ordered(paths)
        # What tells of a step is looked at before what the step needs.
        found = [facts for path in reversed(wanted) if (facts := _facts(run.path, path))]
        return found[::-1]

    def _piece(self, path: str, offset: int, size: int) -> bytes:
        """Empty when there is none."""
        if catalogue.kind_of(path) is None or offset < 0 or size < 1:
            return b""
        try:
            with (self._run.path / path).open("rb") as file:
                file.seek(offset)
                return file.read(size)
        except OSError:
            return b""


def _of_checkpoint(path: Path) -> list[str]:
    """Its files, unless it is just being removed: its manifest goes first."""
    try:
        names = [found.name for found in path.iterdir()]
    except OSError:
        return []
    whole = checkpoints.MANIFEST in names
    return [f"{path.parent.name}/{path.name}/{name}" for name in names] if whole else []


def _facts(root: Path, path: str) -> m.FileFacts | None:
    try:
        found = (root / path).stat()
    except OSError:
        return None
    return m.FileFacts(path=path, size=found.st_size, modified_ns=found.st_mtime_ns)
