"""A sink that posts events to an HTTP endpoint. Needs `goal-state[http]`."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from time import time
from typing import Final, Self
from urllib.parse import quote

try:
    import httpx
except ImportError as _error:
    raise ImportError("HttpSink needs httpx: pip install 'goal-state[http]'") from _error

from goal_state.analytics.exchange import Exchanges
from goal_state.analytics.line_file import LineFile
from goal_state.analytics.payload import AnalyticsEvent
from goal_state.domain.values import check_milliseconds
from goal_state.errors import DeliveryError, InvalidValueError

__all__ = ["EVENT_IDS_HEADER", "HttpSink"]

_logger = logging.getLogger(__name__)

EVENT_IDS_HEADER: Final = "Goal-Event-Ids"
"""Names the `event_id` of each event of a request, in the order of the body, parted by commas.
Percent-encoded: a UUID stands as it is, but an imported id may be any text."""

_TIMEOUT_SECONDS: Final = 30.0
_LONGEST_TIMEOUT_SECONDS: Final = 3600.0
_LONGEST_RETRY_AFTER_SECONDS: Final = 3600.0
_RETRYABLE_BELOW_500: Final = frozenset({408, 425, 429})


class HttpSink:
    """Posts each batch as `{"events": [payload, …]}` and goes on when it was answered with 2xx.

    Not every form of payload has a place for an `event_id`, so the ids are in the header `Goal-Event-Ids`
    too, one per event and in their order, percent-encoded: when an acknowledgement was lost, the same event
    comes again (perhaps in another batch) under the same id, and a receiver can drop it.

    What can pass is tried again by the consumer, with a growing and jittered pause and not before the
    `Retry-After` of the answer (an hour at the most): no connection, a time-out, 408, 425, 429 and every
    5xx. Anything else is a refusal for good: the batch is logged and put aside, as one line
    `{"refused_at", "status_code", "event_ids", "events"}` of the dead-letter file, and the next one
    follows. So is a redirection: none is ever followed, whatever the client's settings, since events go
    where the host says and nowhere else.

    Of the answer only the status and `Retry-After` count; no more than 64 KiB of its body are read, and
    nothing of it is unpacked.

    Args:
        url: where to post, http or https.
        dead_letter_path: the file for refused batches, made for its owner alone if it does not exist.
            Beyond 64 MiB it is renamed to its name and the next number.
        client: with your own headers, authentication, proxies, certificates or time-outs. It stays yours
            to close, and is called on a thread of the sink's. By default no step of a request may take
            longer than ten seconds.
        timeout_seconds: what a batch may take from the name look-up to the status of the answer, all in
            all, however the receiver parts its bytes. More than the receiver ever needs, else it takes
            the same batch again and again; up to an hour.

    Raises:
        InvalidValueError: the URL is none, the time-out is out of its bounds, or the dead-letter path is
            no regular file's.
        OSError: the dead-letter file cannot be opened for writing.
    """

    def __init__(
        self,
        url: str,
        *,
        dead_letter_path: str | os.PathLike[str],
        client: httpx.Client | None = None,
        timeout_seconds: float = _TIMEOUT_SECONDS,
    ) -> None:
        checked = _checked(url)
        timeout_ms = check_milliseconds("timeout_seconds", timeout_seconds)
        if not 0 < timeout_ms <= _LONGEST_TIMEOUT_SECONDS * 1000:
            raise InvalidValueError("timeout_seconds", "must be more than 0 and at most 3600")
        self._dead_letters = LineFile(dead_letter_path)
        self._exchanges = Exchanges(checked, client, timeout_ms / 1000)

    def __call__(self, events: Sequence[AnalyticsEvent]) -> None:
        """Posts a batch; returns when it was taken or put aside.

        Raises:
            DeliveryError: it was not taken, and trying again may help.
            OSError: it was refused, and the dead-letter file cannot be written.
        """
        payloads = [event.payload for event in events]
        event_ids = [event.event_id for event in events]
        try:
            status_code, retry_after = self._exchanges.post(
                json.dumps({"events": payloads}),
                {
                    "Content-Type": "application/json",
                    EVENT_IDS_HEADER: ",".join(quote(event_id, safe="") for event_id in event_ids),
                },
            )
        except httpx.HTTPError as error:
            raise DeliveryError(f"{type(error).__name__}: {error}") from error
        if 200 <= status_code < 300:
            return
        if status_code >= 500 or status_code in _RETRYABLE_BELOW_500:
            raise DeliveryError(
                f"the receiver answered {status_code}",
                retry_after_seconds=_seconds_until(retry_after),
            )
        letter = {
            "refused_at": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "status_code": status_code,
            "event_ids": event_ids,
            "events": payloads,
        }
        self._dead_letters.append([json.dumps(letter)])
        _logger.error(
            "the receiver refused %d events for good (status %d%s, positions %d to %d); put aside in %s",
            len(events),
            status_code,
            ": a redirection, and none is followed; name the URL that takes events"
            if 300 <= status_code < 400
            else "",
            events[0].event.position,
            events[-1].event.position,
            self._dead_letters.path,
        )

    def close(self) -> None:
        """Closes the connections. Stop the consumer first: a batch that comes after it fails."""
        self._exchanges.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _checked(url: str) -> httpx.URL:
    try:
        checked = httpx.URL(url)
    except (httpx.InvalidURL, TypeError, ValueError):
        raise InvalidValueError("url", "must be a URL") from None
    if checked.scheme not in {"http", "https"} or not checked.host:
        raise InvalidValueError("url", "must begin with http:// or https:// and name a host")
    return checked


def _seconds_until(retry_after: str | None) -> float:
    """A `Retry-After` header, a number of seconds or a date, as seconds from now; 0 if it is neither."""
    if retry_after is None:
        return 0.0
    try:
        seconds = float(int(retry_after))
    except ValueError:
        try:
            seconds = parsedate_to_datetime(retry_after).timestamp() - time()
        except (ValueError, OverflowError):
            return 0.0
    except OverflowError:
        seconds = _LONGEST_RETRY_AFTER_SECONDS
    return min(max(seconds, 0.0), _LONGEST_RETRY_AFTER_SECONDS)
