"""The scorer: a child process that compiles what the model wrote, under limits. Executes nothing.

Reads one JSON request a line on stdin, `{"prompt", "completion", "finished"}`, and answers one JSON
verdict a line on stdout, `{"reason", "compiled", "kept", "detail"}`, after a first line that says
`"ready"`. It ends when stdin does, or when its parent dies.

Text can make CPython's parser take memory, time and stack without end. The limits turn that into
this process's death, which `judge.py` notices and survives: address space, processor time per
request, no file may grow, no process may start, few descriptors, no core file.
"""

import json
import resource
import signal
import sys

from actors import process
from actors.rollout.scoring import score

MEMORY_BYTES = 768 << 20  # of address space; an interpreter at rest takes 40 MB of it
CPU_S_PER_REQUEST = 2  # a text at the length limit takes a tenth of that
DESCRIPTORS = 16


def main() -> int:
    """Serve until stdin ends."""
    # Its parent's stop is not its business: it goes when stdin closes.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    process.die_with_parent()
    process.set_name("trireme-scorer")
    _limit()
    _answer("ready")
    for line in sys.stdin.buffer:
        _allow_cpu()
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


def _limit() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (DESCRIPTORS, DESCRIPTORS))


def _allow_cpu() -> None:
    """Move the soft limit, which counts from the process's start, ahead of this request."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    limit = int(used.ru_utime + used.ru_stime) + 1 + CPU_S_PER_REQUEST
    resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.RLIM_INFINITY))


def _answer(document: object) -> None:
    sys.stdout.write(json.dumps(document) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
