"""Every snippet of the README, run: what it shows is what happens."""

from __future__ import annotations

import ast
import io
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from contextlib import redirect_stdout
from pathlib import Path

import pytest
from click.testing import CliRunner

CHECKOUT = Path(__file__).parents[1]
README = (CHECKOUT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)

_MASKS = (
    (r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "ID"),
    (r"\b0\d{3}\b", "REVISION"),
    (r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d\.\d{3}Z?", "TIME"),
)


def blocks(language: str) -> list[str]:
    return [text for found, text in BLOCKS if found == language]


def said_in_comments(code: str) -> list[str]:
    """What the comments behind calls say that they print; those in parentheses are for people alone."""
    return [
        comment
        for line in code.splitlines()
        for comment in re.findall(r"\)  # ([^(].*)$", line)
        if "print(" in line or comment in ("created", "usage_accounted", "cleared")
    ]


def matches(expected: str, found: str) -> bool:
    """Whether the output is the one expected, but for ids, times, revisions and what `…` stands for."""
    texts = []
    for text in (expected, found):
        for pattern, name in _MASKS:
            text = re.sub(pattern, name, text)
        texts.append("\n".join(line.rstrip() for line in text.strip().splitlines()))
    pattern = ".*".join(re.escape(part) for part in texts[0].split("…"))
    return re.fullmatch(pattern, texts[1], re.DOTALL) is not None


def test_the_readme_has_only_snippets_that_are_run() -> None:
    assert {language for language, _ in BLOCKS} == {"sh", "python", "console"}


@pytest.mark.slow
def test_every_python_block_prints_what_readme_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for code in blocks("python"):
        assert not [
            node
            for node in ast.walk(ast.parse(code))
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tests")
        ]
        with redirect_stdout(io.StringIO()) as out:
            exec(compile(code, "README.md", "exec"), names)
        assert out.getvalue().splitlines() == said_in_comments(code), code
    names["engine"].dispose()  # type: ignore[attr-defined]


@pytest.mark.slow
def test_every_command_prints_what_readme_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from goal_state.cli.main import program

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GOAL_STATE_DB", raising=False)
    monkeypatch.setenv("COLUMNS", "120")  # as wide as the widest of them
    shutil.copytree(CHECKOUT / "examples/rollouts", "examples/rollouts")
    ran = 0
    for block in blocks("console"):
        for command, expected in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", block, re.MULTILINE):
            words = shlex.split(command)
            if words[0] == "alembic":
                alembic(words[1:], tmp_path)
                found = ""
            else:
                assert words[0] == "goal-state"
                result = CliRunner().invoke(program, words[1:], prog_name="goal-state")
                assert result.exit_code == (2 if expected.startswith("Error: ") else 0), command
                found = result.stdout or result.stderr
            assert matches(expected, found), f"{command}\n{found}"
            ran += 1
    assert ran == sum(block.count("$ ") for block in blocks("console"))
    assert (tmp_path / "goals.db").stat().st_size > 0


def alembic(words: list[str], folder: Path) -> None:
    """Runs alembic where it finds its ini file: in the checkout, on a database in the folder."""
    words = [word.replace("sqlite:///", f"sqlite:///{folder}/") for word in words]
    subprocess.run(
        [sys.executable, "-m", "alembic", *words], cwd=CHECKOUT, check=True, capture_output=True
    )


def test_every_target_that_readme_names_is_there() -> None:
    """`make test` cannot run inside itself: that the targets are there is all that is asked of it here."""
    makefile = (CHECKOUT / "Makefile").read_text(encoding="utf-8")
    commands = [
        line.partition("#")[0].split() for text in blocks("sh") for line in text.splitlines()
    ]
    assert commands == [["make", "demo"], ["make", "test"]]
    for _, target in commands:
        assert re.search(rf"^{target}:.* ## ", makefile, re.MULTILINE)
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for name, extra in re.findall(r"pip install '?([\w-]+)(?:\[([\w-]+)\])?", README):
        assert name == project["name"]
        assert not extra or extra in project["optional-dependencies"]


@pytest.mark.parametrize(
    ("expected", "found"),
    [
        ("tokens 5", "tokens 6"),
        ("a\n…\nz", "a\nz and more"),
        ('{"status": "active", …}', '{"status": "paused", "x": 1}'),
        ("", "something"),
    ],
)
def test_the_comparison_can_fail(expected: str, found: str) -> None:
    assert not matches(expected, found)
    assert matches(expected, expected)
