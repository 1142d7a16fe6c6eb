"""Tags of charges and holds: what a host wants to add up by. Pure: no I/O, no SQL."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Final, cast

from goal_state.domain.values import check_name
from goal_state.errors import InvalidValueError

__all__ = ["MAX_TAGS", "MAX_TAG_CHARACTERS", "check_tags"]

MAX_TAGS: Final = 8
MAX_TAG_CHARACTERS: Final = 64


def check_tags(tags: object) -> str | None:
    """Tags as they are stored: a JSON object in the order of its keys; None for none.

    Raises:
        InvalidValueError: they are no mapping, more than 8, or a key or value is no text of 1 to 64
            characters.
    """
    if tags is None:
        return None
    if not isinstance(tags, Mapping):
        raise InvalidValueError("tags", f"must be a mapping of texts, not {type(tags).__name__}")
    given = cast("Mapping[object, object]", tags)
    if len(given) > MAX_TAGS:
        raise InvalidValueError("tags", f"must be {MAX_TAGS} at the most, are {len(given)}")
    if not given:
        return None
    checked = {_tag(key): _tag(value) for key, value in given.items()}
    return json.dumps(checked, sort_keys=True, separators=(",", ":"))


def _tag(value: object) -> str:
    text = check_name("tags", value)
    if len(text) > MAX_TAG_CHARACTERS:
        raise InvalidValueError(
            "tags", f"must hold texts of {MAX_TAG_CHARACTERS} characters at the most"
        )
    return text
