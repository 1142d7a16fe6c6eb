"""From the log to a sink: a durable consumer that hands over what is to be sent."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Final, TypeAlias

from goal_state.analytics.payload import AnalyticsEvent, PayloadForm, goal_event
from goal_state.delivery.consumers import Consumer
from goal_state.domain.events import GoalEvent
from goal_state.errors import InvalidValueError
from goal_state.store import GoalStore

__all__ = ["AnalyticsSink", "send_events"]

AnalyticsSink: TypeAlias = Callable[[Sequence[AnalyticsEvent]], object]
"""Takes a batch, in order. It returns when the events are safe, or raises to get them again; with a
`DeliveryError` it can say from when on."""

_BATCH_EVENTS: Final = 100


def send_events(
    store: GoalStore,
    sink: AnalyticsSink,
    *,
    payload: PayloadForm = goal_event,
    name: str = "analytics",
) -> Consumer:
    """Hands every event of the log to a sink, from a background thread.

    No goal operation ever waits for the sink. Events come in order, up to 100 per call and at least once:
    what a sink did not take is handed over again after a growing pause, and after the next start if the
    store is closed before. A repeat has the same `event_id`. Under a name that is new the log is sent from
    its beginning.

    Args:
        store: whose log is read.
        sink: takes a batch of events. Two sinks need two names.
        payload: what is sent of an event, as a function of it: `goal_event`, or the form that a receiver
            asks for, such as `goal_state.codex.CodexPayload`; None for an event that it does not send. It may
            be called twice for an event. If it raises, the batch waits until
            it does not.
        name: under which the position is kept; one worker at a time holds it, in whatever process.

    Returns:
        The running consumer. `drain()` waits until all is delivered, `close()` does so within a time limit
        and stops, as closing the store does.

    Raises:
        InvalidValueError: an argument is out of its bounds.
        StoreClosedError: the store has been closed.
    """
    if not callable(sink):
        raise InvalidValueError("sink", f"must be callable, not {type(sink).__name__}")
    if inspect.iscoroutinefunction(sink):
        raise InvalidValueError("sink", "must be a plain function: nothing here awaits it")
    if not callable(payload) or inspect.iscoroutinefunction(payload):
        raise InvalidValueError("payload", "must be a plain function of an event")

    def deliver(events: Sequence[GoalEvent]) -> None:
        batch = [
            AnalyticsEvent(event, payload)
            for event in events
            if payload is goal_event or payload(event) is not None
        ]
        if batch:
            sink(batch)

    return store.consume(name, deliver, batch_size=_BATCH_EVENTS)
