"""Backups of a database, made while other processes write."""

from __future__ import annotations

import os
from pathlib import Path

from goal_state.errors import DatabaseLocationError
from goal_state.storage.options import Progress
from goal_state.storage.sqlite.executor import Executor
from goal_state.storage.sqlite.location import change_identity

__all__ = ["back_up"]


def back_up(executor: Executor, path: Path, progress: Progress | None = None) -> None:
    """Copies the database to a new file while others go on writing; see `GoalStore.backup`."""
    if path.exists():
        raise DatabaseLocationError(f"{str(path)!r} exists; name a new file")
    if not path.parent.is_dir():
        raise DatabaseLocationError(
            f"the folder {str(path.parent)!r} does not exist; make it first"
        )
    partial = path.with_name(f"{path.name}.partial")
    try:
        os.close(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except FileExistsError:
        raise DatabaseLocationError(
            f"{str(partial)!r} exists: another backup is running, or one was cut off; in that case delete it"
        ) from None
    try:
        executor.copy_to(partial, progress)
        change_identity(partial)
        os.link(partial, path)  # fails if the file was made meanwhile; a rename would replace it
    except FileExistsError:
        raise DatabaseLocationError(f"{str(path)!r} exists; name a new file") from None
    finally:
        partial.unlink(missing_ok=True)
