"""GET /openapi.json: the description of this server's endpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from flask import Blueprint, Response, send_file

bp = Blueprint("openapi", __name__)

#: Written by hand; a test compares it with the routes and the bodies that they read.
DOCUMENT: Final = Path(__file__).parents[1] / "openapi.json"


@bp.get("/openapi.json")
def description() -> Response:
    return send_file(DOCUMENT)
