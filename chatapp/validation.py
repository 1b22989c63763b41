"""Pydantic's errors in the words of this application: for settings, models.toml and request bodies.

A sentence begins with the place of the mistake, which the caller writes: `"model" is a list; send a
string`.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Final, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

#: Of an address to which secrets go: with TLS, or on this machine.
SAFE_URL: Final = r"^(https://[!-~]+|http://(localhost|127\.0\.0\.1|\[::1\])(:\d+)?(/[!-~]*)?)$"
# By pydantic's type of error. {found} is the value's type, or a whole number out of bounds.
SENTENCES: Final = {
    "missing": "is missing; {verb} it",
    "extra_forbidden": "is unknown; remove it",
    "greater_than": "is {found}; {verb} more than {gt}",
    "greater_than_equal": "is {found}; {verb} at least {ge}",
    "less_than_equal": "is {found}; {verb} at most {le}",
    "too_short": "has too few entries: {actual_length}; {verb} at least {min_length}",
    "too_long": "has {actual_length}; {verb} at most {max_length}",
    **dict.fromkeys(
        ("int_type", "int_parsing", "int_from_float"), "is {found}; {verb} a whole number"
    ),
    "float_type": "is {found}; {verb} a number",
    "date_type": "is {found}; {verb} a date",
    **dict.fromkeys(("bool_parsing", "bool_type"), "is {found}; {verb} true or false"),
    "list_type": "is {found}; {verb} a list",
    **dict.fromkeys(("dict_type", "model_type"), "is {found}; {verb} an object"),
    "string_type": "is {found}; {verb} a string",
    "string_too_short": "is too short; {verb} {min_length} or more characters",
    "string_too_long": "is too long; {verb} at most {max_length} characters",
    "string_unicode": "contains half of a surrogate pair; {verb} whole characters",
    "literal_error": "is {found}; {verb} {expected}",
    "value_error": "{error}",
}
SHOWN_DIGITS: Final = 20
BOUNDS: Final = ("gt", "ge", "le")
KINDS: Final[dict[object, str]] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    int | None: "a whole number",
    tuple[int, ...]: "whole numbers from 1 to 100, separated by commas; off or 0 for none",
    tuple[str, ...]: "a list of names, separated by commas",
    dict[str, str]: "a JSON object of strings",
}


def unique_names(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Refuse a duplicate name in JSON: parsers disagree on which value counts."""
    names = dict(pairs)
    if len(names) < len(pairs):
        raise ValueError("duplicate name in an object")
    return names


def location(error: ErrorDetails) -> str:
    """Return where the mistake is: "models.gpt-4o.price"."""
    return ".".join(map(str, error["loc"]))


def problem(error: ErrorDetails, *, verb: str = "send") -> str:
    """Return what is wrong and what to do: "is a string; send a whole number". ``verb`` is what the
    author does."""
    sentence = SENTENCES.get(error["type"])
    if sentence is None:
        return error["msg"]
    value, context = error["input"], error.get("ctx", {})
    shown = type_name(value)
    if not context.keys().isdisjoint(BOUNDS):
        match value:
            case str() if len(value) <= SHOWN_DIGITS:  # a number, in a query
                shown = value
            # Python refuses to print whole numbers of very many digits.
            case int() if abs(value) < 10**SHOWN_DIGITS:
                shown = str(value)
    return sentence.format(found=shown, verb=verb, **context)


def allowed(field: FieldInfo) -> str:
    """Return the values of a field with its bounds: "a whole number from 1 to 5"."""
    bounds = {
        bound: getattr(constraint, bound)
        for constraint in field.metadata
        for bound in BOUNDS
        if hasattr(constraint, bound)
    }
    is_list = get_origin(field.annotation) in (tuple, frozenset)
    kind = KINDS.get(field.annotation, "a list, separated by commas" if is_list else "a string")
    if not bounds:
        return kind
    least = f"from {bounds['ge']}" if "ge" in bounds else f"above {bounds['gt']}"
    return f"{kind} {least} to {bounds['le']}"


def type_name(value: object) -> str:
    """Return the type of a JSON value: "a list"."""
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case int() | float() | Decimal():
            return "a number"
        case str():
            return "a string"
        case list():
            return "a list"
        case _:
            return "an object"
