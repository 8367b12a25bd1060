"""Does a completion say anything? The definition of "trivial", on syntax trees.

A compile-only reward is easily cheated: the empty completion, a comment, `pass`, a docstring, a
bare `return` and the prompt said once more all compile. So a completion must *contribute*: at
least one of its statements must be

- **substantial**: it calls, awaits, yields, binds, deletes, augments, raises something of its own,
  asserts or returns something that is not a constant. Not substantial are `pass`, `...`, strings,
  names and operators whose value nobody takes, constant returns and yields (`return`, `return
  True`, `return []`), constant assertions, bare `raise` and `raise NotImplementedError`, `break`,
  `continue`, `global`, `nonlocal`, imports, annotations without a value and `x = x`. Compound
  statements count only through what stands in them.
- **reachable**: not behind a `return`, `raise`, `break`, `continue` or `while True` without
  `break` of the same block, and not under a condition that is constantly false.
- **new**: the prompt does not hold the same statement already, word for word.
- **in place**: inside the outermost function the prompt left open. A dedent that closes that
  function and leaves it hollow earns nothing, whatever follows. When the function had already
  ended (its last statement returns or raises), or none was open, anywhere will do.

A statement that the prompt began and the completion finished counts when a name, call, operator
or other non-constant expression starts in the completion's part of it.

Not covered: dead stores, self-repetition, and any judgement of what the code does.
"""

import ast
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

Substance = Literal["substantial", "trivial", "repeats the prompt", "leaves the function hollow"]

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
NEVER_SUBSTANTIAL = (
    ast.Pass,
    ast.Break,
    ast.Continue,
    ast.Global,
    ast.Nonlocal,
    ast.Import,
    ast.ImportFrom,
)


class Place(NamedTuple):
    """Where something starts: line from 1, column in UTF-8 bytes from 0, as `ast` counts."""

    line: int
    column: int


def end_of(text: str) -> Place:
    """The place just behind `text`, whose lines end in `\\n` only."""
    line = text.count("\n") + 1
    tail = text.rpartition("\n")[2]
    return Place(line, len(tail.encode("utf-8", "surrogatepass")))


def substance(tree: ast.Module, prompt: str) -> Substance:
    """What the completion adds to `prompt`; `tree` is the whole text's, prompt and completion.

    Raises `RecursionError` for a tree nested too deeply to walk.
    """
    boundary = end_of(prompt)
    scope = _open_function(tree, prompt, boundary)
    known = {
        ast.dump(statement)
        for statement in _simple_statements(tree)
        if _start(statement) < boundary and _end(statement) <= boundary
    }
    found: Substance = "trivial"
    body = tree.body if scope is None else scope.body
    for statement in _reachable(body):
        if not _contributed(statement, boundary) or not is_substantial(statement):
            continue
        if ast.dump(statement) not in known:
            return "substantial"
        found = "repeats the prompt"
    if found == "trivial" and scope is not None and _speaks_elsewhere(tree, scope, boundary):
        return "leaves the function hollow"
    return found


def is_substantial(statement: ast.stmt) -> bool:
    """Whether a simple statement does anything, by the definition above."""
    if isinstance(statement, NEVER_SUBSTANTIAL):
        return False
    match statement:
        case ast.Expr(value=value):
            return any(map(_acts, ast.walk(value)))
        case ast.Return(value=value):
            return value is not None and not is_constant(value)
        case ast.Raise(exc=raised):
            return raised is not None and not _says_not_implemented(raised)
        case ast.Assert(test=test):
            return not is_constant(test)
        case ast.AnnAssign(target=target, value=value):
            return value is not None and ast.unparse(target) != ast.unparse(value)
        case ast.Assign(targets=targets, value=value):
            return any(ast.unparse(target) != ast.unparse(value) for target in targets)
        case _:
            return True  # del, augmented assignment


def is_constant(value: ast.expr) -> bool:
    """A literal, or a container or arithmetic of literals."""
    match value:
        case ast.Constant():
            return True
        case ast.UnaryOp(operand=operand):
            return is_constant(operand)
        case ast.BinOp(left=left, right=right):
            return is_constant(left) and is_constant(right)
        case ast.Tuple(elts=items) | ast.List(elts=items) | ast.Set(elts=items):
            return all(map(is_constant, items))
        case ast.Dict(keys=keys, values=values):
            return all(key is not None and is_constant(key) for key in keys) and all(
                map(is_constant, values)
            )
        case ast.JoinedStr(values=parts):
            return all(map(is_constant, parts))
        case _:
            return False


def _acts(node: ast.AST) -> bool:
    """Whether an expression whose value nobody takes has an effect all the same."""
    if isinstance(node, ast.Yield):
        return node.value is not None and not is_constant(node.value)
    return isinstance(node, ast.Call | ast.Await | ast.YieldFrom | ast.NamedExpr)


def _says_not_implemented(raised: ast.expr) -> bool:
    called = raised.func if isinstance(raised, ast.Call) else raised
    return isinstance(called, ast.Name) and called.id == "NotImplementedError"


def _start(node: ast.stmt | ast.expr) -> Place:
    return Place(node.lineno, node.col_offset)


def _end(node: ast.stmt) -> Place:
    return Place(node.end_lineno or node.lineno, node.end_col_offset or 0)


def _contributed(statement: ast.stmt, boundary: Place) -> bool:
    """Whether the completion wrote this statement, or the telling part of it."""
    if _start(statement) >= boundary:
        return True
    return _end(statement) > boundary and any(
        isinstance(node, ast.expr) and not is_constant(node) and _start(node) >= boundary
        for node in ast.walk(statement)
    )


def _open_function(
    tree: ast.Module, prompt: str, boundary: Place
) -> ast.FunctionDef | ast.AsyncFunctionDef | None:
    """The outermost function that the prompt began and had not come to the end of."""
    last_line = end_of(prompt.rstrip()).line
    holding = [
        node
        for node in ast.walk(tree)
        if isinstance(node, FUNCTIONS)
        and _start(node) < boundary
        and node.lineno <= last_line <= (node.end_lineno or node.lineno)
        and node.body[0].lineno > node.lineno  # `def f(): return 1` is closed by its own line
    ]
    if not holding:
        return None
    outermost = min(holding, key=_start)
    written = [statement for statement in outermost.body if _start(statement) < boundary]
    return None if block_ends(written) else outermost


def _speaks_elsewhere(tree: ast.Module, scope: ast.stmt, boundary: Place) -> bool:
    inside = {id(node) for node in ast.walk(scope)}
    return any(
        id(statement) not in inside
        and _contributed(statement, boundary)
        and is_substantial(statement)
        for statement in _simple_statements(tree)
    )


def _simple_statements(tree: ast.AST) -> Iterator[ast.stmt]:
    for node in ast.walk(tree):
        if isinstance(node, ast.stmt) and not hasattr(node, "body") and not _is_match(node):
            yield node


def _is_match(node: ast.stmt) -> bool:
    return isinstance(node, ast.Match)


def _reachable(body: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
    """Simple statements of a block, nested ones too, that control can come to."""
    for statement in body:
        blocks = _blocks(statement)
        if blocks is None:
            yield statement
        else:
            for block in blocks:
                yield from _reachable(block)
        if _ends(statement):
            return


def _blocks(statement: ast.stmt) -> list[list[ast.stmt]] | None:
    """The blocks of a compound statement that may run; None for a simple statement."""
    match statement:
        case ast.If(test=ast.Constant(value=value), body=body, orelse=orelse):
            return [body] if value else [orelse]
        case ast.While(test=ast.Constant(value=value), body=body, orelse=orelse) if not value:
            return [orelse]
        case ast.If() | ast.While() | ast.For() | ast.AsyncFor():
            return [statement.body, statement.orelse]
        case ast.With() | ast.AsyncWith() | ast.ClassDef() | ast.FunctionDef():
            return [statement.body]
        case ast.AsyncFunctionDef():
            return [statement.body]
        case ast.Try() | ast.TryStar():
            handlers = [handler.body for handler in statement.handlers]
            return [statement.body, *handlers, statement.orelse, statement.finalbody]
        case ast.Match(cases=cases):
            return [case.body for case in cases]
        case _:
            return None


def block_ends(body: Sequence[ast.stmt]) -> bool:
    """Whether control never comes out at the bottom of this block."""
    return any(map(_ends, body))


def _ends(statement: ast.stmt) -> bool:
    match statement:
        case ast.Return() | ast.Raise() | ast.Break() | ast.Continue():
            return True
        case ast.If(test=ast.Constant(value=value), body=body, orelse=orelse):
            return block_ends(body if value else orelse)
        case ast.If(body=body, orelse=orelse):
            return block_ends(body) and block_ends(orelse)
        case ast.While(test=ast.Constant(value=value), body=body) if value:
            return not any(map(_breaks, body))
        case ast.Try() | ast.TryStar():
            tried = block_ends(statement.body) or block_ends(statement.orelse)
            caught = all(block_ends(handler.body) for handler in statement.handlers)
            return block_ends(statement.finalbody) or (tried and caught)
        case _:
            return False  # `with` may swallow what was raised in it; `match` may fit nothing


def _breaks(statement: ast.stmt) -> bool:
    """Whether a `break` in here leaves the loop around `statement`."""
    if isinstance(statement, ast.Break):
        return True
    if isinstance(statement, ast.For | ast.AsyncFor | ast.While):
        return any(map(_breaks, statement.orelse))  # those in its body leave the inner loop
    if isinstance(statement, (*FUNCTIONS, ast.ClassDef)):
        return False
    return any(any(map(_breaks, block)) for block in _blocks(statement) or [])
