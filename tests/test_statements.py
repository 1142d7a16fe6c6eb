"""The SQL: every statement compiles, and finds its rows through an index."""

from __future__ import annotations

import importlib
import pkgutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy.dialects.sqlite import pysqlite

import goal_state
from goal_state.storage.statements import Statement

# These read, or count, a whole table: that is what they are for.
WHOLE_TABLE = {
    "goal_state.storage.ledger._CURSORS",
    "goal_state.storage.repository._COUNT",
    "goal_state.storage.repository._COUNT_OF_STATUS",
    # Once at the end of an import, over all that it brought.
    "goal_state.storage.transfer._BALANCE_OF_NO_GOAL",
    "goal_state.storage.transfer._IN_BALANCE_ALREADY",
    "goal_state.storage.transfer._REPLACED_AND_THERE",
    "goal_state.storage.transfer._SAME_EVENT_ID",
    "goal_state.storage.verification._LEDGERS",
}
# Pruning works its way through the log from its beginning, and sorts what it has in hand.
PRUNING = "goal_state.storage.retention."


def _statements() -> dict[str, Statement]:
    found: dict[str, Statement] = {}
    for module in pkgutil.walk_packages(goal_state.__path__, "goal_state."):
        if module.name.startswith(
            ("goal_state.cli", "goal_state.migrations")
        ) or module.name.endswith("__main__"):
            continue
        for name, value in vars(importlib.import_module(module.name)).items():
            if isinstance(value, Statement):
                found[f"{module.name}.{name}"] = value
    return found


STATEMENTS = _statements()


def test_the_statements_were_found() -> None:
    assert len(STATEMENTS) > 30
    assert set(STATEMENTS) > WHOLE_TABLE


@pytest.mark.parametrize("name", STATEMENTS)
def test_a_statement_compiles_and_is_kept(name: str) -> None:
    statement, dialect = STATEMENTS[name], pysqlite.dialect()
    text = statement.compile(dialect)
    assert statement.texts[dialect.name] == text
    assert text.count("?") == len(statement._parameters)


@pytest.mark.parametrize(
    "name", [n for n in STATEMENTS if n not in WHOLE_TABLE and not n.startswith(PRUNING)]
)
def test_a_statement_goes_through_an_index(database: Path, name: str) -> None:
    text = STATEMENTS[name].compile(pysqlite.dialect())
    with closing(sqlite3.connect(database)) as connection:
        plan = connection.execute(
            f"EXPLAIN QUERY PLAN {text}", [1] * len(STATEMENTS[name]._parameters)
        ).fetchall()
    # SQLite's own list of the tables that count their rows has one row.
    steps = [step for *_, step in plan if step != "SCAN sqlite_sequence"]
    assert not [step for step in steps if step.startswith(("SCAN", "USE TEMP"))], steps
    assert plan or text.startswith("INSERT")


@pytest.mark.parametrize("name", sorted(WHOLE_TABLE))
def test_a_statement_that_reads_a_whole_table_is_named_here_for_a_reason(
    database: Path, name: str
) -> None:
    text = STATEMENTS[name].compile(pysqlite.dialect())
    with closing(sqlite3.connect(database)) as connection:
        plan = connection.execute(
            f"EXPLAIN QUERY PLAN {text}", [1] * len(STATEMENTS[name]._parameters)
        ).fetchall()
    assert any(step.startswith("SCAN") for *_, step in plan)


def test_parameters_in_another_order_than_declared_are_an_error() -> None:
    from sqlalchemy import bindparam, select

    from goal_state.storage.schema import goals

    statement = Statement(
        lambda: select(goals).where(
            goals.c.goal_id == bindparam("goal_id"), goals.c.status == bindparam("status")
        ),
        "status goal_id",
    )
    with pytest.raises(AssertionError, match="bound parameters are"):
        statement.compile(pysqlite.dialect())
