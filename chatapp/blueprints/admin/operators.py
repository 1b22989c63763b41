"""The keys of operators, which those with the scope ``all`` create."""

from __future__ import annotations

from flask import g
from flask.typing import ResponseReturnValue

from chatapp.blueprints.admin.access import RIGHTS, bp, sessions
from chatapp.blueprints.admin.formats import shown
from chatapp.services import current_services
from chatapp.settings import SCOPES

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
