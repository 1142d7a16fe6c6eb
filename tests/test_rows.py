"""Rows and records: a column is a field, and nothing else has to be told of it."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import FrozenInstanceError, field, fields, make_dataclass, replace
from typing import Any

import pytest
from sqlalchemy import Column, MetaData, Table, Text, select
from sqlalchemy.dialects.sqlite import pysqlite
from sqlalchemy.schema import CreateTable

from goal_state import EventKind, Goal, GoalEvent, GoalStatus
from goal_state.domain.events import finished_event, new_event_draft
from goal_state.domain.records import blank, changed, copier
from goal_state.storage.rows import Write, arranged, columns_of, insert_of, reader, update_of
from goal_state.storage.schema import goals
from goal_state.storage.statements import Statement

SQLITE = pysqlite.dialect()
GOAL = Goal(
    "t", "01980000-0000-7000-8000-000000000000", "Ship", GoalStatus.PAUSED, 100, 60, 1_500, 1, 2
)


def with_one_more_column() -> tuple[type[Any], Table]:
    """The class of goals and their table, each with a `colour` more."""
    known = [(each.name, each.type, field(default=each.default)) for each in fields(Goal)]
    cls = make_dataclass(
        "Goal",
        [*known, ("colour", "str | None", field(default=None))],
        namespace={"__module__": Goal.__module__},  # where the names of the types are known
        frozen=True,
        slots=True,
    )
    table = goals.to_metadata(MetaData())
    table.append_column(Column("colour", Text))
    return cls, table


def test_a_field_and_a_column_more_are_written_and_read() -> None:
    cls, table = with_one_more_column()
    insert, read = insert_of(cls, table), reader(cls)
    update = update_of(cls, table, key="goal_id", columns=["colour", "status"])
    query = Statement(lambda: select(*columns_of(cls, table)))
    goal = cls(*(getattr(GOAL, each.name) for each in fields(Goal)), colour="red")
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.execute(str(CreateTable(table).compile(dialect=SQLITE)))

        def written(write: Write[Any], record: object) -> object:
            connection.execute(write.statement.compile(SQLITE), write.values(record))
            return read(connection.execute(query.compile(SQLITE)).fetchone())

        assert written(insert, goal) == goal
        complete = changed(goal, colour="blue", status=GoalStatus.COMPLETE)
        assert written(update, complete) == complete == replace(complete)
        assert complete.colour == "blue"


@pytest.mark.parametrize("side", ["a field", "a column"])
def test_a_column_without_its_field_is_refused_and_the_reverse(side: str) -> None:
    cls, table = with_one_more_column()
    with pytest.raises(TypeError, match="colour"):
        columns_of(*((cls, goals) if side == "a field" else (Goal, table)))


def test_a_row_has_plain_values_and_a_record_members_of_enums() -> None:
    row = insert_of(Goal, goals).values(GOAL)
    assert {type(value) for value in row} == {str, int, type(None)}
    goal = reader(Goal)(tuple(row))
    assert goal == GOAL
    assert goal.status is GoalStatus.PAUSED


def test_a_status_that_may_be_missing_is_none_in_row_and_record() -> None:
    values = (1, "e", "created", "t", "g", None, "active", None, *[None] * 7, 5, *[None] * 13)
    event = reader(GoalEvent)(values)
    assert event.previous_status is None
    assert event.estimate is None
    assert event.kind is EventKind.CREATED


def test_a_finished_draft_is_frozen() -> None:
    draft = new_event_draft()
    for each in fields(GoalEvent):
        setattr(draft, each.name, None)
    event = finished_event(draft, 7)
    assert type(event) is GoalEvent
    assert event.position == 7
    with pytest.raises(FrozenInstanceError):
        event.position = 8  # type: ignore[misc]


def test_a_draft_begins_with_the_defaults_alone() -> None:
    draft = blank(Goal)()
    assert draft.resume_at_ms is None
    with pytest.raises(AttributeError):
        _ = draft.thread_id


def test_changing_a_copy_leaves_the_record_as_it_was() -> None:
    copy = copier(Goal)(GOAL)
    copy.tokens_used = 61
    assert changed(GOAL, tokens_used=61) == replace(GOAL, tokens_used=61)
    assert GOAL.tokens_used == 60


def test_a_field_that_there_is_not_is_not_changed() -> None:
    with pytest.raises(AttributeError, match="colour"):
        changed(GOAL, colour="red")


def test_values_by_keyword_are_put_in_the_order_of_columns() -> None:
    arrange = arranged(["a", "b", "c", "d"], pair=["b", "c"])
    assert arrange(d=4, pair=(2, 3), a=1) == (1, 2, 3, 4)
    with pytest.raises(TypeError):
        arrange(d=4, a=1)
