"""Model calls that are HTTP requests: for adapters of clients whose requests they send themselves.

Whoever reads the body of a response, by whatever call of the SDK, settles the hold as it goes by; nothing is
read that nobody asked for.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator, Iterator
from contextlib import AsyncExitStack, ExitStack, aclosing
from datetime import timedelta
from types import AsyncGeneratorType, GeneratorType
from typing import cast

import httpx2

from goal_state.paid_calls.call import AsyncPaidCall, PaidCall
from goal_state.paid_calls.events import Answer, Reading
from goal_state.paid_calls.refusals import was_never_sent

__all__ = ["sent", "sent_awaited"]


def sent(
    paid: PaidCall,
    send: Callable[[], httpx2.Response],
    answer: Answer,
    *,
    is_stream: bool,
    unsent: type[Exception] | tuple[()] = (),
) -> httpx2.Response:
    """Sends a request, and has the call settled by what comes of it.

    Args:
        paid: the call; it is entered here.
        send: sends the request; whatever its status, the response is returned.
        answer: what takes the response in.
        is_stream: whether that is a stream of events.
        unsent: an error by which the SDK says that it did not send the request.

    Returns:
        The response; where its body was not read yet, one that stands in for it, whose body settles the call.
    """
    with ExitStack() as leaving:
        leaving.enter_context(paid)
        try:
            response = send()
        except Exception as error:
            if isinstance(error, unsent) or was_never_sent(error):
                paid.refused()
            raise
        if not response.is_success:
            paid.refused()
        elif (content := _content(response)) is None:
            body = _Body(response, paid, answer, Reading(answer, is_stream=is_stream))
            leaving.pop_all()  # the body is what leaves the call
            return _standing_in(response, body)
        else:
            Reading(answer, is_stream=is_stream).take_all(content)
            _note(paid, answer)
        return response


async def sent_awaited(
    paid: AsyncPaidCall,
    send: Callable[[], Awaitable[httpx2.Response]],
    answer: Answer,
    *,
    is_stream: bool,
    unsent: type[Exception] | tuple[()] = (),
) -> httpx2.Response:
    """As `sent`, for asyncio."""
    async with AsyncExitStack() as leaving:
        await leaving.enter_async_context(paid)
        try:
            response = await send()
        except Exception as error:
            if isinstance(error, unsent) or was_never_sent(error):
                await paid.refused()
            raise
        if not response.is_success:
            await paid.refused()
        elif (content := _content(response)) is None:
            body = _AsyncBody(response, paid, answer, Reading(answer, is_stream=is_stream))
            leaving.pop_all()  # the body is what leaves the call
            return _standing_in(response, body)
        else:
            Reading(answer, is_stream=is_stream).take_all(content)
            await _note_awaited(paid, answer)
        return response


def _content(response: httpx2.Response) -> bytes | None:
    """The body of a response; None where it was not read yet."""
    try:
        return response.content
    except RuntimeError:  # what httpx2 and httpx raise then
        return None


def _standing_in(response: httpx2.Response, body: _Body | _AsyncBody) -> httpx2.Response:
    """A response with another's status and headers, and with a body that is decoded already."""
    headers = response.headers.copy()
    for name in ("content-encoding", "content-length"):
        headers.pop(name, None)
    return httpx2.Response(
        response.status_code,
        headers=headers,
        stream=body,
        request=response.request,
        extensions=response.extensions,
        history=response.history,
    )


def _note(paid: PaidCall, answer: Answer) -> None:
    """Settles a call whose answer is complete; of another one notes what it has used so far."""
    if answer.is_complete:
        paid.answered(answer.usage, model=answer.model, response_id=answer.response_id)
    else:
        paid.observed(answer.news())


async def _note_awaited(paid: AsyncPaidCall, answer: Answer) -> None:
    if answer.is_complete:
        await paid.answered(answer.usage, model=answer.model, response_id=answer.response_id)
    else:
        await paid.observed(answer.news())


class _Body(httpx2.SyncByteStream):
    """The body of a response that is being read, and the call that it belongs to: settled when its usage has
    come, or when it is closed before.
    """

    def __init__(
        self, response: httpx2.Response, paid: PaidCall, answer: Answer, reading: Reading
    ) -> None:
        self._stream = response.stream
        self._chunks = response.iter_bytes()
        self._close = response.close
        self._paid = paid
        self._answer = answer
        self._reading = reading
        self._is_settled = False
        self._parts = cast("GeneratorType[bytes, None, None]", self._read())

    @property
    def elapsed(self) -> timedelta | None:
        """How long it took, for `Response.elapsed`."""
        return getattr(self._stream, "elapsed", None)

    def __iter__(self) -> Iterator[bytes]:
        return self._parts

    def close(self) -> None:
        try:
            self._paid.__exit__(None, None, None)
        finally:
            if not self._parts.gi_running:  # another thread may be reading
                self._parts.close()
            self._close()

    def _read(self) -> Generator[bytes, None, None]:
        with self._paid:
            for chunk in self._chunks:
                shown = self._reading.feed(chunk)
                self._note()
                if shown:
                    yield shown
            shown = self._reading.end()
            self._note()
        if shown:
            yield shown

    def _note(self) -> None:
        if not self._is_settled:
            self._is_settled = self._answer.is_complete
            _note(self._paid, self._answer)


class _AsyncBody(httpx2.AsyncByteStream):
    """As `_Body`, for asyncio."""

    def __init__(
        self, response: httpx2.Response, paid: AsyncPaidCall, answer: Answer, reading: Reading
    ) -> None:
        self._stream = response.stream
        self._chunks = response.aiter_bytes()
        self._close = response.aclose
        self._paid = paid
        self._answer = answer
        self._reading = reading
        self._is_settled = False
        self._parts = cast("AsyncGeneratorType[bytes, None]", self._read())

    @property
    def elapsed(self) -> timedelta | None:
        """How long it took, for `Response.elapsed`."""
        return getattr(self._stream, "elapsed", None)

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._parts

    async def aclose(self) -> None:
        try:
            await self._paid.__aexit__(None, None, None)
        finally:
            if not self._parts.ag_running:  # another task may be reading
                await self._parts.aclose()
            await self._close()

    async def _read(self) -> AsyncGenerator[bytes, None]:
        async with self._paid, aclosing(self._chunks) as chunks:
            async for chunk in chunks:
                shown = self._reading.feed(chunk)
                await self._note()
                if shown:
                    yield shown
            shown = self._reading.end()
            await self._note()
        if shown:
            yield shown

    async def _note(self) -> None:
        if not self._is_settled:
            self._is_settled = self._answer.is_complete
            await _note_awaited(self._paid, self._answer)
