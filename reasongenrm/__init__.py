"""ReasonGenRM: turn preference data into a judge that writes a reason, then a verdict, and serve it.

`Judge` and `AsyncJudge` ask a judge service; they are imported when they are first used.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reasongenrm.judge.client.client import AsyncJudge, Judge

__all__ = ["AsyncJudge", "Judge", "__version__"]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name in ("AsyncJudge", "Judge"):
        from reasongenrm.judge.client import client

        return getattr(client, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
