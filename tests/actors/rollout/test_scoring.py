"""Every way to compile without saying anything, and every way to break the judge."""

import pytest
from hypothesis import given, settings, strategies

from actors.rollout.scoring import MAX_TEXT_CHARACTERS, Verdict, score

HEADER = "def total(items, start):\n"
DOC = 'def total(items, start):\n    """Sum of items."""\n'


def reason(prompt: str, completion: str | bytes, *, finished: bool = True) -> str:
    return score(prompt, completion, finished=finished).reason


@pytest.mark.parametrize(
    ("prompt", "completion"),
    [
        (HEADER, "    return sum(items)\n"),
        (HEADER, "    return sum(items)"),
        (HEADER, "    return start"),
        (HEADER, "    start += 1\n    return None\n"),
        (HEADER, "    # why\n    for i in items:\n        start += i\n    return start\n"),
        (HEADER, "    yield from items\n"),
        (HEADER, "    items.sort()\n"),
        (HEADER, "    del items[0]\n"),
        (HEADER, "    raise ValueError(start)\n"),
        (HEADER, "    assert items, start\n"),
        (HEADER, "    if start:\n        pass\n    else:\n        items.clear()\n"),
        (HEADER, "    match items:\n        case []:\n            return start\n"),
        (HEADER, "    def inner():\n        return items\n"),
        (HEADER, "    return lambda: items\n"),
        (HEADER, "\f    return items\n"),
        (HEADER, "    return items\r\n"),
        (HEADER, "    return items\r"),
        (HEADER, "    return items\n\n\ndef other():\n    pass\n"),
        (DOC, "    return items[start]\n"),
        (DOC.rstrip("\n"), "\n    return items[start]\n"),
        (HEADER + "    return ", "items\n"),
        (HEADER + "    x = ", "items[0]\n    return x\n"),
        (HEADER + "    if items", ":\n        return start\n"),
        ("def total(", "items):\n    return items\n"),
        (HEADER + "    if start:\n        return 0\n", "    return items\n"),
        (HEADER + "    return 0\n\n\n", "def other(x):\n    return x + 1\n"),
        ("import os\n", "print(os.getcwd())\n"),
        ("", "print(1)\n"),
        ("class A:\n    ", "def f(self):\n        return self.x\n"),
        ("class A:\n    def f(self):\n", "        self.x = 1\n\n    def g(self):\n        pass\n"),
        ("async def f(x):\n", "    await x\n"),
        (HEADER, "    name = 'naïve ☃'\n"),
    ],
)
def test_code_that_says_something_is_rewarded(prompt: str, completion: str):
    verdict = score(prompt, completion, finished=True)
    assert (verdict.reason, verdict.reward, verdict.compiled) == ("good", 1.0, True)


@pytest.mark.parametrize(
    "completion", ["", " ", "\n\n\n", "\t\n", "\f", "\f\n \f", "\u00a0", "\r\n\r\n", b"", b" \n"]
)
def test_nothing_is_worth_nothing(completion: str | bytes):
    assert score(HEADER, completion, finished=True) == Verdict("empty")


@pytest.mark.parametrize("completion", ["# a", "    # a\n\n  # b\n", "#\n" * 500])
@pytest.mark.parametrize("prompt", [DOC, "import os\n"])
def test_comments_alone_are_worth_nothing(prompt: str, completion: str):
    verdict = score(prompt, completion, finished=True)
    assert (verdict.reason, verdict.reward, verdict.compiled) == ("only comments", 0.0, True)


@pytest.mark.parametrize(
    "body",
    [
        "pass",
        "...",
        "'text'",
        "'''docstring'''",
        "b'bytes'",
        "f'no field'",
        "1",
        "-1",
        "items",
        "items.append",
        "items[0]",
        "items + start",
        "items == start",
        "(items, start)",
        "lambda: items",
        "return",
        "return None",
        "return True",
        "return -1",
        "return 1 + 2j",
        "return []",
        "return {}",
        "return {'a': (1, 2)}",
        "return ...",
        "return ''",
        "yield",
        "yield None",
        "raise NotImplementedError",
        "raise NotImplementedError('later')",
        "assert True",
        "assert 1, 'x'",
        "global other",
        "import os",
        "from os import path",
        "start: int",
        "start = start",
        "items[0] = items[0]",
        "start: int = start",
        "pass;" * 100 + "pass",
        "if start: pass",
        "if items:\n        return\n    else:\n        return None",
        "for i in items: pass",
        "for i in items:\n        continue",
        "while True:\n        break",
        "while True: pass",
        "with items: pass",
        "try:\n        pass\n    except ValueError:\n        raise",
        "def inner(): pass",
        "class Inner: ...",
        "match items:\n        case []: pass",
        "'''a'''\n    # b\n    ...\n    pass\n    return",
    ],
)
def test_trivial_bodies_compile_and_are_worth_nothing(body: str):
    verdict = score(HEADER, f"    {body}\n", finished=True)
    assert (verdict.reason, verdict.reward, verdict.compiled) == ("trivial", 0.0, True)


@pytest.mark.parametrize(
    "body",
    [
        "return\n    items.sort()",
        "raise NotImplementedError\n    items.sort()",
        "if False:\n        items.sort()",
        "if 0:\n        items.sort()\n    else:\n        pass",
        "if True:\n        pass\n    else:\n        items.sort()",
        "while False:\n        items.sort()",
        "while True:\n        pass\n    items.sort()",
        "if start:\n        return\n    else:\n        return None\n    items.sort()",
        "for i in items:\n        break\n        i.close()",
        "try:\n        return\n    except ValueError:\n        return 1\n    items.sort()",
        "try:\n        pass\n    finally:\n        return\n    items.sort()",
    ],
)
def test_what_cannot_be_reached_does_not_count(body: str):
    assert reason(HEADER, f"    {body}\n") == "trivial"


@pytest.mark.parametrize(
    "body",
    [
        "while True:\n        if start:\n            break\n    items.sort()",
        "with items:\n        return\n    items.sort()",
        "try:\n        return\n    except ValueError:\n        pass\n    items.sort()",
        "while items:\n        return\n    items.sort()",
    ],
)
def test_what_may_be_reached_counts(body: str):
    assert reason(HEADER, f"    {body}\n") == "good"


def test_pass_a_thousand_times_is_trivial():
    assert reason("", "pass\n" * 1000) == "trivial"


@pytest.mark.parametrize("prompt", [DOC, DOC.rstrip("\n")])
@pytest.mark.parametrize(
    "escape",
    ["\nitems = list(range(3))\nprint(items)\n", "\n\ndef other(x):\n    return x + 1\n"],
)
def test_a_dedent_that_leaves_the_function_hollow_earns_nothing(prompt: str, escape: str):
    verdict = score(prompt, escape, finished=True)
    assert (verdict.reason, verdict.reward) == ("leaves the function hollow", 0.0)


def test_a_method_left_hollow_for_the_next_one_earns_nothing():
    prompt = 'class A:\n    def f(self):\n        """Doc."""\n'
    assert reason(prompt, "    def g(self):\n        return self\n") == "leaves the function hollow"


@pytest.mark.parametrize("times", [1, 2, 20])
def test_repeating_the_prompt_earns_nothing(times: int):
    prompt = HEADER + "    total = start\n    total += sum(items)\n"
    again = "    total = start\n    total += sum(items)\n"
    assert reason(prompt, again * times) == "repeats the prompt"
    whole = "import os\n\nprint(os.getcwd())\n"
    assert reason(whole, whole * times) == "repeats the prompt"
    assert reason(prompt, prompt * times) == "leaves the function hollow"


def test_one_new_statement_among_repeated_ones_counts():
    prompt = HEADER + "    total = start\n"
    assert reason(prompt, "    total = start\n    return total\n") == "good"


@pytest.mark.parametrize(
    ("prompt", "completion"),
    [
        (HEADER + "    return ", "None\n"),
        (HEADER + "    x = len(items", ")\n"),
        (HEADER + "    items.sort(", ")\n    # done\n    pass\n"),
        (HEADER + "    x = ", "x\n"),
    ],
)
def test_finishing_a_statement_of_the_prompt_counts_only_with_something_in_it(
    prompt: str, completion: str
):
    assert reason(prompt, completion) == "trivial"


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("    return (\n", "does not parse"),
        ("return items\n", "does not parse"),
        ("    return items\n  x = 1\n", "does not parse"),
        ("    retrun items\n", "does not parse"),
        ("    x = 'open\n", "does not parse"),
        ("    x = '''open\n", "does not parse"),
        ("    return items\nyield\n", "does not compile"),
        ("    nonlocal items\n", "does not compile"),
        ("    break\n", "does not compile"),
        ("    return items\nfrom __future__ import annotations\n", "does not compile"),
        ("    x = " + "9" * 5000 + "\n", "does not parse"),
        ("    return items\n" + "    " * 40 + "x\n", "does not parse"),
        ("    \x1b[31m\n", "does not parse"),
        ("    return items\x00\n", "null byte"),
        ("\x00", "null byte"),
        (b"    return '\xff'\n", "not UTF-8"),
        (b"\xff\xfe    return items\n", "not UTF-8"),
        ("    return '\ufffd'\n", "not UTF-8"),
    ],
)
def test_what_is_not_python_earns_nothing_and_says_why(completion: str | bytes, expected: str):
    verdict = score(HEADER, completion, finished=True)
    assert (verdict.reason, verdict.reward, verdict.compiled) == (expected, 0.0, False)


@pytest.mark.parametrize(
    "completion",
    [
        "    return " + "(" * 5000 + ")" * 5000,
        "    return " + "[" * 150 + "]" * 150 + "[" * 90,
        "    return " + "-" * 60_000 + "1",
        "    return " + "not " * 15_000 + "items",
        "    return items" + ".a" * 30_000,
        "    return items" + " + 1" * 15_000,
        "    if items:\n        pass\n" + "    elif items:\n        pass\n" * 1800,
        "".join(" " * depth + "if x:\n" for depth in range(4, 150)) + " " * 150 + "y()\n",
        "    return " + "lambda: " * 7_000 + "1",
    ],
)
def test_huge_nesting_earns_nothing_and_kills_nobody(completion: str):
    verdict = score(HEADER, completion, finished=True)
    assert verdict.reason in {"too deep", "does not parse"}


def test_a_text_beyond_the_limit_is_not_even_parsed():
    assert reason(HEADER, "x" * MAX_TEXT_CHARACTERS) == "too large"


def test_a_cut_off_completion_loses_its_last_unfinished_statement():
    completion = "    items.sort()\n    return sum(it"
    verdict = score(HEADER, completion, finished=False)
    assert (verdict.reason, completion[: verdict.kept]) == ("good", "    items.sort()\n")


@pytest.mark.parametrize(
    "tail",
    [
        "    if items:\n",
        "    if items:\n        # why\n",
        "    x = [\n        1,\n        2,\n",
        "    x = '''one\n    two\n    three",
        "    try:\n        items.clear()\n",
        "    with items as i:",
        "    @wraps\n    def inner():\n",
        "    x = 1 + \\\n",
        "    return f'{it",
    ],
)
def test_every_kind_of_unfinished_tail_is_cut(tail: str):
    verdict = score(HEADER, "    items.sort()\n" + tail, finished=False)
    assert (verdict.reason, verdict.kept) == ("good", len("    items.sort()\n"))


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("    items.sort()\n    x = = 1\n    return (", "does not parse"),
        ("    items.sort()\n    garbage here\n    retu", "does not parse"),
        ("    x = [1,\n    y = 2\n    z = 3\n    ret", "does not parse"),
        ("    return sum(items)", "unfinished"),
        ("    if items:\n        # a\n        # b\n", "unfinished"),
        ("    '''\n" + "    words\n" * 300, "unfinished"),
        ("    (\n" * 150, "unfinished"),
        ("    pass\n    return sum(items", "trivial"),
        ("    # a\n    return sum(items", "unfinished"),
    ],
)
def test_cutting_never_hides_a_mistake_nor_makes_something_of_nothing(
    completion: str, expected: str
):
    verdict = score(HEADER, completion, finished=False)
    assert (verdict.reason, verdict.reward) == (expected, 0.0)


def test_a_finished_completion_is_never_cut():
    assert reason(HEADER, "    items.sort()\n    return (") == "does not parse"


def test_a_character_cut_in_half_by_the_length_limit_is_forgiven():
    half = "    items.sort()\n    x = '☃".encode()[:-1]
    assert reason(HEADER, half, finished=False) == "good"


def test_a_lone_surrogate_is_not_utf_8():
    assert reason(HEADER, "    return '" + chr(0xD800) + "'\n") == "not UTF-8"


def test_a_broken_prompt_is_not_the_judges_crash():
    assert reason("def f(:\n", "    return x\n") == "does not parse"
    assert reason("a\x00b", "    return x\n") == "does not parse"


@settings(max_examples=150, deadline=None)
@given(
    strategies.one_of(
        strategies.text(max_size=200),
        strategies.binary(max_size=200),
        strategies.text(alphabet="def if:\n    return x=()[]'\"#\\\r\f\x00", max_size=200),
    ),
    strategies.booleans(),
)
def test_no_text_whatsoever_raises(completion: str | bytes, finished: bool):
    verdict = score(HEADER, completion, finished=finished)
    assert verdict.reward in {0.0, 1.0}
    assert verdict.compiled or verdict.reward == 0.0
