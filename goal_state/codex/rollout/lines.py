"""The lines of a rollout as bytes: forwards, and backwards from the end, in bounded memory."""

from __future__ import annotations

import errno
import gzip
import importlib
import io
import json
import os
import stat
import zlib
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, TypeAlias, cast

from goal_state.domain.values import check_path
from goal_state.errors import InvalidValueError, MissingZstandardError, NotARolloutError

__all__ = [
    "BYTE_ORDER_MARK",
    "MAX_COMPRESSED_BYTES",
    "MAX_HELD_BYTES",
    "MAX_LINES",
    "MAX_PARSED_BYTES",
    "MAX_READ_BYTES",
    "MAX_SEARCHED_BYTES",
    "OpenRollout",
    "RawLine",
    "SkipLedger",
    "SkippedLine",
    "SkippedLines",
    "is_rollout_line",
    "open_rollout",
    "parse_object",
    "rollout_place",
    "why_broken",
]

MAX_HELD_BYTES: Final = 8 * 2**20
"""A line longer than this is never held in memory: it is passed over, counted as skipped."""

MAX_PARSED_BYTES: Final = 2**20
"""A line longer than this is not parsed. Lines about turns and usage have a few kilobytes; JSON of this
size can already take twenty times as much memory once it is parsed."""

MAX_READ_BYTES: Final = 2**30
"""Nothing behind so many bytes is read forwards (of the decompressed text where a file is compressed): far
more than any thread has, read in seconds; a sparse file or a bomb has no end."""

MAX_SEARCHED_BYTES: Final = 512 * 2**20
"""Nothing further before the end is read backwards: what follows the newest usage belongs to one turn."""

MAX_LINES: Final = 1_000_000
"""No more lines are read in one go, in either direction: empty lines take time as well."""

MAX_COMPRESSED_BYTES: Final = 256 * 2**20
"""No more of a compressed file is read: compressed data may well stand for no text at all."""

_BLOCK_BYTES: Final = 64 * 2**10
_MAX_HEAD_LINES: Final = 32
_MAX_HEAD_BYTES: Final = 64 * 2**20
"""A head line may be as long as what is held: the first one has a program's instructions in it."""

_MAX_SOURCE_READS: Final = 200_000
"""The gzip module reads names and padding byte by byte; all else comes in blocks of kilobytes."""

_MAX_ZSTANDARD_WINDOW: Final = 8 * 2**20  # what RFC 8878 asks every decoder to support
_MAX_NOTED_SKIPS: Final = 20
BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"
_Compression: TypeAlias = Literal["gzip", "zstandard"]
_MAGIC: Final[dict[bytes, _Compression]] = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstandard",
}

PathLike: TypeAlias = str | os.PathLike[str]


@dataclass(frozen=True, slots=True)
class SkippedLine:
    """A line that was passed over.

    Attributes:
        path: the file: the rollout itself, or one that it was forked from.
        offset: where the line begins, in bytes (of the decompressed text where it is compressed).
        reason: what is wrong with it, without its contents.
    """

    path: Path
    offset: int
    reason: str


@dataclass(frozen=True, slots=True)
class SkippedLines:
    """What one reading passed over.

    Attributes:
        count: how many lines.
        noted: the first of them, 20 at most.
    """

    count: int = 0
    noted: tuple[SkippedLine, ...] = ()


@dataclass(slots=True)
class SkipLedger:
    """Collects `SkippedLines`; keeps few of them, counts them all."""

    count: int = 0
    noted: list[SkippedLine] = field(default_factory=list[SkippedLine])

    def add(self, path: Path, offset: int, reason: str) -> None:
        """Count a line, and note it if it is one of the first."""
        self.count += 1
        if len(self.noted) < _MAX_NOTED_SKIPS:
            self.noted.append(SkippedLine(path, offset, reason))

    def snapshot(self) -> SkippedLines:
        """What has been collected so far."""
        return SkippedLines(self.count, tuple(self.noted))


class RawLine(NamedTuple):
    """A line without its end.

    Attributes:
        offset: where it begins, in bytes.
        content: its bytes without surrounding blanks; None if it is longer than `MAX_HELD_BYTES`.
        ended: a newline follows. Only the last line of a file may lack it.
    """

    offset: int
    content: bytes | None
    ended: bool


@dataclass(frozen=True, slots=True)
class OpenRollout:
    """A rollout that is open and was found to be one.

    Attributes:
        path: where it lies.
        size: its bytes when it was opened; what is appended later is not read.
        compressed: it can only be read forwards.
    """

    path: Path
    size: int
    compressed: bool
    _file: io.FileIO
    _compression: _Compression | None

    def forwards(self, ledger: SkipLedger) -> Iterator[RawLine]:
        """Every line from the beginning, within `MAX_READ_BYTES` and `MAX_LINES`. Where these, or damage of
        a compressed file, end it early, that is noted.

        Only one reading at a time: it moves the file's position.
        """
        return self._forwards(ledger, MAX_READ_BYTES)

    def head(self) -> Iterator[RawLine]:
        """The first lines, 32 at most, as far as they lie within the first 64 MiB."""
        return islice(self._forwards(SkipLedger(), _MAX_HEAD_BYTES), _MAX_HEAD_LINES)

    def _forwards(self, ledger: SkipLedger, max_bytes: int) -> Iterator[RawLine]:
        with _reading(self._file, self._compression, self.path) as read:
            yield from _forwards(read, self.path, ledger, max_bytes)

    def backwards(
        self,
        ledger: SkipLedger,
        end: int | None = None,
        may_read: Callable[[int], bool] = lambda _: True,
    ) -> Iterator[RawLine]:
        """Every line from `end` (the end of the file) to the beginning, within `MAX_SEARCHED_BYTES` and
        `MAX_LINES`; where these end it early, that is noted. Not for compressed files.

        Before each block `may_read` is told where in the file it ends; where it says no, that was all.
        """
        end = self.size if end is None else end
        return _backwards(self._file, self.path, ledger, end, may_read)


def rollout_place(path: object) -> Path:
    """The path of a rollout; `NotARolloutError` for what is no path at all."""
    try:
        return check_path("path", path)
    except InvalidValueError as error:
        raise NotARolloutError(f"not a path: it {error.problem}") from None


@contextmanager
def open_rollout(path: PathLike) -> Generator[OpenRollout]:
    """Open a rollout, compressed or not, after a look at its first lines.

    A file is a rollout if it is empty, holds nothing but the beginning of a first line, or has an object
    with a `type` and a `payload` among its first 32 lines.

    Raises:
        NotARolloutError: it is none.
        MissingZstandardError: it cannot be decompressed.
        OSError: it is missing or cannot be read.
    """
    place = rollout_place(path)
    with _open_regular_file(place) as file:
        compression = _compression_of(file)
        size = os.fstat(file.fileno()).st_size
        rollout = OpenRollout(place, size, compression is not None, file, compression)
        _check_head(rollout.head(), place)
        yield rollout


def is_rollout_line(line: dict[str, Any]) -> bool:
    """It has the shape that every line of a rollout has, whatever it says."""
    return isinstance(line.get("type"), str) and isinstance(line.get("payload"), dict)


def parse_object(content: bytes) -> dict[str, Any]:
    """A line as a JSON object.

    Raises:
        ValueError: it is none; the message says why, without its contents.
    """
    if len(content) > MAX_PARSED_BYTES:
        raise ValueError(f"longer than {MAX_PARSED_BYTES} bytes")
    try:
        value: object = json.loads(content.decode())
    except UnicodeDecodeError:
        raise ValueError("not UTF-8") from None
    except (ValueError, RecursionError):  # an integer of 5000 digits is a bare ValueError
        raise ValueError("not JSON") from None
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    return cast("dict[str, Any]", value)


def why_broken(content: bytes) -> str | None:
    """What is wrong with a line as far as its ends and its encoding tell, without parsing it."""
    if not (content.startswith(b"{") and content.endswith(b"}")):
        return "not a JSON object"
    if len(content) <= MAX_PARSED_BYTES and not content.isascii():
        try:
            content.decode()
        except UnicodeDecodeError:
            return "not UTF-8"
    return None


def _open_regular_file(path: Path) -> io.FileIO:
    # To open a device may be to use it. Without O_NONBLOCK, opening a named pipe, which may have come
    # since, would wait for a writer.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        is_regular = stat.S_ISREG(path.stat().st_mode)
        descriptor = os.open(path, flags) if is_regular else None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise NotARolloutError(f"{path}: a symlink that leads back to itself") from error
        if error.errno == errno.ENXIO:
            raise NotARolloutError(f"{path}: not a regular file") from error
        raise
    if descriptor is not None and not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        descriptor = None
    if descriptor is None:
        raise NotARolloutError(f"{path}: not a regular file")
    return io.FileIO(descriptor, "rb")


def _compression_of(file: io.FileIO) -> _Compression | None:
    """By the first bytes, not by the name: no JSON begins with either."""
    head = file.read(4) or b""  # nothing at all where a file of the system would have us wait
    return next((kind for magic, kind in _MAGIC.items() if head.startswith(magic)), None)


class _DamagedCompressionError(Exception):
    """The compressed data cannot be read any further."""


class _TooMuchCompressedError(Exception):
    """There is more compressed data than is read."""


class _Source:
    """A compressed file, to be read as far as its bounds go."""

    def __init__(self, file: io.FileIO) -> None:
        self._file = file
        self._bytes = 0
        self._reads = 0

    def read(self, size: int = -1) -> bytes:
        """The next bytes; b"" at the end."""
        self._reads += 1
        if self._reads > _MAX_SOURCE_READS or self._bytes >= MAX_COMPRESSED_BYTES:
            raise _TooMuchCompressedError
        block = self._file.read(_BLOCK_BYTES if size < 0 else size) or b""
        self._bytes += len(block)
        return block


@contextmanager
def _reading(
    file: io.FileIO, compression: _Compression | None, path: Path
) -> Generator[Callable[[int], bytes]]:
    """A function that reads the text from its beginning, up to as many bytes as asked for."""
    file.seek(0)
    if compression is None:
        yield file.read
        return
    broken: tuple[type[Exception], ...]
    if compression == "gzip":
        stream: Any = gzip.GzipFile(fileobj=cast("Any", _Source(file)), mode="rb")
        broken = (EOFError, zlib.error, gzip.BadGzipFile)
    else:
        try:
            zstandard: Any = importlib.import_module("zstandard")
        except ImportError:
            raise MissingZstandardError(
                f"{path}: compressed with Zstandard; to read it: pip install 'goal-state[zstd]'"
            ) from None
        decompressor = zstandard.ZstdDecompressor(max_window_size=_MAX_ZSTANDARD_WINDOW)
        stream = decompressor.stream_reader(_Source(file), read_across_frames=True, closefd=False)
        broken = (zstandard.ZstdError,)

    def read(size: int) -> bytes:
        try:
            # read1: what was decompressed before the damage is still handed out.
            return cast("bytes", stream.read1(size))
        except broken as error:
            raise _DamagedCompressionError from error

    with stream:
        yield read


def _check_head(lines: Iterator[RawLine], path: Path) -> None:
    only_torn = True
    for _, content, ended in lines:
        if content is None:
            only_torn = False
            continue
        try:
            line = parse_object(content)
        except ValueError:
            only_torn = only_torn and not ended and content.startswith(b"{")
            continue
        if is_rollout_line(line):
            return
        only_torn = False
    if not only_torn:
        raise NotARolloutError(
            f"{path}: not a rollout: no line of its head has a type and a payload"
        )


def _forwards(
    read: Callable[[int], bytes], path: Path, ledger: SkipLedger, max_bytes: int
) -> Iterator[RawLine]:
    begin = position = count = 0
    held: list[bytes] = []
    held_bytes = 0
    while True:
        try:
            block = read(min(_BLOCK_BYTES, max_bytes - position)) or b""
        except _DamagedCompressionError:
            ledger.add(path, position, "damaged compressed data: nothing after it can be read")
            block = b""
        except _TooMuchCompressedError:
            ledger.add(path, position, "too much compressed data: nothing after it is read")
            return
        if not block:
            break
        first = 0
        while (newline := block.find(b"\n", first)) != -1:
            held.append(block[first:newline])
            held_bytes += newline - first
            yield from _line(begin, held, held_bytes, ended=True)
            held = []
            held_bytes = 0
            first = newline + 1
            begin = position + first
            count += 1
            if count == MAX_LINES:
                ledger.add(path, begin, f"nothing after {MAX_LINES} lines is read")
                return
        held_bytes += len(block) - first
        if held_bytes > MAX_HELD_BYTES:
            held = []
        else:
            held.append(block[first:])
        position += len(block)
        if position >= max_bytes:
            if held_bytes > MAX_HELD_BYTES:
                yield RawLine(begin, None, False)
            ledger.add(path, position, f"nothing after {max_bytes} bytes is read")
            return
    yield from _line(begin, held, held_bytes, ended=False)


def _backwards(
    file: io.FileIO, path: Path, ledger: SkipLedger, end: int, may_read: Callable[[int], bool]
) -> Iterator[RawLine]:
    held: list[bytes] = []  # the parts of one line, its end first
    held_bytes = count = 0
    ended = False
    position = end
    floor = max(0, end - MAX_SEARCHED_BYTES)
    while position > floor:
        if not may_read(position):
            return
        begin = max(floor, position - _BLOCK_BYTES)
        file.seek(begin)
        block = file.read(position - begin)
        if len(block) < position - begin:  # the file was truncated meanwhile: that is its end now
            held, held_bytes, ended = [], 0, False
        last = len(block)
        while (newline := block.rfind(b"\n", 0, last)) != -1:
            held.append(block[newline + 1 : last])
            held_bytes += last - newline - 1
            yield from _line(begin + newline + 1, held[::-1], held_bytes, ended=ended)
            held = []
            held_bytes = 0
            ended = True
            last = newline
            count += 1
            if count == MAX_LINES:
                ledger.add(path, begin + newline, f"nothing before {MAX_LINES} lines is read")
                return
        held_bytes += last
        if held_bytes > MAX_HELD_BYTES:
            held = []
        else:
            held.append(block[:last])
        position = begin
    if floor > 0:
        ledger.add(path, floor, f"nothing before the last {MAX_SEARCHED_BYTES} bytes is read")
        return
    yield from _line(0, held[::-1], held_bytes, ended=ended)


def _line(offset: int, parts: list[bytes], size: int, *, ended: bool) -> Iterator[RawLine]:
    """The line made of its parts; nothing where it is blank."""
    if size > MAX_HELD_BYTES:
        yield RawLine(offset, None, ended)
        return
    content = parts[0] if len(parts) == 1 else b"".join(parts)
    if offset == 0:
        content = content.removeprefix(BYTE_ORDER_MARK)
    content = content.strip(b" \t\r")
    if content:
        yield RawLine(offset, content, ended)
