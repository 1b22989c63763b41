"""Pages for people: GET / to chat, and GET /reference to try every address."""

from __future__ import annotations

from typing import Any, Final

from flask import Blueprint, Response, make_response, render_template

from chatapp.services import current_services
from chatapp.web.compression import compressed
from chatapp.web.middleware import needs_keys

bp = Blueprint("page", __name__)

# No foreign and no inline scripts: a reply that a browser takes for markup cannot run. No foreign
# images either, only the page's own and those that a reply contains.
CONTENT_SECURITY_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "font-src 'self'; connect-src 'self'; form-action 'none'; base-uri 'none'; "
    "frame-ancestors 'none'"
)


@bp.get("/")
def page() -> Response:
    """The page, which is the same for all users."""
    router = current_services().router
    embedding = router.catalogue.embedding
    return _shown(
        "chat.html",
        default_model=router.default_model.name,
        models=[m for m in router.available_models if m not in embedding],
        needs_key=needs_keys(current_services().authenticator),
    )


@bp.get("/reference")
def reference() -> Response:
    return _shown("reference.html")


def _shown(template: str, **facts: Any) -> Response:
    response = make_response(render_template(template, **facts))
    response.headers["Content-Security-Policy"] = CONTENT_SECURITY_POLICY
    response.headers["Referrer-Policy"] = "no-referrer"
    return compressed(response)
