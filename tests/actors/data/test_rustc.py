"""Rust is verified by rustc in the sandbox, the same on every host, and once per content."""

import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from actors import process
from actors.data import rustc
from actors.data.rustc import CannotVerify, Verifier
from actors.data.stages import Options, SampleProblem, State, verify
from actors.sandbox import means
from actors.sandbox.terms import Means, Outcome
from protocol.messages import SampleRef
from tests.actors.sandbox.cells import CELLS, needed

GOOD = (
    b"use std::collections::HashMap;\n"
    b"pub fn total(of: &HashMap<u8, u32>) -> u32 { of.values().sum() }\n"
)


@pytest.fixture
def verifier(tmp_path: Path) -> Iterator[Verifier]:
    try:
        rustc.check_machine()
    except CannotVerify as error:
        pytest.skip(str(error))
    made = Verifier(tmp_path / "cache" / "rust.sqlite")
    yield made
    made.close()


@pytest.mark.system
@pytest.mark.parametrize(
    ("text", "kind", "detail"),
    [
        (b"pub fn f() -> u8 { x }", "does not compile", "line 1: E0425 cannot find value `x`"),
        (b"\n\npub fn f( {", "does not compile", "line 3: "),
        (b"use serde::Serialize;", "does not compile", "line 1: E0432"),
        (b"\xff\xfe", "does not compile", ""),
        (b'compile_error!("no");', "does not compile", "line 1: no"),
    ],
)
def test_what_does_not_compile_is_refused_with_line_and_reason(
    text: bytes, kind: str, detail: str, verifier: Verifier
):
    problem = verifier.problem(text)
    assert problem is not None
    assert (problem[0], problem[1].startswith(detail)) == (kind, True), problem


@pytest.mark.system
def test_what_compiles_has_no_problem_and_leaves_nothing(
    verifier: Verifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    for text in (GOOD, b"", b"// only a comment", b"#![allow(dead_code)]\nfn unused() {}\n",
                 b"async fn f() {}\npub struct S<'a>(pub &'a str);"):  # fmt: skip
        assert verifier.problem(text) is None
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]


@pytest.mark.system
@pytest.mark.parametrize("path", ["/etc/passwd", "/etc/hostname", "/proc/self/environ", "SECRET"])
def test_files_of_the_host_cannot_be_included(path: str, verifier: Verifier, tmp_path: Path):
    (tmp_path / "secret").write_text("a run's own")
    path = path.replace("SECRET", str(tmp_path / "secret"))
    for macro in ("include_str", "include_bytes"):
        problem = verifier.problem(f'pub const X: &[u8] = {macro}!("{path}") as _;'.encode())
        assert problem is not None
        assert "couldn't read" in problem[1]
    assert verifier.problem(f'#[path = "{path}"] mod stolen;'.encode()) is not None


@pytest.mark.system
@pytest.mark.parametrize("cell", sorted(CELLS))
def test_verdicts_are_the_same_under_every_means(
    cell: str, verifier: Verifier, monkeypatch: pytest.MonkeyPatch
):
    using = needed(cell)
    monkeypatch.setattr(means, "available", lambda: using)
    assert verifier.problem(GOOD) is None
    problem = verifier.problem(b'pub const X: &str = include_str!("/etc/passwd");')
    assert problem is not None
    assert problem[1].startswith("line 1: couldn't read `/etc/passwd`")


@pytest.mark.system
def test_the_environment_cannot_be_asked(verifier: Verifier, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TRIREME_SECRET", "key")
    problem = verifier.problem(b'pub const X: &str = env!("TRIREME_SECRET");')
    assert problem is not None
    assert "not defined" in problem[1]


@pytest.mark.system
def test_text_that_exhausts_the_compiler_is_contained(verifier: Verifier):
    problem = verifier.problem(b'pub static X: &[u8] = include_bytes!("/dev/zero");')
    assert problem is not None
    assert problem[0] == "too complex to compile"
    assert "bytes" in problem[1]
    deep = b"pub fn f() -> u8 { " + b"(" * 200_000 + b"1" + b")" * 200_000 + b" }"
    problem = verifier.problem(deep)
    assert problem is not None
    macros = b"macro_rules! m { ($($t:tt)*) => { m!($($t)* $($t)*) } } m!(a b);"
    assert verifier.problem(macros) is not None


@pytest.mark.system
def test_text_that_computes_for_ever_is_ended(verifier: Verifier, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(rustc, "LIMITS", msgspec.structs.replace(rustc.LIMITS, cpu_s=1.0))
    endless = b"#![allow(long_running_const_eval)]\npub const X: u8 = { loop {} };"
    problem = verifier.problem(endless)
    assert problem == ("too complex to compile", "rustc used up 1 s of processor time")


@pytest.mark.system
def test_a_verdict_is_asked_for_once(verifier: Verifier, tmp_path: Path):
    bad = b"pub fn f() -> u8 { x }"
    first = verifier.problem(bad)
    assert verifier.problem(GOOD) is None
    assert (verifier.problem(GOOD), verifier.problem(bad)) == (None, first)
    assert (verifier.compiled, verifier.remembered) == (2, 2)
    verifier.close()
    again = Verifier(tmp_path / "cache" / "rust.sqlite")  # as the next run does
    assert (again.problem(GOOD), again.problem(bad)) == (None, first)
    assert (again.compiled, again.remembered) == (0, 2)
    again.close()
    assert (tmp_path / "cache" / "rust.sqlite").stat().st_mode & 0o777 == 0o600


@pytest.mark.system
def test_another_compiler_is_asked_again(verifier: Verifier, monkeypatch: pytest.MonkeyPatch):
    assert verifier.problem(GOOD) is None
    newer = msgspec.structs.replace(rustc.compiler(), version="rustc 9.9")
    monkeypatch.setattr(rustc, "compiler", lambda: newer)
    assert verifier.problem(GOOD) is None
    assert verifier.compiled == 2


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """No compiler: every text is fine, and noted."""
    asked: list[bytes] = []

    def judge(text: bytes) -> tuple[None, bool]:
        asked.append(text)
        return None, b"overloaded" not in text

    monkeypatch.setattr(rustc, "compile_problem", judge)
    monkeypatch.setattr(rustc, "compiler", lambda: rustc.Compiler("/bin/rustc", "/lib", "1"))
    return asked


def test_a_damaged_cache_is_begun_anew(judged: list[bytes], tmp_path: Path):
    path = tmp_path / "rust.sqlite"
    path.write_bytes(b"this is no database at all" * 1000)
    for _ in range(2):
        verifier = Verifier(path)
        assert verifier.problem(GOOD) is None
        verifier.close()
    assert judged == [GOOD]


def test_without_a_writable_cache_everything_is_asked(judged: list[bytes], tmp_path: Path):
    (tmp_path / "file").touch()
    verifier = Verifier(tmp_path / "file" / "rust.sqlite")
    assert [verifier.problem(GOOD) for _ in range(2)] == [None, None]
    assert judged == [GOOD, GOOD]


def test_a_verdict_from_elsewhere_is_kept_and_not_asked_for_again(
    judged: list[bytes], tmp_path: Path
):
    verifier = Verifier(tmp_path / "rust.sqlite")
    assert not verifier.knows(GOOD)
    verifier.tell(GOOD, (("does not compile", "line 1"), True))
    assert verifier.knows(GOOD)
    assert verifier.problem(GOOD) == verifier.problem(GOOD) == ("does not compile", "line 1")
    # One that does not last serves whom it was asked for.
    verifier.tell(b"overloaded", (("too complex to compile", ""), False))
    assert verifier.problem(b"overloaded") == ("too complex to compile", "")
    assert judged == []
    assert verifier.problem(b"overloaded") is None
    assert judged == [b"overloaded"]
    verifier.close()


def test_a_verdict_of_an_overloaded_machine_is_not_kept(judged: list[bytes], tmp_path: Path):
    verifier = Verifier(tmp_path / "rust.sqlite")
    assert [verifier.problem(b"overloaded") for _ in range(2)] == [None, None]
    assert len(judged) == 2
    verifier.close()


def test_two_workers_share_a_cache_and_the_oldest_verdicts_go(
    judged: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    one, two = Verifier(tmp_path / "rust.sqlite"), Verifier(tmp_path / "rust.sqlite")
    for number in range(10):
        (one, two)[number % 2].problem(b"%d" % number)
    assert one.problem(b"9") is None
    one.close()
    two.close()
    assert len(judged) == 10
    monkeypatch.setattr(rustc, "_MOST", 4)
    third = Verifier(tmp_path / "rust.sqlite")
    third.problem(b"9")
    third.problem(b"1")
    third.close()
    assert len(judged) == 11
    with sqlite3.connect(tmp_path / "rust.sqlite") as cache:
        assert cache.execute("SELECT count(*) FROM verdicts").fetchone() == (5,)
    cache.close()


@pytest.mark.parametrize(
    ("outcome", "problem"),
    [
        (("exit", 101, "exit code 101"), ("too complex to compile", "rustc: exit code 101")),
        (
            ("signal", -11, "killed by SIGSEGV"),
            ("too complex to compile", "rustc: killed by SIGSEGV"),
        ),
        (("memory", -6, "needs more"), ("too complex to compile", "rustc needs more")),
        (("output", -9, "too much"), ("does not compile", "line 2: E0001 words")),
        (("exit", 1, "exit code 1"), ("does not compile", "line 2: E0001 words")),
    ],
)
def test_every_end_of_the_compiler_is_named(
    outcome: tuple[str, int, str], problem: tuple[str, str]
):
    status, code, detail = outcome
    ended = Outcome(
        status=status,  # pyright: ignore[reportArgumentType]
        code=code,
        stdout=b"",
        stderr=b"<anon>:2:7: error[E0001]: words\nerror: aborting",
        seconds=1.0,
        cpu_s=1.0,
        peak_memory=1,
        detail=detail,
    )
    assert rustc._judge(ended) == problem


def nowhere(_name: str) -> None:
    return None


def rust(path: Path) -> SampleRef:
    return SampleRef(name=path.name, path=str(path), language="rust")


@pytest.mark.system
def test_the_stage_passes_good_rust_and_refuses_bad(verifier: Verifier, tmp_path: Path):
    options = Options(max_sample_bytes=1000, rust=verifier)
    ref = rust(tmp_path / "sample.rs")
    assert verify(State(text=GOOD), ref, options) == State(text=GOOD)
    with pytest.raises(SampleProblem, match="does not compile: line 1: E0425") as problem:
        verify(State(text=b"pub fn f() -> u8 { x }"), ref, options)
    assert problem.value.kind == "does not compile"


def test_a_machine_that_cannot_verify_is_no_fault_of_the_sample(
    fresh: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(shutil, "which", nowhere)
    options = Options(max_sample_bytes=1000, rust=Verifier(tmp_path / "rust.sqlite"))
    with pytest.raises(CannotVerify, match="rustc is not installed"):
        verify(State(text=GOOD), rust(tmp_path / "sample.rs"), options)


@pytest.fixture
def fresh() -> Iterator[None]:
    rustc.compiler.cache_clear()
    yield
    rustc.compiler.cache_clear()


def test_a_machine_without_rustc_is_told_what_to_do(fresh: None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shutil, "which", nowhere)
    with pytest.raises(CannotVerify, match=r"install it .*or set data\.verify = false"):
        rustc.check_machine()


def test_a_compiler_that_does_not_work_is_named(fresh: None, monkeypatch: pytest.MonkeyPatch):
    def call(_command: list[str], *, timeout_s: float) -> tuple[int, str, str]:
        assert timeout_s > 0
        return 1, "", "no default toolchain"

    def which(_name: str) -> str:
        return "/opt/rustc"

    monkeypatch.setattr(shutil, "which", which)
    monkeypatch.setattr(process, "call", call)
    with pytest.raises(CannotVerify, match="/opt/rustc does not work: no default toolchain"):
        rustc.compiler()


def test_a_machine_without_a_sandbox_does_not_compile(
    judged: list[bytes], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(means, "available", lambda: Means("limits"))
    with pytest.raises(CannotVerify, match=r"install bubblewrap.*data\.verify = false"):
        rustc.check_machine()
