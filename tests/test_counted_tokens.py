"""Which tokens of a usage a goal pays for: the store's choice, which the database keeps."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from sqlalchemy import Engine, create_engine

from goal_state import GoalRepository, GoalStore, InvalidValueError, TokenUsage, migrate
from goal_state.cli.main import program
from goal_state.domain.counting import CountedTokens
from goal_state.errors import NotAnExportError, SettingsConflictError, UsageOverflowError
from tests.in_memory import open_in_memory

USAGE = TokenUsage(1000, 900, 0, 50)


def weighted_tokens(usage: TokenUsage) -> int:
    return usage.input_tokens - usage.cached_input_tokens * 9 // 10 + 4 * usage.output_tokens


def charged(store: GoalStore) -> int:
    store.create("t", "Ship it")
    store.set_baseline("t", TokenUsage())
    store.record_total("t", USAGE)
    goal = store.get("t")
    assert goal is not None
    return goal.tokens_used


# -- the choice --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "name", "count"),
    [
        ("uncached", "uncached", 150),
        ("all", "all", 1050),
        (weighted_tokens, "weighted_tokens", 390),
    ],
)
def test_counted_tokens_of_a_choice_counts_by_it(value: Any, name: str, count: int) -> None:
    counted = CountedTokens.of(value)
    assert (counted.name, counted(USAGE)) == (name, count)
    assert CountedTokens.of(counted) is counted


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (
            "cached",
            "must be 'uncached' or 'all', or a named function of a TokenUsage, not 'cached'",
        ),
        (None, "not None"),
        (5, "not 5"),
        (lambda usage: usage.input_tokens, "define it with def"),
        (partial(weighted_tokens), "define it with def"),
        (all, "stands for one of ours"),
    ],
)
def test_counted_tokens_of_what_is_no_choice_is_refused(
    value: Any, problem: str, tmp_path: Path
) -> None:
    with pytest.raises(InvalidValueError) as caught:
        GoalStore.open(tmp_path / "goals.db", counted_tokens=value)
    assert caught.value.field == "counted_tokens"
    assert problem in caught.value.problem
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("result", [-1, 1.5, None, True, "5"])
def test_a_function_that_returns_no_count_is_refused_by_its_name(result: Any) -> None:
    def broken(_usage: TokenUsage) -> Any:
        return result

    with open_in_memory(counted_tokens=broken) as store:
        with pytest.raises(InvalidValueError, match=r"broken\(\) returned a count that must be"):
            charged(store)
        goal = store.get("t")
        assert goal is not None
        assert goal.tokens_used == 0


def test_a_count_that_is_no_64_bit_integer_overflows() -> None:
    def huge(_usage: TokenUsage) -> int:
        return 2**63

    with (
        open_in_memory(counted_tokens=huge) as store,
        pytest.raises(UsageOverflowError, match=r"2\^63"),
    ):
        charged(store)


# -- what a goal pays --------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("value", "count"), [("uncached", 150), ("all", 1050), (weighted_tokens, 390)]
)
def test_a_total_charges_the_tokens_that_count(value: Any, count: int, tmp_path: Path) -> None:
    with GoalStore.open(tmp_path / "goals.db", counted_tokens=value) as store:
        assert charged(store) == count
        assert store.counted_tokens.name == CountedTokens.of(value).name


def test_a_repository_charges_the_tokens_that_count(engine: Engine) -> None:
    with engine.begin() as connection:
        repository = GoalRepository(connection, counted_tokens="all")
        repository.create("t", "Ship it")
        repository.set_baseline("t", TokenUsage())
        accounting = repository.record_total("t", USAGE)
    assert accounting.goal is not None
    assert accounting.goal.tokens_used == 1050


# -- what the database keeps -------------------------------------------------------------------------


@pytest.fixture
def engine(tmp_path: Path) -> Any:
    engine = create_engine(f"sqlite:///{tmp_path / 'host.db'}")
    migrate.upgrade(engine)
    yield engine
    engine.dispose()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "second"), [("uncached", "all"), ("all", "uncached"), (weighted_tokens, "all")]
)
def test_opening_with_other_counted_tokens_is_refused(
    first: Any, second: Any, tmp_path: Path
) -> None:
    path = tmp_path / "goals.db"
    GoalStore.open(path, counted_tokens=first).close()
    stored = CountedTokens.of(first).name
    with pytest.raises(SettingsConflictError) as caught:
        GoalStore.open(path, counted_tokens=second)
    assert (caught.value.stored, caught.value.asked) == (stored, second)
    assert f"open it with counted_tokens {stored!r}" in str(caught.value)
    with GoalStore.open(path, counted_tokens=first) as store:
        assert store.get("t") is None


def test_a_repository_with_other_counted_tokens_changes_nothing(engine: Engine) -> None:
    with engine.begin() as connection:
        GoalRepository(connection, counted_tokens="all").create("t", "Ship it")
    with engine.begin() as connection:
        repository = GoalRepository(connection)
        with pytest.raises(SettingsConflictError):
            repository.charge("t", tokens=5)
        goal = repository.get("t")
    assert goal is not None
    assert goal.tokens_used == 0


def test_a_choice_that_was_rolled_back_is_made_again(engine: Engine) -> None:
    with engine.connect() as connection:
        repository = GoalRepository(connection, counted_tokens="all")
        with connection.begin() as transaction:
            repository.create("t", "Ship it")
            transaction.rollback()
        with connection.begin():
            repository.create("t", "Ship it")
    with engine.begin() as connection, pytest.raises(SettingsConflictError):
        GoalRepository(connection).create("u", "Ship it")


def test_a_store_on_an_engine_makes_its_choice_with_its_first_change(engine: Engine) -> None:
    with GoalStore.open(engine, counted_tokens="all") as store:
        store.create("t", "Ship it")
    with pytest.raises(SettingsConflictError):
        GoalStore.open(engine)


# -- elsewhere ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_backup_with_other_counted_tokens_is_not_restored(tmp_path: Path) -> None:
    with GoalStore.open(tmp_path / "all.db", counted_tokens="all") as store:
        charged(store)
        store.backup(tmp_path / "backup.db")
    with GoalStore.open(tmp_path / "goals.db") as store:
        store.create("kept", "Ship it")
        with pytest.raises(SettingsConflictError):
            store.restore(tmp_path / "backup.db")
        assert [goal.thread_id for goal in store.goals()] == ["kept"]


@pytest.mark.slow
def test_an_export_with_other_counted_tokens_is_not_imported(tmp_path: Path) -> None:
    with open_in_memory(counted_tokens="all") as store:
        charged(store)
        lines = list(store.export_lines())
    with open_in_memory() as store:
        with pytest.raises(
            NotAnExportError, match=r"line 1: counted_tokens: .* 'all' and .* 'uncached'"
        ):
            store.import_lines(lines)
        assert store.count() == 0
    with open_in_memory(counted_tokens="all") as store:
        store.import_lines(lines)
        assert store.count() == 1


@pytest.mark.slow
@pytest.mark.parametrize("value", ["all", weighted_tokens])
def test_the_command_line_takes_a_database_as_it_counts(value: Any, tmp_path: Path) -> None:
    database, backup, export = tmp_path / "goals.db", tmp_path / "backup.db", tmp_path / "export"
    with GoalStore.open(database, counted_tokens=value) as store:
        charged(store)
        store.backup(backup)
        export.write_text("\n".join(store.export_lines()), encoding="utf-8")
    for arguments in (
        ["list", "--db", str(database)],
        ["clear", "t", "--db", str(database)],
        ["restore", str(backup), "--yes", "--db", str(database)],
        ["restore", str(backup), "--db", str(tmp_path / "restored.db")],
        ["import", str(export), "--db", str(tmp_path / "imported.db")],
    ):
        result = CliRunner().invoke(program, arguments, catch_exceptions=False)
        assert result.exit_code == 0, result.output
    for name in ("restored.db", "imported.db"):
        with GoalStore.open(tmp_path / name, counted_tokens=value) as store:
            assert store.count() == 1
