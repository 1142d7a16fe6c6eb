"""Locates a database and checks that it is ours, without changing a byte of it."""

from __future__ import annotations

import errno
import os
import shlex
import sqlite3
from contextlib import closing, suppress
from pathlib import Path
from typing import Final, cast

from sqlalchemy import Engine, exc
from sqlalchemy.engine import URL, make_url

from goal_state.errors import (
    DatabaseLocationError,
    DatabaseReadOnlyError,
    DatabaseReplacedError,
    ForeignDatabaseError,
    InvalidValueError,
    NotADatabaseError,
    UnsupportedDatabaseError,
)
from goal_state.storage.identifiers import new_id
from goal_state.storage.schema import VERSION_TABLE, check_tables, database, metadata
from goal_state.storage.sqlite.errors import primary_code, translating
from goal_state.storage.sqlite.file_guard import has_log, log_owner

__all__ = [
    "change_identity",
    "create_file",
    "database_path",
    "inspect_file",
    "is_memory",
    "is_memory_name",
    "read_schema",
    "reading_uri",
    "sqlite_url",
]


_MINIMUM_SQLITE: Final = (3, 37, 0)  # STRICT tables


_SMALLEST_FILE_BYTES: Final = 512


def sqlite_url(target: str | os.PathLike[str] | URL) -> URL:
    """The URL of a database: of a path, `:memory:`, or a SQLAlchemy URL without parameters.

    Raises:
        DatabaseLocationError: the URL has parameters, or names no file.
        UnsupportedDatabaseError: the URL is not SQLite's, or SQLite is older than 3.37.
        InvalidValueError: the target is neither a path nor a URL.
    """
    if isinstance(target, URL):
        url = target
    elif isinstance(target, str) and "://" in target:
        try:
            url = make_url(target)
        except (exc.ArgumentError, ValueError):  # a bare ValueError: a port that is not a number
            raise DatabaseLocationError(
                f"{target!r} is not a database URL; write sqlite:///path/to/goals.db"
            ) from None
    else:
        if not isinstance(target, str | os.PathLike):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidValueError(
                "target", f"must be a path, a URL or an Engine, not {type(target).__name__}"
            )
        path = os.fspath(target)
        if not isinstance(path, str) or not path or "\0" in path:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidValueError(
                "target", "must be a path of at least one character, without NUL"
            )
        url = URL.create("sqlite", database=str.__str__(path))  # a subclass may override it
    if url.get_backend_name() != "sqlite":
        raise UnsupportedDatabaseError(
            f"goals are kept in SQLite; {url.get_backend_name()!r} is not supported yet"
        )
    if url.drivername not in ("sqlite", "sqlite+pysqlite"):
        raise UnsupportedDatabaseError(
            f"goals are kept through Python's own sqlite3, not {url.drivername!r}; write sqlite:///…"
        )
    if url.host or url.port or url.username or url.password:
        raise DatabaseLocationError(
            "a SQLite URL names no host and no user; write sqlite:///path/to/goals.db"
        )
    if url.query:
        raise DatabaseLocationError(
            f"the URL has parameters ({', '.join(sorted(url.query))}); pass an Engine to set them"
        )
    try:
        name = os.fsencode(url.database or "")
    except UnicodeEncodeError:
        raise DatabaseLocationError(
            "the path has a lone surrogate; no file has such a name"
        ) from None
    if b"\0" in name:
        raise DatabaseLocationError("the path has a NUL character; no file has such a name")
    if sqlite3.sqlite_version_info < _MINIMUM_SQLITE:
        raise UnsupportedDatabaseError(
            f"SQLite 3.37 or newer is needed, this Python has {sqlite3.sqlite_version}"
        )
    return url


def is_memory_name(database: str | None) -> bool:
    """Whether SQLite keeps a database of that name in memory."""
    return not database or database == ":memory:"


def is_memory(engine: Engine) -> bool:
    """Whether the database is in memory, in one connection."""
    return is_memory_name(engine.url.database)


def database_path(engine: Engine) -> Path | None:
    """The database file of an engine; None in memory."""
    return None if is_memory(engine) else Path(cast(str, engine.url.database))


def inspect_file(path: Path, *, to_read: bool = False) -> str | None:
    """The revision of the schema in a file (None: no schema yet), read without changing a byte of it; refuses
    a path that cannot hold our database.

    A missing or empty file is accepted: it will be made. A file with tables of which none is ours belongs to
    another application; a host that wants goals in its own database passes an Engine or calls
    `goal_state.migrate.upgrade`.

    Args:
        path: the file.
        to_read: whether it is only read, and need not be writable.

    Raises:
        DatabaseLocationError: the folder is missing or cannot be entered, or the path is a directory.
        NotADatabaseError: the file is not a SQLite database.
        ForeignDatabaseError: it is another application's.
        SchemaIncompleteError: some of our tables exist and others do not.
        DatabaseReadOnlyError: the file or its folder should be writable and is not.
        DatabaseReplacedError: it replaced another file, whose log is still there.
    """
    try:
        return _inspect_file(path, to_read=to_read)
    except OSError as error:
        raise DatabaseLocationError(
            f"{str(path)!r} cannot be reached: {error.strerror}; see the rights of its folders"
        ) from error


def _inspect_file(path: Path, *, to_read: bool) -> str | None:
    folder = path.parent
    if not folder.is_dir():
        raise DatabaseLocationError(f"the folder {str(folder)!r} does not exist; make it first")
    if path.is_dir():
        raise DatabaseLocationError(f"{str(path)!r} is a directory; name a file in it")
    if path.exists() and not path.is_file():
        raise DatabaseLocationError(f"{str(path)!r} is not a regular file")
    if not to_read and not os.access(folder, os.W_OK | os.X_OK):
        raise DatabaseReadOnlyError(
            f"the folder {str(folder)!r} is read-only; SQLite keeps its log beside the database"
        )
    if not path.exists() or path.stat().st_size == 0:
        return None
    _refuse_replaced(path)
    if not to_read and not os.access(path, os.W_OK):
        raise DatabaseReadOnlyError(
            f"{str(path)!r} is read-only for this user; allow writing to it"
        )
    if not os.access(path, os.R_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    if path.stat().st_size < _SMALLEST_FILE_BYTES:  # SQLite treats a file of one byte as empty
        raise _no_database(path)
    with translating():
        connection = _connected(reading_uri(path))
        try:
            tables, revision = read_schema(connection)
        except sqlite3.DatabaseError as error:
            if primary_code(error) != sqlite3.SQLITE_NOTADB:
                raise
            raise _no_database(path) from error
        finally:
            connection.close()
    if tables and not tables & {VERSION_TABLE, *metadata.tables}:
        raise ForeignDatabaseError(
            f"{str(path)!r} belongs to another application (it has a table {min(tables)!r} and no"
            " goals of ours); name another file, or open it with an Engine to keep goals in it"
        )
    check_tables(tables, revision)
    return revision


def read_schema(driver: sqlite3.Connection) -> tuple[set[str], str | None]:
    """All tables of a database, another application's too, and the revision of our schema."""
    driver.execute("BEGIN")  # one snapshot, so that no migration runs between the two reads
    try:
        rows = driver.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        tables = {cast(str, name) for (name,) in rows if not name.startswith("sqlite_")}
        if VERSION_TABLE not in tables:
            return tables, None
        row = driver.execute(f"SELECT version_num FROM {VERSION_TABLE}").fetchone()  # noqa: S608
        return tables, None if row is None else row[0]
    finally:
        driver.rollback()


def _no_database(path: Path) -> NotADatabaseError:
    return NotADatabaseError(
        f"{str(path)!r} is not a SQLite database; name another file, or restore a backup if it was one"
    )


def reading_uri(path: Path) -> str:
    """A URI with which SQLite reads a file without changing it or any file beside it.

    Only SQLite may open the file: closing any other file descriptor of it would drop all locks that this
    process has on it, and the next process would delete the log under an open store.
    """
    file = Path(os.path.realpath(path))
    # If there is a log, closing must not checkpoint it; if there is none, SQLite must not make one.
    log = file.with_name(f"{file.name}-wal")
    mode = "mode=ro" if log.exists() else "mode=ro&immutable=1"
    return f"{file.as_uri()}?{mode}"


def _refuse_replaced(path: Path) -> None:
    """Refuses a file that replaced another one whose log is still there: SQLite would replay that log onto
    it.

    Raises:
        DatabaseReplacedError: the log beside the file belongs to another database.
    """
    file = Path(os.path.realpath(path))
    if not has_log(file) or (owner := log_owner(file)) is None:
        return
    found: str | None = None
    # Reads the file itself, without its log; while others write to it, the read may fail.
    with (
        suppress(sqlite3.Error),
        closing(_connected(f"{file.as_uri()}?mode=ro&immutable=1")) as main,
    ):
        row = main.execute(f"SELECT identity FROM {database.name}").fetchone()  # noqa: S608
        found = None if row is None else row[0]
    if found is not None and found != owner:
        raise DatabaseReplacedError(
            f"{str(path)!r} replaced another database, whose log ({file.name}-wal) is still there and would"
            " be replayed onto it. Nothing was changed. Move the file to another name, then run: goal-state"
            f" restore THAT-FILE --db {shlex.quote(str(path))}"
        )


def change_identity(path: Path, identity: str | None = None) -> None:
    """Gives a copy an identity other than that of the database it was made from.

    Args:
        path: the copy, which nobody has open.
        identity: of the database that it will replace; None makes a new one.
    """
    # Absolute: SQLite may take a name that begins with "file:" for a URI.
    with (
        translating(),
        closing(sqlite3.connect(path.absolute(), isolation_level=None)) as connection,
    ):
        connection.execute(
            f"UPDATE {database.name} SET identity = ?",  # noqa: S608
            (identity or new_id(),),
        )


def _connected(uri: str) -> sqlite3.Connection:
    return sqlite3.connect(uri, uri=True)


def create_file(path: Path) -> None:
    """Makes the file, accessible to its owner only, whatever the umask; SQLite makes its log the same."""
    file = Path(os.path.realpath(path))
    # Under another name first: under its own, another thread may open it, and then closing this file
    # descriptor would drop that thread's locks.
    new = file.with_name(f".{new_id()}.new")
    os.close(os.open(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    try:
        os.link(new, file)
    except FileExistsError:
        return
    except OSError:  # no hard links on this file system
        _create_in_place(file)
    finally:
        new.unlink()


def _create_in_place(file: Path) -> None:
    """Lets SQLite make the file, then restricts its permissions."""
    with translating():
        connection = sqlite3.connect(file)
        try:
            connection.execute("BEGIN IMMEDIATE")
            if file.stat().st_size == 0:
                file.chmod(0o600)
        finally:
            connection.close()
