"""What holds for all tests: who goes first, and that a busy machine fails none of them."""

import pytest
from hypothesis import settings

# How long one example takes says more about what else the machine does.
settings.register_profile("trireme", deadline=None)
settings.load_profile("trireme")

# Files of these folders take longest, in this order; all others follow as they are found. So with
# two processes side by side none is left with a long file at the end.
LONG = ("tests/system/", "tests/architecture/", "tests/actors/data/", "tests/actors/optimizer/")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order by folder; within a folder nothing changes."""
    items.sort(key=_turn)


def _turn(item: pytest.Item) -> int:
    return next(
        (turn for turn, start in enumerate(LONG) if item.nodeid.startswith(start)), len(LONG)
    )
