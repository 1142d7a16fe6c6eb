"""A file of lines that several threads and processes append to, and that is begun anew when it is full."""

from __future__ import annotations

import fcntl
import os
import re
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from goal_state.domain.values import check_amount, check_path
from goal_state.errors import InvalidValueError

__all__ = ["MAX_FILE_BYTES", "LineFile"]

MAX_FILE_BYTES: Final = 64 * 2**20
"""How long a file grows by default."""

_OWNER_ONLY: Final = 0o600


class LineFile:
    """Appends lines, all of a call or none, and has them on the disk when it returns.

    The file is made for its owner alone. One that would grow past `max_file_bytes` is renamed first, to its
    name and the next number (`events.jsonl.1`, then `.2` …), and never touched again. Lines of several
    writers follow each other and never mix, also while one of them renames the file: each of them opens it
    anew for every call, locks it, and looks whether it still is the one of that name.

    Raises:
        InvalidValueError: it is no regular file, or `max_file_bytes` is below 1.
        OSError: the file cannot be opened for writing.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, max_file_bytes: int = MAX_FILE_BYTES
    ) -> None:
        if check_amount("max_file_bytes", max_file_bytes) < 1:
            raise InvalidValueError("max_file_bytes", "must be 1 or more")
        # A background thread writes: it must not matter where the process has gone meanwhile.
        self.path: Final = check_path("path", path).absolute()
        self._max_file_bytes = max_file_bytes
        os.close(self._open())

    def append(self, lines: Iterable[str]) -> None:
        """Appends lines, given without their ends.

        Raises:
            OSError: the file could not be written; none of the lines is in it.
        """
        text = "".join(f"{line}\n" for line in lines).encode()
        while True:
            descriptor = self._open()
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                if not self._is_current(descriptor):
                    continue
                size = os.fstat(descriptor).st_size
                if size > 0 and size + len(text) > self._max_file_bytes:
                    self.path.rename(self._next_name())
                    continue
                self._write(descriptor, size, text)
                return
            finally:
                # By itself the lock would last until each child that was forked meanwhile has closed its
                # descriptor too.
                fcntl.flock(descriptor, fcntl.LOCK_UN)
                os.close(descriptor)

    def _open(self) -> int:
        # Without O_NONBLOCK, opening a named pipe would wait for a reader.
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK
        descriptor = os.open(self.path, flags, _OWNER_ONLY)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise InvalidValueError("path", "must be a regular file")
        return descriptor

    def _is_current(self, descriptor: int) -> bool:
        try:
            return os.path.samestat(os.fstat(descriptor), self.path.stat())
        except FileNotFoundError:
            return False

    def _next_name(self) -> Path:
        numbered = re.compile(re.escape(self.path.name) + r"\.([0-9]+)")
        matches = (numbered.fullmatch(file.name) for file in self.path.parent.iterdir())
        last = max((int(match[1]) for match in matches if match), default=0)
        return self.path.with_name(f"{self.path.name}.{last + 1}")

    def _write(self, descriptor: int, size: int, text: bytes) -> None:
        try:
            if size and os.pread(descriptor, 1, size - 1) != b"\n":
                # Half a line that a power cut left: it must not spoil the first of these.
                text = b"\n" + text
            left = memoryview(text)
            while left:
                left = left[os.write(descriptor, left) :]
            os.fsync(descriptor)
            if not size:
                self._sync_folder()
        except BaseException:  # an interrupt too: half of a batch is worse than none
            os.ftruncate(descriptor, size)
            raise

    def _sync_folder(self) -> None:
        """A new name is on the disk only when its folder is."""
        folder = os.open(self.path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
