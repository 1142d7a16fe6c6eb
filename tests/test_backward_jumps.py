"""No loop stands directly in a `with` whose end must run whatever strikes.

From CPython 3.12 on, the jump back to the head of a loop is no part of the block around it: an exception that
is delivered there (a signal handler's, one set from another thread) leaves the block without its end, and a
lock held. In a function of its own the same loop is safe, since its call is a part of the block.
"""

from __future__ import annotations

import dis
import sys
import threading
from collections.abc import Iterator
from itertools import pairwise
from types import CodeType, ModuleType
from typing import Any

import pytest

from goal_state.delivery import listeners
from goal_state.storage import forks, locks
from goal_state.storage.sqlite import executor, group_calls, readers, turnstile
from goal_state.storage.sqlite import group_commit as writer

STRUCK: list[ModuleType] = [
    executor,
    forks,
    group_calls,
    listeners,
    locks,
    readers,
    turnstile,
    writer,
]
"""Where locks are held while an exception may strike."""


def codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from codes(constant)


def unguarded(code: CodeType) -> list[int]:
    """The lines of loops in a `with` block out of which their jump back falls."""
    instructions = list(dis.get_instructions(code))
    ends_with = {
        first.offset
        for first, second in pairwise(instructions)
        if second.opname == "WITH_EXCEPT_START"
    }
    entries: list[Any] = dis._parse_exception_table(code)  # type: ignore[attr-defined]
    ends = {entry.end for entry in entries if entry.target in ends_with}
    return [
        one.positions.lineno or 0
        for one in instructions
        if one.opname == "JUMP_BACKWARD" and one.offset in ends and one.positions is not None
    ]


def test_a_loop_in_a_block_is_found_where_the_interpreter_leaves_it_out() -> None:
    lock = threading.Lock()

    def looping(items: list[int]) -> None:
        with lock:
            while items and items[0]:
                items.pop()

    def calling(items: list[int]) -> None:
        with lock:
            looping(items)

    assert unguarded(calling.__code__) == []
    assert len(unguarded(looping.__code__)) == (sys.version_info >= (3, 12))


@pytest.mark.parametrize("module", STRUCK, ids=lambda module: module.__name__)
def test_no_lock_is_left_held_by_a_jump_back(module: ModuleType) -> None:
    assert module.__file__ is not None
    with open(module.__file__, encoding="utf-8") as file:  # noqa: PTH123
        whole = compile(file.read(), module.__file__, "exec")
    assert {code.co_qualname: unguarded(code) for code in codes(whole) if unguarded(code)} == {}
