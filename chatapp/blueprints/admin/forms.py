"""The forms of /admin: each is an act of the table."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Final

from flask import Response, g, redirect, request, url_for
from flask.typing import ResponseReturnValue

from chatapp.actions.action import FieldError
from chatapp.actions.table import ACTIONS, Action
from chatapp.actions.texts import Written, call_of, check_item, places
from chatapp.blueprints.admin.access import RIGHTS, bp, own_address, sessions
from chatapp.operators import spreadsheet
from chatapp.operators.users import Put
from chatapp.settings import SCOPES
from chatapp.web.errors import ApiError
from ratelimit_ext import client_ip
from ratelimit_ext.operators import printable

log = logging.getLogger(__name__)

#: The acts that change something, by name.
ACTS: Final = {row.name: row for row in ACTIONS if row.method != "GET"}
RIGHTS["admin.act"] = (SCOPES, True)  # the act says who may
#: What is ticked sends this.
ON: Final = "on"


def may_act(name: str, owner: str = "user") -> bool:
    """Return whether the operator may send the form of an act, about an owner of amounts."""
    may, row = g.admin.operator.may, ACTS[name]
    needs_teams = owner == "team" and not may("teams", of_team=False)
    return may(row.scope, of_team=row.of_team) and not needs_teams


bp.context_processor(lambda: {"may_act": may_act})


@bp.post("/act/<name>")
def act(name: str) -> ResponseReturnValue:
    """Do what the form says, and show what was done: on the page of the form, or of what is new."""
    row, operator = ACTS.get(name), g.admin.operator
    if row is None:
        raise ApiError(404, "not_found", "There is no such form. Reload its page.")
    operator.check(row.scope, of_team=row.of_team)
    path = {part: _part(part, words) for part, words in row.parts.items()}
    call = call_of(row, operator, _written(row))
    check_item(row, call, path, verb=request.form.get("verb", "set"))
    answer = row.function(call, **path)
    if isinstance(answer, Put):
        answer = {"done": answer.done, "is_new": answer.is_new}
    sentence = answer.get("done", "Done.")
    log.warning("%s, from %s: %s", operator.by, client_ip(), printable(sentence))
    if answer.get("keys"):
        return _keys(answer["keys"])
    address = _next(name, path, answer)
    joint = "&" if "?" in address else "?"
    return redirect(f"{address}{joint}done={sessions().sealed(sentence)}", 303)


def _written(row: Action) -> dict[str, Written]:
    """Return what is in the form. An empty field is left out, unless the form says that it clears
    what is there."""
    written: dict[str, Written] = {}
    cleared = request.form.getlist("clears")
    for name, place in places(row).items():
        text = "\n".join(request.form.getlist(name)).strip()
        if place.type is bool:
            if text:
                written[name] = text == ON
        elif text or name in cleared:
            # Names of several models, and amounts, are in a line each.
            written[name] = [text] if place.type is str else text.splitlines()
    return written


def _next(name: str, path: dict[str, str], answer: Mapping[str, Any]) -> str:
    """Return the address of the page that follows: of the form, unless it is about another."""
    new = answer.get("key")
    if name == "delete_user":
        return url_for("admin.users")
    if name == "put_team" and answer["is_new"]:
        return url_for("admin.team", name=path["team"])
    if new is None:
        return own_address(request.form.get("back", ""))
    user = answer.get("user")
    sessions().hand_over(new, of=user or "", to=g.admin)
    return url_for("admin.user", name=user) if user else url_for("admin.operators")


def _keys(keys: dict[str, str]) -> Response:
    """Return the keys of an import as CSV to download, once."""
    lines = spreadsheet.lines(("user", "key"), keys.items())
    headers = {"Content-Disposition": 'attachment; filename="keys.csv"'}
    return Response("".join(lines), mimetype="text/csv", headers=headers)


def _part(name: str, words: Sequence[str]) -> str:
    """Return a part of the path, from the form. OperatorError unless it is one of these words."""
    value = request.form.get(name, "").strip()
    if not value:
        raise FieldError(name, f"The field {name!r} is empty.", code="empty_field")
    if words and value not in words:
        listed = ", ".join(words)
        raise FieldError(name, f"{value!r} cannot be {name}; choose {listed}.", code="unknown_kind")
    return value
