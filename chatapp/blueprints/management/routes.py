"""The acts as addresses: each is a view that checks the rights, reads the fields, and answers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from hashlib import sha256
from typing import Any, Final

from flask import Response, g, json, request
from flask.typing import ResponseReturnValue

from chatapp.accounts.api_key import FORM
from chatapp.actions.action import Call, checked, plain
from chatapp.actions.pages import csv_of, page
from chatapp.actions.table import ACTIONS, ITEMS, Action
from chatapp.blueprints.management.access import bp, unrouted
from chatapp.operators.rights import Operator
from chatapp.operators.users import Put
from chatapp.services import current_services
from chatapp.web.errors import ApiError
from chatapp.web.requests.json_body import read_object
from ratelimit_ext import client_ip
from ratelimit_ext.operators import printable

__all__ = ["bp", "unrouted"]

log = logging.getLogger(__name__)

#: Fields that change without an operator. ETags ignore them.
VOLATILE: Final = frozenset({"last_used", "shares", "ahead", "blocked"})


def _view(row: Action) -> Callable[..., ResponseReturnValue]:
    return lambda **path: _answer(row, path)


def _answer(row: Action, path: Mapping[str, str]) -> ResponseReturnValue:
    operator: Operator = g.operator
    operator.check(row.scope, of_team=row.of_team)
    try:
        query = checked(row.query, {n: v if v[1:] else v[0] for n, v in request.args.lists()})
    except UnicodeDecodeError:
        raise ApiError(400, "invalid_query", "The query is not UTF-8. Percent-encode it.") from None
    body = row.body and checked(row.body, read_object(request, example="{}"))
    call = Call(operator, query, body)
    if row.method == "GET":
        answer = row.function(call, **path)
        return _item(answer) if row.order is None else _page(row.order, answer, query)
    item = ITEMS.get(row.path)
    with current_services().database.alone("changing"):
        _check_etag(item, call, path)
        done = row.function(call, **path)
    sent = printable(FORM.sub(r"\1\2", request.path))  # it may have a whole key
    log.warning("%s, from %s: %s %s", operator.by, client_ip(), row.method, sent)
    is_new = done.is_new if isinstance(done, Put) else "key" in done
    status = 201 if is_new else 200
    if isinstance(done, Put):
        if operator.may("read", of_team=True):
            return _item(ITEMS[row.path].function(call, **path), status)
        done = {"done": done.done}
    return Response(_text(done), status=status, content_type="application/json")


def _check_etag(item: Action | None, call: Call, path: Mapping[str, str]) -> None:
    """Raise ApiError (412) if If-Match or If-None-Match does not hold for the item."""
    if not (request.if_match or request.if_none_match):
        return
    if item is None:
        raise ApiError(400, "no_etag", "This resource has no ETag; remove If-Match.")
    if not (request.if_match.star_tag or request.if_none_match.star_tag):  # it tests a guess
        call.operator.check(item.scope, of_team=item.of_team)
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


def _etag(fields: Mapping[str, Any]) -> str:
    shown = {name: value for name, value in fields.items() if name not in VOLATILE}
    return sha256(json.dumps(shown, sort_keys=True, default=str).encode()).hexdigest()[:32]


def _item(fields: Mapping[str, Any], status: int = 200) -> Response:
    response = Response(_text(fields), status=status, content_type="application/json")
    response.set_etag(_etag(fields))
    if request.method == "GET":
        response.make_conditional(request)
    return response


def _page(names: str, rows: Iterable[Any], query: Any) -> Response:
    """Return a page of a list, or all of it as CSV."""
    best = request.accept_mimetypes.best_match(["application/json", "text/csv"])
    if query.format == "csv" or best == "text/csv":
        return Response(csv_of(names, rows, query), mimetype="text/csv")
    items, more = page(names, rows, query, most=100)
    return Response(_text({"items": items, "next": more}), content_type="application/json")


def _text(value: object) -> str:
    return json.dumps(value, default=plain, sort_keys=False)


for row in ACTIONS:
    # A name may have two slashes in a row.
    bp.add_url_rule(row.path, row.name, _view(row), methods=[row.method], merge_slashes=False)
