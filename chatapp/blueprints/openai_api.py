"""POST /v1/chat/completions in OpenAI's protocol: `openai.OpenAI(base_url=…)` works with this
server unchanged."""

from __future__ import annotations

from typing import Annotated, Final

from flask import Blueprint, Response, g, request
from pydantic import Field, ValidationError

from chatapp.conversation import Turn
from chatapp.web import vendor_endpoint
from chatapp.web.formats.errors import FormatErrors
from chatapp.web.formats.openai import OpenAIFormat
from chatapp.web.requests import vendor
from chatapp.web.requests.model import served_model
from chatapp.web.requests.vendor import CHOICES_MOST, TokenCount, VendorRequest

bp = Blueprint("openai_api", __name__, url_prefix="/v1")
wire_format = OpenAIFormat()
FormatErrors(lambda: wire_format).install(bp)

EXAMPLE: Final = '{"model": "offline", "messages": [{"role": "user", "content": "hello"}]}'


class _Fields(vendor.Fields):
    max_tokens: TokenCount | None = None
    max_completion_tokens: TokenCount | None = None
    n: Annotated[int, Field(ge=1, le=CHOICES_MOST)] | None = None

    @property
    def choices(self) -> int:
        """The number of requested answers."""
        return self.n or 1

    @property
    def most_output_tokens(self) -> int | None:
        """Of all choices together; None where the request sets no bound."""
        most = self.max_completion_tokens or self.max_tokens
        return most and most * self.choices


@bp.before_request
def read_request() -> None:
    """Check the body before the view, in which limits are decided."""
    if request.method != "POST":
        return
    document = vendor.read_document(request, example=EXAMPLE)
    try:
        fields = _Fields.model_validate(document.fields)
    except ValidationError as error:
        vendor.refuse(error)
    model = served_model(fields.model, provider=wire_format.provider)
    g.chat_request = VendorRequest(
        raw_request=vendor.raw_request(request, document, headers=("OpenAI-Beta",)),
        turn=Turn(vendor.last_text(fields.messages), model),
        stream=fields.stream or False,
        extras=vendor.extras(model, document.fields),
        most_output_tokens=fields.most_output_tokens,
        choices=fields.choices,
    )


@bp.post("/chat/completions")
def chat_completions() -> Response:
    """A chat completion, whole or in chunks."""
    return vendor_endpoint.answer(g.chat_request, wire_format)
