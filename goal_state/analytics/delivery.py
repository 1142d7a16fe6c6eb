"""From the log to a sink: a durable consumer that enriches what it reads."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Final, TypeAlias

from goal_state.analytics.context import AnalyticsContext
from goal_state.analytics.payload import AnalyticsEvent
from goal_state.delivery.consumers import Consumer
from goal_state.domain.events import GoalEvent
from goal_state.errors import InvalidValueError
from goal_state.store import GoalStore

__all__ = ["AnalyticsSink", "ContextSource", "send_events"]

AnalyticsSink: TypeAlias = Callable[[Sequence[AnalyticsEvent]], object]
"""Takes a batch, in order. It returns when the events are safe, or raises to get them again; with a
`DeliveryError` it can say from when on."""

ContextSource: TypeAlias = AnalyticsContext | Callable[[str], AnalyticsContext]
"""One context for all, or a function that tells a thread's from its `thread_id`."""

_BATCH_EVENTS: Final = 100


def send_events(
    store: GoalStore, sink: AnalyticsSink, *, context: ContextSource, name: str = "analytics"
) -> Consumer:
    """Hands every event of the log to a sink, enriched, from a background thread.

    No goal operation ever waits for the sink. Events come in order, up to 100 per call and at least once:
    what a sink did not take is handed over again after a growing pause, and after the next start if the
    store is closed before. A repeat has the same `event_id`. Under a name that is new the log is sent from
    its beginning.

    Args:
        store: whose log is read.
        sink: takes a batch of events. Two sinks need two names.
        context: who sends. As a function it is called once per thread and batch, and must know every
            thread that is in the log: if it raises, the batch waits until it does not.
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
    if not (isinstance(context, AnalyticsContext) or callable(context)):
        raise InvalidValueError(
            "context", f"must be an AnalyticsContext or a function, not {type(context).__name__}"
        )

    def deliver(events: Sequence[GoalEvent]) -> None:
        contexts: dict[str, AnalyticsContext] = {}
        batch: list[AnalyticsEvent] = []
        for event in events:
            if event.thread_id not in contexts:
                contexts[event.thread_id] = (
                    context if isinstance(context, AnalyticsContext) else context(event.thread_id)
                )
            batch.append(AnalyticsEvent(event, contexts[event.thread_id]))
        sink(batch)

    return store.consume(name, deliver, batch_size=_BATCH_EVENTS)
