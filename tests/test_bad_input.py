"""Whatever is handed to a public call or written on the command line: a documented error or a result,
and after an error the file is as it was.
"""

from __future__ import annotations

import io
import os
import shutil
import sqlite3
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any
from unittest.mock import patch

import click
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from goal_state import (
    KEEP,
    AccountingMode,
    Charge,
    EventKind,
    Goal,
    GoalMeter,
    GoalRepository,
    GoalStateError,
    GoalStatus,
    GoalStore,
    InvalidValueError,
    TokenUsage,
    TokenUsageInfo,
    migrate,
)
from goal_state.analytics import AnalyticsContext, JsonLinesSink, send_events
from goal_state.cli.main import program
from goal_state.database import create_engine
from goal_state.replay import ThreadHub
from goal_state.requests import Request
from goal_state.rollout import RolloutReader, RolloutWriter, TurnStatus, find_rollout, rollout_path
from tests.databases import Rows, rows

# -- values ------------------------------------------------------------------------------------------

NOW = datetime(2026, 1, 1, tzinfo=UTC)


class Text(str):
    """A text that says something else when it is asked."""

    __slots__ = ()

    def __str__(self) -> str:
        return "\0\ud800 of a subclass"

    def strip(self, *_: object) -> str:  # type: ignore[override]
        return ""


class Number(int):
    """A number that says something else when it is asked."""

    def __index__(self) -> int:
        return -1

    def __str__(self) -> str:
        return "-1"

    def __mul__(self, _: object) -> int:
        return -1


class Fraction_(float):
    """A float that says something else when it is asked."""

    def __float__(self) -> float:
        return -1.0

    def __mul__(self, _: object) -> float:
        return -1.0


SQL = (
    "'; DROP TABLE goals; --",
    '"; DELETE FROM goal_events; --',
    "' OR '1'='1",
    "x' UNION SELECT * FROM goals --",
    "a' || char(0) || 'b",
    "%_*?:name @name $name ?1",
    "); PRAGMA writable_schema = ON; --",
)
NAMES = ("active", "paused", "new", "nobody's", *SQL)
texts = st.one_of(
    st.text(max_size=8),
    st.text(alphabet=st.characters(categories=["Cs", "Cc", "Zs", "So", "Ll"]), max_size=8),
    st.sampled_from([*SQL, "", "\0", "a\0b", "\ud800", "\udcff", "\u202e", "x" * 257, "x" * 5000]),
    st.builds(Text, st.sampled_from(["active", "", "x" * 300])),
)
numbers = st.one_of(
    st.integers(-3, 3),
    st.integers(),
    st.sampled_from([2**63 - 1, 2**63, -(2**63), -(2**63) - 1, 10**5000, -(10**5000)]),
    st.builds(Number, st.integers(-2, 2)),
    st.floats(),
    st.builds(Fraction_, st.floats()),
    st.sampled_from([Decimal(1), Decimal("NaN"), Fraction(1, 3), 1 + 2j, True, False]),
)
times = st.one_of(
    st.datetimes(),
    st.datetimes(timezones=st.just(UTC)),
    st.sampled_from(
        [
            datetime.min.replace(tzinfo=timezone(timedelta(hours=14))),
            datetime.max.replace(tzinfo=timezone(timedelta(hours=-12))),
            date(2026, 1, 1),
            timedelta(1),
        ]
    ),
)
plain = st.one_of(
    texts,
    numbers,
    times,
    st.none(),
    st.binary(max_size=4),
    st.sampled_from([Ellipsis, object(), KEEP, int, print, GoalStatus.ACTIVE, EventKind.CREATED]),
    st.sampled_from([TokenUsage(1), TokenUsageInfo(TokenUsage(1), TokenUsage())]),
)
anything = st.one_of(
    plain,
    st.lists(plain, max_size=2),
    st.dictionaries(st.one_of(texts, st.integers()), plain, max_size=2),
    st.tuples(plain),
    st.frozensets(st.integers(), max_size=2),
)

names = st.sampled_from(NAMES)
optional_names = st.none() | names
statuses = st.sampled_from([*GoalStatus, "active", "paused"])
budgets = st.none() | st.integers(1, 2**63 - 1)
usages = st.builds(
    TokenUsage, st.integers(0, 2**62 - 1), st.integers(0, 9), st.just(0), st.integers(0, 2**62 - 1)
)
totals = usages | st.builds(TokenUsageInfo, usages, usages, st.none() | st.integers(0, 9))
charges = st.builds(Charge, names, tokens=st.integers(0, 9), idempotency_key=optional_names)
counts = st.integers(0, 9)


# -- calls -------------------------------------------------------------------------------------------

Arguments = dict[str, st.SearchStrategy[Any]]


@dataclass
class World:
    """What the calls are made on."""

    folder: Path
    store: GoalStore
    meter: GoalMeter
    hub: ThreadHub
    file: sqlite3.Connection
    told: list[Any] = field(default_factory=list)

    def send(self, message: object, /) -> None:
        """As a client of the hub."""
        self.told.append(message)

    def contents(self) -> Rows:
        """Every row in the database, past the library."""
        return rows(self.file)


@dataclass(frozen=True)
class Call:
    """A public call, and values for each of its arguments that are within its bounds."""

    make: Callable[..., Any]
    arguments: Arguments
    documented: tuple[type[Exception], ...] = (GoalStateError,)


def _of_store(name: str, **arguments: st.SearchStrategy[Any]) -> Call:
    return Call(lambda world, **given: _taken(getattr(world.store, name)(**given)), arguments)


def _of_repository(name: str, **arguments: st.SearchStrategy[Any]) -> Call:
    """In a transaction that goes on after the call failed, and is committed."""

    def make(world: World, **given: Any) -> None:
        raised: list[Exception] = []

        def work(repository: GoalRepository) -> None:
            try:
                _taken(getattr(repository, name)(**given))
            except Exception as error:
                raised.append(error)

        world.store.transact(work)
        if raised:
            raise raised[0]

    return Call(make, arguments)


def _of_meter(name: str, **arguments: st.SearchStrategy[Any]) -> Call:
    return Call(lambda world, **given: getattr(world.meter, name)(**given), arguments)


def _of_hub(name: str, **arguments: st.SearchStrategy[Any]) -> Call:
    def make(world: World, **given: Any) -> None:
        getattr(world.hub, name)(**given)
        world.hub.detach(world)

    return Call(make, arguments, (GoalStateError, OSError))


def _taken(result: Any) -> Any:
    """What a lazy result yields."""
    return list(result) if isinstance(result, Iterator) else result


_WHOSE: Arguments = {"thread_id": names, "turn_id": optional_names}
_NEW: Arguments = _WHOSE | {
    "objective": st.sampled_from(["Ship", *SQL]),
    "token_budget": budgets,
    "status": statuses,
}
OPERATIONS: dict[str, Arguments] = {
    "get": {"thread_id": names},
    "usage": {"thread_id": names},
    "count": {"status": st.none() | statuses},
    "create": _NEW,
    "replace": _NEW,
    "set": _NEW
    | {
        "resume_at": st.none() | st.just(NOW),
        "blocked_reason": st.none() | st.sampled_from(SQL),
        "expected_goal_id": optional_names,
    },
    "resume": _WHOSE | {"token_budget": budgets, "expected_goal_id": optional_names},
    "account": _WHOSE
    | {
        "tokens": counts,
        "seconds": st.floats(0, 10),
        "mode": st.sampled_from(AccountingMode),
        "expected_goal_id": optional_names,
        "idempotency_key": optional_names,
    },
    "account_many": {"charges": st.lists(charges, max_size=3)},
    "record_usage": _WHOSE
    | {
        "total": totals,
        "seconds": st.floats(0, 10),
        "mode": st.sampled_from(AccountingMode),
        "expected_goal_id": optional_names,
    },
    "set_baseline": _WHOSE | {"total": totals},
    "reconcile": _WHOSE | {"total": totals},
    "clear": _WHOSE | {"expected_goal_id": optional_names},
    "apply": {"request": charges},
}


def _consume(world: World, **given: Any) -> None:
    consumer = world.store.consume(**given)
    consumer.close(0)


def _send_events(world: World, **given: Any) -> None:
    send_events(world.store, **given).close(0)


def _backup(world: World, path: Any) -> None:
    world.store.backup(path)
    if Path(path).is_file():
        Path(path).unlink()


def _import_goal(world: World, **given: Any) -> None:
    world.store.transact(lambda repository: repository.import_goal(Goal(**given)))


def _write_rollout(world: World, home: Any, thread_id: Any, started_at: Any, meta: Any) -> None:
    with RolloutWriter.create(home, thread_id, started_at=started_at, meta=meta) as writer:
        path = writer.path
    assert path.resolve().is_relative_to(world.folder)
    path.unlink()


def _append(world: World, line_object: Any) -> None:
    path = world.folder / "appended.jsonl"
    with RolloutWriter(path) as writer:
        before = path.read_bytes()
        try:
            writer.append(line_object)
        except BaseException:
            assert path.read_bytes() == before
            raise


def _read_rollout(world: World, path: Any) -> None:
    reader = RolloutReader(path)
    assert reader.meta is None or reader.meta.thread_id
    reader.turns()
    list(reader.usages())
    reader.restored()


def _meter(world: World, **given: Any) -> None:
    meter = GoalMeter(world.store, **given)
    assert meter.remaining_tokens is None or meter.remaining_tokens >= 0


def _start_turn(world: World, **given: Any) -> None:
    if world.meter.turn_id is not None:
        world.meter.finish_turn()
    world.meter.start_turn(**given)


paths = st.sampled_from(["made", "made.jsonl", Path("made"), "no/such/folder", ".", "x" * 300, "", *SQL])
_MIGRATING: Arguments = {"revision": st.sampled_from(["head", "0001", "0002", "0003"])}
_COUNTS: Arguments = dict.fromkeys(TokenUsage.__dataclass_fields__, counts)

CALLS: dict[str, Call] = {
    **{f"store.{name}": _of_store(name, **given) for name, given in OPERATIONS.items()},
    **{f"repository.{name}": _of_repository(name, **given) for name, given in OPERATIONS.items()},
    "store.goals": _of_store("goals", status=st.none() | statuses),
    "store.events": _of_store(
        "events",
        after=counts,
        thread_id=optional_names,
        goal_id=optional_names,
        limit=st.none() | counts,
    ),
    "store.verify": _of_store("verify", thread_id=optional_names),
    "store.read_events": _of_store("read_events", after=counts, limit=counts),
    "store.prune_events": _of_store("prune_events", before=st.just(NOW)),
    "store.transact": _of_store("transact", work=st.just(lambda _: None)),
    "store.import_lines": _of_store("import_lines", lines=st.just(lambda: ["{}"])),
    "store.backup": Call(_backup, {"path": paths}),
    "store.subscribe": Call(
        lambda world, **given: world.store.subscribe(**given).close(),
        {
            "listener": st.just(print),
            "kinds": st.none() | st.lists(st.sampled_from(EventKind)),
            "thread_id": optional_names,
        },
    ),
    "store.consume": Call(
        _consume,
        {"name": names, "sink": st.just(lambda _: None), "batch_size": st.integers(1, 9)},
    ),
    "repository.goals_page": _of_repository(
        "goals_page", after=names, status=st.none() | statuses, limit=counts
    ),
    "repository.import_goal": Call(
        _import_goal,
        {
            "thread_id": names,
            "goal_id": st.uuids().map(str),
            "objective": st.sampled_from(["Ship", *SQL]),
            "status": statuses,
            "token_budget": budgets,
            "tokens_used": counts,
            "time_used_ms": counts,
            "created_at_ms": st.just(1),
            "updated_at_ms": st.just(2),
            "resume_at_ms": st.none() | counts,
            "blocked_reason": st.none() | st.sampled_from(SQL),
        },
    ),
    "Charge": Call(lambda _, **given: Charge(**given), OPERATIONS["account"]),
    "TokenUsage": Call(lambda _, **given: TokenUsage(**given), _COUNTS),
    "TokenUsageInfo": Call(
        lambda _, **given: TokenUsageInfo(**given),
        {"total": usages, "last": usages, "model_context_window": st.none() | counts},
    ),
    **{
        f"{kind.__name__}.{name}": Call(
            lambda _, usage, build=getattr(kind, name): build(usage),
            {"usage": st.dictionaries(st.sampled_from(keys), values, max_size=4)},
        )
        for kind, name, keys, values in (
            (TokenUsage, "from_mapping", ["inputTokens", "output_tokens"], anything),
            (
                TokenUsage,
                "from_openai",
                ["input_tokens", "prompt_tokens", "input_tokens_details", "prompt_tokens_details"],
                anything | st.dictionaries(st.just("cached_tokens"), anything),
            ),
            (TokenUsage, "from_anthropic", ["input_tokens", "cache_read_input_tokens"], anything),
            (
                TokenUsageInfo,
                "from_mapping",
                ["total", "last_token_usage", "modelContextWindow"],
                anything | st.dictionaries(st.just("input_tokens"), anything),
            ),
        )
    },
    "GoalMeter": Call(
        _meter, {"thread_id": names, "count_idle_time": st.booleans()}
    ),
    "meter.start_turn": Call(
        _start_turn,
        {"turn_id": names, "total": st.none() | totals, "charge_tokens": st.booleans()},
    ),
    "meter.observe": _of_meter("observe", total=totals, turn_id=optional_names),
    "meter.create_goal": _of_meter("create_goal", objective=names, token_budget=budgets),
    "meter.block_goal": _of_meter("block_goal", reason=optional_names),
    "meter.usage_limited": _of_meter("usage_limited", resume_at=st.none() | st.just(NOW)),
    "meter.set_goal": _of_meter(
        "set_goal", objective=names, status=statuses, token_budget=budgets, turn_id=optional_names
    ),
    "meter.clear_goal": _of_meter("clear_goal", turn_id=optional_names),
    "hub.turn_started": _of_hub("turn_started", thread_id=names, turn_id=names),
    "hub.turn_finished": _of_hub(
        "turn_finished", thread_id=names, turn_id=names, status=st.sampled_from(TurnStatus)
    ),
    "hub.usage_updated": _of_hub(
        "usage_updated",
        thread_id=names,
        turn_id=names,
        info=st.builds(TokenUsageInfo, usages, usages),
    ),
    "hub.start": Call(
        lambda world, **given: world.hub.start(connection=world, request_id=1, **given),
        {"thread_id": names, "result": st.none() | st.just({})},
    ),
    **{
        f"hub.{name}": Call(
            lambda world, name=name, **given: getattr(world.hub, name)(
                connection=world, request_id=1, **given
            ),
            {"thread_id": names, "rollout": st.none() | paths, "result": st.none() | st.just({})}
            | more,
            (GoalStateError, OSError),
        )
        for name, more in (("resume", {}), ("fork", {"new_thread_id": names}))
    },
    "RolloutReader": Call(_read_rollout, {"path": paths}, (GoalStateError, OSError)),
    "RolloutWriter.create": Call(
        _write_rollout,
        {
            "home": st.just("home"),
            "thread_id": st.sampled_from(["t", "../../t", "/t", "..", "t/..", "t" * 201]),
            "started_at": st.none() | st.just(NOW),
            "meta": st.none() | st.just({"cwd": "/"}),
        },
        (GoalStateError, OSError),
    ),
    "RolloutWriter.append": Call(_append, {"line_object": st.dictionaries(texts, plain)}),
    "rollout_path": Call(
        lambda _, **given: rollout_path("home", **given),
        {"thread_id": names, "started_at": st.just(NOW)},
    ),
    "find_rollout": Call(
        lambda _, **given: find_rollout(**given),
        {"home": paths, "thread_id": names},
        (GoalStateError, OSError),
    ),
    **{
        f"migrate.{name}": Call(
            lambda world, revision, name=name: _migrate(world, name, revision), _MIGRATING
        )
        for name in ("upgrade", "downgrade", "stamp")
    },
    "AnalyticsContext": Call(
        lambda _, **given: AnalyticsContext(**given),
        {
            name: st.none() | st.booleans() if name.endswith("enabled") else names
            for name in AnalyticsContext.__dataclass_fields__
        },
    ),
    "send_events": Call(
        _send_events,
        {
            "sink": st.just(lambda _: None),
            "context": st.just(AnalyticsContext(client_name="c", client_version="1")),
            "name": names,
        },
    ),
    "JsonLinesSink": Call(
        lambda _, **given: JsonLinesSink(**given),
        {"path": paths, "max_file_bytes": st.integers(1, 9)},
        (GoalStateError, OSError),
    ),
}


def _migrate(world: World, name: str, revision: Any) -> None:
    """On a copy: what it does when the revision is a good one is another test's."""
    copy = world.folder / "migrated.db"
    if not copy.exists():
        with closing(sqlite3.connect(copy)) as target:
            world.file.backup(target)
    engine = create_engine(copy)
    with closing(sqlite3.connect(copy)) as connection:
        before = list(connection.iterdump())
        try:
            getattr(migrate, name)(engine, revision)
        except Exception:
            assert list(connection.iterdump()) == before
            raise
    for file in world.folder.glob("migrated.db*"):
        file.unlink()


@pytest.fixture(scope="module")
def world(made_once: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("bad_input")
    path = folder / "goals.db"
    shutil.copy(made_once, path)
    before = Path.cwd()
    os.chdir(folder)  # where relative paths lead
    try:
        with (
            GoalStore.open(path, durability="normal") as store,
            closing(sqlite3.connect(path)) as file,
        ):
            yield World(folder, store, GoalMeter(store, "active"), ThreadHub(store), file)
    finally:
        os.chdir(before)


@pytest.mark.parametrize("name", CALLS)
def test_a_call_refuses_what_it_is_not_made_for(name: str, world: World) -> None:
    call = CALLS[name]
    most = settings().max_examples
    tried = dict.fromkeys(("returned", "refused"), 0)

    @settings(
        max_examples=max(most * 3 // 10, 10),
        suppress_health_check=[*HealthCheck],
        database=None,
    )
    @given(
        st.fixed_dictionaries(
            {key: good | anything | anything for key, good in call.arguments.items()}
        )
    )
    def holds(given_: dict[str, Any]) -> None:
        for thread_id in ("active", "paused"):
            world.store.replace(thread_id, "Ship", token_budget=100, status=thread_id)
        before = world.contents()
        try:
            call.make(world, **given_)
        except call.documented as error:
            assert str(error)
            tried["refused"] += 1
            assert world.contents() == before
        else:
            tried["returned"] += 1
        world.store.transact(_tidied)

    holds()
    assert world.store.verify() == []


def _tidied(repository: GoalRepository) -> None:
    """Takes out what the calls left, so that there is never much to compare."""


# -- opening -----------------------------------------------------------------------------------------
