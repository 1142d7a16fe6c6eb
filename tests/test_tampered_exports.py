"""Whoever changes an export and mends its trailer is refused, or has made a store in which all works."""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any

import pytest

from goal_state import GoalStatus, GoalStore, ThreadUsage, TokenUsage
from goal_state.errors import NotAnExportError
from goal_state.storage.exported_rows import CHECKED_COLUMNS
from goal_state.storage.schema import metadata
from tests.in_memory import open_in_memory
from tests.proof.effort import IS_LONG

Record = dict[str, Any]

_MAX = 2**63 - 1
_ID = "019b7600-0000-7000-8000-00000000abcd"
_LAST_DATE_MS, _FIRST_DATE_MS = 253_402_300_799_999, -62_135_596_800_000

BUDGETS = ("token_budget", "cost_budget", "call_budget", "time_budget", "deadline")
LATE = datetime(2200, 1, 1, tzinfo=UTC)

USED_OF_A_FIELD, STRIDE = (10**9, 1) if IS_LONG else (1, 16)
"""Of how many values of a field that are taken it is seen that all works afterwards; every which change of a
line is tried, beginning anywhere.
"""


class Raw:
    """JSON that `json.dumps` does not write."""

    def __init__(self, text: str) -> None:
        self.text = text


HOSTILE: tuple[Any, ...] = (
    *(None, True, False, 0, 1, 2, 7, -1, 1.0, 1.5, 1e308, 10**400),
    *(2**31, 2**53, 2**62 - 10**6, 2**62 + 1, _MAX - 1, _MAX, 2**63, -(2**63), -(2**63) - 1),
    *(_LAST_DATE_MS, _LAST_DATE_MS + 1, _FIRST_DATE_MS, _FIRST_DATE_MS - 1),
    *("", " ", "x", " padded ", "x" * 256, "x" * 257, "x" * 4000, "x" * 4001, "7", "null"),
    *("a\0b", "\ud800", "x\udfff", "\u2028 目標 \x1b", "\u00a0x", _ID, _ID.upper(), "x" * 36),
    *(*GoalStatus, "cleared", "created", "usage_accounted", "status_changed"),
    *("Robert'); DROP TABLE goal_state_goals;--", [], {}, [1], {"a": 1}),
    *(Raw("NaN"), Raw("-Infinity"), Raw("9" * 5000), Raw("[" * 5000), Raw(""), Raw("1 2")),
)


def fill(store: GoalStore) -> None:
    """Every kind of line, and of each table several."""
    usage = TokenUsage(1000, 3, 2, 70, 5)
    for number in range(6):
        thread = f"thread-{number}"
        store.create(thread, f"work {number}", token_budget=500, turn_id="turn-1")
        store.charge(thread, tokens=100 * number, seconds=0.25, idempotency_key="k", turn_id="t")
        store.set_baseline(thread, ThreadUsage(usage, usage, 258_400), turn_id="turn-1")
    store.set("thread-5", cost_budget="2.5", call_budget=9, time_budget=60, warn_at=(0.5, 0.8))
    store.create("thread-8", "for another", parent="thread-5", deadline=LATE)
    store.charge("thread-8", usage, cost="0.25", model="model-1", tags={"user": "ada"})
    store.set("thread-1", status="blocked", blocked_reason="asks for a key")
    store.set("thread-2", status="usage_limited", resume_at=datetime(2030, 1, 1, tzinfo=UTC))
    store.clear("thread-3", turn_id="turn-2")
    with store.consume("sink", lambda _: None) as consumer:
        assert consumer.drain(10)
    store.prune_events(before=datetime.now(UTC) + timedelta(days=1))
    store.replace("thread-0", "instead", token_budget=50)
    store.charge("thread-0", tokens=49, seconds=1, idempotency_key="one", turn_id="turn-3")
    store.charge("thread-0", tokens=1, turn_id="turn-3")
    store.charge("thread-4", tokens=1, idempotency_key="two")
    store.create("thread-6", "soon gone")
    store.charge("thread-6", tokens=5)
    store.clear("thread-6")
    store.set("thread-4", status="paused")
    store.create("thread-7", "goes on")
    store.charge("thread-7", tokens=5, seconds=2)
    store.resume("thread-5", token_budget=20_000, call_budget=8)
    store.charge("thread-8", usage, cost="1", model="model-1", tags={"tool": "x"}, turn_id="turn-4")
    with store.reserve("thread-8", tokens=10, cost="0.125", key="ended") as hold:
        hold.settle(usage, cost="0.25")
    store.reserve("thread-8", tokens=100, cost="0.5", key="live", expires_in=10**6)


def encoded(value: Any) -> str:
    if isinstance(value, Raw):
        return value.text
    if isinstance(value, dict):
        fields = (f"{json.dumps(key)}: {encoded(field)}" for key, field in value.items())
        return "{" + ", ".join(fields) + "}"
    return json.dumps(value)


def sealed(lines: list[str]) -> list[str]:
    """The lines with a trailer that is right."""
    text = "".join(f"{line}\n" for line in lines)
    digest = hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()
    return [*lines, json.dumps({"rows": len(lines) - 1, "sha256": digest})]


@pytest.fixture(scope="module")
def exported() -> list[str]:
    with open_in_memory() as store:
        fill(store)
        return list(store.export_lines())


def kind_of(record: Record) -> str:
    if "table" not in record:
        return "header" if "format" in record else "trailer"
    row = record["row"]
    what = {"goal_state_goals": "status", "goal_state_events": "kind"}.get(record["table"])
    return record["table"] if what is None else f"{record['table']} {row[what]}"


def kinds(lines: list[str]) -> dict[str, int]:
    """Of each kind of line the last one: it is the one with most before it."""
    return {kind_of(json.loads(line)): number for number, line in enumerate(lines)}


KINDS = (
    "header",
    "goal_state_goals active",
    "goal_state_goals paused",
    "goal_state_goals blocked",
    "goal_state_goals usage_limited",
    "goal_state_goals budget_limited",
    "goal_state_events created",
    "goal_state_events usage_accounted",
    "goal_state_events status_changed",
    "goal_state_events cleared",
    "goal_state_events budget_changed",
    "goal_state_events threshold_crossed",
    "goal_state_balances",
    "goal_state_parts",
    "goal_state_baselines",
    "goal_state_cursors",
    "goal_state_holds",
)


def changes_of(line: str) -> Iterator[tuple[str, str]]:
    """The line with one of its fields changed, and what was done."""
    record: Record = json.loads(line)
    fields: Record = record.get("row", record)

    def again(fields: Record) -> str:
        return encoded(record | {"row": fields} if "row" in record else fields)

    for name, value in fields.items():
        for hostile in HOSTILE:
            if encoded(hostile) != encoded(value):
                yield f"{name} = {encoded(hostile)[:60]}", again(fields | {name: hostile})
        if isinstance(value, int):
            for near in (value - 1, value + 1, -value, value * 2):
                if near != value:
                    yield f"{name} = {near}", again(fields | {name: near})
        if isinstance(value, str):
            for near in (value[:-1], f"{value}x", value.swapcase(), f"{value} "):
                yield f"{name} = {near!r}", again(fields | {name: near})
        yield f"no {name}", again({key: fields[key] for key in fields if key != name})
        twice = again(fields)
        yield f"{name} twice", f"{twice[:-1]}, {encoded({name: value})[1:-1]}}}"
    if "row" in record:
        yield "row twice", f"{line[:-1]}, {encoded({'row': fields})[1:-1]}}}"
        yield "another table", encoded(record | {"table": "sqlite_master"})
        yield "no table", encoded({"row": fields})
    yield "a field too many", again(fields | {"more": 1})


def check_refusal(error: NotAnExportError, lines: int) -> None:
    """It names a line that there is, and is no longer than a sentence."""
    assert 1 <= error.line <= lines
    assert str(error).startswith(f"line {error.line}: ")
    assert len(str(error)) < 1000


def check_all_works(store: GoalStore, again: GoalStore) -> None:
    """Every read and every later write; and what is exported then can be imported."""
    for event in store.events():
        assert event.occurred_at.year > 0
        assert event.cumulative_seconds is None or event.cumulative_seconds >= 0
    assert store.verify() == []
    before = store.last_position()
    threads = {event.thread_id for event in store.events()}
    total = TokenUsage(500, 0, 0, 0, 0)
    for goal in store.goals():
        assert goal.created_at <= goal.updated_at
        assert goal.resume_at is None or goal.resume_at.year > 0
        assert list(store.events(goal_id=goal.goal_id))
        store.resume(goal.thread_id, **dict.fromkeys(BUDGETS))
        store.charge(goal.thread_id, tokens=3, seconds=1, idempotency_key="new", turn_id="new")
        store.set(goal.thread_id, status="paused", token_budget=10_000)
        store.resume(goal.thread_id)
    for thread in sorted(threads):
        store.usage(thread)
        store.baseline(thread)
        store.record_total(thread, total, turn_id="new")
        store.record_total(thread, total + total, turn_id="new")
    store.clear("thread-4")
    for thread in sorted(threads):
        store.replace(thread, "anew")
        store.charge(thread, tokens=1)
    positions = [event.position for event in store.events(after=before)]
    assert positions == list(range(positions[0], positions[0] + len(positions)))
    assert positions[0] > before
    with store.consume("sink", lambda _: None) as consumer:
        assert consumer.drain(10)
        assert consumer.position == positions[-1]
    assert store.verify() == []
    store.prune_events(before=datetime.now(UTC) + timedelta(days=1))
    assert store.verify() == []
    again.import_lines(store.export_lines())
    assert again.verify() == []


@pytest.fixture
def new_store() -> Iterator[Callable[[], GoalStore]]:
    """Makes stores without a row in them."""
    stores: list[GoalStore] = []

    def make() -> GoalStore:
        stores.append(open_in_memory())
        return stores[-1]

    yield make
    for store in stores:
        store.close()


@pytest.mark.slow
def test_every_kind_of_line_and_every_column_is_tried(exported: list[str]) -> None:
    assert set(kinds(exported)) == {*KINDS, "trailer"}
    for name, columns in CHECKED_COLUMNS.items():
        assert list(columns) == [column.name for column in metadata.tables[name].columns]
    assert sum(len(list(changes_of(exported[at]))) for at in kinds(exported).values()) > 9_000


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_changed_value_is_refused_by_its_line_or_all_works(
    exported: list[str], kind: str, new_store: Callable[[], GoalStore]
) -> None:
    at = kinds(exported)[kind]
    empty = new_store()
    used_of: Counter[str] = Counter()
    for what, changed in islice(changes_of(exported[at]), random.randrange(STRIDE), None, STRIDE):
        lines = sealed([*exported[:at], changed, *exported[at + 1 : -1]])
        try:
            empty.import_lines(lines)
        except NotAnExportError as error:
            check_refusal(error, len(lines))
        except Exception as error:
            pytest.fail(f"{what}: {type(error).__name__}: {error}")
        else:
            used_of[what.split()[0]] += 1
            if used_of[what.split()[0]] <= USED_OF_A_FIELD:
                try:
                    check_all_works(empty, new_store())
                except Exception as error:
                    pytest.fail(f"{what} was taken, then {type(error).__name__}: {error}")
            empty.close()
            empty = new_store()
        assert empty.count() == 0, what
        assert empty.last_position() == 0, what
    empty.import_lines(exported)
    assert list(empty.export_lines()) == exported
