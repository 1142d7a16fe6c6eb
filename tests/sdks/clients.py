"""The clients that are metered, called alike: what a test of all of them is run with."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

from anthropic import Anthropic, AsyncAnthropic
from openai import AsyncOpenAI, OpenAI

from goal_state import AsyncGoalStore, GoalStore
from goal_state.integrations import anthropic, openai
from tests.sdks.provider import Provider

__all__ = ["APIS", "MODELS", "Caller"]

APIS = ("messages", "chat", "responses")
MODELS = {"messages": "claude-sonnet-4-6", "chat": "gpt-4o", "responses": "gpt-4o"}


@dataclass
class Caller:
    """A metered client of one of the APIs.

    Attributes:
        api: one of `APIS`.
        is_async: whether its calls are awaited.
        provider: who answers.
        store: who keeps the goals.
        metering: arguments of `metered`.
        options: arguments of the client.
    """

    api: str
    is_async: bool
    provider: Provider
    store: GoalStore | AsyncGoalStore
    metering: dict[str, Any] = field(default_factory=dict[str, Any])
    options: dict[str, Any] = field(default_factory=dict[str, Any])

    def __post_init__(self) -> None:
        self.client = self.new_client(**self.metering)

    def __str__(self) -> str:
        sdk = "anthropic" if self.api == "messages" else "openai"
        return f"{self.api}, {'async' if self.is_async else 'sync'}, {sdk} {version(sdk)}"

    def plain_client(self) -> Any:
        made: Callable[..., Any]
        if self.api == "messages":
            made = AsyncAnthropic if self.is_async else Anthropic
        else:
            made = AsyncOpenAI if self.is_async else OpenAI
        http_client = self.provider.async_client() if self.is_async else self.provider.client()
        return made(api_key="none", http_client=http_client, **self.options)

    def new_client(self, **metering: Any) -> Any:
        meter = anthropic.metered if self.api == "messages" else openai.metered
        return meter(self.plain_client(), self.store, **metering)

    def ask(self, prompt: str = "Ship the parser", **arguments: Any) -> Any:
        """Asks once; of a stream, reads all of it and returns the events."""
        if not self.is_async:
            return self.asked(prompt, **arguments)
        return asyncio.run(self.asked_awaited(prompt, **arguments))

    def asked(
        self, prompt: str = "Ship the parser", *, client: Any = None, **arguments: Any
    ) -> Any:
        create, request = self.call(client or self.client, prompt, arguments)
        answer = create(**request)
        return list(answer) if request.get("stream") else answer

    async def asked_awaited(
        self, prompt: str = "Ship the parser", *, client: Any = None, **arguments: Any
    ) -> Any:
        create, request = self.call(client or self.client, prompt, arguments)
        answer = await create(**request)
        return [event async for event in answer] if request.get("stream") else answer

    def call(
        self, client: Any, prompt: str, arguments: dict[str, Any]
    ) -> tuple[Callable[..., Any], dict[str, Any]]:
        """The function of the client, and its arguments."""
        cap = arguments.pop("cap", 500)
        messages = [{"role": "user", "content": prompt}]
        request: dict[str, Any] = {"model": MODELS[self.api], **arguments}
        if self.api == "messages":
            return client.messages.create, {"max_tokens": cap, "messages": messages} | request
        if self.api == "chat":
            named = {"max_completion_tokens": cap} if cap else {}
            return client.chat.completions.create, {"messages": messages} | named | request
        named = {"max_output_tokens": cap} if cap else {}
        return client.responses.create, {"input": prompt} | named | request
