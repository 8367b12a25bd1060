"""The scorer: a child process in a sandbox that compiles what the model wrote. Executes nothing.

Reads one JSON request a line on stdin, `{"prompt", "completion", "finished"}`, and answers one JSON
verdict a line on stdout, `{"reason", "compiled", "kept", "detail"}`, after a first line that says
`"ready"`. It ends when stdin does.

Text can make CPython's parser take memory, time and stack without end. Whoever starts this
(`judge.py`) does so within limits, which turn that into this process's death, and survives it.
Imports nothing but the standard library and the scoring: the sandbox shows nothing else.
"""

import json
import sys

from actors.rollout.scoring import score


def main() -> int:
    """Serve until stdin ends."""
    _answer("ready")
    for line in sys.stdin.buffer:
        request = json.loads(line)
        verdict = score(request["prompt"], request["completion"], finished=request["finished"])
        _answer(
            {
                "reason": verdict.reason,
                "compiled": verdict.compiled,
                "kept": verdict.kept,
                "detail": verdict.detail,
            }
        )
    return 0


def _answer(document: object) -> None:
    sys.stdout.write(json.dumps(document) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
