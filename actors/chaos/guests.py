"""Attached workers of a disturbed run: `run.py attach` at the far end of a cable that we hold."""

import signal
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
_COUNT = 2


class Guests:
    """One other host, as far as the run can tell."""

    def __init__(self, run: RunDir, directory: Path) -> None:
        self._run, self._directory = run, directory
        self._key = directory / "guest.key"
        self.who: Identity | None = None
        self.cable: Cable | None = None
        self._gone: list[Identity] = []

    def invite(self) -> str:
        """Ask the run in; why that did not work out, else ""."""
        self._key.unlink(missing_ok=True)
        wanted = ("--run", str(self._run.path), "--out", str(self._key), "--label", "guest")
        try:
            code, _, err = process.call(command("invite", *wanted), timeout_s=_INVITE_S)
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
        self.who = process.start(
            command("attach", endpoint, "--key", str(self._key), "--count", str(_COUNT)),
            output=self._directory / "guests.out",
            env=process.environment(),
        )

    @property
    def here(self) -> bool:
        """Whether that host is attached."""
        for who in [*self._gone, *([self.who] if self.who else [])]:
            for _ in process.reap(who.pid):
                pass
        return self.who is not None and process.alive(self.who)

    def lose(self) -> None:
        """SIGKILL to all of them."""
        if self.who is not None:
            for who in [*descendants(self.who), self.who]:
                process.send_signal(who, signal.SIGKILL)
            self._gone.append(self.who)
            self.who = None

    def close(self) -> None:
        """Nobody is left, and no cable."""
        self.lose()
        if self.cable is not None:
            self.cable.close()
            self.cable = None
