"""Pydantic's error about a field of a body, as the end of a sentence."""

from __future__ import annotations

from typing import Final

from pydantic_core import ErrorDetails

from chatapp.web.requests import json_body

# By pydantic's type of error; {found} is what was sent, {ge} and {le} are the bounds.
SENTENCES: Final = {
    "missing": "is missing; send it",
    "greater_than_equal": "is {found}; send at least {ge}",
    "less_than_equal": "is {found}; send at most {le}",
    "too_short": "is empty; send at least one",
    "int_type": "is {found}; send a whole number",
    "int_from_float": "is {found}; send a whole number",
    "bool_type": "is {found}; send true or false",
    "list_type": "is {found}; send a list",
    "dict_type": "is {found}; send an object",
    "string_type": "is {found}; send a string",
    "string_unicode": "contains half of a surrogate pair; send whole characters",
}
SHOWN_CHARACTERS: Final = 20


def problem(error: ErrorDetails) -> str:
    """What is wrong with the field: "is a string; send a whole number"."""
    sentence = SENTENCES.get(error["type"])
    if sentence is None:
        return error["msg"]
    found = error["input"]
    is_whole = isinstance(found, int) and not isinstance(found, bool)
    # Python refuses to print whole numbers of very many digits.
    shown = str(found) if is_whole and abs(found) < 10**SHOWN_CHARACTERS else ""
    return sentence.format(found=shown or json_body.type_name(found), **error.get("ctx", {}))
