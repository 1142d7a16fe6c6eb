"""A stand-in for the program that the Claude Agent SDK runs: it speaks its protocol, and keeps a ledger."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from uuid import uuid4

from claude_agent_sdk import Transport

__all__ = ["Program", "text", "tool_use"]


def text(words: str = "Done") -> dict[str, Any]:
    return {"type": "text", "text": words}


def tool_use(tool_use_id: str, name: str = "Bash", **arguments: Any) -> dict[str, Any]:
    return {"type": "tool_use", "id": tool_use_id, "name": name, "input": arguments}


class Program(Transport):
    """Takes each prompt to the script of its turn, which is to await what the program does.

    Attributes:
        prompts: the prompts that reached it.
        ledger: the usage of each response that it has said, as the provider would bill it.
        stopped: the reason why a hook stopped it, if one did.
    """

    def __init__(self, *turns: Callable[[Program], Awaitable[None]]) -> None:
        self._turns = iter(turns)
        self._out: asyncio.Queue[dict[str, Any] | Exception | None] = asyncio.Queue()
        self._hooks: dict[str, list[str]] = {}
        self._answers: dict[str, asyncio.Future[dict[str, Any]]] = {}
        self._numbers = itertools.count()
        self._tasks: list[asyncio.Task[None]] = []
        self._ready = False
        self.prompts: list[str] = []
        self.ledger: list[dict[str, int]] = []
        self.stopped: str | None = None

    # -- what the SDK does with it -----------------------------------------------------------------

    async def connect(self) -> None:
        self._ready = True

    def is_ready(self) -> bool:
        return self._ready

    async def write(self, data: str) -> None:
        said = json.loads(data)
        if said["type"] == "control_request":
            for event, matchers in (said["request"].get("hooks") or {}).items():
                self._hooks[event] = [i for m in matchers for i in m["hookCallbackIds"]]
            answer = {"subtype": "success", "request_id": said["request_id"], "response": {}}
            self._out.put_nowait({"type": "control_response", "response": answer})
        elif said["type"] == "control_response":
            answer = self._answers.pop(said["response"]["request_id"])
            if not answer.done():  # its turn was cancelled
                answer.set_result(said["response"])
        elif said["type"] == "user":
            self.prompts.append(said["message"]["content"])
            turn = next(self._turns, None)
            if turn is not None:
                self._tasks.append(asyncio.create_task(self._run(turn)))

    async def _run(self, turn: Callable[[Program], Awaitable[None]]) -> None:
        try:
            await turn(self)
        except Exception as error:
            self._out.put_nowait(error)

    async def read_messages(self) -> AsyncIterator[dict[str, Any]]:
        while (message := await self._out.get()) is not None:
            if isinstance(message, Exception):
                raise message
            yield message

    async def end_input(self) -> None:
        await asyncio.gather(*self._tasks)
        self._out.put_nowait(None)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        self._out.put_nowait(None)

    # -- what its script does ----------------------------------------------------------------------

    def responds(
        self,
        message_id: str | None,
        *blocks: dict[str, Any],
        used: tuple[int, int] = (100, 10),
        said: tuple[int, int] | None = None,
        parent: str | None = None,
        model: str = "claude-test",
        cached: int = 0,
        unread: bool = False,
    ) -> None:
        """One response of the model, a message for each of its blocks. The usage that its messages show is
        `said`, which is early, and what it has used in truth is `used`.
        """
        shown = used if said is None else said
        self.ledger.append({"input": used[0], "cached": cached, "output": used[1]})
        for block in blocks or (text(),):
            message: dict[str, Any] = {"model": model, "content": [block], "role": "assistant"}
            if message_id is not None:
                message["id"] = message_id
            if not unread:
                message["usage"] = {
                    "input_tokens": shown[0],
                    "cache_read_input_tokens": cached,
                    "cache_creation_input_tokens": 0,
                    "output_tokens": shown[1],
                }
            self.says(type="assistant", message=message, parent_tool_use_id=parent)

    def says(self, **message: Any) -> None:
        self._out.put_nowait({"session_id": "session-1", "uuid": str(uuid4())} | message)

    async def tool(self, tool_use_id: str, name: str = "Bash", **hook: Any) -> bool:
        """Asks the hooks whether it may run a tool; whether it may."""
        hook = {"tool_name": name, "tool_input": {}, "tool_use_id": tool_use_id} | hook
        return await self._asks("PreToolUse", tool_use_id, **hook)

    async def takes_prompt(self, prompt: str) -> bool:
        return await self._asks("UserPromptSubmit", None, prompt=prompt)

    async def _asks(self, event: str, tool: str | None, **hook: Any) -> bool:
        for callback in self._hooks.get(event, ()):
            request_id = f"request-{next(self._numbers)}"
            answer = self._answers[request_id] = asyncio.get_running_loop().create_future()
            request = {
                "subtype": "hook_callback",
                "callback_id": callback,
                "input": {"hook_event_name": event, "session_id": "session-1"} | hook,
                "tool_use_id": tool,
            }
            said = {"type": "control_request", "request_id": request_id, "request": request}
            self._out.put_nowait(said)
            response = await answer
            assert response["subtype"] == "success", response
            if response["response"].get("continue") is False:
                self.stopped = response["response"]["stopReason"]
                return False
        return True

    def returns(self, tool_use_id: str, content: str = "fine") -> None:
        block = {"type": "tool_result", "tool_use_id": tool_use_id, "content": content}
        self.says(type="user", message={"role": "user", "content": [block]})

    def ends(self, *, totals: bool = True, **result: Any) -> None:
        """The end of a turn, with its running totals."""
        sums = {
            key: sum(entry[key] for entry in self.ledger) for key in ("input", "cached", "output")
        }
        shown: dict[str, Any] = {"subtype": "success", "is_error": False, "num_turns": 1}
        shown |= {"duration_ms": 1, "duration_api_ms": 1, "result": "Done"}
        if totals:
            shown["modelUsage"] = {
                "claude-test": {
                    "inputTokens": sums["input"],
                    "outputTokens": sums["output"],
                    "cacheReadInputTokens": sums["cached"],
                    "cacheCreationInputTokens": 0,
                    "webSearchRequests": 0,
                    "costUSD": 0.0,
                    "contextWindow": 200_000,
                    "maxOutputTokens": 32_000,
                }
            }
        self.says(type="result", **(shown | result))
