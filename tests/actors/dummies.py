"""Actors, and a supervisor and a launcher for them, that only tests start.

What an actor of this file does is told by files in the run directory: `do-NAME` holds one word.
"""

import contextlib
import signal
import subprocess
import sys
from pathlib import Path

from actors import rundir, topology
from actors.launcher import Launcher, exit_code
from actors.loop import Mailbox
from actors.progress import Plain
from actors.roles import Entry
from actors.seat import Seat
from actors.supervisor import __main__ as supervisor
from actors.supervisor.process import Surroundings
from protocol.messages import RunDone
from protocol.segments import segment_name

ROLES = {
    "recorder": Entry("tests.actors.dummies:obey", "light", 0, 5),
    "loader": Entry("tests.actors.dummies:obey", "light", 1, 4),
    "trainer": Entry("tests.actors.dummies:obey", "light", 3, 2),
    "data_worker": Entry("tests.actors.dummies:obey", "light", 4, 1),
    "optimizer_shard": Entry("tests.actors.dummies:obey", "light", 2, 3),
    "rollout": Entry("tests.actors.dummies:obey", "torch", 5, 0),
}


# --- Actors ---------------------------------------------------------------------------------------


def obey(seat: Seat) -> int:
    """Live until told to stop, and do what `do-NAME` says."""
    order = Path(seat.run_dir) / f"do-{rundir.file_name(seat.name)}"
    with Mailbox(seat) as mailbox:
        mailbox.log.info("up")
        while mailbox.stopping is None or _read(order) == "never leave":
            mailbox.receive(0.02)
            word = _read(order)
            match word.partition(" ")[0]:
                case "crash":
                    raise ValueError("on purpose")
                case "exit":
                    return int(word.split()[1])
                case "give":  # "give up: WHY"
                    mailbox.close(failed=word.partition(": ")[2])
                    return 1
                case "done":
                    mailbox.send("control", RunDone(step=3, weights_digest="d" * 64))
                case "start":  # a program in a session of its own, as a sandbox is
                    order.unlink()
                    child = subprocess.Popen(["sleep", "600"], start_new_session=True)
                    (Path(seat.run_dir) / "started").write_text(str(child.pid))
                case "hang":
                    signal.pause()
                case _:
                    mailbox.progress("orders")
        with (Path(seat.run_dir) / "stopped").open("a") as file:
            file.write(f"{seat.name}\n")
    return 0


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


# --- Whoever keeps them ---------------------------------------------------------------------------


def supervise() -> None:
    """python -m tests.actors.dummies supervise RUN_DIR"""
    nbytes = int(_read(Path(sys.argv[2]) / "do-segments") or 4096)

    def segments(run_id: str, _topology: topology.Topology) -> dict[str, int]:
        hang = Path(sys.argv[2]) / "do-hang"
        if hang.exists():
            hang.unlink()
            signal.pause()
        return {segment_name(run_id, "optimizer_shard/0", "state"): nbytes}

    supervisor.main(sys.argv[2:], Surroundings(roles=ROLES, segments=segments))


def launch() -> None:
    """python -m tests.actors.dummies launch RUN_DIR"""
    run = rundir.open_(Path(sys.argv[2]))
    spec = topology.decode(run.topology.read_text(), source="topology.toml").supervision
    watcher = Plain(run, 3, sys.stdout, resumed=False)
    command = ("-m", "tests.actors.dummies", "supervise")
    with Launcher(run, spec, watcher=watcher, command=command) as launcher:
        end = launcher.drive()
    with contextlib.suppress(BrokenPipeError):
        watcher.say(end.reason)
    sys.exit(exit_code(end))


if __name__ == "__main__":
    {"supervise": supervise, "launch": launch}[sys.argv[1]]()
