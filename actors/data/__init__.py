"""From files to batches, in a run or alone: `from actors.data import Loader`."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from actors.data.alone.engine import LoaderError as LoaderError
    from actors.data.alone.loader import Loader as Loader
    from actors.data.alone.steps import waiting as waiting

_HOME = {"Loader": "loader", "LoaderError": "engine", "waiting": "steps"}

__all__ = ["Loader", "LoaderError", "waiting"]


def __getattr__(name: str) -> Any:
    """Not imported before somebody asks: the processes of a run do without."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"actors.data.alone.{_HOME[name]}"), name)
