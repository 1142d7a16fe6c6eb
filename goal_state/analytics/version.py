"""The version of the library, as a receiver is told it."""

from __future__ import annotations

from functools import cache
from importlib import metadata

__all__ = ["library_version"]


@cache
def library_version() -> str:
    """The version of this library; "unknown" where it is used without being installed."""
    try:
        return metadata.version("goal-state")
    except metadata.PackageNotFoundError:
        return "unknown"
