"""The table of actions: each has an address, a scope, the function behind it, and the fields that
it reads. Routes, /openapi.json and the tests of scopes come from it."""

from __future__ import annotations

import logging
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from hashlib import sha256
from itertools import chain, dropwhile, islice
from typing import Any, Final, Literal, TypeAlias, TypeVar

from flask import Response, g, json, request
from flask.typing import ResponseReturnValue
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from chatapp import validation
from chatapp.blueprints.management.access import FieldError, bp, sentence_of
from chatapp.operators import spreadsheet
from chatapp.operators.rights import Operator
from chatapp.services import current_services
from chatapp.settings import Scope
from chatapp.web.errors import ApiError
from chatapp.web.requests.json_body import read_object
from ratelimit_ext import OperatorError, client_ip

log = logging.getLogger(__name__)

F = TypeVar("F", bound=Callable[..., Any])
M = TypeVar("M", bound=BaseModel)
#: A path may have names with slashes at its end.
Method: TypeAlias = Literal["GET", "PUT", "POST", "DELETE"]
#: PostgreSQL's advisory lock of those who change something: an arbitrary number.
LOCK: Final = 0x6368616E676573
RANKS: Final = {"extra_forbidden": 0, "missing": 2}
#: What changes without a change by an operator, and is no part of an ETag.
VOLATILE: Final = frozenset({"last_used", "shares", "ahead"})


class Fields(BaseModel):
    """Fields of a body or a query; others are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Change(Fields):
    """What every change takes: the reason, for the log."""

    reason: str = Field("", max_length=200)


class Listed(Fields):
    """What every list takes: a page of ``limit`` rows after the ``cursor``, or CSV, of all rows
    unless there is a limit."""

    limit: int | None = Field(None, ge=1, le=1000)
    cursor: str | None = None
    format: Literal["json", "csv"] = "json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """An address and what it does. ``order`` are the fields that a list is sorted by, downward
    after a minus; ``of_team``: a team's administrator may, on their team."""

    method: Method
    path: str
    scope: Scope
    function: Callable[..., Any]
    body: type[Fields] | None
    query: type[Fields]
    of_team: bool
    order: str | None

    @property
    def name(self) -> str:
        return self.function.__name__


@dataclass(frozen=True, slots=True)
class Call:
    """A call of an action: who makes it, and the fields that it reads."""

    operator: Operator
    query: Any
    body: Any

    @property
    def why(self) -> dict[str, str]:
        """What the log of changes has: the reason, and who."""
        return {"reason": (self.body or self.query).reason.strip(), "by": self.operator.by}


ACTIONS: Final[list[Action]] = []
#: What is at a path, by the path: its ETag is compared before a change.
ITEMS: Final[dict[str, Action]] = {}


def action(
    rule: str,
    scope: Scope,
    *,
    body: type[Fields] | None = None,
    query: type[Fields] | None = None,
    of_team: bool = False,
    order: str | None = None,
) -> Callable[[F], F]:
    """Add a row to the table. The function gets the :class:`Call` and the parts of the path. It
    returns what is there, for a list its rows, for a change what was done; a PUT at the path of an
    item returns whether that is new."""
    method, _, path = rule.partition(" ")

    def add(function: F) -> F:
        plain = Listed if order is not None else Fields if body or method == "GET" else Change
        row = Action(
            method=method,  # type: ignore[arg-type]
            path=path,
            scope=scope,
            function=function,
            body=body,
            query=query or plain,
            of_team=of_team,
            order=order,
        )
        ACTIONS.append(row)
        if method == "GET" and order is None:
            ITEMS[path] = row

        def view(**path: str) -> ResponseReturnValue:
            return _answer(row, path)

        # A name may have two slashes in a row.
        bp.add_url_rule(path, function.__name__, view, methods=[method], merge_slashes=False)
        return function

    return add


def _answer(row: Action, path: Mapping[str, str]) -> ResponseReturnValue:
    operator: Operator = g.operator
    operator.check(row.scope, of_team=row.of_team)
    try:
        query = checked(row.query, request.args.to_dict())
    except UnicodeDecodeError:
        raise ApiError(400, "invalid_query", "The query is not UTF-8. Percent-encode it.") from None
    body = None
    if row.body is not None:
        body = checked(row.body, read_object(request, example="{}"))
    call = Call(operator, query, body)
    if row.method == "GET":
        found = row.function(call, **path)
        return _item(found) if row.order is None else _page(row.order, found, query)
    item = ITEMS.get(row.path)
    with current_services().database.alone("changing", LOCK):
        _check_etag(item, call, path)
        done = row.function(call, **path)
    log.warning("%s, from %s: %s %s", operator.by, client_ip(), row.method, request.path)
    if isinstance(done, bool):
        assert item is not None
        return _item(item.function(call, **path), 201 if done else 200)
    status = 201 if "key" in done else 200
    return Response(_text(done), status=status, content_type="application/json")


# -- what is read --------------------------------------------------------------------------------


def checked(model: type[M], found: Mapping[str, Any]) -> M:
    """Return the fields; FieldError for the first that is wrong."""
    try:
        return model.model_validate(found)
    except ValidationError as mistakes:
        # A misspelt field first, and what is missing for it last.
        error = min(mistakes.errors(), key=lambda each: RANKS.get(each["type"], 1))
    name, cause = validation.location(error), error.get("ctx", {}).get("error")
    if isinstance(cause, OperatorError):
        raise FieldError(name, f"{name}: {sentence_of(cause)}", code=cause.code)
    known = ", ".join(each.alias or name for name, each in model.model_fields.items()) or "none"
    allowed = f". Known fields: {known}" if error["type"] == "extra_forbidden" else ""
    raise FieldError(name, f'"{name}" {validation.problem(error)}{allowed}.')


@contextmanager
def of_field(name: str) -> Iterator[None]:
    """Report what is wrong as a mistake of that field: what a body names is not an address."""
    try:
        yield
    except OperatorError as error:
        if error.code == "forbidden":
            raise
        raise FieldError(name, f"{name}: {sentence_of(error)}", code=error.code) from None


def _check_etag(item: Action | None, call: Call, path: Mapping[str, str]) -> None:
    """ApiError (412) if someone else has changed what the caller has seen, or has made it."""
    if not (request.if_match or request.if_none_match):
        return
    if item is None:
        raise ApiError(400, "no_etag", "What is here has no ETag. Leave If-Match out.")
    try:
        etag: str | None = _etag(item.function(call, **path))
    except ValueError as error:
        if getattr(error, "code", "") == "forbidden":
            raise
        etag = None
    is_other = request.if_match and not (etag and request.if_match.contains(etag))
    if is_other or (etag and request.if_none_match.contains(etag)):
        raise ApiError(
            412,
            "changed_meanwhile",
            "Another operator has changed this. GET it again, and send its new ETag.",
        )


# -- what is answered ----------------------------------------------------------------------------


def _etag(found: Mapping[str, Any]) -> str:
    shown = {name: value for name, value in found.items() if name not in VOLATILE}
    return sha256(json.dumps(shown, sort_keys=True, default=str).encode()).hexdigest()[:32]


def _item(found: Mapping[str, Any], status: int = 200) -> Response:
    response = Response(_text(found), status=status, content_type="application/json")
    response.set_etag(_etag(found))
    if request.method == "GET":
        response.make_conditional(request)
    return response


def _page(names: str, rows: Iterable[Any], query: Any) -> Response:
    """Return a page of a list, or all of it as CSV. Rows of an iterator are in order already."""

    def order(row: Mapping[str, Any]) -> list[Any]:
        values = ((row[name.lstrip("-")], name[0] == "-") for name in names.split())
        return [-each if is_down else _text_or(each) for each, is_down in values]

    found = rows if isinstance(rows, Iterator) else iter(sorted(rows, key=order))
    if query.cursor:
        after = _read_cursor(query.cursor)
        found = dropwhile(lambda each: order(each) <= after, found)
        try:
            found = chain(list(islice(found, 1)), found)
        except TypeError:  # a cursor of another list
            raise _invalid_cursor() from None
    best = request.accept_mimetypes.best_match(["application/json", "text/csv"])
    if query.format == "csv" or best == "text/csv":
        lines = spreadsheet.of_records(islice(found, query.limit))
        return Response(lines, mimetype="text/csv")
    limit = query.limit or 100
    part = list(islice(found, limit + 1))
    more = _cursor(order(part[limit - 1])) if len(part) > limit else None
    text = _text({"items": part[:limit], "next": more})
    return Response(text, content_type="application/json")


def _text_or(value: Any) -> Any:
    """Return a value as cursors have it."""
    return value.isoformat() if isinstance(value, date) else "" if value is None else value


def _cursor(place: list[Any]) -> str:
    return urlsafe_b64encode(json.dumps(place, default=str).encode()).decode()


def _read_cursor(text: str) -> list[Any]:
    try:
        found = json.loads(urlsafe_b64decode(text))
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, list):
        raise _invalid_cursor()
    return found


def instant_of(cursor: str) -> datetime:
    """Return the time at which the cursor is, in a list that is ordered by time first."""
    try:
        return datetime.fromisoformat(_read_cursor(cursor)[0]).astimezone(UTC)
    except (IndexError, TypeError, ValueError, OverflowError):
        raise _invalid_cursor() from None


def _invalid_cursor() -> FieldError:
    return FieldError("cursor", '"cursor" is not of this list; send the "next" of its last page.')


def _text(value: object) -> str:
    return json.dumps(value, default=_plain, sort_keys=False)


def _plain(value: object) -> object:
    match value:
        case Decimal():
            return float(value)
        case date():
            return value.isoformat()
        case _:
            return str(value)
