"""An `AsyncGoalStore` behind the face of a plain store: each call runs a loop until it has its result."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Self, cast

from goal_state import GoalStore
from goal_state.aio import AsyncGoalStore
from goal_state.operations.async_hold import AsyncHold
from goal_state.operations.goal_operations import GoalOperations
from goal_state.testing.contract import Subject

__all__ = ["Driven", "DrivenSubject"]


class Driven:
    """Runs whatever the calls of an object return to their results."""

    def __init__(self, target: Any, runner: asyncio.Runner) -> None:
        self._target = target
        self._runner = runner

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._target, name)
        return self._calling(attribute) if callable(attribute) else attribute

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._runner.run(self._target.__aexit__(*error))

    def __repr__(self) -> str:
        return repr(self._target).replace("<Async", "<")

    def _calling(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*args: Any, **options: Any) -> Any:
            given = {name: _target(value) for name, value in options.items()}
            return self._result(lambda: function(*map(_target, args), **given))

        return call

    def _result(self, call: Callable[[], Any]) -> Any:
        async def run() -> Any:
            returned = call()
            if isinstance(returned, AsyncIterator):
                return iter([each async for each in cast(AsyncIterator[Any], returned)])
            return await returned if inspect.isawaitable(returned) else returned

        result = self._runner.run(run())
        return Driven(result, self._runner) if isinstance(result, AsyncHold) else result


def _target(value: Any) -> Any:
    return value._target if isinstance(value, Driven) else value


class DrivenSubject(Subject):
    """An async store; each call of the contract is the async store's own, not only its requests."""

    def __init__(self, open_store: Callable[[], Awaitable[AsyncGoalStore]]) -> None:
        self.runner = asyncio.Runner()

        async def opened() -> AsyncGoalStore:
            return await open_store()

        driven = Driven(self.runner.run(opened()), self.runner)
        super().__init__(cast(GoalStore, driven))

    def close(self) -> None:
        super().close()
        self.runner.close()


def _driven(name: str) -> Callable[..., Any]:
    def call(subject: DrivenSubject, *args: Any, **options: Any) -> Any:
        return getattr(subject.store, name)(*args, **options)

    return call


for _name, _ in inspect.getmembers(GoalOperations, inspect.isfunction):
    if not _name.startswith("_") and _name != "apply":
        setattr(DrivenSubject, _name, _driven(_name))
