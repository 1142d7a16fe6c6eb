"""Appending to a rollout: whole lines, each with one write."""

from __future__ import annotations

import errno
import json
import os
import stat
import threading
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from goal_state.codex.rollout.lines import (
    BYTE_ORDER_MARK,
    MAX_HELD_BYTES,
    MAX_PARSED_BYTES,
    open_rollout,
    parse_object,
    rollout_place,
)
from goal_state.codex.rollout.paths import rollout_path
from goal_state.domain.values import check_name
from goal_state.errors import InvalidValueError, NotARolloutError, RolloutClosedError

try:
    import fcntl
except ImportError:  # Windows: only one writer per file there
    fcntl = None

__all__ = ["RolloutWriter"]

_BLOCK_BYTES: Final = 64 * 2**10
_OWNER_ONLY: Final = 0o600
_OWNER_ONLY_DIRECTORY: Final = 0o700


class RolloutWriter:
    """Appends lines to a rollout; creates the file, for its owner alone, where there is none.

    A line is one `write` of the whole of it to the end of the file, under a lock that other writers of
    this class respect: lines of several writers follow each other and never mix. With `fsync`, a line that
    was appended survives a power cut.

    A tail without a newline is what a crash left in the middle of a line. Before anything is appended it
    is repaired: a tail that is whole (only its newline is missing) gets it, a torn one is cut off. A tail
    too long to tell gets the newline, and readers skip it. Nothing whole is ever lost.

    Raises:
        NotARolloutError: the path leads to something else, or to a compressed rollout.
        OSError: the file cannot be opened for writing.
    """

    def __init__(self, path: str | os.PathLike[str], *, fsync: bool = False) -> None:
        self.path: Path = rollout_place(path)
        self._fsync = fsync
        self._guard = threading.Lock()
        self._descriptor: int | None = _open_to_append(self.path)
        try:
            _check_appendable(self.path)
            with self._alone() as descriptor:
                _repair_tail(descriptor)
        except BaseException:
            self.close()
            raise

    @classmethod
    def create(
        cls,
        home: str | os.PathLike[str],
        thread_id: str,
        *,
        started_at: datetime | None = None,
        meta: Mapping[str, Any] | None = None,
        fsync: bool = False,
    ) -> Self:
        """Begin the rollout of a new thread in a data directory, with its `session_meta` line.

        Args:
            home: the data directory; directories that are missing in it are made, for the owner alone.
            thread_id: becomes part of the file's name.
            started_at: when the thread began, with a time zone; now, if left out.
            meta: more fields of the `session_meta` (`cwd`, `cli_version`, `source`, `forked_from_id`, …).
            fsync: as for the class; the new name is then synced as well.

        Raises:
            InvalidValueError: the thread id cannot be part of a file name (such as `../x`), the time has
                no time zone, `home` is no path, or `meta` cannot be written as JSON.
            FileExistsError: there is such a file already.
            OSError: it cannot be created.
        """
        if not (meta is None or isinstance(meta, Mapping)):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidValueError("meta", f"must be a mapping, not {type(meta).__name__}")
        moment = datetime.now(UTC) if started_at is None else started_at
        thread_id = check_name("thread_id", thread_id)
        path = rollout_path(home, thread_id, moment)
        timestamp = moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        payload = {"session_id": thread_id, **(meta or {}), "id": thread_id, "timestamp": timestamp}
        first = {"timestamp": timestamp, "ordinal": 0, "type": "session_meta", "payload": payload}
        _encoded(first)  # refused before anything is created
        _make_directories(path.parent)
        os.close(_open_to_append(path, os.O_EXCL))
        writer = cls(path, fsync=fsync)
        try:
            writer.append(first)
            if fsync:
                _sync_directory(path.parent)
        except BaseException:
            writer.close()
            raise
        return writer

    def append(self, line_object: Mapping[str, Any]) -> None:
        """Append one line, as it is: nothing is added to it.

        Raises:
            InvalidValueError: it is no mapping, or holds what JSON cannot (NaN, a lone surrogate, …).
            RolloutClosedError: the writer has been closed.
            OSError: it could not be written (the disk is full …); the file is then as it was.
        """
        line = _encoded(line_object)
        with self._alone() as descriptor:
            _repair_tail(descriptor)
            _write_whole(descriptor, line)
            if self._fsync:
                os.fsync(descriptor)

    def close(self) -> None:
        """Close the file. May be called again."""
        with self._guard:
            if self._descriptor is not None:
                descriptor, self._descriptor = self._descriptor, None
                os.close(descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @contextmanager
    def _alone(self) -> Generator[int]:
        """The descriptor, while no other thread or writer appends."""
        with self._guard:
            descriptor = self._descriptor
            if descriptor is None:
                raise RolloutClosedError(f"{self.path}: the writer has been closed")
            if fcntl is None:
                yield descriptor
                return
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            try:
                yield descriptor
            finally:
                fcntl.flock(descriptor, fcntl.LOCK_UN)


def _open_to_append(path: Path, extra_flags: int = 0) -> int:
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | extra_flags
    # Without O_NONBLOCK, opening a named pipe could wait for its other end.
    flags |= getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        descriptor = os.open(path, flags, _OWNER_ONLY)
    except IsADirectoryError as error:
        raise NotARolloutError(f"{path}: not a regular file") from error
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise NotARolloutError(f"{path}: a symlink that leads back to itself") from error
        if error.errno == errno.ENXIO:
            raise NotARolloutError(f"{path}: not a regular file") from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise NotARolloutError(f"{path}: not a regular file")
    return descriptor


def _check_appendable(path: Path) -> None:
    with open_rollout(path) as rollout:
        if rollout.compressed:
            raise NotARolloutError(f"{path}: compressed; lines cannot be appended to it")


def _repair_tail(descriptor: int) -> None:
    """Make the file end with a whole line: give the last line its newline, or cut it off if it is torn."""
    size = os.lseek(descriptor, 0, os.SEEK_END)
    if size == 0 or _read_at(descriptor, size - 1, 1) == b"\n":
        return
    begin = _begin_of_tail(descriptor, size)
    if begin is None or size - begin > MAX_PARSED_BYTES or _is_whole(descriptor, begin, size):
        _write_whole(descriptor, b"\n")
    else:
        os.ftruncate(descriptor, begin)


def _begin_of_tail(descriptor: int, size: int) -> int | None:
    """Where the last line begins; None if that is further back than a line may reach."""
    position = size
    while position > 0 and size - position <= MAX_HELD_BYTES:
        begin = max(0, position - _BLOCK_BYTES)
        newline = _read_at(descriptor, begin, position - begin).rfind(b"\n")
        if newline != -1:
            return begin + newline + 1
        position = begin
    return 0 if position == 0 else None


def _is_whole(descriptor: int, begin: int, end: int) -> bool:
    tail = _read_at(descriptor, begin, end - begin)
    try:
        parse_object(tail.removeprefix(BYTE_ORDER_MARK) if begin == 0 else tail)
    except ValueError:
        return False
    return True


def _read_at(descriptor: int, offset: int, size: int) -> bytes:
    os.lseek(descriptor, offset, os.SEEK_SET)  # an append goes to the end wherever this leaves it
    parts: list[bytes] = []
    while size > 0 and (part := os.read(descriptor, size)):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _write_whole(descriptor: int, line: bytes) -> None:
    """All of it with one write, or nothing of it."""
    written = os.write(descriptor, line)
    if written == len(line):
        return
    end = os.lseek(descriptor, 0, os.SEEK_CUR)
    if end == os.lseek(descriptor, 0, os.SEEK_END):
        os.ftruncate(descriptor, end - written)
    raise OSError(errno.ENOSPC, f"only {written} of {len(line)} bytes could be written")


def _make_directories(directory: Path) -> None:
    """Make a directory and those missing above it, whose modes `os.makedirs` would leave to the umask."""
    if not directory.is_dir():
        _make_directories(directory.parent)
        with suppress(FileExistsError):  # made by another process meanwhile
            directory.mkdir(_OWNER_ONLY_DIRECTORY)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _encoded(line_object: Mapping[str, Any]) -> bytes:
    if not isinstance(line_object, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
        kind = type(line_object).__name__
        raise InvalidValueError("line_object", f"must be a mapping, not {kind}")
    try:
        text = json.dumps(
            dict(line_object), ensure_ascii=False, allow_nan=False, separators=(",", ":")
        )
        return text.encode() + b"\n"
    except (TypeError, ValueError, RecursionError) as error:
        # The message of the error may quote the line.
        raise InvalidValueError(
            "line_object", f"cannot be written as JSON ({type(error).__name__})"
        ) from None
