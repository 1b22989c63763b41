"""The body of a request in a vendor's own protocol.

Only the fields that limits and prices depend on are read and checked. All others are forwarded
unread.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Final, NoReturn

from flask import Request
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import PydanticCustomError

from chatapp import validation
from chatapp.catalogue import Model
from chatapp.conversation import ModelUnavailableError, Turn, UnknownModelError
from chatapp.providers import Extras, RawRequest
from chatapp.services import current_services
from chatapp.web.errors import ApiError
from chatapp.web.formats import addresses
from chatapp.web.requests import ModelRequest, json_body
from chatapp.web.requests.chat import ModelName

# Far more than any conversation has.
MESSAGES_MOST: Final = 10_000
PARTS_MOST: Final = 20_000
# More than any model can generate; the vendor checks its own maximum.
TOKENS_MOST: Final = 1_000_000
# Each choice is billed as a separate answer.
CHOICES_MOST: Final = 8
HEADER_MAX_CHARACTERS: Final = 1000
OFFLINE: Final = "offline"


def _countable(messages: list[dict[str, object]]) -> list[dict[str, object]]:
    contents = (message.get("content") for message in messages)
    parts = sum(len(content) for content in contents if isinstance(content, list))
    if len(messages) > MESSAGES_MOST or parts > PARTS_MOST:
        raise PydanticCustomError(
            "too_many_messages",
            "has {messages} messages with {parts} parts; send at most {most} with {most_parts}",
            {
                "messages": len(messages),
                "parts": parts,
                "most": MESSAGES_MOST,
                "most_parts": PARTS_MOST,
            },
        )
    return messages


TokenCount = Annotated[int, Field(ge=1, le=TOKENS_MOST)]
Messages = Annotated[list[dict[str, object]], Field(min_length=1), AfterValidator(_countable)]


class Fields(BaseModel):
    """The fields that are read in either vendor's body."""

    model_config = ConfigDict(strict=True, extra="ignore")

    model: ModelName
    messages: Messages
    stream: bool | None = None

    @property
    def choices(self) -> int:
        """The number of requested answers."""
        return 1

    @property
    def most_output_tokens(self) -> int | None:
        """Of all choices together; None if the request sets no bound."""
        return None


def read(
    request: Request,
    fields_of: type[Fields],
    *,
    provider: str,
    example: str,
    headers: tuple[str, ...] = (),
    query: tuple[str, ...] = (),
) -> ModelRequest:
    """The request's body, checked; ApiError if it is invalid, with ``example`` if it is no object.
    ``headers`` and ``query`` name what is forwarded of the request besides its body."""
    # It may be larger than at other endpoints, because it may contain images.
    request.max_content_length = current_services().settings.max_body_bytes
    document = json_body.read_document(request, example=example)
    try:
        fields = fields_of.model_validate(document.fields)
    except ValidationError as error:
        refuse(error)
    model = served_model(fields.model, provider=provider)
    return ModelRequest(
        turn=Turn(_last_text(fields.messages), model),
        most_output_tokens=fields.most_output_tokens,
        stream=fields.stream or False,
        raw_request=RawRequest(
            raw=document.raw,
            fields=document.fields,
            headers={n: _plain(n, request.headers[n]) for n in headers if n in request.headers},
            query=_parameters(request, query),
        ),
        choices=fields.choices,
        extras=_extras(model, document.fields),
    )


def served_model(name: str, *, provider: str) -> Model:
    """The model of that name at the endpoints of that provider's protocol, which serve models in
    that protocol and the offline model; ApiError (404) if they do not serve it."""
    conversation = current_services().conversation
    try:
        model = conversation.model(name)
    except ModelUnavailableError as error:
        raise _not_found(str(error)) from error
    except UnknownModelError as error:
        names = ", ".join(conversation.models_of(provider, OFFLINE))
        raise _not_found(f'Unknown model "{name[:100]}". Choose one of {names}.') from error
    if model.protocol not in {provider, OFFLINE}:
        known = " or ".join(addresses(f"{model.protocol}_"))
        raise _not_found(
            f'The model "{name}" belongs to {model.protocol}. Use {known} for it, or choose a '
            f"model of {provider}."
        )
    return model


def _not_found(message: str) -> ApiError:
    return ApiError(404, "model_not_found", message, param="model")


def _parameters(request: Request, names: tuple[str, ...]) -> dict[str, str]:
    if not request.query_string:
        return {}
    try:
        found = request.args
    except UnicodeDecodeError as error:
        raise ApiError(
            400, "invalid_query", "The query string is not UTF-8. Percent-encode it."
        ) from error
    return {name: _plain(name, found[name]) for name in names if name in found}


def _extras(model: Model, fields: Mapping[str, object]) -> Extras:
    """What changes the price; ApiError (400) for a field without a known price."""
    conversation = current_services().conversation
    found = conversation.extras(model, fields)
    for name, why in found.refused.items():
        raise _unpriced(name, why)
    for name, tier in found.tiers.items():
        if not conversation.catalogue.prices_tier(model, tier):
            raise _unpriced(name, f"has the value {tier!r}, which has no price for {model.name}")
    for tool in found.tools:
        if tool not in conversation.catalogue.tools(model.provider):
            raise _unpriced("tools", f"has {tool!r}, which has no price here")
    return found


def _unpriced(field: str, problem: str) -> ApiError:
    return ApiError(400, "unpriced_field", f'"{field}" {problem}. Leave it out.', param=field)


def _last_text(messages: list[dict[str, object]]) -> str:
    """The text of the last message, in either protocol."""
    content = messages[-1].get("content")
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else ()
    texts = (part.get("text") for part in parts if isinstance(part, Mapping))
    return "\n".join(text for text in texts if isinstance(text, str))


def refuse(error: ValidationError) -> NoReturn:
    """Raise an ApiError for the first error in the body."""
    first = error.errors(include_url=False)[0]
    place = validation.location(first)
    field = str(first["loc"][0])
    raise ApiError(
        400, f"invalid_{field}", f'"{place}" {validation.problem(first)}.', param=place
    ) from error


def _plain(name: str, value: str) -> str:
    if len(value) > HEADER_MAX_CHARACTERS or not (value.isascii() and value.isprintable()):
        raise ApiError(
            400, "invalid_header", f'The value of "{name}" is too long, or not printable ASCII.'
        )
    return value
