"""The calls that wait for a group commit."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any, Generic, TypeVar

from goal_state.domain.requests import Charge
from goal_state.errors import GoalStateError, fresh
from goal_state.storage.backend import Outcome
from goal_state.storage.repository import GoalRepository, RequestWork

__all__ = ["Call", "charges_from"]

Result = TypeVar("Result")


class Call(Generic[Result]):
    """One caller's work and its outcome."""

    __slots__ = (
        "alone",
        "caller",
        "commits",
        "error",
        "leader",
        "leads",
        "others",
        "refusal",
        "result",
        "wake_up",
        "work",
    )

    caller: threading.Lock
    """Held while the caller waits: if it is free, the caller is gone."""
    wake_up: threading.Lock
    """Held until the call is done, or is the next leader's."""

    def __init__(self, work: Callable[[GoalRepository], Result], *, alone: bool) -> None:
        self.work: Callable[[GoalRepository], Result] = work
        self.alone: bool = alone
        self.leads: bool = False
        self.leader: object = None  # the mark of the leader whose group it was in last
        # Of its transaction; shared with the other calls in that.
        self.commits: list[object] = []
        self.result: Result | None = None
        self.error: BaseException | None = None
        # Its error where it wrote nothing, so that its transaction goes on; it holds once that is committed.
        self.refusal: GoalStateError | None = None
        # That come from the same caller, who leads them all by itself.
        self.others: Sequence[Call[Any]] = ()

    @property
    def done(self) -> bool:
        """Whether it was carried out, or never will be."""
        return bool(self.commits) or self.error is not None

    @property
    def may_be_led(self) -> bool:
        """Whether another caller may carry it out, in its own group."""
        return not (self.alone or self.others)

    @property
    def raised(self) -> BaseException | None:
        """What a call that is done has to raise."""
        return self.error or self.refusal

    @property
    def charge(self) -> Charge | None:
        """The charge that it is, where it can be carried out together with others."""
        if isinstance(self.work, RequestWork):
            request = self.work.request
            if isinstance(request, Charge) and request.settles is None:
                return request
        return None

    @property
    def outcome(self) -> Outcome:
        """What became of it, with an error of its own, without the frames of the leader's thread."""
        error = self.raised
        return Outcome(self.result, fresh(error) if isinstance(error, GoalStateError) else error)


def charges_from(group: Sequence[Call[Any]], place: int) -> list[Charge]:
    """The charges that follow one another in a group, from a place on."""
    charges: list[Charge] = []
    for call in islice(group, place, None):
        charge = call.charge
        if charge is None:
            break
        charges.append(charge)
    return charges
