"""The body of a request in a vendor's own protocol.

Only the fields that limits and prices depend on are read and checked. All others are forwarded
unread: the vendor knows them better, and changes them more often.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Final, NoReturn

from flask import Request
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import PydanticCustomError

from chatapp import validation
from chatapp.catalogue import Model
from chatapp.conversation import Turn
from chatapp.providers import Extras, RawRequest
from chatapp.services import current_services
from chatapp.web.errors import ApiError
from chatapp.web.requests import json_body
from chatapp.web.requests.chat import ModelName

# Far more than a conversation has; an answer to each would be paid for.
MESSAGES_MOST: Final = 10_000
PARTS_MOST: Final = 20_000
# Above what any model can generate; its own bound the vendor knows.
TOKENS_MOST: Final = 1_000_000
# Each choice is billed as an answer of its own.
CHOICES_MOST: Final = 8
HEADER_MAX_CHARACTERS: Final = 1000


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


@dataclass(frozen=True, slots=True)
class VendorRequest:
    """A valid request. ``most_output_tokens`` bounds all its answers together, if the request has
    a bound; ``choices`` is the number of answers.

    ``turn`` is for the offline model. There is no ``user_id``: the user that a body names is not an
    identity here. ``extras`` change the price.
    """

    raw_request: RawRequest
    turn: Turn
    stream: bool
    most_output_tokens: int | None
    choices: int = 1
    extras: Extras = field(default_factory=Extras)
    user_id: None = None


def read_document(request: Request, *, example: str) -> json_body.Document:
    """The body. It may be larger than at other endpoints, because it may contain images."""
    request.max_content_length = current_services().settings.max_body_bytes
    return json_body.read_document(request, example=example)


def raw_request(
    request: Request,
    document: json_body.Document,
    *,
    headers: tuple[str, ...] = (),
    query: tuple[str, ...] = (),
) -> RawRequest:
    """The request to forward, with these headers and parameters of the caller."""
    return RawRequest(
        raw=document.raw,
        fields=document.fields,
        headers={
            name: _plain(name, request.headers[name]) for name in headers if name in request.headers
        },
        query=_parameters(request, query),
    )


def _parameters(request: Request, names: tuple[str, ...]) -> dict[str, str]:
    try:
        found = request.args
    except UnicodeDecodeError as error:
        raise ApiError(
            400, "invalid_query", "The query string is not UTF-8; percent-encode it."
        ) from error
    return {name: _plain(name, found[name]) for name in names if name in found}


def extras(model: Model, fields: Mapping[str, object]) -> Extras:
    """What changes the price; ApiError (400) for a field without a price, which no budget would
    count."""
    conversation = current_services().conversation
    found = conversation.extras(model, fields)
    for name, why in found.refused.items():
        raise ApiError(400, "unpriced_field", f'"{name}" {why}; leave it out.', param=name)
    for name, tier in found.tiers.items():
        if not conversation.catalogue.prices_tier(model, tier):
            sentence = f'"{name}" asks for {tier!r}, which has no price for {model.name}'
            raise ApiError(400, "unpriced_field", f"{sentence}; leave it out.", param=name)
    for tool in found.tools:
        if tool not in conversation.catalogue.tools(model.provider):
            sentence = f'"tools" has {tool!r}, which has no price here; leave it out.'
            raise ApiError(400, "unpriced_field", sentence, param="tools")
    return found


def last_text(messages: list[dict[str, object]]) -> str:
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
            400, "invalid_header", f'"{name}" has no value of plain characters; correct it.'
        )
    return value
