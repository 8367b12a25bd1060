"""Does this Rust compile? Asked of rustc in the sandbox, remembered by content.

Each text is compiled as a library crate of its own, edition 2021, to metadata only, which stops
before code is generated. Nothing of it is kept but the verdict. The compiler sees its own libraries
and the text: `include_str!` of the host's files finds none, so verdicts do not depend on the host.

Verdicts are kept in a SQLite file in the user's cache, under a digest of compiler, command line and
text. It is only a cache: one that is damaged is begun anew, one that cannot be written is done
without.
"""

import functools
import hashlib
import os
import re
import shutil
import sqlite3
from pathlib import Path

import msgspec

from actors import process
from actors.sandbox import means
from actors.sandbox.running import run
from actors.sandbox.terms import MB, Limits, NotStarted, Outcome, TooLittle

FLAGS = (
    "--edition=2021", "--crate-type=lib", "--crate-name=sample", "--emit=metadata",
    "-o", "sample.rmeta", "--error-format=short", "-Awarnings", "-",
)  # fmt: skip
# A file of ten thousand lines takes 2 s. The wall clock counts only when the machine is overloaded
# beyond use: the verdict must not depend on what else runs.
LIMITS = Limits(
    wall_s=300.0,
    cpu_s=20.0,
    memory_bytes=2048 * MB,
    threads=32,  # it makes three; more when told to
    scratch_bytes=64 * MB,
    descriptors=256,
)
# Some 200 MB of verdicts; the oldest go.
_MOST = 1_000_000
_BUSY_S = 2.0
_ASK_S = 30.0
_DETAIL_CHARACTERS = 200
_ERROR = re.compile(r"^<anon>:(\d+):\d+: error(?:\[(E\d+)\])?: (.*)$", re.MULTILINE)
_SCHEMA = "CREATE TABLE IF NOT EXISTS verdicts (digest BLOB UNIQUE, kind TEXT, detail TEXT)"

Problem = tuple[str, str]  # kind and detail, as `stages.SampleProblem` has them
Verdict = tuple[Problem | None, bool]  # what `compile_problem` returns


class CannotVerify(Exception):
    """Rust cannot be verified on this machine: says why and what to do. No fault of any sample."""


class Compiler(msgspec.Struct, frozen=True):
    """One rustc, behind rustup's proxies."""

    path: str
    libraries: str
    version: str  # the whole of `rustc -vV`


@functools.cache
def compiler() -> Compiler:
    """The compiler that `rustc` means here. Raises `CannotVerify`."""
    found = shutil.which("rustc")
    if found is None:
        raise CannotVerify(
            "Rust samples are to be verified, but rustc is not installed: install it "
            "(https://rustup.rs, or your distribution's rustc), or set data.verify = false"
        )
    try:
        # The sandbox shows no settings of rustup's: the compiler itself is needed.
        code, root, trouble = process.call([found, "--print=sysroot"], timeout_s=_ASK_S)
        path = Path(root.strip(), "bin", "rustc")
        if code == 0 and path.exists():
            code, version, trouble = process.call([str(path), "-vV"], timeout_s=_ASK_S)
            if code == 0:
                return Compiler(str(path), os.path.join(root.strip(), "lib"), version.strip())
    except (OSError, TimeoutError) as error:
        trouble = str(error)
    raise CannotVerify(f"{found} does not work: {trouble.strip()[:_DETAIL_CHARACTERS]}")


def check_machine() -> None:
    """Raises `CannotVerify` unless this machine has a compiler and a sandbox for it."""
    compiler()
    try:
        means.require("compile")
    except (TooLittle, NotStarted) as error:
        raise CannotVerify(f"{error}; or set data.verify = false") from error


def compile_problem(text: bytes) -> Verdict:
    """What rustc has against this text, None when nothing; and whether it would say so again.

    May be called from any thread that lives on. Raises `CannotVerify`.
    """
    rustc = compiler()
    try:
        outcome = run(
            [rustc.path, *FLAGS],
            limits=LIMITS,
            stdin=text,
            read_only=[rustc.libraries],
            level="compile",
        )
    except (TooLittle, NotStarted) as error:
        raise CannotVerify(str(error)) from error
    overloaded = outcome.status == "timeout" and outcome.cpu_s < LIMITS.cpu_s
    return _judge(outcome), not overloaded


def _judge(outcome: Outcome) -> Problem | None:
    said = outcome.stderr.decode(errors="replace")
    match outcome.status:
        case "ok":
            return None
        case "exit" if outcome.code == 1:
            return "does not compile", _words(said)
        case "output":  # of errors
            return "does not compile", _words(said)
        case "exit" | "signal":  # it panicked, or its stack was used up
            return "too complex to compile", f"rustc: {outcome.detail}"
        case "timeout" | "memory":
            return "too complex to compile", f"rustc {outcome.detail}"


def _words(said: str) -> str:
    """The first error."""
    found = _ERROR.search(said)
    if found is None:
        return said.strip().partition("\n")[0][:_DETAIL_CHARACTERS]
    line, number, words = found.groups()
    return f"line {line}: {number + ' ' if number else ''}{words}"[:_DETAIL_CHARACTERS]


def _digest(text: bytes) -> bytes:
    return hashlib.sha256(f"{compiler().version}\0{FLAGS}\0".encode() + text).digest()


class Verifier:
    """`compile_problem` with a memory. Opens its file when first asked. Not thread-safe."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path or _cache_path()
        self._opened = False
        self._cache: sqlite3.Connection | None = None
        self._told: dict[bytes, Problem | None] = {}
        self.compiled = 0  # texts that the compiler was asked about
        self.remembered = 0

    def problem(self, text: bytes) -> Problem | None:
        """Kind and detail of what is wrong with it; None when it compiles. Raises `CannotVerify`"""
        digest = _digest(text)
        if digest in self._told:
            return self._told.pop(digest)
        known = self._recall(digest)
        if known is not None:
            self.remembered += 1
            kind, detail = known
            return (kind, detail) if kind else None
        return self._keep(digest, compile_problem(text))

    def knows(self, text: bytes) -> bool:
        """Whether `problem` would answer at once, without the compiler. Raises `CannotVerify`."""
        digest = _digest(text)
        return digest in self._told or self._recall(digest) is not None

    def tell(self, text: bytes, verdict: Verdict) -> None:
        """What `compile_problem` said elsewhere: `problem` will be asked about this text next."""
        digest = _digest(text)
        self._told[digest] = self._keep(digest, verdict)

    def _keep(self, digest: bytes, verdict: Verdict) -> Problem | None:
        problem, lasting = verdict
        self.compiled += 1
        if lasting:
            self._remember(digest, problem or ("", ""))
        return problem

    def close(self) -> None:
        """Let go of the file."""
        if self._cache is not None:
            self._cache.close()
            self._cache = None

    def _recall(self, digest: bytes) -> Problem | None:
        if not self._opened:
            self._opened = True
            self._cache = _open(self._path)
        if self._cache is None:
            return None
        try:
            query = "SELECT kind, detail FROM verdicts WHERE digest = ?"
            return self._cache.execute(query, (digest,)).fetchone()
        except sqlite3.Error:
            self.close()
            return None

    def _remember(self, digest: bytes, verdict: Problem) -> None:
        if self._cache is None:
            return
        try:
            self._cache.execute(
                "INSERT OR IGNORE INTO verdicts VALUES (?, ?, ?)", (digest, *verdict)
            )
        except sqlite3.Error:  # a full disk, or somebody writes for seconds
            self.close()


def _open(path: Path) -> sqlite3.Connection | None:
    """The cache's file, begun anew when it is damaged; None when there can be none."""
    for _ in range(2):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            cache = sqlite3.connect(path, timeout=_BUSY_S, isolation_level=None)
        except (OSError, sqlite3.Error):
            return None
        try:
            cache.execute("PRAGMA journal_mode = WAL")
            cache.execute("PRAGMA synchronous = OFF")  # what a crash of the machine takes is asked
            cache.execute(_SCHEMA)
            newest = cache.execute("SELECT max(rowid) FROM verdicts").fetchone()[0] or 0
            cache.execute("DELETE FROM verdicts WHERE rowid <= ?", (newest - _MOST,))
        except sqlite3.OperationalError:  # locked, full, read-only
            cache.close()
            return None
        except sqlite3.DatabaseError:
            cache.close()
            path.unlink(missing_ok=True)
        else:
            return cache
    return None


def _cache_path() -> Path:
    home = os.environ.get("XDG_CACHE_HOME", "")
    base = Path(home) if home.startswith("/") else Path.home() / ".cache"
    return base / "trireme" / "rust.sqlite"
