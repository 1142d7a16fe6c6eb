"""Installs a wheel in a new environment outside the checkout and uses it there.

    python .ci/smoke.py dist/goal_state-*.whl

The environment gets the wheel and what the wheel itself asks for, in the versions that this Python has
(so they are the pinned ones): first without any extra, then with `cli`, then with `testing`.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path


def main(arguments: list[str]) -> None:
    match arguments:
        case [wheel]:
            outside(Path(wheel).resolve(strict=True))
        case ["--inside", "library"]:
            library()
        case ["--inside", "command"]:
            command()
        case ["--inside", "testing"]:
            testing()
        case _:
            sys.exit(__doc__)
    print(f"smoke: {' '.join(arguments[1:]) or 'all'} passed", flush=True)


# -- in the environment that built the wheel ---------------------------------------------------------


def outside(wheel: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="goal-state-smoke-") as name:
        folder = Path(name).resolve()
        script = Path(shutil.copy(__file__, folder))
        constraints = folder / "constraints.txt"
        constraints.write_text(
            run(sys.executable, "-m", "pip", "freeze", "--exclude-editable", cwd=folder)
        )
        environment = folder / "venv"
        run(sys.executable, "-m", "venv", "--without-pip", str(environment), cwd=folder)
        python = environment / "bin" / "python"

        for extra, part in (
            ("", "library"),
            ("[cli]", "command"),
            ("[testing]", "testing"),
        ):
            print(f"smoke: installing {wheel.name}{extra}", flush=True)
            run(
                *(sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"),
                *("--constraint", str(constraints), f"goal-state{extra} @ {wheel.as_uri()}"),
                cwd=folder,
            )
            # -I: neither the working directory, nor the script's folder, nor PYTHONPATH is searched.
            work = folder / part
            work.mkdir()
            print(
                run(str(python), "-I", "-W", "error", str(script), "--inside", part, cwd=work),
                end="",
            )


def run(*words: str, cwd: Path | None = None, expect: int = 0) -> str:
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"}
    }
    done = subprocess.run(
        words,
        cwd=cwd,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != expect:
        sys.exit(
            f"smoke: exit status {done.returncode}, not {expect}: {' '.join(words)}\n"
            f"{done.stdout}{done.stderr}"
        )
    return done.stdout


# -- in the new environment --------------------------------------------------------------------------


def library() -> None:
    """The library, with nothing installed but its core dependencies."""
    for extra in ("click", "rich", "httpx", "opentelemetry", "zstandard"):
        expect(importlib.util.find_spec(extra), None, f"{extra} is not installed")

    import goal_state

    package = Path(goal_state.__file__ or "").resolve().parent
    expect(
        package.is_relative_to(Path(sys.prefix).resolve()), True, f"{package} is the installed one"
    )
    expect((package / "py.typed").is_file(), True, "the wheel has py.typed")
    migrations = package / "migrations"
    expect((migrations / "env.py").is_file(), True, "the wheel has migrations/env.py")
    expect((migrations / "script.py.mako").is_file(), True, "the wheel has script.py.mako")
    expect(any(migrations.glob("versions/*.py")), True, "the wheel has migrations")

    path = Path("goals.db")
    seen: list[str] = []
    with goal_state.GoalStore.open(path) as store:
        store.subscribe(lambda event: seen.append(event.kind.value))
        store.create("thread-1", "Ship it", token_budget=100)
        charged = store.charge("thread-1", tokens=5, seconds=1.5, turn_id="turn-1")
        expect(charged.applied, True, "the charge was taken")
        expect(charged.goal and charged.goal.tokens_used, 5, "tokens used")
        over = store.charge("thread-1", tokens=95).goal
        expect(over and over.status.value, "budget_limited", "a full budget limits the goal")
    with goal_state.GoalStore.open(path) as store:
        goal = store.get("thread-1")
        expect(goal and goal.tokens_used, 100, "tokens used, read again")
        expect(goal and goal.time_used_ms, 1500, "time used, read again")
        logged = [event.kind.value for event in store.events()]
        expect(list(store.verify()), [], "the goals agree with their log")
        expect(store.clear("thread-1"), goal, "the deleted row")
        expect(store.get("thread-1"), None, "nothing is left")
    expect(
        logged, ["created", "usage_accounted", "usage_accounted", "status_changed"], "the event log"
    )
    expect(seen, logged, "what a listener saw")
    connection = sqlite3.connect(path)
    version = connection.execute("SELECT version_num FROM goal_state_alembic_version").fetchall()
    connection.close()
    expect(len(version), 1, "one revision is noted")


def command() -> None:
    """The command line, with the extra `cli`."""
    program = str(Path(sys.prefix) / "bin" / "goal-state")
    expect("Usage" in run(program, "--help"), True, "goal-state --help shows how it is used")

    import goal_state

    with goal_state.GoalStore.open("goals.db") as store:
        store.create("thread-1", "Ship it")
    connection = sqlite3.connect("goals.db")
    [(revision,)] = connection.execute("SELECT version_num FROM goal_state_alembic_version")
    connection.close()
    shown = run(program, "db", "current", "--db", "goals.db")
    expect(revision in re.findall(r"\w+", shown), True, f"db current shows {revision}: {shown!r}")


USERS_TESTS = """
import pytest

from goal_state import GoalStore
from goal_state.testing import begin_goal
from goal_state.testing.contract import StoreContract

pytest_plugins = ["goal_state.testing.fixtures"]


def test_agent_has_a_budget(goal_store):
    begin_goal(goal_store, "thread-1", token_budget=1_000, tokens_used=990)
    goal_store.charge("thread-1", tokens=10)
    assert goal_store.get("thread-1").status == "budget_limited"


class TestBackend(StoreContract):
    @pytest.fixture
    def open_store(self, goal_file):
        return lambda **options: GoalStore.open(goal_file, durability="normal", **options)
"""


def testing() -> None:
    """The fixtures and the contract, in the tests of somebody who has the wheel alone."""
    Path("test_users.py").write_text(USERS_TESTS)
    print(run(sys.executable, "-I", "-m", "pytest", "-q", "test_users.py"), end="")


def expect(found: object, wanted: object, what: str) -> None:
    if found != wanted:
        sys.exit(f"smoke: {what}: found {found!r}, not {wanted!r}")


if __name__ == "__main__":
    main(sys.argv[1:])
