"""Calls that were not sent: refused by a budget, or failed before there was a connection."""

from __future__ import annotations

from typing import Final, TypeVar

from goal_state.errors import BudgetExceededError

__all__ = ["refusal_as", "was_never_sent"]

Refusal = TypeVar("Refusal", bound=BudgetExceededError)

# By name: those of httpx and of what took its place, of which an SDK may use either.
_NEVER_SENT: Final = frozenset(
    {"ConnectError", "ConnectTimeout", "PoolTimeout", "ProxyError", "UnsupportedProtocol"}
)


def refusal_as(kind: type[Refusal], error: BudgetExceededError) -> Refusal:
    """A refusal with all its figures, as an error that an SDK takes for a limit of its own."""
    refusal = kind(str(error))
    vars(refusal).update(vars(error))
    return refusal


def was_never_sent(error: BaseException) -> bool:
    """Whether a request failed before there was a connection to send it by."""
    cause: BaseException | None = error
    while cause is not None:
        if any(kind.__name__ in _NEVER_SENT for kind in type(cause).__mro__):
            return True
        cause = cause.__cause__
    return False
