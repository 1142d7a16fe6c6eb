"""Whatever is handed to a public call or written on the command line: a documented error or a result,
and after an error the file is as it was.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any, cast
from unittest.mock import patch

import click
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy.engine import make_url

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
    ThreadUsage,
    TokenUsage,
    migrate,
)
from goal_state.analytics import JsonLinesSink, send_events
from goal_state.analytics.http import HttpSink
from goal_state.cli.main import program
from goal_state.codex import CodexPayload, ThreadHub
from goal_state.codex.rollout import (
    RolloutReader,
    RolloutWriter,
    TurnStatus,
    find_rollout,
    rollout_path,
)
from goal_state.storage.schema import metadata
from goal_state.storage.sqlite.connections import create_engine
from tests.databases import Rows, fingerprints, rows
from tests.in_memory import open_in_memory
from tests.processes import CHECKOUT

# -- values ------------------------------------------------------------------------------------------

AT_LENGTH = os.environ.get("HYPOTHESIS_PROFILE") == "proof"
EXAMPLES = 1_000 if AT_LENGTH else max(settings().max_examples // 2, 1)
pytestmark = pytest.mark.timeout(900 if AT_LENGTH else 120)

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


class Real(float):
    """A float that says something else when it is asked."""

    def __float__(self) -> float:
        return -1.0

    def __mul__(self, _: object) -> float:
        return -1.0


SQL = (
    "'; DROP TABLE goal_state_goals; --",
    '"; DELETE FROM goal_state_events; --',
    "' OR '1'='1",
    "x' UNION SELECT * FROM goal_state_goals --",
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
    st.builds(Real, st.floats()),
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
    st.sampled_from([TokenUsage(1), ThreadUsage(TokenUsage(1), TokenUsage())]),
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
totals = usages | st.builds(ThreadUsage, usages, usages, st.none() | st.integers(0, 9))
charges = st.builds(Charge, names, tokens=st.integers(0, 9), idempotency_key=optional_names)
counts = st.integers(0, 9)


# -- calls -------------------------------------------------------------------------------------------

Arguments = dict[str, st.SearchStrategy[Any]]


@dataclass
class World:
    """What the calls are made on."""

    folder: Path
    store: GoalStore
    empty: GoalStore
    meter: GoalMeter
    hub: ThreadHub
    file: sqlite3.Connection
    told: list[Any] = field(default_factory=list)

    def send(self, message: object, /) -> None:
        """As a client of the hub."""
        self.told.append(message)

    def begin_anew(self) -> None:
        """Two goals and nothing else, so that there is never much to compare."""
        with self.file:
            for table in metadata.tables:
                self.file.execute(f"DELETE FROM {table}")
        self.store.transact(
            lambda repository: [
                repository.create(status, "Ship", token_budget=100, status=status)
                for status in ("active", "paused")
            ]
        )

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
        if name in ("start", "resume", "fork"):
            given |= {"connection": world, "request_id": 1}
        try:
            getattr(world.hub, name)(**given)
        finally:
            world.hub.detach(world)

    return Call(make, arguments, (GoalStateError, OSError))


def _taken(result: Any) -> Any:
    """What a lazy result yields."""
    return list(result) if isinstance(result, Iterator) else result


_WHOSE: Arguments = {"thread_id": names, "turn_id": optional_names}
_BUDGETS: Arguments = {
    "token_budget": budgets,
    "cost_budget": st.none() | st.sampled_from([1, "0.25", Decimal("1e-9")]),
    "call_budget": budgets,
    "time_budget": st.none() | st.floats(0.001, 10),
    "deadline": st.none() | st.just(NOW),
}
_WARNING: Arguments = {"warn_at": st.none() | st.just((0.5, 0.8))}
_CHANGED: Arguments = (
    _WHOSE
    | _BUDGETS
    | _WARNING
    | {"objective": st.sampled_from(["Ship", *SQL]), "status": statuses}
)
_NEW: Arguments = _CHANGED | {"parent": optional_names}
_OF_RESPONSES: Arguments = {
    "cost": st.none() | st.sampled_from([0, 1, "0.25", Decimal("1e-9")]),
    "model": optional_names,
    "tags": st.none() | st.dictionaries(st.sampled_from(["user", "tool"]), st.just("x")),
}
OPERATIONS: dict[str, Arguments] = {
    "get": {"thread_id": names},
    "usage": {"thread_id": names},
    "count": {"status": st.none() | statuses},
    "create": _NEW,
    "ensure": _NEW,
    "replace": _NEW,
    "set": _CHANGED
    | {
        "resume_at": st.none() | st.just(NOW),
        "blocked_reason": st.none() | st.sampled_from(SQL),
        "expected_goal_id": optional_names,
    },
    "resume": _WHOSE | _BUDGETS | {"expected_goal_id": optional_names},
    "charge": _WHOSE
    | _OF_RESPONSES
    | {
        "usage": st.none() | usages,
        "tokens": counts,
        "seconds": st.floats(0, 10),
        "mode": st.sampled_from(AccountingMode),
        "expected_goal_id": optional_names,
        "response_id": optional_names,
        "idempotency_key": optional_names,
    },
    "charge_many": {"charges": st.lists(charges, max_size=3)},
    "record_total": _WHOSE
    | _OF_RESPONSES
    | {
        "total": totals,
        "calls": counts,
        "seconds": st.floats(0, 10),
        "mode": st.sampled_from(AccountingMode),
        "expected_goal_id": optional_names,
    },
    "set_baseline": _WHOSE | {"total": totals},
    "reconcile": _WHOSE | {"total": totals},
    "clear": _WHOSE | {"expected_goal_id": optional_names},
    "apply": {"request": charges},
}


def _from(build: Callable[[Any], Any], keys: list[str], *values: st.SearchStrategy[Any]) -> Call:
    """From a mapping with some of these keys, and whatever for values."""
    usage = st.dictionaries(st.sampled_from(keys), st.one_of(anything, *values), max_size=4)
    return Call(lambda _, usage: build(usage), {"usage": usage})


def _consume(world: World, **given: Any) -> None:
    consumer = world.store.consume(**given)
    consumer.close(0)


def _send_events(world: World, **given: Any) -> None:
    send_events(world.store, **given).close(0)


def _import_lines(world: World, rows: Any) -> None:
    """Into a store of its own, which must be empty."""
    before = list(world.empty.export_lines())
    given = rows if isinstance(rows, list) else [rows]
    try:
        world.empty.import_lines([before[0], *given, *before[1:]])
    except Exception:
        assert list(world.empty.export_lines()) == before
        raise
    assert not given


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


_exported = st.one_of(
    texts,
    st.builds(
        lambda table, row: json.dumps({"table": table, "row": row}),
        st.sampled_from(["goal_state_goals", "goal_state_cursors", "nowhere", *SQL]),
        st.dictionaries(
            st.sampled_from(["name", "position", "holder", "lease_expires_at_ms", "updated_at_ms"]),
            st.one_of(
                st.none(), st.integers(), st.floats(), st.text(max_size=3), st.lists(st.none())
            ),
            min_size=5,
        )
        | st.none(),
    ),
)
paths = st.sampled_from(
    ["made", "made.jsonl", Path("made"), "no/such/folder", ".", "x" * 300, "", *SQL]
)
_MIGRATING: Arguments = {"revision": st.sampled_from(["head", "0001", "0002"])}
_ATTACHED: Arguments = {"rollout": st.none() | paths, "result": st.none() | st.just({})}
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
    "store.read_cursor": Call(
        lambda world, name: _taken(world.store.read_cursor(name)), {"name": names}
    ),
    "store.read_events": _of_store("read_events", after=counts, limit=counts),
    "store.prune_events": _of_store("prune_events", before=st.just(NOW)),
    "store.import_lines": Call(_import_lines, {"rows": st.lists(_exported, max_size=2)}),
    "store.backup": Call(_backup, {"path": paths}, (GoalStateError, OSError)),
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
    "Charge": Call(lambda _, **given: Charge(**given), OPERATIONS["charge"]),
    "TokenUsage": Call(lambda _, **given: TokenUsage(**given), _COUNTS),
    "ThreadUsage": Call(
        lambda _, **given: ThreadUsage(**given),
        {
            "total": usages,
            "last": usages,
            "model_context_window": st.none() | counts,
            "turn_id": optional_names,
        },
    ),
    "TokenUsage.from_codex": _from(TokenUsage.from_codex, ["inputTokens", "output_tokens"]),
    "TokenUsage.of": _from(
        TokenUsage.of,
        [
            "input_tokens",
            "prompt_tokens",
            "completion_tokens",
            "cache_read_input_tokens",
            "input_tokens_details",
            "prompt_tokens_details",
            "iterations",
            "total_tokens",
            "something_else",
        ],
        st.dictionaries(st.sampled_from(["cached_tokens", "type", "input_tokens"]), anything),
        st.integers(0, 9),
    ),
    "ThreadUsage.from_mapping": _from(
        ThreadUsage.from_mapping,
        ["total", "last_token_usage", "modelContextWindow"],
        st.dictionaries(st.just("input_tokens"), anything),
    ),
    "GoalMeter": Call(_meter, {"thread_id": names, "count_idle_time": st.booleans()}),
    "meter.start_turn": Call(
        _start_turn,
        {"turn_id": names, "total": st.none() | totals, "charge_tokens": st.booleans()},
    ),
    "meter.record_total": _of_meter("record_total", total=totals, turn_id=optional_names),
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
        usage=st.builds(ThreadUsage, usages, usages),
    ),
    "hub.start": _of_hub("start", thread_id=names, result=st.none() | st.just({})),
    "hub.resume": _of_hub("resume", thread_id=names, **_ATTACHED),
    "hub.fork": _of_hub("fork", thread_id=names, new_thread_id=names, **_ATTACHED),
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
    "CodexPayload": Call(
        lambda _, **given: CodexPayload(**given),
        {
            name: st.none() | st.booleans() if name.endswith("enabled") else names
            for name in CodexPayload.__dataclass_fields__
        },
    ),
    "send_events": Call(
        _send_events,
        {
            "sink": st.just(lambda _: None),
            "name": names,
        },
    ),
    "HttpSink": Call(
        lambda _, **given: HttpSink(**given).close(),
        {"url": st.sampled_from(["http://host/", "https://h", *SQL]), "dead_letter_path": paths},
        (GoalStateError, OSError),
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
            open_in_memory() as empty,
            closing(sqlite3.connect(path)) as file,
        ):
            file.execute("PRAGMA synchronous = OFF")
            meter, hub = GoalMeter(store, "active"), ThreadHub(store)
            yield World(folder, store, empty, meter, hub, file)
    finally:
        os.chdir(before)


def mostly_good(arguments: Arguments) -> st.SearchStrategy[dict[str, Any]]:
    """One argument may be anything and the rest is good, so that each gets its turn; or all may be."""
    one_bad = st.sampled_from(sorted(arguments)).flatmap(
        lambda bad: st.fixed_dictionaries(dict(arguments) | {bad: anything})
    )
    return one_bad | st.fixed_dictionaries(
        {key: good | anything for key, good in arguments.items()}
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", CALLS)
def test_a_call_refuses_what_it_is_not_made_for(name: str, world: World) -> None:
    call = CALLS[name]

    @settings(max_examples=EXAMPLES, suppress_health_check=[*HealthCheck], database=None)
    @given(mostly_good(call.arguments))
    def holds(given_: dict[str, Any]) -> None:
        world.begin_anew()
        before = world.contents()
        try:
            call.make(world, **given_)
        except call.documented:
            assert world.contents() == before
        assert world.store.verify() == []

    holds()


# -- opening -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_open_refuses_what_it_is_not_made_for(
    tmp_path: Path, made_once: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    template = made_once.read_bytes()
    (tmp_path / "folder").mkdir()
    Path("notes.txt").write_text("not a database")
    there = fingerprints(tmp_path)

    @settings(max_examples=5 * EXAMPLES, suppress_health_check=[*HealthCheck], database=None)
    @given(
        mostly_good(
            {
                "target": st.sampled_from(TARGETS) | texts.filter(_leads_nowhere_else),
                "durability": st.sampled_from(["full", "normal"]),
                "busy_timeout_seconds": st.floats(0, 1),
                "migrate": st.booleans(),
            }
        )
    )
    def holds(given_: dict[str, Any]) -> None:
        (tmp_path / "goals.db").write_bytes(template)
        before = there | {"goals.db": hashlib.sha256(template).hexdigest()}
        try:
            store = GoalStore.open(**given_)
        except GoalStateError:
            assert fingerprints(tmp_path) == before
        else:
            store.close()
        finally:  # so that the next example tells of itself
            for made in [*tmp_path.iterdir()]:
                if made.name not in ("notes.txt", "folder"):
                    made.unlink()

    holds()


@pytest.mark.parametrize("seconds", [Number(2), Real(0.5), Number(0)])
def test_open_takes_a_time_out_by_its_value_whatever_a_subclass_makes_of_it(
    tmp_path: Path, seconds: float
) -> None:
    with GoalStore.open(tmp_path / "goals.db", busy_timeout_seconds=seconds) as store:
        assert store.create("t", "Ship").thread_id == "t"


@pytest.mark.parametrize("seconds", [Number(-1), Real(-0.5), Real("nan"), Number(86_401)])
def test_open_refuses_a_time_out_by_its_value_and_makes_no_file(
    tmp_path: Path, seconds: float
) -> None:
    with pytest.raises(InvalidValueError, match="from 0 to 86400"):
        GoalStore.open(tmp_path / "goals.db", busy_timeout_seconds=seconds)
    assert list(tmp_path.iterdir()) == []


TARGETS = (
    *(
        "goals.db",
        "new.db",
        ":memory:",
        "folder",
        "notes.txt",
        "no/such/folder",
        "x" * 300,
        "\udcff.db",
    ),
    *(
        "sqlite://",
        "sqlite:///goals.db",
        "sqlite:///goals.db?mode=ro",
        "sqlite:///file:goals.db?uri=true",
    ),
    *(
        "sqlite:///goals.db?vfs=unix-none&immutable=1",
        "sqlite://user:word@host/goals.db",
        "sqlite:///\0",
    ),
    *(
        "postgresql://host/goals",
        "mysql://",
        "sqlite+aiosqlite:///goals.db",
        "://",
        "sqlite:///\ud800.db",
    ),
    *(
        "sqlite+pysqlcipher://:key@/goals.db",
        "sqlite:///folder",
        "sqlite://host:port/goals.db",
        *SQL,
    ),
    *(
        Path("goals.db"),
        Path("folder"),
        make_url("sqlite:///goals.db?mode=memory"),
        "/dev/null",
        "notes.txt/x",
    ),
)


def _leads_nowhere_else(text: str) -> bool:
    return "/" not in str.__str__(text)


# -- the command line --------------------------------------------------------------------------------

_DATABASE = "goals.db"


def _commands(group: click.Group, *path: str) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from _commands(command, *path, name)
        else:
            yield (*path, name), command


COMMANDS = dict(_commands(program))

# What can stand on a command line: any bytes but NUL, as Python shows them. As a name of a file it must lead
# nowhere else, and as an option it must not be one (another case is that).
_bytes = st.binary(max_size=12).map(lambda raw: os.fsdecode(raw.replace(b"\0", b"")))
words = st.one_of(
    _bytes,
    texts.map(
        lambda text: os.fsdecode(str.__str__(text).encode("utf-8", "replace")).replace("\0", "")
    ),
    st.integers().map(str),
    st.sampled_from(["9" * 5000, "1e9", "nan", "-1", "0x1", "true", "--", "-", *SQL]),
).map(lambda word: word.replace("/", "|"))
_good_words = {
    "thread": st.sampled_from(["active", "paused", "new"]),
    "database": st.just(_DATABASE),
    "status": st.sampled_from([*GoalStatus]),
    "budget": st.integers(1, 500).map(str),
    "revision": st.sampled_from(["head", "0001", "0002"]),
    "rollout": st.just("small.jsonl"),
    "rollout_or_thread": st.sampled_from(["small.jsonl", "active"]),
    "home": st.just("home"),
    "events_file": st.just("events.jsonl"),
}


@st.composite
def command_lines(draw: st.DrawFn, command: click.Command) -> list[str]:
    """Arguments of a command: mostly good ones, one of them maybe anything, options now and then."""
    options: list[str] = []
    arguments: list[str] = []
    parameters = [one for one in command.params if one.name != "help"]
    bad = draw(st.sampled_from([None, *(one.name for one in parameters)]))
    for parameter in parameters:
        name = parameter.name
        assert name is not None
        good = _good_words.get(name, st.sampled_from(["1", "active"]))
        word = draw(words | st.sampled_from(TEXT_TARGETS) if name == bad else good)
        if isinstance(parameter, click.Argument):
            arguments.append(word)
        elif name == "database" and name != bad:
            options += ["--db", word]
        elif name == bad or draw(st.booleans()):
            flag = draw(st.sampled_from(parameter.opts))
            is_flag = isinstance(parameter, click.Option) and parameter.is_flag
            options += (
                [flag] if is_flag else draw(st.sampled_from([[flag, word], [f"{flag}={word}"]]))
            )
    return [*options, *([] if draw(st.integers(0, 4)) == 0 else ["--"]), *arguments]


TEXT_TARGETS = tuple(
    target
    for target in TARGETS
    if isinstance(target, str) and "\0" not in target and "\ud800" not in target
)


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_command_refuses_what_it_is_not_made_for(
    command: tuple[str, ...], tmp_path: Path, made_once: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CODEX_HOME", "")
    monkeypatch.delenv("GOAL_STATE_DB", raising=False)
    template = tmp_path / "template"
    shutil.copy(made_once, template)
    with GoalStore.open(template) as store:
        for status in ("active", "paused"):
            store.create(status, "Ship", token_budget=100, status=status)
        store.charge("active", tokens=7, idempotency_key="k")
    (tmp_path / "folder").mkdir()
    (tmp_path / "home" / "sessions").mkdir(parents=True)
    shutil.copy(CHECKOUT / "examples/rollouts/small.jsonl", tmp_path)
    (tmp_path / "notes.txt").write_text("not a database")
    kept = {file.name for file in tmp_path.iterdir()}
    with closing(sqlite3.connect(template)) as connection:
        whole = [*connection.iterdump()]

    @settings(max_examples=EXAMPLES, suppress_health_check=[*HealthCheck], database=None)
    @given(command_lines(COMMANDS[command]))
    def holds(line: list[str]) -> None:
        shutil.copy(template, _DATABASE)
        code, told = _run([*command, *line])
        assert code in (0, 1, 2), told
        assert "Traceback" not in told
        with closing(sqlite3.connect(_DATABASE)) as connection:
            if code == 2:
                assert [*connection.iterdump()] == whole
        for made in [*tmp_path.iterdir()]:
            if made.name not in kept:
                made.unlink()

    holds()


def _run(line: list[str]) -> tuple[int, str]:
    """The exit code of a command and what it said, as `goal_state.cli.main.main` runs it."""
    with (
        patch("goal_state.cli.events.time.sleep", side_effect=KeyboardInterrupt),
        CliRunner().isolation() as (stdout, stderr, _),
    ):
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[attr-defined]
        try:
            program.main(line, prog_name="goal-state")
        except SystemExit as error:
            return cast(int, error.code), stdout.getvalue().decode() + stderr.getvalue().decode()
    raise AssertionError("it did not exit")
