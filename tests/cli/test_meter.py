"""`meter`: a recorded thread, charged to a goal."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from goal_state import GoalStatus, GoalStore
from tests.cli.program import CHECKOUT, OVER, SMALL, UNDER, refused, run, run_json
from tests.databases import contents, fingerprints

FORK_OF = "01a1fa7e-8cb1-7a32-930a-960d950ebfb8"


def totals(rollout: Path) -> list[dict[str, int]]:
    """The cumulative usage of every `token_count`, straight from the file."""
    payloads = [json.loads(line)["payload"] for line in rollout.read_text().splitlines()]
    return [
        payload["info"]["total_token_usage"]
        for payload in payloads
        if payload.get("type") == "token_count"
    ]


def goal_tokens(total: dict[str, int]) -> int:
    return total["input_tokens"] - total["cached_input_tokens"] + total["output_tokens"]


def thread_of(rollout: Path) -> str:
    return json.loads(rollout.read_text().splitlines()[0])["payload"]["id"]


def line(kind: str, **payload: Any) -> str:
    return (
        json.dumps({"timestamp": "2026-01-01T00:00:00Z", "type": kind, "payload": payload}) + "\n"
    )


def token_count(total: int, last: int) -> str:
    usage = {"input_tokens": total, "cached_input_tokens": 0, "output_tokens": 0}
    return line(
        "event_msg",
        type="token_count",
        info={
            "total_token_usage": usage | {"total_tokens": total},
            "last_token_usage": usage | {"input_tokens": last, "total_tokens": last},
        },
    )


@pytest.mark.parametrize(
    ("rollout", "budget"), [(UNDER, 20_000), (OVER, 4_000), (SMALL, 1), (SMALL, 2**62)]
)
def test_the_goal_pays_for_what_the_file_says(tmp_path: Path, rollout: Path, budget: int) -> None:
    path = tmp_path / "goals.db"
    stated = totals(rollout)
    report = run_json("codex", "meter", rollout, "--budget", budget, "--db", path)

    steps = [goal_tokens(total) for total in stated]
    charges = [after - before for before, after in zip([0, *steps], steps, strict=False)]
    accounted = [one for one in report["events"] if one["kind"] == "usage_accounted"]
    assert [one["tokens_delta"] for one in accounted] == charges
    assert [one["cumulative_tokens"] for one in accounted] == steps
    assert report["goal"]["tokens_used"] == steps[-1]
    assert report["goal"]["remaining_tokens"] == max(budget - steps[-1], 0)
    assert report["goal"]["status"] == ("budget_limited" if steps[-1] >= budget else "active")
    assert report["usage"]["total"]["total_tokens"] == stated[-1]["total_tokens"]
    assert report["token_counts"] == report["charges"] == len(stated)
    assert report["skipped_lines"] == {"count": 0, "noted": []}

    with GoalStore.open(path) as store:
        goal = store.get(thread_of(rollout))
        events = list(store.events())
        assert store.verify() == []
    assert goal is not None
    assert goal.goal_id == report["goal"]["goal_id"]
    assert goal.tokens_used == steps[-1]
    assert [event.event_id for event in events] == [one["event_id"] for one in report["events"]]
    assert {event.turn_id for event in events[1:]} >= {accounted[0]["turn_id"]} - {None}


def test_crossing_the_budget_is_an_event_of_the_turn_that_did_it() -> None:
    events = run_json("codex", "meter", OVER, "--budget", 4_000)["events"]
    kinds = [one["kind"] for one in events]
    crossing = kinds.index("status_changed")
    assert kinds.count("status_changed") == 1
    before, change = events[crossing - 1], events[crossing]
    assert (
        before["cumulative_tokens"] >= 4_000 > before["cumulative_tokens"] - before["tokens_delta"]
    )
    assert (change["goal_status"], change["previous_status"]) == ("budget_limited", "active")
    assert change["turn_id"] == before["turn_id"]


def test_people_see_budget_status_and_charges() -> None:
    result = run("codex", "meter", OVER, "--budget", 4_000)
    used = goal_tokens(totals(OVER)[-1])
    assert f"tokens     {used:,} of 4,000 used, 0 remaining\n" in result.stdout
    assert f"budget     {'█' * 40} {used * 100 // 4_000} %\n" in result.stdout
    assert "status     budget_limited\n" in result.stdout
    assert (
        "baseline   9,376 tokens in the whole thread, 3,763 of them cached and free"
        in result.stdout
    )
    assert result.stdout.count("usage_accounted") == 4
    assert "4 token counts, 4 charges.\n" in result.stdout
    assert "Metered in memory: nothing was kept. --db FILE keeps it.\n" in result.stdout
    assert "Charging the goal" in result.stderr
    assert "4/4" in result.stderr


def test_without_db_nothing_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GOAL_STATE_DB", str(tmp_path / "mine.db"))
    assert run_json("codex", "meter", SMALL, "--budget", 5)["database"] is None
    assert list(tmp_path.iterdir()) == []


def test_events_are_written_as_json_lines(tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    file.write_text("what was there before\n")
    report = run_json("codex", "meter", OVER, "--budget", 4_000, "--events", file)
    assert [json.loads(one) for one in file.read_text().splitlines()] == report["events"]
    assert len(report["events"]) == 6


def test_of_many_events_people_see_the_first_and_the_last(tmp_path: Path) -> None:
    rollout = tmp_path / "long.jsonl"
    counts = [token_count(number * 10, 10) for number in range(1, 31)]
    rollout.write_text(line("session_meta", id="long") + "".join(counts))
    text = run("codex", "meter", rollout, "--budget", 1_000).stdout
    positions = [int(row.split()[0]) for row in text.splitlines() if row[:6].strip().isdigit()]
    assert positions == [*range(1, 11), *range(22, 32)]
    assert "… 11 more; --events FILE writes all of them" in text


def test_lines_that_cannot_be_used_are_counted_and_reported(tmp_path: Path) -> None:
    rollout = tmp_path / "damaged.jsonl"
    lines = UNDER.read_text().splitlines(keepends=True)
    first, torn = lines[0], lines[-1][:20]
    rollout.write_text(first + "{not JSON}\n" + "".join(lines[1:-1]) + torn)
    result = run("codex", "meter", rollout, "--budget", 20_000)
    assert (
        "2 lines of the rollout could not be used and were skipped,"
        f" the first at byte {len(first.encode()):,}: not JSON.\n"
    ) in result.stdout
    report = run_json("codex", "meter", rollout, "--budget", 20_000)
    assert report["skipped_lines"]["count"] == 2
    assert report["skipped_lines"]["noted"][0]["offset"] == len(first.encode())
    assert report["goal"]["tokens_used"] == goal_tokens(totals(UNDER)[-1])


def test_a_compressed_rollout_is_metered_as_a_plain_one(tmp_path: Path) -> None:
    rollout = tmp_path / "small.jsonl.gz"
    rollout.write_bytes(gzip.compress(SMALL.read_bytes()))
    report = run_json("codex", "meter", rollout, "--budget", 20_000)
    assert report["goal"]["tokens_used"] == goal_tokens(totals(SMALL)[-1])


def test_a_fork_pays_for_nothing_of_its_parent_s(tmp_path: Path) -> None:
    rollout = tmp_path / "fork.jsonl"
    base = {"thread_id": FORK_OF, "end_ordinal_exclusive": 9}
    rollout.write_text(
        line("session_meta", id="fork", forked_from_id=FORK_OF, history_base=base)
        + token_count(1_010, 10)
        + token_count(1_030, 20)
    )
    report = run_json("codex", "meter", rollout, "--budget", 500)
    assert (report["goal"]["tokens_used"], report["goal"]["status"]) == (30, "active")


def test_a_thread_without_token_counts_charges_nothing(tmp_path: Path) -> None:
    rollout = tmp_path / "quiet.jsonl"
    rollout.write_text(line("session_meta", id="quiet"))
    report = run_json("codex", "meter", rollout, "--budget", 5)
    assert (report["token_counts"], report["charges"]) == (0, 0)
    assert [one["kind"] for one in report["events"]] == ["created"]


def test_a_thread_with_a_goal_is_refused_and_left_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "goals.db"
    thread = thread_of(SMALL)
    with GoalStore.open(path) as store:
        store.create(thread, "Mine")
    before = contents(path)
    assert refused("codex", "meter", SMALL, "--budget", 5, "--db", path).startswith(
        f"thread {thread!r} has a goal that is active"
    )
    assert contents(path) == before


def test_a_complete_goal_gives_way_and_the_baseline_is_zero_again(tmp_path: Path) -> None:
    path = tmp_path / "goals.db"
    first = run_json("codex", "meter", SMALL, "--budget", 5_000, "--db", path)["goal"]
    with GoalStore.open(path) as store:
        store.set(first["thread_id"], status=GoalStatus.COMPLETE)
    second = run_json("codex", "meter", SMALL, "--budget", 5_000, "--db", path)
    assert second["goal"]["goal_id"] != first["goal_id"]
    assert second["goal"]["tokens_used"] == first["tokens_used"]
    assert second["events"][0]["replaced_goal_id"] == first["goal_id"]


@pytest.mark.parametrize(
    ("contents_of_file", "said"),
    [
        ("Buy milk.\n", "not a rollout: no line of its head has a type and a payload"),
        ("", "none of its first lines names a thread"),
        (line("event_msg", type="warning"), "none of its first lines names a thread"),
    ],
)
def test_a_file_that_is_no_rollout(tmp_path: Path, contents_of_file: str, said: str) -> None:
    rollout = tmp_path / "rollout.jsonl"
    rollout.write_text(contents_of_file)
    result = run("codex", "meter", rollout, "--budget", 5, "--db", tmp_path / "goals.db", code=2)
    assert result.stdout == ""
    assert result.stderr.endswith(f"Error: {rollout}: {said}\n")
    assert sorted(tmp_path.iterdir()) == [rollout]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--budget", "0"], "token_budget: must be more than 0, is 0"),
        (["--budget", "x"], "'x' is not a valid integer"),
        ([], "Missing option '--budget'"),
        (["--budget", "5", "--events", "none/e.jsonl"], "the folder 'none' does not exist"),
        (["--budget", "5", "--events", "."], "is a directory"),
        (["--budget", "5", "--events", "copy.jsonl"], "is the rollout or the database itself"),
        (["--budget", "5", "--events", "./goals.db"], "is the rollout or the database itself"),
    ],
)
def test_what_makes_no_sense_is_refused_and_nothing_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("copy.jsonl").write_bytes(SMALL.read_bytes())
    before = fingerprints(tmp_path)
    assert said in refused("codex", "meter", "copy.jsonl", *words, "--db", "goals.db")
    assert fingerprints(tmp_path) == before


@pytest.mark.parametrize("rollout", ["missing.jsonl", "."])
def test_a_rollout_that_is_not_there(tmp_path: Path, rollout: str) -> None:
    assert str(tmp_path / rollout) in refused("codex", "meter", tmp_path / rollout, "--budget", 5)


def test_the_recorded_rollouts_name_no_machine() -> None:
    for rollout in (CHECKOUT / "examples/rollouts").iterdir():
        metas = [
            json.loads(one) for one in rollout.read_text().splitlines() if "session_meta" in one
        ]
        assert {meta["payload"]["cwd"] for meta in metas} == {"/home/user/project"}
