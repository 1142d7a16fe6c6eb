"""Finds the other Pythons of this machine that the library is for, one for each version.

    python .ci/interpreters.py 3.11 3.12

Prints the path of one interpreter of each version given, but for the version that runs this, where there
is one that can make an environment; on stderr, what was found of each. Looks on PATH and, where there is
pyenv, among its versions.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

_PATIENCE_SECONDS = 30.0
_PROBE = """
import importlib.util, platform, sys
missing = [name for name in ("venv", "sqlite3") if importlib.util.find_spec(name) is None]
if not any(importlib.util.find_spec(name) for name in ("ensurepip", "pip")):
    missing.append("pip")
print("%d.%d" % sys.version_info[:2], platform.python_version(), sys.executable, *missing, sep="\\n")
"""


def answer(*command: object) -> str:
    """What a command prints; nothing where it cannot be run or fails."""
    try:
        done = subprocess.run(
            [*map(str, command)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_PATIENCE_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def candidates(version: str) -> Iterator[str]:
    """Where an interpreter of a version may be, the likeliest first."""
    for name in (f"python{version}", "python3", "python"):
        if found := shutil.which(name):
            yield found
    if shutil.which("pyenv"):
        root = answer("pyenv", "root").strip()
        for one in reversed(answer("pyenv", "versions", "--bare").split()):
            if one == version or one.startswith(f"{version}."):
                yield str(Path(root, "versions", one, "bin", "python3"))


def find(version: str) -> str | None:
    """Another interpreter, of a version, that can make an environment; says what was found."""
    if version == "{}.{}".format(*sys.version_info):
        print(f"Python {version}: {platform.python_version()}, {sys.executable}", file=sys.stderr)
        return None
    for candidate in candidates(version):
        found = answer(candidate, "-c", _PROBE).splitlines()
        if found[:1] != [version]:
            continue
        _, number, path, *missing = found
        if not missing:
            print(f"Python {version}: {number}, {path}", file=sys.stderr)
            return path
        print(f"Python {version}: {path} lacks {', '.join(missing)}: passed over", file=sys.stderr)
    print(f"Python {version}: not found, not run", file=sys.stderr)
    return None


if __name__ == "__main__":
    for path in filter(None, map(find, sys.argv[1:])):
        print(path)
