"""Makes a store's connections: to a database file, or from an engine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol, cast

from sqlalchemy import Engine

from goal_state.storage.options import Durability
from goal_state.storage.sqlite.connections import (
    connect_to_file,
    create_engine,
    detached_connection,
    driver_connection,
    enable_wal,
    set_pragmas,
)
from goal_state.storage.sqlite.executor import Connected
from goal_state.storage.sqlite.location import database_path, is_memory

__all__ = ["EngineSource", "FileSource", "Source"]


class Source(Protocol):
    """Makes connections to one database."""

    path: Path | None
    """The file; None in memory."""
    is_hosts: bool
    """Whether the engine, and with it the database, belongs to a host."""

    def connect(self) -> Connected:
        """A connection that nobody else uses; in memory, the only one there is."""
        ...

    def engine(self) -> Engine:
        """An engine on the database, for its migration."""
        ...

    def let_go(self) -> bool:
        """Before a fork: closes idle connections; False while a host uses one."""
        ...

    def close(self) -> None:
        """Closes what was made for the store; a host's engine stays open."""
        ...


class FileSource:
    """A file of our own, opened by the driver alone: an engine is made only for a migration."""

    is_hosts = False

    def __init__(self, path: Path, durability: Durability, timeout_ms: int) -> None:
        # Absolute: connections are made later, too, when the process may be in another folder. And SQLite
        # may take a name that begins with "file:" for a URI.
        self.path: Path | None = path.absolute()
        self._name = str(self.path)
        self._durability: Durability = durability
        self._timeout_ms = timeout_ms

    def connect(self) -> Connected:
        """See `Source`."""
        return Connected(connect_to_file(self._name, self._durability, self._timeout_ms), self)

    def engine(self) -> Engine:
        """See `Source`."""
        return create_engine(
            self._name, durability=self._durability, busy_timeout_seconds=self._timeout_ms / 1000
        )

    def let_go(self) -> bool:
        """See `Source`."""
        return True

    def close(self) -> None:
        """See `Source`."""


class EngineSource:
    """A host's engine, or our own engine on a database in memory."""

    def __init__(
        self, engine: Engine, durability: Durability, timeout_ms: int, *, is_hosts: bool
    ) -> None:
        path = database_path(engine)
        self.path: Path | None = None if path is None else path.absolute()
        self.is_hosts: bool = is_hosts
        self._engine = engine
        self._durability: Durability = durability
        self._timeout_ms = timeout_ms

    def connect(self) -> Connected:
        """See `Source`."""
        connection = detached_connection(self._engine)
        try:
            driver = driver_connection(connection)
            if self.is_hosts:
                set_pragmas(driver, self._durability, self._timeout_ms)
            enable_wal(driver, busy_timeout_seconds=self._timeout_ms / 1000)
        except BaseException:
            connection.close()
            raise
        return Connected(driver, self._engine, connection, is_memory(self._engine))

    def engine(self) -> Engine:
        """See `Source`."""
        return self._engine

    def let_go(self) -> bool:
        """See `Source`."""
        if not self.is_hosts:
            return True
        in_use = cast("Callable[[], int] | None", getattr(self._engine.pool, "checkedout", None))
        if in_use is not None and in_use() > 0:
            return False
        self._engine.dispose()
        return True

    def close(self) -> None:
        """See `Source`."""
        if not self.is_hosts:
            self._engine.dispose()
