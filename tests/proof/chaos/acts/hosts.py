"""Transactions of a host, together with its own rows."""

from __future__ import annotations

import contextlib
import sqlite3
import time

from sqlalchemy import Connection, Engine, event, text
from sqlalchemy import create_engine as make_engine

from goal_state import GoalRepository, RequestError
from tests.proof.chaos.acts.base import Acts, Surprise, charged
from tests.proof.chaos.charges import charge_of, make_in

__all__ = ["Hosts"]


class Hosts(Acts):
    """Charges in transactions that somebody else begins and ends."""

    def do_host(self, number: int, how: str) -> None:
        """A charge in a host's own transaction, beside a row of the host's."""
        charge = charge_of(self.seed, number)
        engine = make_engine(f"sqlite:///{self.path}", connect_args={"timeout": 20})
        if how == "savepoint":
            _let_sqlalchemy_begin(engine)
        began = time.monotonic()
        became, tokens = "refused", None
        try:
            if how == "kept":
                with engine.connect() as host:
                    kept = GoalRepository(host)
                    kept.get(charge.thread_id)
                with contextlib.suppress(RequestError):
                    tokens = charged(make_in(kept, charge)).tokens_used
                    became = "made"
                    raise Surprise("a repository charged after its connection was closed")
            elif how == "autocommit":
                with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as host:
                    try:
                        tokens = charged(make_in(GoalRepository(host), charge)).tokens_used
                        became = "made"
                    except RequestError:
                        pass
                    host.execute(text("INSERT INTO host_rows VALUES (:n, 1)"), {"n": number})
            else:
                with engine.connect() as host:
                    host.execute(text("INSERT INTO host_rows VALUES (:n, 0)"), {"n": number})
                    if how == "savepoint":
                        with contextlib.suppress(Undone), host.begin_nested():
                            make_in(GoalRepository(host), charge._replace(key=None, tokens=7))
                            raise Undone
                    tokens = charged(make_in(GoalRepository(host), charge)).tokens_used
                    if how == "rollback":
                        host.rollback()
                    else:
                        host.commit()
                        became = "made"
        finally:
            engine.dispose()
        at = [began, time.monotonic()]
        self.channel.say(
            {"charge": number, "became": became, "at": at, "tokens": tokens, "host": how}
        )


class Undone(Exception):  # noqa: N818
    """Ends a savepoint."""


def _let_sqlalchemy_begin(engine: Engine) -> None:
    """As SQLAlchemy's documentation tells those who use savepoints."""

    @event.listens_for(engine, "connect")
    def _on_connect(connection: sqlite3.Connection, _record: object) -> None:
        connection.isolation_level = None

    @event.listens_for(engine, "begin")
    def _on_begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")
