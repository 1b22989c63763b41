"""The keys of operators, which those with the scope ``all`` create, and the log of changes."""

from __future__ import annotations

from typing import Any

from flask import g
from flask.typing import ResponseReturnValue

from chatapp.blueprints.admin.access import RIGHTS, bp, query, reported, sessions
from chatapp.blueprints.admin.formats import page_of, shown
from chatapp.operators import callers
from chatapp.services import current_services
from chatapp.settings import SCOPES
from ratelimit_ext.operators import with_times

RIGHTS["admin.operators"] = (("all",), False)


@bp.get("/operators")
def operators() -> ResponseReturnValue:
    services = current_services()
    keys = services.admin_keys.all()
    return shown(
        "admin/operators.html",
        {"keys": (key.as_json() for key in keys)},
        keys=keys,
        scopes=SCOPES,
        teams=services.accounts.teams(),
        new_key=sessions().handed_over(of="", to=g.admin),
    )


@bp.get("/changes")
def changes() -> ResponseReturnValue:
    """Return what operators have changed, here and by commands."""
    entries: list[Any] = []
    searched = query("q").strip()
    with reported() as problems:
        entries = callers.shared_operators().log()
    matching = [entry for entry in entries if searched.lower() in _words(entry).lower()]
    return shown(
        "admin/changes.html",
        {"changes": map(with_times, matching)},
        entries=page_of(matching),
        searched=searched,
        problem="".join(problems),
    )


def _words(entry: Any) -> str:
    words = (entry.by, entry.action, entry.identity, entry.limit, entry.amount, entry.reason)
    return " ".join(filter(None, words))
