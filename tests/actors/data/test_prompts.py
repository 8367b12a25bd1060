"""Prompts: pure functions of seed and draw, beginnings that somebody could go on with."""

import ast

from actors.data.prompts import Prompts, functions

FILE = '''
import os


class Shape:
    @property
    def area(self):
        """How much
        room it takes."""
        width = self.width
        # a comment before
        if width:
            return width * self.height

        return 0

    async def fetch(
        self,
        url,
    ):
        return await get(url)


def one_line(): return 1


def nested(x):
    def inner(y):
        return y
    return inner(x)
'''
BROKEN = "def f(:\n"


def read(sample: int) -> tuple[str, str] | None:
    return {0: ("shape.py", FILE), 1: ("broken.py", BROKEN)}.get(sample)


def texts(seed: int, draw: int, count: int = 50, samples: tuple[int, ...] = (0, 1, 2)) -> list[str]:
    return [prompt.text for prompt in Prompts(seed, samples, read, 1000).draw(draw, count)]


def test_a_draw_is_a_function_of_seed_and_number():
    assert texts(1, 7) == texts(1, 7)
    assert texts(1, 7) != texts(1, 8)
    assert texts(2, 7) != texts(1, 7)
    assert texts(1, 7, count=3) == texts(1, 7)[:3]


def test_prompts_are_beginnings_of_functions_with_something_left_to_write():
    drawn = set(texts(1, 0, count=300))
    whole = {cuts.name: "\n".join(cuts.lines) for cuts in functions("shape.py", FILE, 1000)}
    assert len(drawn) > 5
    for text in drawn:
        (function,) = [code for code in whole.values() if code.startswith(text.rstrip("\n"))][:1]
        assert len(text.rstrip()) < len(function.rstrip())
        ast.parse(text + "    pass\n")
        assert not text.startswith(" ")


def test_a_docstring_is_never_cut_off_or_cut_through():
    drawn = {text for text in texts(1, 0, count=300) if "def area" in text}
    assert all('room it takes."""\n' in text for text in drawn)


def test_functions_of_one_line_are_not_cut():
    assert not [text for text in texts(1, 0, count=300) if "one_line" in text]


def test_prompts_are_no_longer_than_asked_for():
    assert all(len(cuts.lines[0]) for cuts in functions("shape.py", FILE, 30))
    short = Prompts(1, (0,), read, 60).draw(0, 100)
    assert short
    assert max(len(prompt.text) for prompt in short) <= 61


def test_where_there_are_no_functions_there_are_no_prompts():
    assert texts(1, 0, samples=()) == []
    assert texts(1, 0, samples=(1, 2)) == []


def test_the_inside_of_strings_does_not_keep_a_method_indented():
    code = 'class A:\n    def f(self):\n        x = """\nat the margin\n"""\n        return x\n'
    (cuts,) = functions("a.py", code, 1000)
    assert cuts.lines[0] == "def f(self):"
    assert cuts.lines[2] == "at the margin"
