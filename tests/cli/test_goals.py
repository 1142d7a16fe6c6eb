"""`list`, `show`, `set`, `clear`, `verify`."""

from __future__ import annotations

import re
import sqlite3
from contextlib import closing
from decimal import Decimal
from pathlib import Path

import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner

import goal_state
from goal_state import EventKind, GoalStatus, GoalStore, TokenUsage
from goal_state.cli.main import program
from tests.cli.program import refused, run, run_json, run_json_lines

STRANGE = "[red]not red[/red] :smile: \x1b[31m and\x07\nmore [/]"


@pytest.fixture
def db(database: Path) -> Path:
    """A database with three goals: charged and over its budget, without budget, and complete."""
    with GoalStore.open(database, durability="normal") as store:
        store.create("over", "Ship the parser", token_budget=100)
        store.set_baseline("over", TokenUsage())
        store.record_total(
            "over",
            TokenUsage(input_tokens=150, cached_input_tokens=30, output_tokens=20),
            seconds=2.5,
            turn_id="turn-1",
        )
        store.create("free", STRANGE)
        store.create("done", "Rest", status="complete", token_budget=1_000)
    return database


def fields(text: str) -> dict[str, str]:
    """The lines `name   value` of a goal that was shown."""
    return dict(re.findall(r"^(\w+) +(.*)$", text, re.MULTILINE))


def test_set_makes_a_goal_and_its_database(tmp_path: Path) -> None:
    path = tmp_path / "new.db"
    shown = fields(run("set", "t", "--objective", "Ship it", "--budget", 10, "--db", path).stdout)
    with GoalStore.open(path, migrate=False) as store:
        goal = store.get("t")
    assert goal is not None
    assert (goal.objective, goal.token_budget, goal.status) == ("Ship it", 10, "active")
    assert shown["goal"] == goal.goal_id
    assert shown["objective"] == "Ship it"
    assert shown["tokens"] == "0 of 10 used, 10 remaining"


def test_set_changes_only_what_is_named(db: Path) -> None:
    with GoalStore.open(db) as store:
        before = store.get("done")
    assert before is not None
    changed = run_json("set", "done", "--budget", 7, "--turn", "turn-9", "--db", db)
    with GoalStore.open(db) as store:
        after = store.get("done")
    assert after is not None
    assert (after.goal_id, after.objective, after.status) == (
        before.goal_id,
        before.objective,
        before.status,
    )
    assert changed["token_budget"] == after.token_budget == 7
    assert run_json("set", "done", "--no-budget", "--db", db)["token_budget"] is None


def test_set_names_the_turn_that_causes_it(db: Path) -> None:
    run("set", "free", "--status", "paused", "--turn", "turn-7", "--db", db)
    with GoalStore.open(db) as store:
        last = list(store.events())[-1]
    assert (last.kind, last.turn_id) == (EventKind.STATUS_CHANGED, "turn-7")


def test_resume_raises_the_budget_and_reactivates(db: Path) -> None:
    assert "has used 140 of 100 tokens" in refused("resume", "over", "--db", db)
    resumed = run_json("resume", "over", "--budget", 200, "--db", db)
    assert (resumed["status"], resumed["remaining_tokens"]) == ("active", 60)


def test_set_bounds_a_goal_in_every_way_and_lets_go_of_it(tmp_path: Path) -> None:
    path = tmp_path / "new.db"
    words = ("--cost-budget", "2.50", "--call-budget", 7, "--time-budget", 90, "--warn-at", 0.8)
    words = (*words, "--warn-at", 0.5, "--deadline", "2100-01-01T01:00:00+01:00")
    shown = fields(run("set", "t", "--objective", "x", *words, "--db", path).stdout)
    assert shown["cost"] == "0 of 2.5 used, 2.5 remaining"
    assert shown["calls"] == "0 of 7 used, 7 remaining"
    assert shown["time"] == "0.0 s of 90.0 s used, 90.0 s remaining"
    assert shown["deadline"] == "2100-01-01 00:00:00.000 UTC"
    assert shown["warns"] == "at   50 %, 80 %"
    with GoalStore.open(path) as store:
        goal = store.get("t")
    assert goal is not None
    assert goal.cost_budget == Decimal("2.5")
    assert (goal.call_budget, goal.time_budget, goal.warn_at) == (7, 90.0, (0.5, 0.8))
    kept = run_json("set", "t", "--no-call-budget", "--no-deadline", "--no-warn-at", "--db", path)
    assert (kept["call_budget"], kept["deadline"], kept["warn_at"]) == (None, None, [])
    assert (kept["cost_budget"], kept["time_budget_seconds"]) == ("2.5", 90.0)


def test_resume_raises_every_budget_that_is_reached(tmp_path: Path) -> None:
    path = tmp_path / "goals.db"
    with GoalStore.open(path, durability="normal") as store:
        store.create("t", "x", token_budget=10, cost_budget="1", time_budget=2)
        store.charge("t", tokens=10, cost="1", seconds=2)
    words = ("--budget", 20, "--no-cost-budget")
    assert "2 s of 2 s" in refused("resume", "t", *words, "--db", path)
    shown = run_json("resume", "t", *words, "--time-budget", 3, "--db", path)
    assert (shown["status"], shown["exhausted"]) == ("active", [])


def test_set_with_a_parent_makes_a_goal_under_it(db: Path) -> None:
    made = run_json("set", "sub", "--objective", "A part", "--parent", "free", "--db", db)
    with GoalStore.open(db) as store:
        parent, children = store.get("free"), store.children("free")
    assert parent is not None
    assert made["parent_goal_id"] == parent.goal_id
    assert [goal.thread_id for goal in children] == ["sub"]
    again = refused("set", "sub", "--objective", "Other", "--parent", "free", "--db", db)
    assert "has goal" in again or "has a goal" in again
    assert "nobody" in refused("set", "x", "--objective", "x", "--parent", "nobody", "--db", db)


def test_set_of_another_goal_than_expected_is_refused(db: Path) -> None:
    sentence = refused("set", "free", "--status", "paused", "--expected-goal-id", "x", "--db", db)
    assert "expected goal x" in sentence
    with GoalStore.open(db) as store:
        goal = store.get("free")
    assert goal is not None
    assert goal.status is GoalStatus.ACTIVE
    same = ("--expected-goal-id", goal.goal_id)
    assert run_json("set", "free", "--status", "paused", *same, "--db", db)["status"] == "paused"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "name what to set"),
        (["--budget", "5", "--no-budget"], "exclude each other"),
        (["--parent", "p"], "--parent is for a new goal"),
        (["--cost-budget", "1", "--no-cost-budget"], "--cost-budget and --no-cost-budget exclude"),
        (["--cost-budget", "much"], "cost_budget: must be a number, such as '0.25', is 'much'"),
        (["--cost-budget", "0"], "cost_budget: must be at least 0.000000001"),
        (["--call-budget", "0"], "call_budget: must be more than 0, is 0"),
        (["--time-budget", "nan"], "time_budget: must be finite"),
        (["--deadline", "tomorrow"], "'tomorrow' is not a time such as 2026-12-24T18:00:00Z"),
        (["--deadline", "2026-12-24"], "deadline: must be aware: give its time zone"),
        (["--warn-at", "1.5"], "warn_at: must hold fractions above 0 and below 1"),
        (["--budget", "many"], "'many' is not a valid integer"),
        (["--budget", "0"], "token_budget: must be more than 0, is 0"),
        (["--budget", str(2**63)], f"token_budget: must be below 2^63, is {2**63}"),
        (["--objective", " "], "objective: must have 1 to 4000 characters after stripping, has 0"),
        (["--objective", "x" * 4001], "objective: must have 1 to 4000 characters"),
    ],
)
def test_set_refuses_what_makes_no_sense_and_makes_no_file(
    tmp_path: Path, words: list[str], said: str
) -> None:
    assert said in refused("set", "t", *words, "--db", tmp_path / "new.db")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", [["list"], ["set", "t"]])
def test_an_unknown_status_is_answered_with_the_known_ones(db: Path, command: list[str]) -> None:
    sentence = refused(*command, "--status", "asleep", "--db", db)
    assert "asleep" in sentence
    assert all(status.value in sentence for status in GoalStatus)


def test_list_shows_every_goal_in_order(db: Path) -> None:
    lines = run("list", "--db", db).stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["thread", "over", "free", "done", "3"]
    assert re.search(r"budget_limited +140 +100 +█{10} 140 % +2.5 s +Ship the parser", lines[1])
    assert r"[red]not red[/red] :smile: \x1b[31m and\x07\nmore [/]" in lines[2]


def test_list_for_programs_is_what_the_store_holds(db: Path) -> None:
    listed = run_json_lines("list", "--db", db)
    with GoalStore.open(db) as store:
        goals = list(store.goals())
    assert [one["goal_id"] for one in listed] == [goal.goal_id for goal in goals]
    for one, goal in zip(listed, goals, strict=True):
        assert one == goal.to_dict()
        for name in ("created_at", "updated_at"):
            assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", one[name])
            assert one[name] == getattr(goal, name).isoformat(timespec="milliseconds").replace(
                "+00:00", "Z"
            )
    assert listed[0]["time_used_ms"] == 2500
    assert listed[1]["objective"] == STRANGE
    assert [
        one["thread_id"] for one in run_json_lines("list", "--status", "complete", "--db", db)
    ] == ["done"]


def test_show_tells_goal_budget_baseline_and_last_events(db: Path) -> None:
    text = run("show", "over", "--db", db).stdout
    shown = fields(text)
    assert shown["status"] == "budget_limited"
    assert shown["tokens"] == "140 of 100 used, 0 remaining"
    assert shown["budget"] == "█" * 40 + " 140 %"
    assert shown["time"] == "2.5 s"
    assert shown["baseline"] == (
        "170 tokens in the whole thread, 30 of them cached and free, last by turn turn-1"
    )
    assert [line.split()[3] for line in text.partition("\n\n")[2].splitlines()] == [
        "created",
        "usage_accounted",
        "status_changed",
    ]
    assert "+140 tokens = 140 of 100  +2.5 s  turn turn-1" in text


def test_a_bar_is_filled_as_far_as_the_budget_is_used(db: Path) -> None:
    run("set", "over", "--budget", 280, "--db", db)
    assert fields(run("show", "over", "--db", db).stdout)["budget"] == "█" * 20 + "░" * 20 + " 50 %"


def test_what_users_wrote_is_shown_as_it_is(db: Path) -> None:
    text = run("show", "free", "--db", db).stdout
    assert "objective  [red]not red[/red] :smile: \\x1b[31m and\\x07\n           more [/]\n" in text
    assert "\x1b" not in text
    assert "\x07" not in text


def test_show_tells_what_is_left_and_who_holds_limits_and_claims_it(db: Path) -> None:
    with GoalStore.open(db) as store:
        store.create("lead", "Lead", token_budget=1_000, cost_budget="2")
        store.create("sub", "Help", parent="lead", call_budget=3)
        store.charge("sub", tokens=300, cost="0.5")
        store.charge("sub", tokens=20)
        hold = store.reserve("sub", tokens=100, cost="0.25")
        store.claim("sub", "worker-1", 60)
    shown = fields(run("show", "sub", "--db", db).stdout)
    assert shown["parent"].startswith("thread lead, goal ")
    assert shown["cost"] == "0.5 used, no budget, without 20 tokens of unknown price"
    assert shown["held"] == "100 tokens, cost 0.25, 1 call, by 1 hold"
    assert shown["headroom"] == "580 tokens of thread lead, cost 1.25 of thread lead, 2 calls"
    assert re.fullmatch(r"by worker-1 until .* UTC, number [0-9]+", shown["claimed"])
    told = run_json("show", "sub", "--db", db)
    assert [one["hold_id"] for one in told["holds"]] == [hold.hold_id]
    assert told["headroom"]["tokens"] == 580
    run("set", "lead", "--status", "paused", "--db", db)
    stopped = fields(run("show", "sub", "--db", db).stdout)
    assert stopped["headroom"] == "none: thread lead is not active"


def test_show_names_the_budgets_that_are_reached_and_what_is_estimated(db: Path) -> None:
    with GoalStore.open(db) as store:
        store.create("t", "x", token_budget=10, call_budget=1, warn_at=(0.5,))
        store.reserve("t", tokens=10).cut()
    text = run("show", "t", "--db", db).stdout
    shown = fields(text)
    assert shown["exhausted"] == "tokens, calls"
    assert shown["estimated"] == "10 of the tokens used"
    assert shown["headroom"] == "none: it is budget_limited"
    assert "threshold_crossed  budget_limited  50 % of tokens: 10 of 10" in text
    assert "+10 tokens = 10 of 10  estimate made" in text
    run("resume", "t", "--budget", 20, "--no-call-budget", "--db", db)
    assert "tokens: 10 to 20  calls: 1 to none" in run("events", "--db", db).stdout


def test_list_has_columns_for_what_goals_are_bounded_by(db: Path) -> None:
    with GoalStore.open(db) as store:
        store.create("t", "Pay", cost_budget="2", call_budget=3)
        store.charge("t", tokens=5, cost="0.75")
    lines = run("list", "--db", db).stdout.splitlines()
    assert lines[0].split() == [
        "thread", "status", "tokens", "budget", "cost", "calls", "time", "objective"
    ]  # fmt: skip
    assert re.search(r"^t +active +5 +0.75 of 2 +0 of 3 +Pay", lines[4])


def test_show_for_programs_has_goal_usage_and_events(db: Path) -> None:
    shown = run_json("show", "over", "--db", db)
    with GoalStore.open(db) as store:
        goal, usage, events = store.get("over"), store.usage("over"), list(store.events())
    assert goal is not None
    assert usage is not None
    assert shown["goal"]["goal_id"] == goal.goal_id
    assert shown["goal"]["remaining_tokens"] == 0
    assert shown["usage"]["total"]["input_tokens"] == usage.total.input_tokens == 150
    assert shown["usage"]["turn_id"] == "turn-1"
    assert [one["event_id"] for one in shown["last_events"]] == [
        event.event_id for event in events if event.thread_id == "over"
    ]
    assert run_json("show", "free", "--db", db)["usage"] is None


def test_show_finds_the_last_events_far_back_in_the_log(tmp_path: Path) -> None:
    path = tmp_path / "goals.db"
    with GoalStore.open(path, durability="normal") as store:
        store.create("old", "x")
        for number in range(8):
            store.charge("old", tokens=number + 1)
        store.create("busy", "y")
        for _ in range(200):
            store.charge("busy", tokens=1)
    shown = run_json("show", "old", "--db", path)["last_events"]
    assert [one["tokens_delta"] for one in shown] == [4, 5, 6, 7, 8]


def test_show_of_a_thread_without_a_goal(db: Path) -> None:
    assert refused("show", "nobody", "--db", db) == "thread 'nobody' has no goal"


def test_clear_prints_the_deleted_row(db: Path) -> None:
    with GoalStore.open(db) as store:
        goal = store.get("over")
    assert goal is not None
    deleted = run_json("clear", "over", "--turn", "turn-2", "--db", db)
    with GoalStore.open(db) as store:
        assert store.get("over") is None
        last = list(store.events())[-1]
    assert (last.kind, last.turn_id) == (EventKind.CLEARED, "turn-2")
    assert (deleted["goal_id"], deleted["tokens_used"]) == (goal.goal_id, 140)
    assert fields(run("clear", "free", "--db", db).stdout)["thread"] == "free"


def test_clear_where_there_is_nothing_is_content(db: Path) -> None:
    assert run("clear", "nobody", "--db", db).stdout == (
        "Nothing to clear: thread nobody has no goal.\n"
    )
    assert run_json("clear", "nobody", "--db", db) is None
    assert run_json("clear", "over", "--expected-goal-id", "other", "--db", db) is None
    with GoalStore.open(db) as store:
        assert store.get("over") is not None


def test_verify_without_a_difference_says_so(db: Path) -> None:
    assert run("verify", "--db", db).stdout == "3 goals recomputed: all as the log says.\n"
    assert run_json("verify", "--db", db) == {"goals": 3, "differences": []}
    assert run_json("verify", "over", "--db", db) == {"goals": 1, "differences": []}


def test_verify_exits_with_1_when_it_finds_a_difference(db: Path) -> None:
    with closing(sqlite3.connect(db)) as connection, connection:
        connection.execute("UPDATE goal_state_goals SET tokens_used = 141 WHERE thread_id = 'over'")
    text = run("verify", "--db", db, code=1).stdout
    assert "thread 'over': tokens_used is 141, the log says 140" in text
    assert text.endswith("3 goals recomputed, 1 difference.\n")
    found = run_json("verify", "--db", db, code=1)
    assert [
        (one["thread_id"], one["column"], one["stored"], one["recomputed"])
        for one in found["differences"]
    ] == [("over", "tokens_used", 141, 140)]
    assert run_json("verify", "free", "--db", db) == {"goals": 1, "differences": []}


def test_verify_of_a_thread_that_was_never_there_is_refused(db: Path) -> None:
    assert refused("verify", "nobody", "--db", db) == "thread 'nobody' has no goal and no events"
    run("clear", "free", "--db", db)
    assert run_json("verify", "free", "--db", db) == {"goals": 0, "differences": []}


@pytest.mark.parametrize(
    ("columns", "header"),
    [
        (200, "thread status tokens budget cost objective"),
        (100, "thread status tokens budget cost objective"),
        (80, "thread status tokens budget"),
        (60, "thread status tokens budget"),
        (40, "thread status tokens"),
    ],
)
def test_list_in_a_narrow_terminal_keeps_the_threads_whole(
    tmp_path: Path, columns: int, header: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    thread = "01a1fa7e-8602-7b70-ae49-dc91e783059e"
    path = tmp_path / "goals.db"
    with GoalStore.open(path, durability="normal") as store:
        store.create(thread, "Ship the parser, and whatever it needs", token_budget=10_000)
        store.charge(thread, tokens=2_500, cost="0.5")
    monkeypatch.setenv("COLUMNS", str(columns))
    result = CliRunner(env={"GOAL_STATE_DB": None}).invoke(program, ["list", "--db", str(path)])
    lines = result.stdout.splitlines()
    assert lines[0].split() == header.split()
    assert max(map(len, lines)) <= columns
    first_cells = "".join(line.split("  ")[0].strip() for line in lines[1:-1])
    assert first_cells == thread


@pytest.mark.parametrize("words", [["show"], ["set"], ["clear"], ["resume"], ["tree"], ["charge"]])
def test_the_shell_completes_threads_that_have_a_goal(db: Path, words: list[str]) -> None:
    def offered(begun: str, *before: str) -> list[str]:
        typed = [*words, *before]
        completion = ShellComplete(program, {}, "goal-state", "_GOAL_STATE_COMPLETE")
        return [item.value for item in completion.get_completions(typed, begun)]

    assert offered("", "--db", str(db)) == ["over", "free", "done"]
    assert offered("fr", "--db", str(db)) == ["free"]
    assert offered("", "--db", str(db.with_name("missing.db"))) == []
    assert offered("", "--db", str(db.parent)) == []


def test_version_is_the_packages() -> None:
    assert run("--version").stdout == f"goal-state {goal_state.__version__}\n"
