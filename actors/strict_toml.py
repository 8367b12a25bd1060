"""TOML into declared structs, strictly, with errors a person can act on.

`tomllib` reads, `msgspec` knows the types; this file adds what neither has: the key's full path,
its line, what was found, what would be accepted, the nearest spelling of an unknown key, settings
from the command line (`a.b=c`) on the same footing as the file, and all problems at once.
"""

import difflib
import math
import re
import tomllib
import types
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar, Union, cast, get_args, get_origin

import msgspec

T = TypeVar("T", bound=msgspec.Struct)

_HEADER = re.compile(r"^\s*\[\[?\s*([^\[\]]+?)\s*\]\]?\s*(?:#.*)?$")
_KEY = re.compile(r"^\s*([\w.\-]+)\s*=")
_OVERRIDE = re.compile(r"^\s*([\w\-]+(?:\.[\w\-]+)*)\s*=(.*)$", re.DOTALL)
_ONE_VALUE = "value"
# Longest piece of a bad value that an error repeats.
_EXCERPT = 60


class TopologyError(ValueError):
    """A topology that cannot be used: says which key of which file, and what would be accepted."""


class Problems:
    """What is wrong with one text, each entry naming where it stands."""

    def __init__(self, source: str, text: str, overrides: Sequence[str] = ()) -> None:
        self.source = source
        self._lines = text.splitlines()
        # Later settings win, as they do when applied.
        self._settings = {o.partition("=")[0].strip(): o for o in overrides}
        self.found: list[str] = []

    def add(self, path: str, what: str) -> None:
        """Note that the key at `path` is wrong because of `what`."""
        self.found.append(
            f"{self.where(path)}: {path}: {what}" if path else f"{self.source}: {what}"
        )

    def where(self, path: str) -> str:
        """The setting, or the file and line, that `path` comes from."""
        for name, setting in self._settings.items():
            if path == name or path.startswith(name + ".") or name.startswith(path + "."):
                return f"--set {_shorten(setting)}"
        line = _line_of(self._lines, path)
        return f"{self.source}:{line}" if line else self.source

    def raise_any(self) -> None:
        """Raises `TopologyError` with every problem, one a line, when there are any."""
        if self.found:
            raise TopologyError("\n".join(self.found))


def decode_struct(
    text: str, kind: type[T], *, source: str, overrides: Sequence[str] = ()
) -> tuple[T, Problems]:
    """`kind` from TOML `text` with `overrides` put on top, and where to report further problems.

    Raises `TopologyError` naming file, key, what was found and what would be accepted.
    """
    return decode_tables(parse(text, source), kind, Problems(source, text, overrides), overrides)


def decode_tables(
    tables: dict[str, Any], kind: type[T], problems: Problems, overrides: Sequence[str] = ()
) -> tuple[T, Problems]:
    """As `decode_struct`, from plain tables, which it changes. Raises `TopologyError`."""
    for override in overrides:
        _apply(tables, override)
    value = _struct(tables, kind, "", problems)
    problems.raise_any()
    return cast("T", value), problems


def parse(text: str, source: str) -> dict[str, Any]:
    """Plain tables from TOML. Raises `TopologyError` with line and column."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        line = re.search(r"at line (\d+)", str(error))
        lines = text.splitlines()
        number = int(line.group(1)) if line else len(lines)
        shown = _shorten(lines[number - 1].strip()) if 0 < number <= len(lines) else ""
        hint = f"\n    {shown}" if shown else ""
        raise TopologyError(f"{source}: not valid TOML: {error}{hint}") from None
    except RecursionError:
        raise TopologyError(f"{source}: not a topology: nested too deeply") from None


def _apply(tables: dict[str, Any], override: str) -> None:
    """Put `a.b=c` into `tables`, making tables on the way where there are none."""
    match = _OVERRIDE.match(override)
    if not match:
        raise TopologyError(
            f"--set {_shorten(override)}: expected KEY.KEY=VALUE, for example --set model.dim=256"
        )
    *parents, last = match.group(1).split(".")
    place: Any = tables
    for name in parents:
        place = _step_into(place, name, override)
    value = override_value(match.group(2).strip())
    if isinstance(place, list):
        items = cast("list[Any]", place)
        items[_index(items, last, override)] = value
    else:
        place[last] = value


def _step_into(place: Any, name: str, override: str) -> Any:
    if isinstance(place, list):
        items = cast("list[Any]", place)
        inner = items[_index(items, name, override)]
    else:
        inner = place.setdefault(name, {})
    if not isinstance(inner, dict | list):
        raise TopologyError(
            f"--set {_shorten(override)}: `{name}` is {_found(inner)}, not a table with keys"
        )
    return cast("Any", inner)


def _index(items: list[Any], name: str, override: str) -> int:
    if not name.isdecimal() or int(name) >= len(items):
        raise TopologyError(
            f"--set {_shorten(override)}: `{name}` is not an entry of that array; it has entries "
            f"0 to {len(items) - 1}"
        )
    return int(name)


def override_value(text: str) -> Any:
    """A TOML value, or the bare string it otherwise is: `256`, `true`, `[1, 2]`, `~/code`."""
    try:
        read = tomllib.loads(f"{_ONE_VALUE} = {text}")
    except (tomllib.TOMLDecodeError, RecursionError):
        return text
    return read[_ONE_VALUE] if len(read) == 1 else text


# --- Values against declared types ----------------------------------------------------------------


def _struct(value: Any, kind: type[msgspec.Struct], path: str, problems: Problems) -> Any:
    if not isinstance(value, dict):
        problems.add(path, f"found {_found(value)}; accepted: a table with {_keys(kind)}")
        return None
    table = cast("dict[str, Any]", value)
    fields = {field.name: field for field in msgspec.structs.fields(kind)}
    before = len(problems.found)
    for name in table.keys() - fields.keys():
        problems.add(_join(path, name), _unknown(name, list(fields)))
    given: dict[str, Any] = {}
    for name, field in fields.items():
        if name in table:
            given[name] = _convert(table[name], field.type, _join(path, name), problems)
        elif field.required:
            problems.add(_join(path, name), f"is missing; accepted: {describe(field.type)}")
    if len(problems.found) > before:
        return None
    return kind(**given)


def _convert(value: Any, kind: Any, path: str, problems: Problems) -> Any:
    inner = _without_none(kind)
    if _is_table(inner):
        return _struct(value, inner, path, problems)
    if get_origin(inner) is tuple and isinstance(value, list):
        item, values = get_args(inner)[0], cast("list[Any]", value)
        return tuple(_convert(v, item, f"{path}.{i}", problems) for i, v in enumerate(values))
    if isinstance(value, float) and not math.isfinite(value):
        problems.add(path, f"found {value}; accepted: {describe(kind)}")
        return None
    try:
        return msgspec.convert(value, inner)
    except msgspec.ValidationError:
        hint = _near(value, get_args(inner)) if get_origin(inner) is Literal else ""
        problems.add(path, f"found {_found(value)}; accepted: {describe(kind)}{hint}")
        return None


def describe(kind: Any) -> str:
    """What a declared type accepts, in words."""
    kind, bounds = _unwrap(_without_none(kind))
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(f'"{choice}"' for choice in get_args(kind))
    if get_origin(kind) is tuple:
        return f"an array, each entry {describe(get_args(kind)[0])}"
    if _is_table(kind):
        return f"a table with {_keys(kind)}"
    names: Mapping[Any, str] = {int: "an integer", float: "a number", bool: "true or false"}
    return names.get(kind, "a string") + bounds


def _is_table(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def _unwrap(kind: Any) -> tuple[Any, str]:
    if get_origin(kind) is not Annotated:
        return kind, ""
    inner, *notes = get_args(kind)
    words: list[str] = []
    for meta in notes:
        if isinstance(meta, msgspec.Meta):
            limits = ((">=", meta.ge), (">", meta.gt), ("<=", meta.le), ("<", meta.lt))
            words += [f"{sign} {limit}" for sign, limit in limits if limit is not None]
            words += [meta.description] if meta.description else []
    return inner, (" " + " and ".join(words)) if words else ""


def _without_none(kind: Any) -> Any:
    if get_origin(kind) in (Union, types.UnionType):
        return next(part for part in get_args(kind) if part is not type(None))
    return kind


# --- Words ----------------------------------------------------------------------------------------


def _unknown(name: str, known: list[str]) -> str:
    return f"unknown key{_near(name, known)} Accepted here: {', '.join(known)}"


def _near(name: Any, known: Sequence[Any]) -> str:
    near = difflib.get_close_matches(str(name), [str(k) for k in known], n=1, cutoff=0.5)
    return f"; did you mean `{near[0]}`?" if near else "."


def _keys(kind: type[msgspec.Struct]) -> str:
    return "the keys " + ", ".join(field.name for field in msgspec.structs.fields(kind))


def _found(value: Any) -> str:
    names: Mapping[type[object], str] = {
        bool: "boolean",
        int: "integer",
        float: "number",
        str: "string",
    }
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, list):
        return "an array"
    shown = f'"{value}"' if isinstance(value, str) else str(value).lower()
    kind = cast("type[object]", type(value))
    return f"{_shorten(shown)} ({names.get(kind, kind.__name__)})"


def _shorten(text: str) -> str:
    return text if len(text) <= _EXCERPT else text[: _EXCERPT - 3] + "..."


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _line_of(lines: list[str], path: str) -> int:
    """Line of the key at `path`, or of the nearest table that holds it; 0 when neither is there."""
    best, best_depth, table = 0, 0, ""
    arrays: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        if header := _HEADER.match(line):
            table = header.group(1).replace(" ", "")
            if line.lstrip().startswith("[["):
                arrays[table] = arrays.get(table, -1) + 1
                table = f"{table}.{arrays[table]}"
            here = table
        elif key := _KEY.match(line):
            here = _join(table, key.group(1))
        else:
            continue
        if (path == here or path.startswith(here + ".")) and here.count(".") + 1 > best_depth:
            best, best_depth = number, here.count(".") + 1
    return best
