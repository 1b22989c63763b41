"""Read the fields of acts from texts: the options of commands and the forms of /admin."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import UnionType
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from chatapp.actions.action import Call, FieldError, Fields, checked
from chatapp.actions.table import ITEMS, Action
from chatapp.operators import arguments
from chatapp.operators.rights import Operator
from ratelimit_ext import OperatorError

#: What was written for a field: texts, several if it is a list, or whether a box is ticked.
Written: TypeAlias = Sequence[str] | bool


class Place(NamedTuple):
    """Where a value belongs: the query or the body, the names of the field, and the field."""

    model: Literal["query", "body"]
    names: tuple[str, ...]
    field: FieldInfo

    @property
    def name(self) -> str:
        """Its name among the fields of the act: `people_most_new` is a field in a field."""
        return "_".join(self.names)

    @property
    def type(self) -> Any:
        return bare(self.field.annotation)

    @property
    def is_nested(self) -> bool:
        """Return whether its value is an object with fields."""
        return isinstance(self.type, type) and issubclass(self.type, Fields)


def bare(annotation: Any) -> Any:
    """Return a type without its validators, and without None."""
    if get_origin(annotation) is Annotated:
        return bare(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return bare(next(option for option in get_args(annotation) if option is not type(None)))
    return annotation


def places(row: Action) -> dict[str, Place]:
    fields = (*_places("query", row.query), *_places("body", row.body))
    return {field.name: field for field in fields}


def _places(
    model: Literal["query", "body"], fields: type[BaseModel] | None, *before: str
) -> Iterator[Place]:
    for name, field in (fields.model_fields if fields else {}).items():
        place = Place(model, (*before, field.alias or name), field)
        yield place
        if place.is_nested:
            yield from _places(model, place.type, *place.names)


def call_of(row: Action, operator: Operator, written: Mapping[str, Written]) -> Call:
    """Return the call of an act with what was written for its fields. An empty text clears a list
    or an optional field. Raises FieldError."""
    values: dict[str, dict[str, Any]] = {"query": {}, "body": {}}
    for name, place in places(row).items():
        if name not in written:
            continue
        fields = values[place.model]
        for outer in place.names[:-1]:
            if not isinstance(fields.get(outer), dict):  # what turns it on comes before
                raise FieldError(name, f'"{name}" needs "{outer}" as well.')
            fields = fields[outer]
        fields[place.names[-1]] = _value(place, written[name])
    query = checked(row.query, values["query"])
    return Call(operator, query, None if row.body is None else checked(row.body, values["body"]))


def _value(place: Place, written: Written) -> Any:
    if place.is_nested:
        return {} if written else None
    if isinstance(written, bool):
        return written
    texts = [text for text in written if text]
    if get_origin(place.type) is dict:
        try:
            limits = dict(map(arguments.own_limit, texts))
        except OperatorError as error:
            raise FieldError(place.name, f"{place.name}: {error}", code=error.code) from None
        if len(limits) < len(texts):
            raise FieldError(place.name, f"{place.name}: {texts} name a limit twice; write it once")
        return limits
    if get_origin(place.type) is list:
        return texts
    may_be_none = type(None) in get_args(place.field.annotation)
    return texts[-1] if texts else None if may_be_none else ""


def check_item(row: Action, call: Call, path: Mapping[str, str], *, verb: str) -> None:
    """Raise OperatorError if ``create`` names an item that exists, or another verb one that does
    not."""
    item = ITEMS.get(row.path)
    if item is None or item is row:
        return
    try:
        item.function(call, **path)
    except ValueError:
        if verb != "create":
            raise
    else:
        if verb == "create":
            raise FieldError(
                next(iter(path)), f"{' '.join(path.values())!r} already exists.", code="exists"
            )
