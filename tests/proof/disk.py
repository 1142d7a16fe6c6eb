"""A simulated disk: the shim under SQLite, its journal of writes, and what a power cut leaves of them."""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
import random
import shutil
import struct
import subprocess
from collections.abc import Iterator
from enum import IntFlag
from pathlib import Path
from typing import Final, NamedTuple

__all__ = ["SECTOR", "Disk", "Faults", "Kind", "Record", "build", "journal", "preloaded"]

SECTOR: Final = 512
"""What a disk writes whole or not at all."""

_SOURCE: Final = Path(__file__).with_name("disk.c")
_FLAGS: Final = ("-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared")
_HEADER: Final = struct.Struct("=IIQQ")


def build(folder: Path) -> Path | str:
    """Compiles the shim into a folder; where that cannot be, says why."""
    if platform.system() != "Linux":
        return f"the disk is put under SQLite by LD_PRELOAD, which {platform.system()} has not"
    compiler = shutil.which("cc")
    if compiler is None:
        return "there is no C compiler (cc) to build the disk with"
    shim = folder / "disk.so"
    done = subprocess.run(
        [compiler, *_FLAGS, str(_SOURCE), "-o", str(shim), "-ldl", "-lpthread"],
        capture_output=True,
        text=True,
        check=False,
    )
    return shim if done.returncode == 0 else f"the disk does not build here: {done.stderr}"


def preloaded(
    shim: Path, folder: Path, *, journal: Path | None = None, faults: Path | None = None
) -> dict[str, str]:
    """The environment of a program whose files in a folder lie on the disk."""
    environment = os.environ | {"LD_PRELOAD": str(shim), "DISK_FOLDER": str(folder.resolve())}
    if journal is not None:
        environment["DISK_JOURNAL"] = str(journal)
    if faults is not None:
        environment["DISK_FAULTS"] = str(faults)
    return environment


# -- faults ------------------------------------------------------------------------------------------


class Kind(IntFlag):
    """What of a disk can fail. OPEN stands for all that needs a folder that can be written to."""

    READ = 1
    WRITE = 2
    SYNC = 4
    OPEN = 8


class _Faults(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_int64)
        for name in ("kinds", "passing", "lasting", "error", "failed", "calls")
    ]


class Faults:
    """What the disk of this process shall fail at: the other end of the memory shared with the shim."""

    def __init__(self, path: Path) -> None:
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), ctypes.sizeof(_Faults))
        self._shared = _Faults.from_buffer(self._memory)

    @staticmethod
    def create(path: Path) -> Path:
        """Makes the file to be shared, in which nothing fails."""
        path.write_bytes(bytes(ctypes.sizeof(_Faults)))
        return path

    def arm(self, kinds: Kind, passing: int, error: int, *, lasting: bool) -> None:
        """After so many calls of these kinds one fails (or all do from then on)."""
        self.lift()
        self._shared.passing, self._shared.error = passing, error
        self._shared.lasting = lasting
        self._shared.failed = self._shared.calls = 0
        self._shared.kinds = kinds

    def lift(self) -> None:
        """Nothing fails any more."""
        self._shared.kinds = 0

    @property
    def failed(self) -> int:
        """How many calls have failed since it was armed."""
        return self._shared.failed

    @property
    def calls(self) -> int:
        """How many calls of its kinds there were since it was armed, until it was lifted."""
        return self._shared.calls


# -- the journal, and what a power cut leaves --------------------------------------------------------


class Record(NamedTuple):
    """One thing that was done to the disk."""

    kind: str
    file: int
    offset: int
    data: bytes


def journal(path: Path) -> Iterator[Record]:
    """The records of a journal, in order."""
    with path.open("rb") as file:
        while head := file.read(_HEADER.size):
            kind, number, offset, length = _HEADER.unpack(head)
            yield Record(chr(kind), number, offset, file.read(length))


_Write = tuple[int, bytes | None]
"""Data and where it goes; without data, a file is cut to this length."""


class _File:
    def __init__(self) -> None:
        self.kept = bytearray()
        self.pending: list[_Write] = []

    def sync(self) -> None:
        for write in self.pending:
            _apply(self.kept, write)
        self.pending.clear()

    def after_cut(self, random: random.Random) -> bytearray:
        """What was synced, and of the rest a part, in an order of its own, torn into sectors."""
        content = bytearray(self.kept)
        for write in _remains(self.pending, random):
            _apply(content, write)
        return content


class Disk:
    """What a disk holds while a journal is gone through: what is kept for good, and what is not yet."""

    def __init__(self) -> None:
        self._files: dict[int, _File] = {}
        self._names: dict[str, int] = {}
        self._pending_names: list[tuple[str, int | None]] = []

    def apply(self, record: Record) -> None:
        """Takes the next record."""
        match record.kind:
            case "C":
                self._files.setdefault(record.file, _File())
                self._pending_names.append((record.data.decode(), record.file))
            case "U":
                self._pending_names.append((record.data.decode(), None))
            case "D":
                for name, number in self._pending_names:
                    _name(self._names, name, number)
                self._pending_names.clear()
            case "W":
                self._files[record.file].pending.append((record.offset, record.data))
            case "T":
                self._files[record.file].pending.append((record.offset, None))
            case "S":
                self._files[record.file].sync()
            case _:
                pass

    def cut(self, folder: Path, random: random.Random) -> None:
        """Writes what a power cut would leave now into an empty folder. The disk itself goes on."""
        names = dict(self._names)
        for changed in dict(self._pending_names):
            changes = [number for name, number in self._pending_names if name == changed]
            for number in changes[: random.randint(0, len(changes))]:
                _name(names, changed, number)
        for name, number in names.items():
            (folder / name).write_bytes(self._files[number].after_cut(random))


def _name(names: dict[str, int], name: str, number: int | None) -> None:
    if number is None:
        names.pop(name, None)
    else:
        names[name] = number


def _apply(content: bytearray, write: _Write) -> None:
    offset, data = write
    if data is None:
        del content[offset:]
    if len(content) < offset:
        content.extend(bytes(offset - len(content)))
    if data is not None:
        content[offset : offset + len(data)] = data


def _remains(pending: list[_Write], random: random.Random) -> list[_Write]:
    """Nothing, everything, a beginning, or sectors at random."""
    way = random.choice(("nothing", "everything", "a beginning", "sectors", "sectors"))
    if way == "nothing" or not pending:
        return []
    if way == "everything":
        return pending
    sectors = [sector for write in pending for sector in _sectors(write)]
    if way == "a beginning":
        return sectors[: random.randint(0, len(sectors))]
    share = random.choice((0.1, 0.5, 0.9))
    kept = [sector for sector in sectors if random.random() < share]
    random.shuffle(kept)
    return kept


def _sectors(write: _Write) -> Iterator[_Write]:
    offset, data = write
    if data is None:
        yield write
        return
    begin = 0
    while begin < len(data):
        end = min(len(data), begin + SECTOR - (offset + begin) % SECTOR)
        yield offset + begin, data[begin:end]
        begin = end
