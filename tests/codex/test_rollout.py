"""What rollouts tell, recorded ones and ones made by hand: session, turns, usage."""

from __future__ import annotations

import gzip
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goal_state.codex.rollout import (
    HistoryBase,
    RolloutReader,
    RolloutTail,
    SkippedLine,
    Turn,
    TurnStatus,
)
from goal_state.domain.usage import ThreadUsage, TokenUsage
from tests.codex.rollout_lines import (
    COMPLETED,
    DAY,
    FAILED,
    FORK,
    IN_PROGRESS,
    INTERRUPTED,
    PARENT,
    TURN_1,
    TURN_2,
    Write,
    aborted,
    began,
    completed,
    context,
    counts,
    event,
    line,
    meta,
    record,
    recorded,
    text_of,
    token_count,
    used,
)

# --- Recorded files ------------------------------------------------------------------------------------

HOME_TOTALS = {
    "01a1fa7e-7713-7782-9363-3fd645076e5b": (2, 8820, 4198, 746, 48, 9566),
    "01a1fa7e-7b48-79e2-9ee3-06f99db66144": (2, 4413, 2987, 811, 73, 5224),
}


@pytest.mark.parametrize("path", sorted(DAY.iterdir()), ids=lambda path: path.name[-18:-6])
def test_recorded_totals_are_the_sums_of_what_the_responses_used(path: Path) -> None:
    lines = [json.loads(one) for one in path.read_text().splitlines()]
    responses = [one["payload"] for one in lines if one["type"] == "token_usage_record"]
    total = TokenUsage()
    for response in responses:
        total += TokenUsage.of(response["usage"])

    reader = RolloutReader(path)
    tail = reader.restored()
    last, turn_id = TokenUsage.of(responses[-1]["usage"]), responses[-1]["turn_id"]
    assert tail.usage == ThreadUsage(total, last, 258_400, turn_id)
    assert tail.turn_id == turn_id
    assert [one.turn_id for one in reader.usages()] == [one["turn_id"] for one in responses]
    assert [turn.status for turn in reader.turns()] == [COMPLETED] * len(responses)
    assert reader.skipped.count == 0


@pytest.mark.parametrize("thread_id", HOME_TOTALS)
def test_recorded_totals_are_those_that_clients_were_told(thread_id: str) -> None:
    turns, *numbers = HOME_TOTALS[thread_id]
    reader = RolloutReader(recorded(thread_id))
    usages = list(reader.usages())
    spent, cached, made, reasoned, total = numbers
    assert len(usages) == len(reader.turns()) == turns
    assert usages[-1].total == TokenUsage(spent, cached, 0, made, reasoned, total)


def test_meta_of_a_recorded_fork_names_its_parent() -> None:
    found = RolloutReader(recorded(FORK)).meta
    assert found is not None
    assert found.thread_id == found.session_id == FORK
    assert found.forked_from_id == PARENT
    assert found.history_base == HistoryBase(PARENT, 22, 39931)
    assert found.started_at == datetime(2026, 11, 20, 19, 43, 50, 554_000, tzinfo=UTC)
    assert (found.cli_version, found.originator, found.source) == ("0.169.0", "A", "vscode")
    assert found.cwd == "/home/user/project"


def test_rejoining_in_the_middle_of_a_turn_names_the_turn_before() -> None:
    tail = RolloutReader(recorded(PARENT)).restored()
    assert tail.usage is not None
    assert tail.usage.total.total_tokens == 276
    assert tail.turn_id == tail.ended_turn_id == TURN_1
    assert tail.usage.turn_id == tail.last_turn_id == TURN_2
    assert RolloutReader(recorded(PARENT)).turns() == [
        Turn(TURN_1, COMPLETED),
        Turn(TURN_2, IN_PROGRESS),
    ]


def test_a_recorded_fork_has_the_usage_of_its_parent_and_the_turn_that_was_interrupted() -> None:
    fork = RolloutReader(recorded(FORK))
    assert fork.restored().usage is None
    tail = fork.restored({PARENT: recorded(PARENT)}.get)
    assert tail.usage == RolloutReader(recorded(PARENT)).restored().usage
    assert tail.turn_id == tail.usage.turn_id == TURN_2
    assert fork.turns() == [Turn(TURN_2, INTERRUPTED)]


# --- Turns ---------------------------------------------------------------------------------------------

A_AND_B = [began("a"), completed("a"), began("b")]
ROLLED_BACK = event("thread_rolled_back", num_turns=1)
REFUSED = event("error", message="busy", codex_error_info="thread_rollback_failed")
NOT_STEERABLE = event(
    "error", message="busy", codex_error_info={"active_turn_not_steerable": {"turn_kind": "review"}}
)
OVERLOADED = event("error", message="try later", codex_error_info="server_overloaded")
CUT_OFF = event(
    "error", message="cut off", codex_error_info={"response_stream_disconnected": {"status": 502}}
)
HARMLESS = {"message": "busy", "codex_error_info": "active_turn_not_steerable"}

STATUSES: dict[str, tuple[list[dict[str, Any]], list[tuple[str, TurnStatus]]]] = {
    "none": ([], []),
    "began": ([began("a")], [("a", IN_PROGRESS)]),
    "completed": ([began("a"), completed("a")], [("a", COMPLETED)]),
    "aborted": ([began("a"), aborted("a", "replaced")], [("a", INTERRUPTED)]),
    "aborted without an id": ([began("a"), aborted(None)], [("a", INTERRUPTED)]),
    "error": ([began("a"), OVERLOADED], [("a", FAILED)]),
    "error, then complete": ([began("a"), OVERLOADED, completed("a")], [("a", FAILED)]),
    "error, then aborted": ([began("a"), OVERLOADED, aborted("a")], [("a", INTERRUPTED)]),
    "error after the end": ([began("a"), completed("a"), OVERLOADED], [("a", COMPLETED)]),
    "error of no turn": ([OVERLOADED, began("a")], [("a", IN_PROGRESS)]),
    "error with details": ([began("a"), CUT_OFF], [("a", FAILED)]),
    "error of the first, late": (
        [began("a"), began("b"), event("error", turn_id="a", message="cut off")],
        [("a", FAILED), ("b", IN_PROGRESS)],
    ),
    "refusals": ([began("a"), REFUSED, NOT_STEERABLE], [("a", IN_PROGRESS)]),
    "complete with an error": ([began("a"), completed("a", error={})], [("a", FAILED)]),
    "complete with no error": ([began("a"), completed("a", error=None)], [("a", COMPLETED)]),
    "complete with an error that is a text": (
        [began("a"), completed("a", error="broken")],
        [("a", FAILED)],
    ),
    "complete with a refusal": ([began("a"), completed("a", error=HARMLESS)], [("a", COMPLETED)]),
    "newer name of the beginning": ([event("turn_started", turn_id="a")], [("a", IN_PROGRESS)]),
    "newer names": (
        [event("turn_started", turn_id="a"), event("turn_complete", turn_id="a")],
        [("a", COMPLETED)],
    ),
    "left behind": ([began("a"), began("b")], [("a", IN_PROGRESS), ("b", IN_PROGRESS)]),
    "error in the second": ([*A_AND_B, OVERLOADED], [("a", COMPLETED), ("b", FAILED)]),
    "end of the first, late": (
        [began("a"), began("b"), aborted("a")],
        [("a", INTERRUPTED), ("b", IN_PROGRESS)],
    ),
    "completion of the first, late": (
        [began("a"), began("b"), completed("a")],
        [("a", COMPLETED), ("b", IN_PROGRESS)],
    ),
    "rolled back": ([*A_AND_B, ROLLED_BACK], [("a", COMPLETED)]),
    "rolled back twice": ([*A_AND_B, ROLLED_BACK, ROLLED_BACK], []),
    "rolled back and on": (
        [*A_AND_B, ROLLED_BACK, began("c"), completed("c"), began("d")],
        [("a", COMPLETED), ("c", COMPLETED), ("d", IN_PROGRESS)],
    ),
    "rolled back in turn": (
        [*A_AND_B, ROLLED_BACK, began("c"), event("thread_rolled_back", num_turns=2), began("d")],
        [("d", IN_PROGRESS)],
    ),
    "error after a rollback": ([*A_AND_B, ROLLED_BACK, OVERLOADED], [("a", COMPLETED)]),
    "error after a rollback of nothing": (
        [began("a"), event("thread_rolled_back", num_turns=0), OVERLOADED],
        [("a", IN_PROGRESS)],
    ),
    "aborted without an id after the end": (
        [began("a"), completed("a"), aborted(None)],
        [("a", COMPLETED)],
    ),
    "only contexts": ([context("a"), context("b")], [("a", IN_PROGRESS), ("b", IN_PROGRESS)]),
    "context of a turn": ([began("a"), context("a"), completed("a")], [("a", COMPLETED)]),
    "context of no turn": ([began("a"), context(None), aborted(None)], [("a", INTERRUPTED)]),
    "a turn without an id": ([began("a"), began(None), OVERLOADED], [("a", IN_PROGRESS)]),
    "ids that are none": ([began("\ud800"), began("x" * 257), context("")], []),
    "end of another thread's turn": ([aborted("z")], [("z", INTERRUPTED)]),
}


@pytest.mark.parametrize(("lines", "expected"), STATUSES.values(), ids=STATUSES)
def test_turns_have_their_true_statuses(
    rollout: Write, lines: list[dict[str, Any]], expected: list[tuple[str, TurnStatus]]
) -> None:
    reader = rollout(meta(), *lines)
    assert [(turn.turn_id, turn.status) for turn in reader.turns()] == expected
    assert reader.skipped.count == 0


@pytest.mark.parametrize(("lines", "statuses"), STATUSES.values(), ids=STATUSES)
def test_the_turns_told_backwards_are_those_told_forwards(
    rollout: Write, lines: list[dict[str, Any]], statuses: list[tuple[str, TurnStatus]]
) -> None:
    ended = [turn_id for turn_id, status in statuses if status is not IN_PROGRESS]
    tail = rollout(meta(), token_count(7), *lines).restored()
    assert tail.usage == used(7)
    assert tail.ended_turn_id == (ended[-1] if ended else None)
    names = [turn_id for turn_id, _ in statuses]
    assert tail.turn_id == (ended or names or [""])[-1]
    assert (tail.last_turn_id is None) == (not names)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("lines", "statuses"), STATUSES.values(), ids=STATUSES)
def test_turns_that_are_listed_backwards_are_those_read_forwards(
    rollout: Write,
    lines: list[dict[str, Any]],
    statuses: list[tuple[str, TurnStatus]],
    packed: bool,
) -> None:
    text = text_of([meta(), *lines, token_count(7)])
    reader = rollout(gzip.compress(text) if packed else text)
    listed = reader.restored(list_turns=True).turns
    assert [(turn.turn_id, turn.status) for turn in listed] == statuses
    assert reader.restored().turns == ()


turn_steps = st.lists(
    st.tuples(
        st.sampled_from([None, COMPLETED, INTERRUPTED, FAILED]),
        st.booleans(),  # with a turn_context
        st.sampled_from(["", "count", "record", "record and count"]),
        st.integers(0, 2),  # rolled back afterwards
    ),
    max_size=12,
)


@pytest.mark.slow
@given(turn_steps)
def test_forwards_backwards_and_compressed_agree(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[Any, bool, str, int]]
) -> None:
    lines = [meta()]
    for number, (status, with_context, usage, rolled_back) in enumerate(steps):
        turn_id = f"turn-{number}"
        lines.append(began(turn_id, 1000 + number))
        if with_context:
            lines.append(context(turn_id))
        if "record" in usage:
            lines.append(record(10 * number, turn_id))
        if "count" in usage:
            lines.append(token_count(10 * number, 2000 + number))
        if status is FAILED:
            lines.append(OVERLOADED)
        if status is INTERRUPTED:
            lines.append(aborted(turn_id))
        elif status is not None:
            lines.append(completed(turn_id))
        if rolled_back:
            lines.append(event("thread_rolled_back", num_turns=rolled_back))

    directory = tmp_path_factory.mktemp("agree")
    plain, packed = directory / "plain.jsonl", directory / "packed.jsonl.gz"
    plain.write_bytes(text_of(lines))
    packed.write_bytes(gzip.compress(text_of(lines), 1))
    reader = RolloutReader(plain)
    turns, usages, tail = reader.turns(), list(reader.usages()), reader.restored()

    assert tail == RolloutReader(packed).restored()
    for one in (plain, packed):
        assert list(RolloutReader(one).restored(list_turns=True).turns) == turns
    newest = usages[-1] if usages else None
    assert tail.usage == newest
    ended = [turn.turn_id for turn in turns if turn.status is not IN_PROGRESS]
    assert tail.ended_turn_id == (ended[-1] if ended else None)
    assert tail.last_turn_id == (turns[-1].turn_id if turns else None)
    assert [one.total.input_tokens for one in usages] == [
        10 * number for number, step in enumerate(steps) if step[2]
    ]


# --- Usage ---------------------------------------------------------------------------------------------


def test_the_older_usage_with_five_fields(rollout: Write) -> None:
    [usage] = rollout(meta(), context("a"), token_count(41)).usages()
    assert usage == used(41, turn_id="a")
    assert usage.total.cache_write_input_tokens == 0


def test_the_newer_usage_with_cache_writes(rollout: Write) -> None:
    total = {**counts(41), "cache_write_input_tokens": 13}
    reader = rollout(
        meta(), event("token_count", info={"total_token_usage": total, "model_context_window": 9})
    )
    assert reader.restored().usage == ThreadUsage(
        TokenUsage(41, 0, 13, 1, 0), TokenUsage(), model_context_window=9
    )


def test_a_count_without_info_is_no_usage_and_no_fault(rollout: Write) -> None:
    empty = event("token_count", info=None, rate_limits={"primary": None})
    reader = rollout(meta(), began("a"), token_count(5), empty, completed("a"))
    assert reader.restored().usage == used(5, turn_id="a")
    assert list(reader.usages()) == [used(5, turn_id="a")]
    assert reader.skipped.count == 0
    assert rollout(meta(), began("a"), empty).restored() == RolloutTail(last_turn_id="a")


def test_the_newest_of_count_and_record_decides(rollout: Write) -> None:
    older = [began("a", 1000), record(10, "a"), token_count(10, 1000)]
    reader = rollout(meta(), *older, record(20, "a"))
    assert reader.restored().usage == used(20, 1000, turn_id="a")
    assert list(reader.usages()) == [
        used(10, 1000, turn_id="a"),
        used(20, 1000, turn_id="a"),
    ]
    assert rollout(meta(), *older, record(20, "a"), token_count(30, 7)).restored().usage == used(
        30, 7, "a"
    )


def test_a_record_takes_the_window_that_its_turn_began_with(rollout: Write) -> None:
    lines = [began("a", 1), token_count(5, 1), completed("a"), began("b", 2), record(9, "b")]
    expected = used(9, 2, "b")
    reader = rollout(meta(), *lines, completed("b"))
    assert reader.restored().usage == list(reader.usages())[-1] == expected


def test_the_turn_of_a_count_is_the_one_named_last_before_it(rollout: Write) -> None:
    lines = [began("a"), completed("a"), token_count(1), began("b"), token_count(2), context("c")]
    reader = rollout(meta(), token_count(0), *lines, token_count(3), began(None), token_count(4))
    assert [one.turn_id for one in reader.usages()] == [None, "a", "b", "c", None]
    assert reader.restored().usage == used(4)


@pytest.mark.parametrize("packed", [False, True])
def test_each_usage_is_restored_with_the_turn_that_it_belongs_to(
    rollout: Write, packed: bool
) -> None:
    counted = token_count(3)
    counted["payload"]["turn_id"] = "d"
    lines = [
        *(meta(), token_count(0)),  # of no turn
        *(completed("a"), token_count(1)),  # of a turn whose beginning is not in this file
        *(began("b"), context(None), aborted(None), token_count(2)),
        *(context("c"), record(3, "d"), token_count(4)),  # named by the usage before
        *(began("e"), counted, context("f"), token_count(5), began(None), token_count(6)),
    ]
    turns = [None, "a", "b", "d", "d", "d", "f", None]
    assert [one.turn_id for one in rollout(*lines).usages()] == turns
    ends = [end for end, one in enumerate(lines, 1) if "usage" in json.dumps(one)]
    for end, turn_id in zip(ends, turns, strict=True):
        text = text_of(lines[:end])
        tail = rollout(gzip.compress(text) if packed else text).restored()
        assert tail.usage.turn_id == turn_id


@pytest.mark.parametrize("packed", [False, True])
def test_a_record_takes_the_window_of_the_count_before_it(rollout: Write, packed: bool) -> None:
    text = text_of([meta(), began("a", 1), token_count(5, 2), record(9, "a")])
    reader = rollout(gzip.compress(text) if packed else text)
    assert reader.restored().usage == used(9, 2, turn_id="a")
    assert list(reader.usages()) == [used(5, 2, turn_id="a"), used(9, 2, turn_id="a")]


def test_a_record_may_leave_out_what_the_response_used(rollout: Write) -> None:
    reader = rollout(
        meta(), line("token_usage_record", {"turn_id": "a", "thread_token_usage": counts(9)})
    )
    assert reader.restored().usage == ThreadUsage(used(9).total, turn_id="a")


@pytest.mark.parametrize("number", [None, -1, 1.5, "1", True])
def test_a_rollback_of_a_number_that_is_none_is_skipped(rollout: Write, number: Any) -> None:
    reader = rollout(meta(), *A_AND_B, event("thread_rolled_back", num_turns=number))
    assert reader.turns() == [Turn("a", COMPLETED), Turn("b", IN_PROGRESS)]
    offset = len(text_of([meta(), *A_AND_B]))
    assert reader.skipped.noted == (
        SkippedLine(reader.path, offset, "not a usable value: num_turns"),
    )


MALFORMED: dict[str, Any] = {
    "negative": -1,
    "float": 1.0,
    "text": "1",
    "bool": True,
    "null": None,
    "too large": 2**63,
}


@pytest.mark.parametrize("value", MALFORMED.values(), ids=MALFORMED)
def test_a_usage_that_cannot_be_one_is_skipped(rollout: Write, value: Any) -> None:
    wrong = {**counts(9), "output_tokens": value}
    count = event("token_count", info={"total_token_usage": wrong})
    of_thread = line("token_usage_record", {"turn_id": "a", "thread_token_usage": wrong})
    reader = rollout(meta(), began("a"), token_count(5), completed("a"), count, of_thread)
    assert reader.restored().usage == used(5, turn_id="a")
    assert reader.skipped.count == 2
    assert {one.reason for one in reader.skipped.noted} == {"not a usable value: output_tokens"}
    assert list(reader.usages()) == [used(5, turn_id="a")]
    assert reader.skipped.count == 2


@pytest.mark.parametrize("value", [[], "many", 5, {}, {"total_token_usage": 5}, {"total": {}}])
def test_an_info_of_another_shape_is_skipped(rollout: Write, value: Any) -> None:
    reader = rollout(meta(), token_count(5), event("token_count", info=value))
    assert reader.restored().usage == used(5)
    assert reader.skipped.count == 1


def test_the_largest_count_is_kept_exactly(rollout: Write) -> None:
    most = {**counts(0), "input_tokens": 2**63 - 1, "total_tokens": 2**63 - 1}
    reader = rollout(meta(), event("token_count", info={"total_token_usage": most}))
    found = reader.restored().usage
    assert found is not None
    assert found.total.input_tokens == 2**63 - 1


NAMES = [
    "token_count",
    "task_started",
    "task_complete",
    "turn_aborted",
    "turn_started",
    "turn_complete",
    "error",
]


@pytest.mark.parametrize("kind", [*NAMES, "thread_rolled_back"])
@pytest.mark.parametrize("separator", [":", ": ", " :\t"])
def test_no_line_that_says_something_is_overlooked(
    rollout: Write, kind: str, separator: str
) -> None:
    """Backwards, a line is parsed only where its bytes look like it; then it is found malformed here."""
    text = json.dumps(event(kind, extra=1), separators=(",", separator)).encode()
    reader = rollout(meta(), token_count(5), text[:-1] + b"\x20,}\n")
    assert reader.restored().usage == used(5)
    assert [one.reason for one in reader.skipped.noted] == ["not JSON"]
    reader = rollout(meta(), token_count(5), text.replace(kind.encode(), b"other")[:-1] + b",}\n")
    assert reader.restored().usage == used(5)
    assert reader.skipped.count == 0, "a line that does not look like it is not parsed"
