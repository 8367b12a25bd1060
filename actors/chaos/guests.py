"""Attached actors of a disturbed run: `run.py attach` at the far end of cables that we hold."""

import signal
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from actors import process
from actors.chaos.links import Cable
from actors.chaos.runs import command, descendants
from actors.rundir import RunDir
from protocol.errors import EndpointError
from protocol.keys import KeyFile

if TYPE_CHECKING:
    from actors.process import Identity

_INVITE_S = 30.0
_WORKERS = 2


class Guest:
    """One key, the cable it is used over, and whoever attaches with it."""

    def __init__(self, run: RunDir, directory: Path, label: str, asked: Sequence[str]) -> None:
        """`asked`: what `attach` is told besides."""
        self._run, self._label, self._asked = run, label, asked
        self._key = directory / f"{label}.key"
        self._output = directory / f"{label}.out"
        self.cable: Cable | None = None
        self._who: Identity | None = None
        self._gone: list[Identity] = []

    def invite(self, role: str) -> str:
        """Ask the run in; why that did not work out, else ""."""
        self._key.unlink(missing_ok=True)
        wanted = ("--role", role, "--out", str(self._key), "--label", self._label)
        try:
            asked = command("invite", "--run", str(self._run.path), *wanted)
            code, _, err = process.call(asked, timeout_s=_INVITE_S)
            if code:
                return err.strip() or f"exit code {code}"
            endpoint = KeyFile.read(self._key).endpoint
        except (TimeoutError, EndpointError) as error:
            return str(error)
        self.cable = Cable(int(endpoint.rpartition(":")[2]))
        return ""

    def attach(self) -> None:
        """Come (again)."""
        assert self.cable is not None
        endpoint = f"tcp://127.0.0.1:{self.cable.port}"
        self._who = process.start(
            command("attach", endpoint, "--key", str(self._key), *self._asked),
            output=self._output,
            env=process.environment(),
        )

    @property
    def here(self) -> bool:
        """Whether it is attached."""
        for who in [*self._gone, *([self._who] if self._who else [])]:
            for _ in process.reap(who.pid):
                pass
        return self._who is not None and process.alive(self._who)

    def lose(self) -> None:
        """SIGKILL to all of it."""
        if self._who is not None:
            for who in [*descendants(self._who), self._who]:
                process.send_signal(who, signal.SIGKILL)
            self._gone.append(self._who)
            self._who = None

    def close(self) -> None:
        """Nobody is left, and no cable."""
        self.lose()
        if self.cable is not None:
            self.cable.close()
            self.cable = None


class Guests:
    """One other host, as far as the run can tell: data workers, and trainers where it wants any."""

    def __init__(self, run: RunDir, directory: Path, *, workers: bool, trainers: int) -> None:
        self._of = [("data_worker", Guest(run, directory, "guest", ("--count", str(_WORKERS))))]
        if not workers:
            self._of.clear()
        for number in range(trainers):
            trainer = Guest(run, directory, f"trainer{number}", ("--role", "trainer"))
            self._of.append(("trainer", trainer))

    def __bool__(self) -> bool:
        return bool(self._of)

    def invite(self) -> str:
        """Ask the run to let all in; why that did not work out, else ""."""
        waiting = ((role, guest) for role, guest in self._of if guest.cable is None)
        return next((why for role, guest in waiting if (why := guest.invite(role))), "")

    @property
    def invited(self) -> bool:
        """Whether the run has let them in."""
        return bool(self._of) and all(guest.cable is not None for _, guest in self._of)

    def attach(self) -> None:
        """Whoever is not there comes (again)."""
        for _, guest in self._of:
            if not guest.here:
                guest.attach()

    @property
    def here(self) -> bool:
        """Whether that host is attached, with everything it has."""
        return bool(self._of) and all(guest.here for _, guest in self._of)

    def cut(self) -> None:
        """Their connections break, and are refused until `heal`."""
        for cable in self._cables():
            cable.cut()

    def mute(self) -> None:
        """Their connections carry nothing until `heal`."""
        for cable in self._cables():
            cable.mute()

    def heal(self) -> None:
        """Their cables are as good as new."""
        for cable in self._cables():
            cable.heal()

    def _cables(self) -> list[Cable]:
        return [guest.cable for _, guest in self._of if guest.cable is not None]

    def lose(self) -> None:
        """SIGKILL to all of them."""
        for _, guest in self._of:
            guest.lose()

    def close(self) -> None:
        """Nobody is left, and no cable."""
        for _, guest in self._of:
            guest.close()
