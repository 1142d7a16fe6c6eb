"""Lists what a lock holds, with the licence that each distribution states of itself.

    python .ci/licences.py requirements/dev.txt

Run by the environment that the lock was installed into. Fails where a licence is not stated, or another
version than the locked one is installed. What the lock holds for other systems is not installed here and
only named.
"""

from __future__ import annotations

import re
import sys
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

_PIN = re.compile(r"^([A-Za-z0-9._-]+)==([^\s;]+)([^\\]*)", re.MULTILINE)
_SHOWN = 60


def licence(found: Distribution) -> str | None:
    """The licence as an expression, else as its classifiers say, else as a text whose first line is short."""
    metadata = found.metadata
    if expression := metadata.get("License-Expression"):
        return expression
    classifiers = [
        classifier.rpartition(" :: ")[2]
        for classifier in metadata.get_all("Classifier", [])
        if classifier.startswith("License :: ") and classifier.count(" :: ") > 1
    ]
    if classifiers:
        return ", ".join(classifiers)
    first, _, _ = (metadata.get("License") or "").strip().partition("\n")
    return first[:_SHOWN] or None


def main(lock: Path) -> int:
    """Prints the list; returns the exit code."""
    faults = 0
    for name, version, marker in _PIN.findall(lock.read_text()):
        try:
            found = distribution(name)
        except PackageNotFoundError:
            if marker.strip():
                print(f"{name:32} {version:12} not for this system{marker.rstrip()}")
            else:
                print(f"{name:32} {version:12} NOT INSTALLED")
                faults += 1
            continue
        stated = licence(found)
        if found.version != version:
            print(f"{name:32} {version:12} ANOTHER VERSION IS INSTALLED: {found.version}")
            faults += 1
        elif stated is None:
            print(f"{name:32} {version:12} NO LICENCE STATED")
            faults += 1
        else:
            print(f"{name:32} {version:12} {stated}")
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
