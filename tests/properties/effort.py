"""How long the machines are run, and what is told of it."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test

from tests.properties.machine import taken

__all__ = ["PATIENCE_SECONDS", "run"]

PATIENCE_SECONDS = 120 + 2 * settings().max_examples
"""For one machine: the profile says how many examples there are."""


def run(
    machine: Callable[[], RuleBasedStateMachine],
    record_property: Callable[[str, object], None],
    *,
    percent: int,
    steps: int = 50,
) -> None:
    """Runs a machine for so many of the examples that the profile asks for.

    What was done is recorded as properties of the test; `conftest` adds them up.
    """
    before = taken.copy()
    examples = max(settings().max_examples * percent // 100, 1)
    try:
        run_state_machine_as_test(
            machine,  # type: ignore[arg-type]
            settings=settings(max_examples=examples, stateful_step_count=steps),
        )
    finally:
        for name, count in sorted((taken - before).items()):
            record_property(name, count)
