"""Log events of an actor: structlog dictionaries, made harmless, for a sink that never blocks.

A record is plain JSON data with `timestamp`, `level`, `event`, `actor`, `incarnation`, `step` and
the event's own fields. Values under names that suggest a secret are hidden, long texts are cut,
objects become their `repr`: whatever is logged can be encoded and is bounded.
"""

import datetime
import re
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from types import ModuleType

# structlog colours tracebacks with rich where it finds it: 4 MB in every process, for output that
# none of them prints. Whoever needs rich imports it later.
if "rich" not in sys.modules:
    sys.modules["rich"] = cast("ModuleType", None)
    import structlog

    del sys.modules["rich"]
else:
    import structlog
from structlog.typing import EventDict, WrappedLogger

Record = dict[str, Any]

_SECRET = re.compile(r"secret|password|passphrase|private_key|authorization|credential", re.I)
HIDDEN = "[hidden]"
MAX_TEXT = 8192  # a traceback fits; characters
MAX_ENTRIES = 100
_MAX_LEVELS = 4


def make_logger(
    sink: Callable[[Record], None], facts: Callable[[], Mapping[str, Any]], *, level: str = "info"
) -> structlog.stdlib.BoundLogger:
    """A logger whose records go to `sink`, each with what `facts()` says at that moment.

    `facts` gives actor, incarnation and step. Events below `level` cost nothing.
    """

    def finish(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds")
        sink(plain_record({"timestamp": now, **facts(), **event}))
        raise structlog.DropEvent

    logger = structlog.wrap_logger(
        None,
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.format_exc_info,
            finish,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        context_class=dict,
        cache_logger_on_first_use=True,
    )
    return cast("structlog.stdlib.BoundLogger", logger)


def plain_record(event: Mapping[str, Any]) -> Record:
    """`event` as bounded JSON data without secrets."""
    return {_text(key, 200): _plain(key, value, 0) for key, value in event.items()}


def _plain(key: str, value: Any, depth: int) -> Any:
    if _SECRET.search(key):
        return HIDDEN
    if value is None or isinstance(value, bool | float):
        return value
    if isinstance(value, int):
        # msgpack ends at 64 bits.
        return value if -(2**63) <= value < 2**63 else str(value)
    if isinstance(value, str):
        return _text(value, MAX_TEXT)
    if depth < _MAX_LEVELS and isinstance(value, Mapping):
        items = list(cast("Mapping[Any, Any]", value).items())[:MAX_ENTRIES]
        return {_text(str(k), 200): _plain(str(k), v, depth + 1) for k, v in items}
    if depth < _MAX_LEVELS and isinstance(value, list | tuple | set | frozenset):
        listed = list(cast("list[Any]", value))[:MAX_ENTRIES]
        return [_plain("", v, depth + 1) for v in listed]
    return _text(str(value) if isinstance(value, Exception) else repr(value), MAX_TEXT)


def _text(text: str, limit: int) -> str:
    """`text` as encodable UTF-8 of bounded length."""
    if len(text) > limit:
        text = (
            f"{text[: limit // 2]} ... {len(text) - limit} characters cut ... {text[-limit // 2 :]}"
        )
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
