"""How long the proof runs: briefly with the other tests, at length by `make proof`."""

from __future__ import annotations

import os
from typing import Final

__all__ = ["IS_LONG", "PATIENCE_SECONDS"]

IS_LONG: Final = os.environ.get("HYPOTHESIS_PROFILE") == "proof"

PATIENCE_SECONDS: Final = 1_500 if IS_LONG else 120
"""For one test."""
