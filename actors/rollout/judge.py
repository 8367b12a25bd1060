"""The judge: asks the scorer child for verdicts and outlives it.

The scorer lives in a sandbox, as tight as this machine can make it. One that dies over a text is
replaced and asked once more; the second death is the text's own doing and scores zero. A scorer
that cannot even start is the machine's fault: that is `ScorerUnavailable`, never a reward.
"""

import json
import os
from collections.abc import Callable, Sequence
from typing import Any

from actors.rollout.scoring import Verdict
from actors.sandbox import means, view
from actors.sandbox.serving import Gone, Served
from actors.sandbox.terms import MB, Limits, NotStarted, SandboxError, TooLittle
from protocol.clock import Clock

# A request's whole time by the wall clock. Far above its processor limit, since rollouts run at low
# priority and wait for their turn.
WALL_S = 30.0
# A text at the length limit takes a tenth of that.
CPU_S = 2.0
# Of address space; an interpreter at rest takes 40 MB of it.
MEMORY_BYTES = 768 * MB
# An interpreter starts in a tenth of a second; on a machine that swaps, in many.
START_S = 60.0
STARTS = 3  # attempts before the scorer counts as unavailable
MAX_ANSWER_BYTES = 1 << 16
DESCRIPTORS = 16

_SOURCE = os.path.dirname(os.path.abspath(__file__))
# The package is made by hand: to find it, the interpreter would look into the directories above,
# which the sandbox does not show.
SCORER = (
    "-c",
    "import sys, types; made = types.ModuleType('actors.rollout'); "
    f"made.__path__ = [{_SOURCE!r}]; sys.modules['actors.rollout'] = made; "
    "from actors.rollout.scorer import main; sys.exit(main())",
)


class ScorerUnavailable(Exception):
    """No scorer process can be started: says why. The completions at hand stay without a score."""


class Judge:
    """One scorer process, started when first needed. Not thread-safe: one thread asks and waits.

    `on_death(cause)` hears of every death, so that it can be logged with its circumstances.
    """

    def __init__(
        self,
        on_death: Callable[[str], None],
        *,
        command: Sequence[str] = SCORER,
        run_id: str = "",
        wall_s: float = WALL_S,
        clock: Clock | None = None,
    ) -> None:
        self.deaths = 0
        self._on_death = on_death
        self._command = (view.interpreter(), "-I", "-S", *command)
        self._run_id = run_id
        self._limits = Limits(
            wall_s=wall_s,
            cpu_s=CPU_S,
            memory_bytes=MEMORY_BYTES,
            output_bytes=MAX_ANSWER_BYTES,
            descriptors=DESCRIPTORS,
        )
        self._clock = clock
        self._scorer: Served | None = None

    def __enter__(self) -> "Judge":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def sandbox(self) -> str:
        """What will hold the scorer, and what it will not hold: in words, for the log."""
        try:
            found = means.available()
        except SandboxError as error:
            return str(error)
        return f"{found.name}; no hold on {', '.join(found.lacks)}" if found.lacks else found.name

    def score(self, prompt: str, completion: str, *, finished: bool) -> Verdict:
        """The verdict on one completion (`scoring.score`). Raises `ScorerUnavailable`."""
        request = {"prompt": prompt, "completion": completion, "finished": finished}
        line = json.dumps(request).encode() + b"\n"
        cause = ""
        for _ in range(2):
            scorer = self._ensure()
            try:
                return _verdict(_decoded(scorer.ask(line)))
            except Gone as error:
                cause = str(error)
                self._bury(cause)
        return Verdict("scorer died", detail=cause)

    def close(self) -> None:
        """End the scorer, if any."""
        if self._scorer is not None:
            self._scorer.close()
            self._scorer = None

    def _ensure(self) -> Served:
        """A scorer that has said it is ready. Raises `ScorerUnavailable`."""
        cause = ""
        for _ in range(STARTS):
            if self._scorer is not None:
                return self._scorer
            try:
                self._scorer = self._start()
                if _decoded(self._scorer.ask(b"", within_s=START_S)) == "ready":
                    return self._scorer
                cause = "it spoke before it was ready"
            except (Gone, NotStarted) as error:
                cause = str(error)
            except TooLittle as error:  # no other attempt will fare better
                raise ScorerUnavailable(str(error)) from error
            self._bury(cause)
        raise ScorerUnavailable(f"the scorer does not start: {cause}")

    def _start(self) -> Served:
        """Raises `NotStarted`, `TooLittle`."""
        return Served(
            self._command,
            limits=self._limits,
            read_only=(*view.python(), _SOURCE),
            level="parse",  # it executes nothing of what it reads
            run_id=self._run_id,
            clock=self._clock,
        )

    def _bury(self, cause: str) -> None:
        self.deaths += 1
        self.close()
        self._on_death(cause)


def _decoded(answer: bytes) -> Any:
    try:
        return json.loads(answer)
    except ValueError:
        raise Gone("it answered something that is no JSON") from None


def _verdict(answer: Any) -> Verdict:
    try:
        return Verdict(
            reason=answer["reason"],
            compiled=bool(answer["compiled"]),
            kept=int(answer["kept"]),
            detail=str(answer["detail"]),
        )
    except (KeyError, TypeError, ValueError):
        raise Gone("its answer is no verdict") from None
