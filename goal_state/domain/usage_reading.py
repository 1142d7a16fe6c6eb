"""Reads the usage objects and mappings of agent SDKs and providers, as `usage_forms` says.

A usage is read where all its fields together have one meaning, and refused where they have none: what
would be overlooked would be charged wrongly. The rule for a field that no form names:

- it is left where it holds no whole number but 0 (text, flags, prices, None, a breakdown of zeros);
- a number of things that are not tokens (`requests`, `duration_ms`) is left too: a newer SDK may add one;
- a number whose name speaks of tokens or a cache is refused, for it may change what is charged;
- inside the details of a figure that we have whole, only one that speaks of a cache, or whose name is
  nearly one of ours, is refused: the others are parts, such as a new modality's;
- where input or output is missing or 0, every number is refused: it may be the one that is missed.

Pure: no I/O, no SQL.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Final, TypeAlias, cast

from goal_state.domain.usage_forms import ANTHROPIC, CODEX, FORMS, Count, Form, camel_case
from goal_state.domain.values import MAX_INTEGER, check_amount
from goal_state.errors import InvalidValueError

__all__ = ["Counts", "read_codex_usage", "read_usage"]

Counts: TypeAlias = tuple[int, int, int, int, int, int]
"""Input, cached input, cache-write input, output, reasoning output and the total, as in `TokenUsage`."""

_TAKEN: Final = "; ".join(f"{form.sources} ({form.telling})" for form in FORMS)

# Plain integers: members of an enumeration cost several times as much, and this is read for each charge.
(
    _INPUT,
    _CACHED,
    _WRITTEN,
    _OUTPUT,
    _REASONING,
    _TOTAL,
    _CACHED_AGAIN,
    _WRITTEN_AGAIN,
    _WRITTEN_BY_LIFETIME,
    _REASONING_BESIDE_OUTPUT,
    _KNOWN,
) = map(int, Count)
_NOT_STATED: Final = -1

_MOST_NAMES: Final = 8
_DEEPEST: Final = 4


class _Name:
    """A field's name: what it means in each form that knows it.

    Attributes:
        path: the name, behind that of the field that it is in.
        counts: by form.
        forms: a bit for each form that knows it as a figure, or as nothing that is counted.
        parts: what may be in it, in the forms that know it as details.
    """

    __slots__ = ("counts", "forms", "parts", "path")

    def __init__(self, path: str) -> None:
        self.path = path
        self.counts = [_KNOWN] * len(FORMS)
        self.forms = 0
        self.parts: dict[str, _Name] = {}

    def add(self, form: int, count: Count) -> None:
        self.counts[form] = int(count)
        self.forms |= 1 << form


def _index() -> tuple[dict[str, _Name], dict[str, int]]:
    names: dict[str, _Name] = {}
    forms_with_details: dict[str, int] = {}
    for number, form in enumerate(FORMS):
        for name, count in form.fields.items():
            known = names.setdefault(name, _Name(name))
            if isinstance(count, Count):
                known.add(number, count)
                continue
            forms_with_details[name] = forms_with_details.get(name, 0) | 1 << number
            for part, its_count in count.items():
                known.parts.setdefault(part, _Name(f"{name}.{part}")).add(number, its_count)
    return names, forms_with_details


_NAMES, _WITH_DETAILS = _index()
_ALL: Final = (1 << len(FORMS)) - 1
_LOWEST: Final = {1 << number: number for number in range(len(FORMS))}

_Found: TypeAlias = list[tuple[_Name, object]]
_Unknown: TypeAlias = list[tuple[str, object]]


def read_usage(usage: object) -> Counts:
    """The counts of a usage of any source that we know.

    Raises:
        InvalidValueError: it is no usage, of no known source or of several, has a field that we would
            overlook, or a count is malformed.
    """
    fields = _fields(usage)
    if fields is None:
        raise _refusal(f"{_described(usage)} is none")
    counts = _read(fields)
    if counts is None and hasattr(usage, "__dataclass_fields__"):
        # One that keeps only what it was given has the rest as defaults of its class.
        names = cast("Mapping[str, object]", getattr(usage, "__dataclass_fields__"))  # noqa: B009
        counts = _read({name: getattr(usage, name, None) for name in names})
    if counts is None:
        raise _refusal(_without_counts(usage, fields))
    return counts


def read_codex_usage(usage: object) -> Counts:
    """The counts of a usage that Codex wrote, in snake_case or camelCase.

    As Codex itself, it leaves the names that a newer one may have added.

    Raises:
        InvalidValueError: it is no mapping, has none of the names, or a count is malformed.
    """
    if not isinstance(usage, Mapping):
        raise InvalidValueError("usage", f"must be a mapping, not {type(usage).__name__}")
    stated = cast("Mapping[str, object]", usage)
    counts: dict[str, int] = {}
    for name in CODEX:
        for key in (camel_case(name), name):
            if key in stated:
                counts[name] = check_amount(name, stated[key])
    if not counts:
        raise InvalidValueError("usage", f"must have at least one of {', '.join(CODEX)}")
    *figures, total = (counts.get(name) for name in CODEX)
    known = [figure or 0 for figure in figures]
    if total is None:
        total = check_amount("total_tokens", known[Count.INPUT] + known[Count.OUTPUT])
    return (known[0], known[1], known[2], known[3], known[4], total)


# -- reading -----------------------------------------------------------------------------------------


def _fields(usage: object) -> Mapping[str, object] | None:
    """What a mapping or an object holds by name; None for what holds nothing by name."""
    if type(usage) is dict or isinstance(usage, Mapping):
        return cast("Mapping[str, object]", usage)
    if type(usage) is int or isinstance(usage, type):
        return None
    fields: dict[str, object] | None = getattr(usage, "__dict__", None)
    if fields is None:
        slots: object = getattr(usage, "__slots__", None)
        if not isinstance(slots, tuple):
            return None
        return {name: getattr(usage, name, None) for name in cast("tuple[str, ...]", slots)}
    more: object = getattr(usage, "__pydantic_extra__", None)
    return {**fields, **cast("dict[str, object]", more)} if more else fields


def _read(fields: Mapping[str, object]) -> Counts | None:
    """The counts; None if there is neither input nor output among them."""
    forms = _ALL
    found: _Found = []
    unknown: _Unknown = []
    unknown_parts: _Unknown = []
    for name, value in fields.items():
        if value is None:
            continue
        known = _NAMES.get(name)
        if known is None:
            unknown.append((name, value))
        elif not known.parts or (parts := _fields(value)) is None:
            forms &= known.forms
            found.append((known, value))
        else:
            forms &= known.forms | _WITH_DETAILS[name]
            found.append((known, None))
            for part, figure in parts.items():
                if figure is None:
                    continue
                known_part = known.parts.get(part)
                if known_part is None:
                    unknown_parts.append((f"{name}.{part}", figure))
                else:
                    forms &= known_part.forms | known.forms
                    found.append((known_part, figure))
    if not forms:
        raise _refusal(_mixture(found))
    number = _LOWEST[forms & -forms]
    sums = [0] * _KNOWN
    sums[_TOTAL] = _NOT_STATED
    has_side = False
    for known, value in found:
        count = known.counts[number]
        if count == _KNOWN:
            continue
        if type(value) is int and 0 <= value <= MAX_INTEGER:  # as nearly all are
            amount = value
        else:
            amount = check_amount(known.path, value)
        if count in (_TOTAL, _CACHED_AGAIN, _WRITTEN_AGAIN):
            sums[count] = max(sums[count], amount)
        else:
            sums[count] += amount
            has_side = has_side or count in (_INPUT, _OUTPUT)
    if not has_side:
        return None
    form = FORMS[number]
    counts = _summed(form, sums)
    if unknown or unknown_parts:
        _check_overlooked(form, unknown, unknown_parts, is_whole=counts[0] > 0 < counts[3])
    if form is ANTHROPIC and (iterations := fields.get("iterations")):
        counts = _with_iterations(counts, iterations)
    return counts


def _summed(form: Form, sums: list[int]) -> Counts:
    (
        input_tokens,
        cached,
        written,
        output,
        reasoning,
        total,
        cached_again,
        written_again,
        lifetimes,
        thoughts,
    ) = sums
    cached = max(cached, cached_again)
    written = max(written, written_again)
    if lifetimes:
        written = max(written, lifetimes) if form is ANTHROPIC else written + lifetimes
    if not form.input_has_cached:
        input_tokens += cached + written
    output += thoughts
    used = input_tokens + output
    if used > MAX_INTEGER:
        check_amount("total_tokens", used)
    total = used if total == _NOT_STATED else total
    return input_tokens, cached, written, output, reasoning + thoughts, total


def _with_iterations(counts: Counts, iterations: object) -> Counts:
    """Anthropic's top-level figures are those of its messages: the compactions and advisors of the same
    request, which are paid for too, are in its iterations alone.
    """
    if not isinstance(iterations, Sequence) or isinstance(iterations, str | bytes):
        raise _refusal(f"iterations must be a list, not {type(iterations).__name__}")
    for iteration in cast("Sequence[object]", iterations):
        fields = _fields(iteration) or {}
        match fields.get("type"):
            case "message" | "fallback_message":
                continue
            case "compaction" | "advisor_message":
                beside = _read(fields)
                if beside is None:
                    raise _refusal("an iteration has neither input nor output")
                counts = cast("Counts", tuple(map(int.__add__, counts, beside)))
            case other:
                raise _refusal(f"it has an iteration of the unknown type {other!r}")
    check_amount("total_tokens", counts[-1])
    return counts


# -- what is not understood --------------------------------------------------------------------------


def _check_overlooked(
    form: Form, unknown: _Unknown, unknown_parts: _Unknown, *, is_whole: bool
) -> None:
    overlooked = [
        path
        for name, value in unknown
        if not str(name).startswith("_")
        for path in _numbers(str(name), value)
        if not is_whole or _speaks_of(path, "token", "cach")
    ] + [
        path
        for name, value in unknown_parts
        for path in _numbers(name, value)
        if _speaks_of(name, "cach") or _is_nearly_known(form, name)
    ]
    if overlooked:
        raise _refusal(
            f"it looks like {form.sources}, but {_listed(overlooked)} would be overlooked"
        )


def _numbers(path: str, value: object, depth: int = 0) -> Iterator[str]:
    """The paths of the whole numbers in a value, but for 0; what lies too deep to look is taken for one."""
    if isinstance(value, bool):
        return
    if isinstance(value, int):
        if value:
            yield path
        return
    if isinstance(value, list | tuple):
        inner = enumerate(cast("Sequence[object]", value))
    else:
        inner = (_fields(value) or {}).items()
    for name, part in inner:
        if str(name).startswith("_"):
            continue
        if depth == _DEEPEST:
            yield path
            return
        yield from _numbers(f"{path}.{name}", part, depth + 1)


def _speaks_of(path: str, *words: str) -> bool:
    return any(word in path.lower() for word in words)


def _is_nearly_known(form: Form, path: str) -> bool:
    outer, _, part = path.partition(".")
    names = form.fields.get(outer)
    return isinstance(names, Mapping) and bool(get_close_matches(part, names, cutoff=0.8))


def _mixture(found: _Found) -> str:
    """Which fields go with the form that knows most of them, and which do not."""

    def strangers(number: int) -> list[str]:
        return [
            name.path
            for name, value in found
            if not (name.forms | (_WITH_DETAILS.get(name.path, 0) if value is None else 0))
            >> number
            & 1
        ]

    nearest = min(range(len(FORMS)), key=lambda number: len(strangers(number)))
    return (
        f"it looks like {FORMS[nearest].sources}, where {_listed(strangers(nearest))} means nothing"
    )


def _without_counts(usage: object, fields: Mapping[str, object]) -> str:
    for name in ("usage", "usage_metadata", "usageMetadata"):
        held = fields.get(name) or getattr(usage, name, None)
        if held is not None:
            call = "()" if callable(held) else ""
            return f"{_described(usage)} is a response that holds one: pass response.{name}{call}"
    names = [str(name) for name, value in fields.items() if value is not None]
    what = f"has {_listed(names)}" if names else "is empty"
    return f"{_described(usage)} {what}, and neither input nor output that we know"


def _described(usage: object) -> str:
    if usage is None:
        return (
            "None (a response without one, such as a stream that was not asked for it or was cut)"
        )
    return f"{type(usage).__name__}"


def _listed(names: list[str]) -> str:
    more = len(names) - _MOST_NAMES
    return ", ".join(names[:_MOST_NAMES]) + (f" and {more} more" if more > 0 else "")


def _refusal(problem: str) -> InvalidValueError:
    return InvalidValueError(
        "usage",
        f"must be one that we know: {problem}. Taken are a TokenUsage, or the usage of {_TAKEN}",
    )
