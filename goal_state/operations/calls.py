"""One description of a call, for who is answered at once and for who awaits the answer.

The calls of a store, a hold or a meter are described once: arguments, docstring, and a body that makes a
request and returns what its owner makes of it. Where the owner carries requests out in a coroutine, so that
what the body returns is awaited, the class has `Awaited` among its bases. The decorators of this module tell
a type checker and `help()` so: the same method is a plain one in `GoalStore`, and a coroutine function in
`AsyncGoalStore`.

Therefore a body returns what its owner makes of its request, and does nothing with it.
"""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, TypeVar, overload

__all__ = ["Awaited", "block", "call", "iteration"]

P = ParamSpec("P")
R = TypeVar("R")


class Awaited:
    """Among the bases of a class whose calls are awaited. Each is a coroutine function of its own then."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for base in cls.__mro__:
            for name, function in vars(base).items():
                if getattr(function, _MARK, False) and getattr(cls, name) is function:
                    setattr(cls, name, _awaited(function))


_MARK = "_goal_state_is_call"


def _awaited(function: Callable[..., Coroutine[Any, Any, R]]) -> Callable[..., Any]:
    @functools.wraps(function)
    async def awaited(*args: Any, **options: Any) -> R:
        return await function(*args, **options)

    delattr(awaited, _MARK)
    return awaited


if TYPE_CHECKING:

    class call(Generic[P, R]):  # noqa: N801
        """Marks a call: it returns its result, or a coroutine where its owner is `Awaited`."""

        def __init__(self, function: Callable[Concatenate[Any, P], R]) -> None: ...

        @overload
        def __get__(
            self, instance: None, owner: type[Awaited]
        ) -> Callable[Concatenate[Any, P], Coroutine[Any, Any, R]]: ...
        @overload
        def __get__(
            self, instance: None, owner: type[object]
        ) -> Callable[Concatenate[Any, P], R]: ...
        @overload
        def __get__(
            self, instance: Awaited, owner: type[object]
        ) -> Callable[P, Coroutine[Any, Any, R]]: ...
        @overload
        def __get__(self, instance: object, owner: type[object]) -> Callable[P, R]: ...
        def __get__(self, instance: object, owner: type[object]) -> Any: ...

        def __call__(self, *args: P.args, **options: P.kwargs) -> R:
            """What a protocol with such a method is compared with."""
            ...

    class iteration(Generic[P, R]):  # noqa: N801
        """Marks a call that returns an iterator, or an asynchronous one where its owner is `Awaited`."""

        def __init__(self, function: Callable[Concatenate[Any, P], Iterator[R]]) -> None: ...

        @overload
        def __get__(
            self, instance: Awaited, owner: type[object]
        ) -> Callable[P, AsyncIterator[R]]: ...
        @overload
        def __get__(self, instance: object, owner: type[object]) -> Callable[P, Iterator[R]]: ...
        def __get__(self, instance: object, owner: type[object]) -> Any: ...

    class block(Generic[P, R]):  # noqa: N801
        """Marks a call whose result is a block, of `async with` where its owner is `Awaited`."""

        def __init__(
            self, function: Callable[Concatenate[Any, P], AbstractContextManager[R]]
        ) -> None: ...

        @overload
        def __get__(
            self, instance: Awaited, owner: type[object]
        ) -> Callable[P, AbstractAsyncContextManager[R]]: ...
        @overload
        def __get__(
            self, instance: object, owner: type[object]
        ) -> Callable[P, AbstractContextManager[R]]: ...
        def __get__(self, instance: object, owner: type[object]) -> Any: ...

else:

    def call(function):
        """See above."""
        setattr(function, _MARK, True)
        return function

    def iteration(function):
        """See above."""
        return function

    def block(function):
        """See above."""
        return function
