"""The program `goal-state`, which needs the packages of the extra `cli`.

Without them, importing this package prints how to install them and exits with 2.
"""

import sys

try:
    from goal_state.cli.main import main
except ModuleNotFoundError as _error:
    if (_error.name or "").partition(".")[0] not in ("click", "rich"):
        raise
    sys.stderr.write(
        f"Error: the command line needs the package {_error.name!r}, which is not installed;"
        " run: pip install 'goal-state[cli]'\n"
    )
    sys.exit(2)

__all__ = ["main"]
