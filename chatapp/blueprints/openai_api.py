"""POST /v1/chat/completions in OpenAI's protocol: `openai.OpenAI(base_url=…)` works with this
server unchanged."""

from __future__ import annotations

from typing import Annotated, Final

from flask import Blueprint, Response
from flask.globals import request_ctx
from pydantic import Field

from chatapp.web.current_request import current_request
from chatapp.web.formats import OPENAI
from chatapp.web.formats.errors import FormatErrors
from chatapp.web.requests import vendor
from chatapp.web.requests.vendor import CHOICES_MOST, TokenCount
from chatapp.web.responses import respond_as_vendor

bp = Blueprint("openai_api", __name__, url_prefix="/v1")
FormatErrors(lambda: OPENAI).install(bp)

EXAMPLE: Final = '{"model": "offline", "messages": [{"role": "user", "content": "hello"}]}'


class _Fields(vendor.Fields):
    max_tokens: TokenCount | None = None
    max_completion_tokens: TokenCount | None = None
    n: Annotated[int, Field(ge=1, le=CHOICES_MOST)] | None = None

    @property
    def choices(self) -> int:
        return self.n or 1

    @property
    def most_output_tokens(self) -> int | None:
        most = self.max_completion_tokens or self.max_tokens
        return most and most * self.choices


@bp.before_request
def read_request() -> None:
    """Check the body before the view, in which limits are decided."""
    request = request_ctx.request  # not the proxy, which looks it up for each attribute
    if request.method == "POST":
        current_request().model_request = vendor.read(
            request, _Fields, provider="openai", example=EXAMPLE, headers=("OpenAI-Beta",)
        )


@bp.post("/chat/completions")
def chat_completions() -> Response:
    """A chat completion, whole or in chunks."""
    return respond_as_vendor(OPENAI)
