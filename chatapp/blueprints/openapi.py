"""GET /openapi.json: the description of this server's endpoints."""

from __future__ import annotations

from typing import Final

from flask import Blueprint, Response, current_app, json

from chatapp.blueprints import anthropic_api, openai_api, openai_stored
from chatapp.conversation import Reply
from chatapp.providers import Usage
from chatapp.web.errors import PROVIDER_ERRORS, error_body
from chatapp.web.formats import ANTHROPIC, OPENAI
from chatapp.web.formats.chat import answer_fields
from chatapp.web.openapi import Described, document, schema_of
from chatapp.web.requests import vendor
from chatapp.web.requests.chat import OneMessage, WholeConversation

bp = Blueprint("openapi", __name__)

JSON: Final = "application/json"
#: Where an application keeps it: making it takes a tenth of a second.
DOCUMENT: Final = "chatapp.openapi"
STREAM: Final = "text/event-stream"
#: The views that may stream their answers.
STREAMED: Final = frozenset({"chat_completions", "responses", "messages"})
#: The statuses of errors: of every request; where a key is needed; where a body is read; and of
#: calls of a provider.
ANY: Final = (400, 429, 503)
KEYED: Final = (*ANY, 401, 403)
WITH_BODY: Final = (*KEYED, 404, 408, 413, 415)
UPSTREAM: Final = (502, 503, 504)
OF_PROVIDERS: Final = {status for status, _, _ in PROVIDER_ERRORS.values()}
#: By the names of their schemas.
ERRORS: Final = {
    "error": [error_body],
    "openai_error": [OPENAI.error_body],
    "anthropic_error": [ANTHROPIC.error_body],
    "vendor_error": [OPENAI.error_body, ANTHROPIC.error_body],
}
REPLIES: Final = [
    answer_fields(Reply("", "", usage), 0.5)
    for usage in (None, Usage(input_tokens=0, output_tokens=0))
]


def _described() -> dict[str, Described]:
    """By endpoint."""
    called = {*WITH_BODY, *UPSTREAM}
    stored = Described(
        errors="openai_error",
        statuses={*KEYED, 404, *UPSTREAM},
        query=(*openai_stored.QUERY, openai_stored.STREAM),
    )
    return {
        "chat.chat": Described(
            errors="error",
            statuses={*WITH_BODY, 422, *OF_PROVIDERS} - {404},
            body=OneMessage | WholeConversation,
            answer=schema_of(*REPLIES),
            content=(JSON, STREAM),
        ),
        **{
            f"openai_api.{name}": Described(
                errors="openai_error",
                statuses=called,
                body=address.fields,
                content=(JSON, STREAM) if name in STREAMED else (JSON,),
                headers=openai_api.HEADERS,
            )
            for name, address in openai_api.ADDRESSES.items()
        },
        **{
            f"anthropic_api.{name}": Described(
                errors="anthropic_error",
                statuses=called,
                body=body,
                content=(JSON, STREAM) if name in STREAMED else (JSON,),
                query=anthropic_api.QUERY,
                headers=anthropic_api.HEADERS,
            )
            for name, body in anthropic_api.BODIES.items()
        },
        "openai_stored.count": Described(
            errors="openai_error", statuses=called, body=vendor.InputFields
        ),
        **dict.fromkeys(
            ("openai_stored.response", "openai_stored.cancel", "openai_stored.input_items"), stored
        ),
        "models_api.models": Described(
            errors="vendor_error", statuses=KEYED, headers=("anthropic-version",)
        ),
        "models_api.model": Described(
            errors="vendor_error", statuses=(*KEYED, 404), headers=("anthropic-version",)
        ),
        "usage.usage": Described(errors="error", statuses=KEYED),
        "usage.models": Described(errors="error", statuses=KEYED),
        "usage.call": Described(errors="error", statuses={*KEYED, 404}),
        "page.page": Described(errors="error", statuses=ANY, content=("text/html",), is_open=True),
        "openapi.description": Described(errors="error", statuses=ANY, is_open=True),
        "health.healthz": Described(errors="error", statuses=(), is_open=True, is_limited=False),
        "health.readyz": Described(errors="error", statuses=(503,), is_open=True, is_limited=False),
    }


@bp.get("/openapi.json")
def description() -> Response:
    """This description."""
    known: str | None = current_app.extensions.get(DOCUMENT)
    if known is None:
        known = json.dumps(document(current_app, _described(), ERRORS))
        current_app.extensions[DOCUMENT] = known
    return Response(known, content_type=JSON)
