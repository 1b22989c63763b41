"""POST /v1/chat/completions, as OpenAI has it: `openai.OpenAI(base_url=…)` works with this server
unchanged."""

from __future__ import annotations

from typing import Annotated, Final

from flask import Blueprint, Response, g, request
from pydantic import Field, ValidationError

from chatapp.blueprints import compatible_request, endpoint, model_choice
from chatapp.blueprints.compatible_request import CHOICES_MOST, CompatibleRequest, TokenCount
from chatapp.blueprints.endpoint_errors import EndpointErrors
from chatapp.blueprints.openai_shape import OpenAIShape
from chatapp.conversation import Turn

bp = Blueprint("openai_api", __name__, url_prefix="/v1")
shape = OpenAIShape()
EndpointErrors(lambda: shape).install(bp)

EXAMPLE: Final = '{"model": "offline", "messages": [{"role": "user", "content": "hello"}]}'


class _Fields(compatible_request.Fields):
    max_tokens: TokenCount | None = None
    max_completion_tokens: TokenCount | None = None
    n: Annotated[int, Field(ge=1, le=CHOICES_MOST)] | None = None

    @property
    def choices(self) -> int:
        """How many answers are asked for."""
        return self.n or 1

    @property
    def most_output_tokens(self) -> int | None:
        """Of all choices together; None where the request sets no bound."""
        most = self.max_completion_tokens or self.max_tokens
        return most and most * self.choices


@bp.before_request
def read_request() -> None:
    """Check the body before the view, which is where limits are decided."""
    if request.method != "POST":
        return
    document = compatible_request.read_document(request, example=EXAMPLE)
    try:
        fields = _Fields.model_validate(document.fields)
    except ValidationError as error:
        compatible_request.refuse(error)
    model = model_choice.served(fields.model, by=shape.provider)
    g.chat_request = CompatibleRequest(
        passage=compatible_request.passage(request, document, headers=("OpenAI-Beta",)),
        turn=Turn(compatible_request.last_text(fields.messages), model),
        stream=fields.stream or False,
        extras=compatible_request.extras(model, document.fields),
        most_output_tokens=fields.most_output_tokens,
        choices=fields.choices,
    )


@bp.post("/chat/completions")
def chat_completions() -> Response:
    """A chat completion, whole or in chunks."""
    return endpoint.answer(g.chat_request, shape)
