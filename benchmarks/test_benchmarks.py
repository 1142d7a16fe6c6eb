"""That the benchmarks run, every group of them, and write what they found; the figures are not looked at."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
GROUPS = {
    "single",
    "costs",
    "trees",
    "holds",
    "limits",
    "threads",
    "aio",
    "processes",
    "start",
    "size",
    "pages",
    "memory",
    "rollout",
    "peers",
    "budgets",
}


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("benchmarks")
    done = run("--quick", "--output", str(folder / "results"), "--scratch", str(folder))
    assert done.returncode == 0, done.stdout + done.stderr
    assert [path.name for path in folder.iterdir()] == ["results"], "databases were left behind"
    return folder / "results"


def test_every_group_is_measured_and_none_fails(results: Path) -> None:
    report = json.loads((results / "figures.json").read_text())

    assert report["failures"] == {}
    assert {figure["group"] for figure in report["figures"]} == GROUPS
    for figure in report["figures"]:
        assert figure.get("missing") == "not installed" or figure["values"], figure


def test_the_table_has_a_row_for_every_figure(results: Path) -> None:
    figures = json.loads((results / "figures.json").read_text())["figures"]
    table = (results / "table.md").read_text()

    for figure in figures:
        assert f"| {figure['name']} | " in table
    assert "\n## Missed\n" in table


def test_a_group_can_be_run_alone_and_an_unknown_one_is_refused(tmp_path: Path) -> None:
    done = run("--quick", "--output", str(tmp_path), "pages")
    refused = run("--quick", "--output", str(tmp_path), "speed")

    report = json.loads((tmp_path / "figures.json").read_text())
    assert done.returncode == 0, done.stdout + done.stderr
    assert {figure["group"] for figure in report["figures"]} == {"pages"}
    assert refused.returncode == 2
    assert "no such group: speed" in refused.stderr
