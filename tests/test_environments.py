"""What the tests are run on: the interpreters that are found, and the versions that were locked."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.processes import CHECKOUT, PATIENCE_SECONDS

LOCKS = sorted((CHECKOUT / "requirements").glob("*.txt"))
OWN = "{}.{}".format(*sys.version_info)


def pins(lock: str) -> dict[str, str]:
    text = (CHECKOUT / "requirements" / lock).read_text(encoding="utf-8")
    return dict(re.findall(r"^([\w.-]+)==([\w.]+)", text, re.MULTILINE))


def version(text: str) -> tuple[int, ...]:
    numbers = [int(number) for number in text.split(".")]
    return tuple(numbers + [0] * (3 - len(numbers)))


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.name)
def test_every_pin_of_a_lock_has_its_hashes(lock: Path) -> None:
    entries = re.split(r"^(?=\S)", lock.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    pinned = [entry for entry in entries if not entry.startswith("--")]
    assert pinned
    assert [entry for entry in pinned if "--hash=sha256:" not in entry] == []


def test_the_lowest_versions_that_are_tested_are_the_lowest_that_are_allowed() -> None:
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    allowed = dict(
        re.findall(r"^(\w+)>=([\d.]+),<", "\n".join(project["dependencies"]), re.MULTILINE)
    )
    assert set(allowed) == {"sqlalchemy", "alembic"}
    lowest, newest = pins("lowest.txt"), pins("dev.txt")
    for name, bound in allowed.items():
        assert version(lowest[name]) == version(bound)
        assert version(lowest[name]) < version(newest[name])


def test_two_series_of_sqlalchemy_are_tested() -> None:
    assert pins("dev.txt")["sqlalchemy"].startswith("2.1.")
    assert pins("sqlalchemy-2.0.txt")["sqlalchemy"].startswith("2.0.")


def test_what_people_run_and_what_ci_runs_is_the_same_command() -> None:
    readme = (CHECKOUT / "README.md").read_text(encoding="utf-8")
    assert re.search(r"^make test\b", readme, re.MULTILINE)
    ci = (CHECKOUT / ".ci/run").read_text(encoding="utf-8")
    assert re.search(r"^for target in .*\btest; do\n +step \"\$target\"$", ci, re.MULTILINE)
    assert "pytest" not in ci


# -- finding interpreters ------------------------------------------------------------------------------


def interpreter(folder: Path, name: str, answer: str) -> Path:
    """A program of that name that answers what an interpreter would say of itself."""
    path = folder / name
    path.write_text(f"#!/bin/sh\n{answer}\n")
    path.chmod(0o755)
    return path


def find(folder: Path, *versions: str) -> tuple[list[str], list[str]]:
    """The interpreters found with nothing but that folder on PATH, and what is said of them."""
    done = subprocess.run(
        [sys.executable, CHECKOUT / ".ci/interpreters.py", *versions],
        env=os.environ | {"PATH": str(folder)},
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=True,
    )
    return done.stdout.splitlines(), done.stderr.splitlines()


def says(version: str, *missing: str) -> str:
    return f"printf '%s\\n' {version} {version}.7 \"$0\" {' '.join(missing)}"


def test_an_interpreter_is_found_by_the_name_of_its_version(tmp_path: Path) -> None:
    path = interpreter(tmp_path, "python3.98", says("3.98"))
    assert find(tmp_path, "3.98", "3.99") == (
        [str(path)],
        [f"Python 3.98: 3.98.7, {path}", "Python 3.99: not found, not run"],
    )


def test_an_interpreter_that_lacks_what_an_environment_needs_is_passed_over(tmp_path: Path) -> None:
    lacking = interpreter(tmp_path, "python3.98", says("3.98", "venv", "pip"))
    other = interpreter(tmp_path, "python3", says("3.98"))
    assert find(tmp_path, "3.98") == (
        [str(other)],
        [
            f"Python 3.98: {lacking} lacks venv, pip: passed over",
            f"Python 3.98: 3.98.7, {other}",
        ],
    )


@pytest.mark.slow
@pytest.mark.parametrize("answer", ["exit 127", "echo 3.98; exit 1", "echo nonsense", says("3.97")])
def test_what_is_no_interpreter_of_its_name_is_not_found(tmp_path: Path, answer: str) -> None:
    interpreter(tmp_path, "python3.98", answer)
    assert find(tmp_path, "3.98") == ([], ["Python 3.98: not found, not run"])


def test_a_path_may_have_a_space_in_it(tmp_path: Path) -> None:
    folder = tmp_path / "two words"
    folder.mkdir()
    path = interpreter(folder, "python3.98", says("3.98"))
    assert find(folder, "3.98")[0] == [str(path)]


def test_the_newest_of_pyenv_is_taken_and_only_of_the_version(tmp_path: Path) -> None:
    versions = tmp_path / "versions"
    for number in ("3.9.8", "3.98.1", "3.98.2"):
        folder = versions / number / "bin"
        folder.mkdir(parents=True)
        interpreter(folder, "python3", says(number.rpartition(".")[0]))
    interpreter(
        tmp_path,
        "pyenv",
        f'case "$1" in root) echo {tmp_path};; *) printf "%s\\n" 3.9.8 3.98.1 3.98.2;; esac',
    )
    assert find(tmp_path, "3.98")[0] == [str(versions / "3.98.2/bin/python3")]


def test_the_version_that_runs_already_is_said_and_not_run_again() -> None:
    assert find(Path(sys.executable).parent, OWN)[0] == []
