"""A `with` statement around a generator that holds locks, which ends however the block is left.

A generator keeps what it has open in `with` statements of its own, so that each ends with the generator:
resumed, it goes on to its end, and thrown away, it is closed where it stands. Between the two an exception
may strike (see `locks`): as the method begins that is to resume it, or as it returns with the generator
begun. The traceback would keep alive what that method's frame knows, and with it the generator, as long as
somebody keeps the exception.

So no frame ever knows it. What owns it is the callable that the `with` statement calls at its end, and the
statement alone owns that: whatever becomes of the call, CPython drops the callable as it leaves the block,
on its thread and before anybody handles the exception. Nothing has to be noticed or made good by others.
"""

from __future__ import annotations

from collections.abc import Generator
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast
from weakref import ref

from goal_state.errors import TransactionError

__all__ = ["Block"]

Value = TypeVar("Value")


class Block(Generic[Value]):
    """Runs a generator up to its one `yield`, whose value the block is handed, and on when the block is left:
    `yield` is then whether an exception leaves it. To be entered once, and left on the same thread.
    """

    __slots__ = ("_generator", "_leave")

    def __init__(self, generator: Generator[Value, bool, None]) -> None:
        """
        Args:
            generator: newly made, and known to nobody else.
        """
        self._generator = ref(generator)
        self._leave: _Leave | None = _Leave(_end, self._generator)
        self._leave.generator = generator

    def __enter__(self) -> Value:
        # Named by no variable: see above.
        return next(cast(Any, self._generator()))

    if TYPE_CHECKING:

        def __exit__(self, *_: object) -> None: ...

    def _hand_over(self) -> _Leave:
        """The callable that ends the block, to its only owner."""
        if self._leave is None:
            raise TransactionError(
                "a block that was entered once is over; ask for a new one, with transaction() again"
            )
        leave, self._leave = self._leave, None
        return leave


class _Leave(partial[None]):
    """Ends a block, and owns its generator."""

    __slots__ = ("generator",)

    generator: Generator[Any, bool, None]


def _end(generator: Any, error_type: type[BaseException] | None, *_: object) -> None:
    try:
        generator().send(error_type is not None)
    except StopIteration:
        return


class _Exit:
    """`Block.__exit__`: a `with` statement asks for it before it enters, and is the only one to have it."""

    def __get__(self, block: Block[Any] | None, owner: type[Block[Any]]) -> Any:
        return _exit if block is None else block._hand_over()  # pyright: ignore[reportPrivateUsage]


def _exit(block: Block[Any], *error: Any) -> None:
    """What `contextlib.ExitStack` takes from the class, and calls with the block."""
    block.__exit__(*error)


if not TYPE_CHECKING:
    Block.__exit__ = _Exit()
