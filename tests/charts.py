"""Pages of runs without their charts, which matplotlib draws longer than a tiny run learns."""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

from trainers.report import page


def blank(*_args: object, **_named: object) -> str:
    """Return a chart that shows nothing."""
    return "<svg></svg>"


@contextmanager
def blank_charts() -> Iterator[None]:
    """Write pages whose charts are blank; all else of a page is made as ever."""
    with mock.patch.object(page, "svg", blank):
        yield
