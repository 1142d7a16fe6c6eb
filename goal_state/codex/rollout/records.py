"""Records: what one line of a rollout states about the thread, its turns and its usage."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final, TypeAlias, cast

from goal_state.domain.usage import ThreadUsage, TokenUsage
from goal_state.domain.values import check_amount, check_name
from goal_state.errors import InvalidValueError

__all__ = [
    "ErrorRaised",
    "HistoryBase",
    "Record",
    "SessionMeta",
    "TurnBegan",
    "TurnEnded",
    "TurnNamed",
    "TurnStatus",
    "TurnsDropped",
    "UsageStated",
    "may_hold_record",
    "ordinal_of",
    "record_of",
    "session_meta",
]


class TurnStatus(StrEnum):
    """How far a turn has got; text as on the wire."""

    IN_PROGRESS = "inProgress"
    COMPLETED = "completed"
    INTERRUPTED = "interrupted"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class HistoryBase:
    """The part of another thread's rollout that a fork took over without copying it.

    Attributes:
        thread_id: the other thread.
        end_ordinal_exclusive: the `ordinal` of the first line that is no longer part of it.
        end_byte_offset: where that line begins in the other file, in bytes; None if not stated.
    """

    thread_id: str
    end_ordinal_exclusive: int
    end_byte_offset: int | None


@dataclass(frozen=True, slots=True)
class SessionMeta:
    """The first line of a rollout. What it does not state, or states malformed, is None.

    Attributes:
        thread_id: the thread.
        session_id: the session that it belongs to; the thread itself in older files.
        forked_from_id: the thread that it was forked from.
        history_base: where the history that it inherited lies, if it is not in this file.
        started_at: when it began, in UTC.
        cli_version: the version of the program that wrote it.
        originator: the client that asked for it.
        source: what started it, as it stood: a name, or an object for an agent that another one started.
        cwd: its working directory.
    """

    thread_id: str
    session_id: str
    forked_from_id: str | None
    history_base: HistoryBase | None
    started_at: datetime | None
    cli_version: str | None
    originator: str | None
    source: object
    cwd: str | None


@dataclass(frozen=True, slots=True)
class TurnBegan:
    """`task_started`. The window is the size of the model's context in tokens."""

    turn_id: str | None
    model_context_window: int | None


@dataclass(frozen=True, slots=True)
class TurnNamed:
    """`turn_context`: the turn that the lines after it belong to."""

    turn_id: str


@dataclass(frozen=True, slots=True)
class TurnEnded:
    """`task_complete` or `turn_aborted`; without a turn id it means the turn that is under way."""

    turn_id: str | None
    status: TurnStatus


@dataclass(frozen=True, slots=True)
class ErrorRaised:
    """`error`, which makes the turn that is under way a failed one."""

    turn_id: str | None


@dataclass(frozen=True, slots=True)
class TurnsDropped:
    """`thread_rolled_back`: the last `count` turns are no longer part of the thread."""

    count: int


@dataclass(frozen=True, slots=True)
class UsageStated:
    """A `token_count` with usage, which names no turn, or a `token_usage_record`, which states no window."""

    usage: ThreadUsage
    is_usage_record: bool


Record: TypeAlias = TurnBegan | TurnNamed | TurnEnded | ErrorRaised | TurnsDropped | UsageStated

_RECORD: Final = re.compile(
    rb'"type"[ \t\r]*:[ \t\r]*"(?:'
    rb"token_count|token_usage_record|turn_context|task_started|task_complete|turn_aborted"
    rb'|turn_started|turn_complete|error|thread_rolled_back)"'
)
"""It never matches within a text of a conversation, whose quotes would be escaped. One pattern that begins
with fixed bytes is searched for seven times as fast as ten names are."""

_HARMLESS_ERRORS: Final = ("thread_rollback_failed", "active_turn_not_steerable")
"""Errors of a request that leave the turn under way as it was."""


def may_hold_record(content: bytes) -> bool:
    """Whether `record_of` could find a record in the line: a cheap look at its bytes, before it is parsed."""
    return _RECORD.search(content) is not None


def ordinal_of(line: Mapping[str, Any]) -> int | None:
    """The line's number in the thread's whole history; older files have none."""
    ordinal = line.get("ordinal")
    return ordinal if isinstance(ordinal, int) and not isinstance(ordinal, bool) else None


def record_of(line: Mapping[str, Any]) -> Record | None:
    """The record that a line holds; None for a line about anything else, or of a type that is not known.

    Raises:
        InvalidValueError: it states a usage, or a number of turns, that cannot be one.
    """
    payload: object = line.get("payload")
    if not isinstance(payload, dict):
        return None
    stated = cast("dict[str, Any]", payload)
    turn_id = _name(stated.get("turn_id"))
    match line.get("type"):
        case "turn_context":
            return None if turn_id is None else TurnNamed(turn_id)
        case "token_usage_record":
            return UsageStated(_recorded_usage(stated, turn_id), is_usage_record=True)
        case "event_msg":
            return _record_of_event(stated, turn_id)
        case _:
            return None


def _record_of_event(event: Mapping[str, Any], turn_id: str | None) -> Record | None:
    match event.get("type"):
        case "token_count":
            info = event.get("info")
            if info is None:  # the line is about rate limits alone
                return None
            usage = ThreadUsage.from_mapping(info).of_turn(turn_id)
            return UsageStated(usage, is_usage_record=False)
        case "task_started" | "turn_started":
            return TurnBegan(turn_id, _amount(event.get("model_context_window")))
        case "task_complete" | "turn_complete":
            error = event.get("error")
            failed = error is not None and _fails_a_turn(error)
            return TurnEnded(turn_id, TurnStatus.FAILED if failed else TurnStatus.COMPLETED)
        case "turn_aborted":
            return TurnEnded(turn_id, TurnStatus.INTERRUPTED)
        case "error":
            return ErrorRaised(turn_id) if _fails_a_turn(event) else None
        case "thread_rolled_back":
            return TurnsDropped(check_amount("num_turns", event.get("num_turns")))
        case _:
            return None


def session_meta(line: Mapping[str, Any]) -> SessionMeta | None:
    """The session that a line describes; None if it is no `session_meta`, or names no thread."""
    payload: object = line.get("payload")
    if line.get("type") != "session_meta" or not isinstance(payload, dict):
        return None
    stated = cast("dict[str, Any]", payload)
    session_id = _name(stated.get("session_id"))
    thread_id = _name(stated.get("id")) or session_id
    if thread_id is None:
        return None
    return SessionMeta(
        thread_id=thread_id,
        session_id=session_id or thread_id,
        forked_from_id=_name(stated.get("forked_from_id")),
        history_base=_history_base(stated.get("history_base")),
        started_at=_moment(stated.get("timestamp")),
        cli_version=_text(stated.get("cli_version")),
        originator=_text(stated.get("originator")),
        source=stated.get("source"),
        cwd=_text(stated.get("cwd")),
    )


def _recorded_usage(record: Mapping[str, Any], turn_id: str | None) -> ThreadUsage:
    last = record.get("usage")
    return ThreadUsage(
        TokenUsage.from_codex(record.get("thread_token_usage")),
        TokenUsage() if last is None else TokenUsage.from_codex(last),
        turn_id=turn_id,
    )


def _fails_a_turn(error: object) -> bool:
    if not isinstance(error, dict):
        return True
    kind = cast("dict[str, object]", error).get("codex_error_info")
    if isinstance(kind, dict):  # an error with details is an object with one key
        return not any(harmless in kind for harmless in _HARMLESS_ERRORS)
    return kind not in _HARMLESS_ERRORS


def _history_base(value: object) -> HistoryBase | None:
    if not isinstance(value, dict):
        return None
    stated = cast("dict[str, object]", value)
    thread_id = _name(stated.get("thread_id"))
    ordinal = _amount(stated.get("end_ordinal_exclusive"))
    if thread_id is None or ordinal is None:
        return None
    return HistoryBase(thread_id, ordinal, _amount(stated.get("end_byte_offset")))


def _name(value: object) -> str | None:
    try:
        return check_name("name", value)
    except InvalidValueError:
        return None


def _amount(value: object) -> int | None:
    try:
        return check_amount("amount", value)
    except InvalidValueError:
        return None


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


_MOMENT: Final = re.compile(
    r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?(Z|[+-]\d\d:\d\d)?", re.ASCII
)


def _moment(value: object) -> datetime | None:
    if not isinstance(value, str) or not _MOMENT.fullmatch(value):
        return None
    try:
        moment = datetime.fromisoformat(value)
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError):
        return None
