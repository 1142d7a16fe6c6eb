"""Checks on the file of an open database: is it still the same file, whose log is it, is its disk local."""

from __future__ import annotations

import logging
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Final

from goal_state.errors import DatabaseReplacedError
from goal_state.storage.identifiers import new_id

__all__ = [
    "OpenedFile",
    "forget_log_owner",
    "has_log",
    "log_owner",
    "network_file_system",
    "note_log_owner",
]

_logger = logging.getLogger(__name__)

_NETWORK_FILE_SYSTEMS: Final = frozenset(
    (
        *(
            "9p",
            "afs",
            "beegfs",
            "ceph",
            "cifs",
            "davfs",
            "glusterfs",
            "gpfs",
            "lustre",
            "ncpfs",
            "nfs",
        ),
        *("nfs4", "smb3", "smbfs", "fuse.ceph", "fuse.davfs2", "fuse.gcsfuse", "fuse.glusterfs"),
        *("fuse.rclone", "fuse.s3fs", "fuse.sshfs"),
    )
)

_MOUNTS: Final = Path("/proc/self/mountinfo")

_local_devices: Final[set[int]] = set()
"""Those that were found to be local: reading the mount points takes as long as opening a connection."""
_warned_of: set[str] = set()


class OpenedFile:
    """A database file as it was when it was opened."""

    def __init__(self, path: str) -> None:
        """
        Args:
            path: the absolute path, as SQLite reports it; empty for a database in memory.
        """
        self._path = path
        self.identity: tuple[int, int] | None = None
        """Device and inode; None in memory."""
        if path:
            status = os.stat(path)  # noqa: PTH116
            self.identity = (status.st_dev, status.st_ino)
            if status.st_dev not in _local_devices:
                self._warn_of_network(status.st_dev)

    def check(self) -> None:
        """Makes sure that the path still leads to this file.

        Raises:
            DatabaseReplacedError: it leads nowhere, or to another file.
        """
        if not self._path:
            return
        try:
            status = os.stat(self._path)  # noqa: PTH116
        except FileNotFoundError:
            raise DatabaseReplacedError(
                f"{self._path!r} was moved or deleted while it was open; put it back, or open the store again"
            ) from None
        except (
            OSError
        ):  # the path cannot be read now; the open file descriptors still lead to the file
            return
        if (status.st_dev, status.st_ino) != self.identity:
            raise DatabaseReplacedError(
                f"{self._path!r} is another file than the one that was opened; open the store again"
            )

    def _warn_of_network(self, device: int) -> None:
        kind = network_file_system(self._path)
        if kind is None:
            _local_devices.add(device)
        elif self._path not in _warned_of:
            _warned_of.add(self._path)
            _logger.warning(
                "%s is on a network file system (%s), whose locks may fail, which corrupts the database; keep"
                " it on a local disk",
                self._path,
                kind,
            )


def has_log(path: Path) -> bool:
    """Whether there is a log beside a database: one in use, or one that SQLite would replay onto the file."""
    try:
        return path.with_name(f"{path.name}-wal").stat().st_size > 0
    except OSError:
        return False


def log_owner(path: Path) -> str | None:
    """The identity of the database that the log beside a file belongs to; None if it was not noted."""
    try:
        return _owner_file(path).read_text(encoding="ascii").strip() or None
    except (OSError, UnicodeDecodeError):
        return None


def note_log_owner(path: Path, identity: str) -> None:
    """Notes whose log is beside a file. Where the note cannot be written, a replaced file goes undetected."""
    if log_owner(path) == identity:
        return
    new = path.with_name(f".{new_id()}.new")
    try:
        with open(os.open(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file:  # noqa: PTH123
            file.write(f"{identity}\n")
        new.replace(_owner_file(path))
    except OSError as error:
        _logger.debug("could not note %s as the owner of its log: %s", path, error)
        with suppress(OSError):
            new.unlink()


def forget_log_owner(path: Path) -> None:
    """Deletes the note if there is no log any more. (A process that opens the database at this moment may
    lose its note; then a replaced file goes undetected.)
    """
    if not path.with_name(f"{path.name}-wal").exists():
        with suppress(OSError):
            _owner_file(path).unlink()


def _owner_file(path: Path) -> Path:
    return path.with_name(f"{path.name}-id")


def network_file_system(path: str, mounts: Path = _MOUNTS) -> str | None:
    """The kind of network file system that a file is on; None on a local one, and where the platform does
    not tell.

    Args:
        path: an absolute path without symbolic links.
        mounts: the system's list of mount points.
    """
    try:
        lines = mounts.read_text(errors="surrogateescape").splitlines()
    except OSError:
        return None
    longest, found = "", None
    for line in lines:
        # 36 35 98:0 /root /mounted/here rw,noatime master:1 - ext4 /dev/sda rw
        place, _, source = line.partition(" - ")
        point = re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), place.split(" ")[4])
        is_above = path == point or path.startswith(point.rstrip("/") + "/")
        if is_above and len(point) >= len(
            longest
        ):  # of two on one mount point, the later one is visible
            longest, found = point, source.split(" ")[0]
    return found if found in _NETWORK_FILE_SYSTEMS else None
