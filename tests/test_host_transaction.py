"""A repository on a host's connection or session: whose transaction it is, and when there is none."""

from __future__ import annotations

import gc
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from sqlalchemy import (
    Connection,
    Engine,
    NullPool,
    QueuePool,
    SingletonThreadPool,
    StaticPool,
    event,
    text,
)
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    mapped_column,
    scoped_session,
    sessionmaker,
)

from goal_state import (
    DatabaseBusyError,
    GoalRepository,
    GoalStore,
    InvalidValueError,
    TransactionError,
    UnsupportedDatabaseError,
    migrate,
)
from goal_state.storage.sqlite.connections import create_engine
from tests.processes import PATIENCE_SECONDS, python

AUTOCOMMIT = {"isolation_level": "AUTOCOMMIT"}


class Base(DeclarativeBase):
    pass


class Note(Base):
    __tablename__ = "notes"
    id: Mapped[int] = mapped_column(primary_key=True)


@pytest.fixture
def host(database: Path) -> Iterator[Path]:
    """A database with our tables, a goal of thread `t` and an empty table of a host's."""
    with GoalStore.open(database, durability="normal") as store:
        store.create("t", "Ship")
    engine = sqlalchemy.create_engine(f"sqlite:///{database}")
    Base.metadata.create_all(engine)
    engine.dispose()
    yield database
    # Nobody is locked out, whatever was refused before.
    with GoalStore.open(database, busy_timeout_seconds=0) as store:
        store.create("last", "Is the file free?")
        assert store.verify() == []


def ours(path: Path, **options: Any) -> Engine:
    return create_engine(path)


def plain(path: Path, **options: Any) -> Engine:
    """As most hosts have it: the driver begins a transaction with the first statement that changes rows."""
    return sqlalchemy.create_engine(f"sqlite:///{path}", **options)


def explicit(path: Path, **options: Any) -> Engine:
    """As SQLAlchemy's documentation tells who needs savepoints: a deferred BEGIN of the host's."""
    engine = plain(path, **options)

    @event.listens_for(engine, "connect")
    def _connect(connection: sqlite3.Connection, _: object) -> None:
        connection.isolation_level = None

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN")

    return engine


def always(path: Path, **options: Any) -> Engine:
    """The driver of Python 3.12 that opens the next transaction as it ends one."""
    return plain(path, connect_args={"autocommit": False}, **options)


ENGINES = [ours, plain, explicit]
if sys.version_info >= (3, 12):
    ENGINES.append(always)
WITH_SAVEPOINTS = [make for make in ENGINES if make is not plain]


@pytest.fixture(params=ENGINES, ids=lambda make: make.__name__)
def engine(request: pytest.FixtureRequest, host: Path) -> Iterator[Engine]:
    engine = request.param(host)
    yield engine
    engine.dispose()


@pytest.fixture
def engines() -> Iterator[Callable[[Engine], Engine]]:
    """Disposes of the engines that a test made."""
    made: list[Engine] = []

    def keep(engine: Engine) -> Engine:
        made.append(engine)
        return engine

    yield keep
    for engine in made:
        engine.dispose()


def used(path: Path) -> int:
    """What thread `t` has used, as the driver alone sees it."""
    return seen(path, "SELECT tokens_used FROM goal_state_goals WHERE thread_id = 't'")


def notes(path: Path) -> int:
    return seen(path, "SELECT count(*) FROM notes")


def seen(path: Path, query: str) -> int:
    connection = sqlite3.connect(path)
    try:
        return connection.execute(query).fetchone()[0]
    finally:
        connection.close()


def add_note(connection: Connection) -> None:
    connection.execute(text("INSERT INTO notes DEFAULT VALUES"))


# -- autocommit --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "by"),
    [
        *((make, by) for make in (ours, plain, explicit) for by in ("connection", "engine")),
        (plain, "option at creation"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_an_autocommit_connection_is_refused_and_its_hosts_rows_stay(
    host: Path, engines: Callable[[Engine], Engine], make: Callable[..., Engine], by: str
) -> None:
    engine = engines(make(host, **(AUTOCOMMIT if by == "option at creation" else {})))
    if by == "engine":
        engine = engine.execution_options(**AUTOCOMMIT)
    with engine.connect() as connection:
        if by == "connection":
            connection.execution_options(**AUTOCOMMIT)
        if make is plain:  # else a listener begins all the same
            add_note(connection)
        with pytest.raises(TransactionError, match="autocommit mode"):
            GoalRepository(connection).charge("t", tokens=5)
        if make is plain:
            add_note(connection)
            assert notes(host) == 2
    assert used(host) == 0


def test_a_driver_that_never_begins_is_refused(
    host: Path, engines: Callable[[Engine], Engine]
) -> None:
    engine = engines(plain(host, connect_args={"isolation_level": None}))
    for begin in (False, True):
        with engine.connect() as connection:
            if begin:
                connection.begin()
            repository = GoalRepository(connection)
            assert repository.get("t") is not None
            with pytest.raises(TransactionError, match="autocommit mode"):
                repository.charge("t", tokens=5)
            assert connection.in_transaction() is begin
            add_note(connection)  # what was refused is no transaction that it falls into
        assert notes(host) == 1 + begin
    assert used(host) == 0


def test_a_transaction_begun_by_hand_is_joined(
    host: Path, engines: Callable[[Engine], Engine]
) -> None:
    engine = engines(plain(host, connect_args={"isolation_level": None}))
    with engine.connect() as connection:
        for word, expected in (("ROLLBACK", 0), ("COMMIT", 5)):
            connection.exec_driver_sql("BEGIN")
            GoalRepository(connection).charge("t", tokens=5)
            connection.exec_driver_sql(word)
            connection.commit()
            assert used(host) == expected


@pytest.mark.skipif(sys.version_info < (3, 12), reason="the driver has no such mode")
def test_the_drivers_own_autocommit_is_refused(
    host: Path, engines: Callable[[Engine], Engine]
) -> None:
    engine = engines(plain(host, connect_args={"autocommit": True}))
    with engine.connect() as connection, pytest.raises(TransactionError, match="autocommit mode"):
        GoalRepository(connection)
    with GoalStore.open(engine) as store:  # whose transactions are its own
        store.charge("t", tokens=5)
    assert used(host) == 5


@pytest.mark.skipif(sys.version_info < (3, 12), reason="the driver has no such mode")
def test_a_store_on_an_engine_whose_driver_is_always_in_a_transaction(
    path: Path, engines: Callable[[Engine], Engine]
) -> None:
    engine = engines(always(path))
    with GoalStore.open(engine) as store:
        store.create("t", "Ship")
        store.charge("t", tokens=5)
    assert used(path) == 5


def test_a_connection_that_is_put_into_autocommit_later_is_refused(engine: Engine) -> None:
    with engine.connect() as connection:
        repository = GoalRepository(connection)
        repository.charge("t", tokens=5)
        connection.commit()
        connection.execution_options(**AUTOCOMMIT)
        with pytest.raises(TransactionError, match="autocommit mode"):
            repository.charge("t", tokens=5)
        connection.rollback()


# -- what is no connection ---------------------------------------------------------------------------


def test_what_is_no_connection_is_refused_in_words(
    host: Path, engines: Callable[[Engine], Engine]
) -> None:
    engine = engines(plain(host))
    driver = sqlite3.connect(host)
    registry = scoped_session(sessionmaker(engine))
    refused: list[tuple[Any, str]] = [
        (engine, r"not Engine; write: with engine\.begin\(\) as connection"),
        (driver, "not Connection; connect through SQLAlchemy"),
        (registry, r"not scoped_session; call it: session\(\) is the one of this thread"),
        (None, "not NoneType"),
        ("sqlite:///goals.db", "not str"),
    ]
    for owner, words in refused:
        with pytest.raises(InvalidValueError, match=f"^connection: must be a SQLAlchemy .*{words}"):
            GoalRepository(owner)
    driver.close()
    with registry() as session, session.begin():
        GoalRepository(session).charge("t", tokens=5)
    registry.remove()
    assert used(host) == 5


def test_async_connections_are_refused_in_words() -> None:
    """By their types: making one takes a driver and greenlets."""
    for name in ("AsyncConnection", "AsyncSession", "AsyncEngine", "async_scoped_session"):
        owner = type(name, (), {"__module__": "sqlalchemy.ext.asyncio.engine"})()
        with pytest.raises(InvalidValueError, match=r"async connections .* open a GoalStore"):
            GoalRepository(owner)


@pytest.mark.parametrize("call", [migrate.upgrade, migrate.current, GoalStore.open])
def test_an_async_driver_under_an_engine_is_refused_in_words(call: Callable[[Engine], Any]) -> None:
    engine = sqlalchemy.create_engine("sqlite://")
    engine.dialect.driver, engine.dialect.is_async = "aiosqlite", True
    with pytest.raises(UnsupportedDatabaseError, match=r"not through aiosqlite.* in a thread"):
        call(engine)
    with engine.connect() as connection, pytest.raises(UnsupportedDatabaseError, match="aiosqlite"):
        GoalRepository(connection)
    with Session(engine) as session:
        with pytest.raises(UnsupportedDatabaseError, match="aiosqlite"):
            GoalRepository(session).get("t")
        assert not session.in_transaction()  # it did not even connect
    engine.dispose()


@pytest.mark.slow
def test_the_repository_imports_no_orm() -> None:
    printed = python(
        "import sys, goal_state, sqlalchemy\n"
        "from goal_state import GoalRepository, GoalStore\n"
        "store = GoalStore.open(':memory:'); store.close()\n"
        "engine = sqlalchemy.create_engine('sqlite://')\n"
        "connection = engine.connect()\n"
        "GoalRepository(connection)\n"
        "connection.close()\n"
        "engine.dispose()\n"
        "print([name for name in sys.modules if name.startswith('sqlalchemy.orm')])"
    )
    assert printed == "[]\n"


# -- a connection that is gone -----------------------------------------------------------------------

CALLS: dict[str, Callable[[GoalRepository], Any]] = {
    "charge": lambda repository: repository.charge("t", tokens=5),
    "charge_many": lambda repository: repository.charge_many([]),
    "import_goal": lambda repository: repository.import_goal(repository_goal),
    "get": lambda repository: repository.get("t"),
    "count": lambda repository: repository.count(),
    "goals_page": lambda repository: repository.goals_page(),
    "usage": lambda repository: repository.usage("t"),
    "baseline": lambda repository: repository.baseline("t"),
    "log": lambda repository: repository.log.page(0, 10),
}
with GoalStore.open(":memory:") as _store:
    repository_goal = _store.create("moved", "Ship")


@pytest.mark.slow
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
@pytest.mark.parametrize("used_before", [False, True])
@pytest.mark.parametrize("poolclass", [QueuePool, NullPool, SingletonThreadPool])
def test_a_repository_kept_after_its_connection_was_closed_is_refused(
    host: Path,
    engines: Callable[[Engine], Engine],
    call: Callable[[GoalRepository], Any],
    used_before: bool,
    poolclass: type[sqlalchemy.Pool],
) -> None:
    engine = engines(plain(host, poolclass=poolclass))
    with engine.connect() as connection:
        repository = GoalRepository(connection)
        if used_before:
            repository.charge("t", tokens=1)
            connection.commit()
    with (
        engine.begin() as stranger
    ):  # on the same connection of the driver's, where there is a pool
        add_note(stranger)
        with pytest.raises(TransactionError, match="connection was closed"):
            call(repository)
    assert (used(host), notes(host)) == (used_before, 1)


def test_a_repository_kept_in_the_middle_of_a_transaction_is_refused(engine: Engine) -> None:
    connection = engine.connect()
    repository = GoalRepository(connection)
    repository.charge("t", tokens=1)
    connection.close()
    with engine.begin() as stranger:
        add_note(stranger)
        for call in (CALLS["charge"], CALLS["get"]):
            with pytest.raises(TransactionError, match="connection was closed"):
                call(repository)
    with pytest.raises(TransactionError, match="connection was closed"):
        GoalRepository(connection)


def test_a_connection_that_was_invalidated_goes_on_after_its_rollback(
    host: Path, engine: Engine
) -> None:
    with engine.connect() as connection:
        repository = GoalRepository(connection)
        repository.charge("t", tokens=1)
        connection.invalidate()
        for call in (CALLS["charge"], CALLS["get"]):
            with pytest.raises(TransactionError, match="rolled back"):
                call(repository)
        connection.rollback()
        repository.charge("t", tokens=5)  # on a new connection of the driver's
        connection.commit()
    assert used(host) == 5


def test_the_repository_of_transact_is_refused_once_its_transaction_is_over(host: Path) -> None:
    with GoalStore.open(host) as store:
        kept = store.transact(lambda repository: repository)
        with pytest.raises(TransactionError, match="is over"):
            kept.charge("t", tokens=5)
        store.charge("t", tokens=1)
    assert used(host) == 1


# -- transactions of a connection --------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("begun", ["before", "by the repository", "by the host's own statement"])
@pytest.mark.parametrize("end", ["commit", "rollback", "close"])
def test_the_hosts_end_of_the_transaction_is_the_charges(
    host: Path, engine: Engine, begun: str, end: str
) -> None:
    with engine.connect() as connection:
        repository = GoalRepository(connection)
        for _ in range(2):  # and so is the next one's
            if begun == "before" and not connection.in_transaction():
                connection.begin()
            if begun == "by the host's own statement":
                add_note(connection)
            repository.charge("t", tokens=5)
            assert connection.in_transaction()
            add_note(connection)
            assert (used(host), notes(host)) == (0, 0)
            if end != "close":
                getattr(connection, end)()
            if end == "commit":
                break
    is_kept = end == "commit"
    assert used(host) == 5 * is_kept
    assert notes(host) == (1 + (begun == "by the host's own statement")) * is_kept


@pytest.mark.slow
@pytest.mark.parametrize("make", WITH_SAVEPOINTS, ids=lambda make: make.__name__)
@pytest.mark.parametrize("first", ["in the savepoint", "before it"])
@pytest.mark.parametrize("inner", ["commit", "rollback"])
@pytest.mark.parametrize("outer", ["commit", "rollback"])
def test_a_savepoint_takes_its_own_charges_with_it(
    host: Path, engines: Callable[[Engine], Engine], make: Any, first: str, inner: str, outer: str
) -> None:
    engine = engines(make(host))
    with engine.connect() as connection:
        repository = GoalRepository(connection)
        if first == "before it":
            repository.charge("t", tokens=1)
        savepoint = connection.begin_nested()
        repository.charge("t", tokens=10)
        add_note(connection)
        getattr(savepoint, inner)()
        assert used(host) == 0
        repository.charge("t", tokens=100)
        getattr(connection, outer)()
    inside = inner == "commit"
    expected = (first == "before it") + 10 * inside + 100
    assert used(host) == expected * (outer == "commit")
    assert notes(host) == (inside and outer == "commit")


def test_a_savepoint_that_may_be_the_transaction_is_refused(
    host: Path, engines: Callable[[Engine], Engine]
) -> None:
    """The driver begins late: releasing a savepoint that came first would commit the charge."""
    engine = engines(plain(host))
    with engine.connect() as connection:
        repository = GoalRepository(connection)
        with connection.begin_nested(), pytest.raises(TransactionError, match="begin_nested"):
            repository.charge("t", tokens=5)
        connection.rollback()
        repository.charge("t", tokens=1)
        with connection.begin_nested():
            repository.charge("t", tokens=10)
        connection.rollback()
    assert used(host) == 0


@pytest.mark.parametrize("make", [ours, plain, explicit], ids=lambda make: make.__name__)
def test_a_transaction_that_the_database_undid_is_refused_until_it_is_rolled_back(
    host: Path, engines: Callable[[Engine], Engine], make: Callable[[Path], Engine]
) -> None:
    engine = engines(make(host))
    with engine.connect() as connection:
        repository = GoalRepository(connection)
        repository.charge("t", tokens=1)
        connection.exec_driver_sql("INSERT INTO notes (id) VALUES (1)")
        with pytest.raises(sqlalchemy.exc.IntegrityError):
            connection.exec_driver_sql("INSERT OR ROLLBACK INTO notes (id) VALUES (1)")
        with pytest.raises(TransactionError, match="roll it back and run it again"):
            repository.charge("t", tokens=5)
        connection.rollback()
        repository.charge("t", tokens=10)
        connection.commit()
    assert (used(host), notes(host)) == (10, 0)


def test_a_block_whose_transaction_was_rolled_back_is_refused(host: Path, engine: Engine) -> None:
    with engine.begin() as connection:
        repository = GoalRepository(connection)
        repository.charge("t", tokens=5)
        connection.rollback()
        with pytest.raises(TransactionError, match="cannot begin a transaction"):
            repository.charge("t", tokens=5)
    assert used(host) == 0


def test_a_transaction_goes_on_after_a_statement_of_the_host_failed(
    host: Path, engine: Engine
) -> None:
    with engine.begin() as connection:
        repository = GoalRepository(connection)
        repository.charge("t", tokens=1)
        with pytest.raises(sqlalchemy.exc.OperationalError):
            connection.execute(text("INSERT INTO nowhere VALUES (1)"))
        repository.charge("t", tokens=10)
    assert used(host) == 11


# -- while another process writes --------------------------------------------------------------------

_WRITE = """
import sys
from goal_state import GoalStore
with GoalStore.open(sys.argv[1]) as store:
    store.charge("t", tokens=1)
"""
_HOLD = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
connection.execute("UPDATE goal_state_goals SET tokens_used = tokens_used WHERE 0")
print("holds", flush=True)
sys.stdin.readline()
connection.execute("ROLLBACK")
"""


@pytest.mark.slow
def test_a_deferred_transaction_that_has_read_is_told_to_run_again(
    host: Path, engines: Callable[[Engine], Engine]
) -> None:
    engine = engines(explicit(host))
    with engine.connect() as connection:
        repository = GoalRepository(connection)
        connection.execute(text("SELECT * FROM notes")).fetchall()
        python(_WRITE, host)
        for _ in range(2):  # trying again in it helps nobody
            with pytest.raises(DatabaseBusyError, match="roll it back and run it again") as caught:
                repository.charge("t", tokens=5)
            assert caught.value.code == sqlite3.SQLITE_BUSY_SNAPSHOT
        connection.rollback()
        connection.execute(text("SELECT * FROM notes")).fetchall()
        assert repository.charge("t", tokens=5).applied
        connection.commit()
    assert used(host) == 6


@pytest.mark.slow
def test_the_first_call_of_a_transaction_waits_for_the_write_lock(
    host: Path, engine: Engine
) -> None:
    """A deferred one too, since what it does first is to ask for the lock."""
    with subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(host)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        assert holder.stdout.readline() == "holds\n"
        timer_code = "import time, sys; time.sleep(0.3); print('go', flush=True)"
        with (
            subprocess.Popen([sys.executable, "-c", timer_code], stdout=holder.stdin),
            engine.connect() as connection,
        ):
            connection.begin()
            GoalRepository(connection).charge("t", tokens=5)
            connection.commit()
        holder.stdin.close()
        assert holder.wait(PATIENCE_SECONDS) == 0
    assert used(host) == 5


def test_a_transaction_that_does_not_get_the_lock_is_as_it_was(
    host: Path, engines: Callable[[Engine], Engine]
) -> None:
    engine = engines(plain(host, connect_args={"timeout": 0}))
    with subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(host)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "holds\n"
        with engine.connect() as connection:
            repository = GoalRepository(connection)
            with pytest.raises(DatabaseBusyError):
                repository.charge("t", tokens=5)
            assert not connection.in_transaction()
            holder.communicate("go\n", timeout=PATIENCE_SECONDS)
            repository.charge("t", tokens=5)
            connection.commit()
    assert used(host) == 5


# -- sessions ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["commit", "rollback", "close"])
def test_a_session_ends_what_was_charged_in_it(host: Path, engine: Engine, end: str) -> None:
    with Session(engine) as session:
        repository = GoalRepository(session)
        assert not session.in_transaction()
        for _ in range(3):  # the repository follows to the session's next transaction
            before = (used(host), notes(host))
            session.add(Note())
            repository.charge("t", tokens=5)
            session.flush()
            assert (used(host), notes(host)) == before
            getattr(session, end)()
    assert (used(host), notes(host)) == ((15, 3) if end == "commit" else (0, 0))


def test_a_session_reads_what_was_written_in_it(engine: Engine) -> None:
    with Session(engine) as session:
        repository = GoalRepository(session)
        repository.charge("t", tokens=5)
        goal = repository.get("t")
        assert goal is not None
        assert goal.tokens_used == 5
        session.rollback()
        goal = repository.get("t")
        assert goal is not None
        assert goal.tokens_used == 0


def test_a_block_of_a_session_undoes_both(host: Path, engine: Engine) -> None:
    def work() -> None:
        with Session(engine) as session, session.begin():
            GoalRepository(session).charge("t", tokens=5)
            session.add(Note())
            session.flush()
            raise ConnectionError

    with pytest.raises(ConnectionError):
        work()
    assert (used(host), notes(host)) == (0, 0)
    with Session(engine) as session, session.begin():
        GoalRepository(session).charge("t", tokens=5)
        session.add(Note())
    assert (used(host), notes(host)) == (5, 1)


@pytest.mark.parametrize("make", WITH_SAVEPOINTS, ids=lambda make: make.__name__)
@pytest.mark.parametrize("first", ["in the savepoint", "before it"])
def test_a_savepoint_of_a_session_undoes_what_it_holds(
    host: Path, engines: Callable[[Engine], Engine], make: Any, first: str
) -> None:
    with Session(engines(make(host))) as session:
        repository = GoalRepository(session)
        if first == "before it":
            repository.charge("t", tokens=1)
        with session.begin_nested() as savepoint:
            repository.charge("t", tokens=10)
            savepoint.rollback()
        with session.begin_nested():
            repository.charge("t", tokens=100)
        assert used(host) == 0
        session.commit()
    assert used(host) == 100 + (first == "before it")


def test_a_session_whose_flush_failed_is_refused_until_its_rollback(
    host: Path, engine: Engine
) -> None:
    with Session(engine) as session:
        repository = GoalRepository(session)
        repository.charge("t", tokens=1)
        session.add(Note(id=1))
        session.flush()
        session.expunge_all()
        session.add(Note(id=1))
        with pytest.raises(sqlalchemy.exc.IntegrityError):
            session.flush()
        with pytest.raises(TransactionError, match="rolled back due to a previous exception"):
            repository.charge("t", tokens=5)
        session.rollback()
        repository.charge("t", tokens=10)
        session.commit()
    assert (used(host), notes(host)) == (10, 0)


def test_a_session_inside_a_connections_transaction(host: Path, engine: Engine) -> None:
    """As suites of tests do it, to undo at the end whatever was committed."""
    with engine.connect() as connection:
        outer = connection.begin()
        with Session(connection) as session:
            repository = GoalRepository(session)
            repository.charge("t", tokens=5)
            session.commit()
            repository.charge("t", tokens=5)
            session.commit()
        goal = GoalRepository(connection).get("t")
        assert goal is not None
        assert goal.tokens_used == 10
        outer.rollback()
    assert used(host) == 0


@pytest.mark.parametrize("make", WITH_SAVEPOINTS, ids=lambda make: make.__name__)
def test_a_session_that_makes_savepoints_in_a_connections_transaction(
    host: Path, engines: Callable[[Engine], Engine], make: Any
) -> None:
    with engines(make(host)).connect() as connection:
        outer = connection.begin()
        with Session(connection, join_transaction_mode="create_savepoint") as session:
            repository = GoalRepository(session)
            repository.charge("t", tokens=1)
            session.commit()
            repository.charge("t", tokens=10)  # in the session's next savepoint
            session.rollback()
            repository.charge("t", tokens=100)
            session.commit()
        outer.commit()
    assert used(host) == 101


def test_a_session_that_does_not_begin_by_itself(host: Path, engine: Engine) -> None:
    with Session(engine, autobegin=False) as session:
        repository = GoalRepository(session)
        with pytest.raises(TransactionError, match=r"session\.begin\(\)"):
            repository.charge("t", tokens=5)
        with session.begin():
            repository.charge("t", tokens=5)
    assert used(host) == 5


def test_a_session_that_was_closed_for_good_is_refused(host: Path, engine: Engine) -> None:
    session = Session(engine, close_resets_only=False)
    repository = GoalRepository(session)
    repository.charge("t", tokens=5)
    session.close()
    for call in (CALLS["charge"], CALLS["get"]):
        with pytest.raises(TransactionError, match="closed"):
            call(repository)
    assert used(host) == 0


def test_a_session_in_autocommit_is_refused(
    host: Path, engines: Callable[[Engine], Engine]
) -> None:
    engine = engines(plain(host))
    with (
        Session(engine.execution_options(**AUTOCOMMIT)) as session,
        pytest.raises(TransactionError, match="autocommit mode"),
    ):
        GoalRepository(session).charge("t", tokens=5)
    with Session(engine) as session:
        session.connection(execution_options=AUTOCOMMIT)
        with pytest.raises(TransactionError, match="autocommit mode"):
            GoalRepository(session).charge("t", tokens=5)
    assert used(host) == 0


def test_a_session_of_several_engines_is_refused(
    host: Path, tmp_path: Path, engines: Callable[[Engine], Engine]
) -> None:
    engine, other = engines(plain(host)), engines(plain(tmp_path / "other.db"))
    Base.metadata.create_all(other)
    with (
        Session(binds={Note: other}) as session,
        pytest.raises(TransactionError, match="which of its databases holds the goals"),
    ):
        GoalRepository(session).charge("t", tokens=5)
    with Session(engine, binds={Note: other}) as session:  # the one for all that is not said
        session.add(Note())
        GoalRepository(session).charge("t", tokens=5)
        session.rollback()
        session.add(Note())
        GoalRepository(session).charge("t", tokens=5)
        session.commit()
    with Session(other, binds={Note: engine}) as session:  # and one that is named
        session.add(Note())
        GoalRepository(session.connection(bind_arguments={"mapper": Note})).charge("t", tokens=5)
        session.commit()
    assert (used(host), notes(host), notes(tmp_path / "other.db")) == (10, 1, 1)


# -- one connection for all --------------------------------------------------------------------------


@pytest.fixture(params=[StaticPool, SingletonThreadPool])
def in_memory(request: pytest.FixtureRequest) -> Iterator[Engine]:
    engine = sqlalchemy.create_engine(
        "sqlite://", poolclass=request.param, connect_args={"check_same_thread": False}
    )
    Base.metadata.create_all(engine)
    yield engine
    engine.dispose()


def _notes(engine: Engine) -> list[int]:
    with engine.connect() as connection:
        return list(connection.scalars(text("SELECT id FROM notes ORDER BY id")))


@pytest.mark.parametrize(
    "call", [GoalStore.open, migrate.upgrade, migrate.current, migrate.check, migrate.downgrade]
)
@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_a_store_in_memory_is_not_opened_inside_a_hosts_transaction(
    in_memory: Engine, call: Callable[..., Any], end: str
) -> None:
    arguments = ("base",) if call is migrate.downgrade else ()
    with in_memory.connect() as connection:
        add_note(connection)
        with pytest.raises(TransactionError, match="a transaction of yours is open"):
            call(in_memory, *arguments)
        add_note(connection)
        getattr(connection, end)()
    assert _notes(in_memory) == ([1, 2] if end == "commit" else [])


@pytest.mark.slow
@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_a_store_in_memory_leaves_a_hosts_transaction_alone(in_memory: Engine, end: str) -> None:
    with GoalStore.open(in_memory) as store:
        store.create("t", "Ship")
        with in_memory.connect() as connection:
            add_note(connection)
            for _ in range(2):
                with pytest.raises(TransactionError, match="a transaction of yours is open"):
                    store.charge("t", tokens=5)
            store.get("t")
            store.count()
            GoalRepository(connection).charge("t", tokens=10)
            add_note(connection)
            store.close()
            gc.collect()
            getattr(connection, end)()
    is_kept = end == "commit"
    assert _notes(in_memory) == ([1, 2] if is_kept else [])
    with GoalStore.open(in_memory, migrate=False) as store:
        goal = store.charge("t", tokens=1).goal
        assert goal is not None
        assert goal.tokens_used == 1 + 10 * is_kept


def test_a_connection_does_not_charge_into_anothers_transaction() -> None:
    engine = sqlalchemy.create_engine("sqlite://", poolclass=StaticPool)
    Base.metadata.create_all(engine)
    migrate.upgrade(engine)
    with engine.connect() as connection, engine.connect() as other:
        add_note(connection)
        with pytest.raises(TransactionError, match="another user's transaction"):
            GoalRepository(other).create("t", "Ship")
        connection.commit()
        GoalRepository(other).create("t", "Ship")
        other.commit()
    engine.dispose()


@pytest.mark.parametrize("poolclass", [StaticPool, SingletonThreadPool])
def test_a_pool_of_one_connection_on_a_file_is_refused_for_a_store(
    host: Path, engines: Callable[[Engine], Engine], poolclass: type[sqlalchemy.Pool]
) -> None:
    engine = engines(plain(host, poolclass=poolclass))
    with engine.connect() as connection:
        add_note(connection)
        for call in (GoalStore.open, migrate.upgrade):
            with pytest.raises(UnsupportedDatabaseError, match=poolclass.__name__):
                call(engine)
        GoalRepository(connection).charge("t", tokens=5)
        connection.commit()
    assert (used(host), notes(host)) == (5, 1)
