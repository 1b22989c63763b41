"""How the JSON of any provider's answer is read. The SDKs do not validate it; these models do, for
the fields that are used here."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field

#: A thousand times more than the longest call. A larger number is an error of the provider, and no
#: limit, price or database column is computed from it.
TOKENS_MAX: Final = 10**9

Tokens = Annotated[int, Field(ge=0, le=TOKENS_MAX)]


class Fields(BaseModel):
    """The fields of one object that are used; others are ignored."""

    model_config = ConfigDict(strict=True)


class OpenFields(Fields):
    """The same, with the others kept in `model_extra`."""

    model_config = ConfigDict(extra="allow")


def generated_bytes(value: object, *, without: Collection[str]) -> int:
    """The size of all strings in a part of an answer, at any depth: text, a refusal, a tool's name
    and arguments, reasoning. ``without`` are the fields that the model did not generate."""
    match value:
        case str():
            return len(value.encode("utf-8", "surrogatepass"))
        case dict():
            inner = [each for name, each in value.items() if name not in without]
            return sum(generated_bytes(each, without=without) for each in inner)
        case list():
            return sum(generated_bytes(each, without=without) for each in value)
        case _:
            return 0
