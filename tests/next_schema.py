"""The library with one more revision of the schema behind its newest, for tests of what is older than it.

The schema that there is now is an older one then: it can be upgraded, refused, and taken back to.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

import goal_state.cli.main  # noqa: F401  (every module that knows the newest revision is there)
from goal_state import migrate
from goal_state.storage.schema import HEAD_REVISION
from tests.processes import CHECKOUT

__all__ = ["DOWNGRADE", "NEXT_REVISION", "UPGRADE", "use", "write"]

NEXT_REVISION: Final = f"{int(HEAD_REVISION) + 1:04}"

UPGRADE: Final = """
    op.execute(
        "ALTER TABLE goal_state_goals ADD COLUMN colour TEXT"
        " CONSTRAINT ck_goal_state_goals_colour CHECK (length(colour) < 10)"
    )
    op.execute("ALTER TABLE goal_state_baselines ADD COLUMN colour TEXT")
    op.create_table("goal_state_colours", sa.Column("name", sa.Text(), primary_key=True))
    op.create_index("ix_goal_state_colours_name", "goal_state_colours", ["name"])
"""
DOWNGRADE: Final = """
    op.drop_table("goal_state_colours")
    op.execute("ALTER TABLE goal_state_baselines DROP COLUMN colour")
    op.execute("ALTER TABLE goal_state_goals DROP COLUMN colour")
"""
_SCRIPT: Final = '''
"""Colours."""
import sqlalchemy as sa
from alembic import op

revision = "{revision}"
down_revision = "{head}"
branch_labels = None
depends_on = None


def upgrade():
{upgrade}


def downgrade():
{downgrade}
'''


def write(folder: Path, *, upgrade: str = UPGRADE, downgrade: str = DOWNGRADE) -> Path:
    """Makes a folder of migrations with the next revision, and returns the path of that one's script.

    Args:
        folder: which is not there yet.
        upgrade: the body of that function, indented.
        downgrade: that one's.
    """
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(CHECKOUT / "migrations", folder, ignore=ignored)
    script = folder / "versions" / f"{NEXT_REVISION}_colours.py"
    script.write_text(
        _SCRIPT.format(
            revision=NEXT_REVISION, head=HEAD_REVISION, upgrade=upgrade, downgrade=downgrade
        )
    )
    return script


def use(folder: Path) -> Callable[[], None]:
    """Has the library in this process take those migrations for its own; returns what undoes that."""
    knowing = [
        module
        for name, module in sys.modules.items()
        if name.startswith("goal_state") and hasattr(module, "HEAD_REVISION")
    ]
    location = migrate._script_location

    def set_to(revision: str, found: Callable[[], Path]) -> None:
        for module in knowing:
            module.HEAD_REVISION = revision  # type: ignore[attr-defined]
        migrate._script_location = found

    set_to(NEXT_REVISION, lambda: folder)
    return lambda: set_to(HEAD_REVISION, location)
