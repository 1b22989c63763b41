"""The body of POST /chat: a valid ModelRequest, or an ApiError that says what is wrong."""

from __future__ import annotations

import json
import unicodedata
from difflib import get_close_matches
from typing import Annotated, Final, NoReturn

from flask import Request
from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from chatapp import validation
from chatapp.conversation import Conversation, ModelUnavailableError, Turn, UnknownModelError
from chatapp.web.errors import ApiError
from chatapp.web.requests import ModelRequest, json_body

MESSAGE_MAX_BYTES: Final = 32_000
USER_ID_MAX_CHARACTERS: Final = 256
MODEL_MAX_CHARACTERS: Final = 100
# Not allowed in names: control characters, and separators that break a line.
CONTROL_CATEGORIES: Final = frozenset({"Cc", "Zl", "Zp"})
EXAMPLE: Final = '{"message": "hello"}'
# How much of a field's name is shown.
NAME_SHOWN: Final = 64
PROTOCOLS: Final = "POST /v1/chat/completions and POST /v1/messages"
_LONGEST: Final = f"the operator sets the longest answer; {PROTOCOLS} take one of the caller's"
_TURNS: Final = f'send one turn as "message", or the whole conversation to {PROTOCOLS}'
_OTHERS: Final = f"send it to {PROTOCOLS}"
# Fields that other APIs have, and what to do instead.
ELSEWHERE: Final = {
    "max_tokens": _LONGEST,
    "max_completion_tokens": _LONGEST,
    "history": _TURNS,
    "messages": _TURNS,
    "system": _OTHERS,
    "temperature": _OTHERS,
    "tools": _OTHERS,
    "prompt": 'send it as "message"',
    "user": 'send it as "user_id"',
}


def read(request: Request, conversation: Conversation) -> ModelRequest:
    """The request's body, checked; ApiError (400, 413 or 422) if it is invalid."""
    fields = json_body.read_object(request, example=EXAMPLE)
    for field in fields:
        # Not ignored: the caller expects an effect of it, such as a shorter answer.
        if field not in _Body.model_fields:
            raise ApiError(422, "unknown_field", _unknown(field), param=field)
    try:
        body = _Body.model_validate(fields)
    except ValidationError as error:
        _refuse(error.errors(include_url=False)[0])
    try:
        model = conversation.model(body.model)
    except UnknownModelError as error:
        raise ApiError(422, "unknown_model", str(error)) from error
    except ModelUnavailableError as error:
        raise ApiError(422, "model_unavailable", str(error)) from error
    turn = Turn(message=body.message, model=model)
    return ModelRequest(
        turn=turn,
        user_id=body.user_id,
        most_output_tokens=conversation.max_tokens,
        stream=body.stream or False,
        names_model=body.model is not None,
    )


def _unicode(text: str) -> str:
    """Refuse NUL, and lone surrogates, which no encoding can represent."""
    if "\x00" in text:
        raise PydanticCustomError("nul", "contains the character NUL; remove it")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise PydanticCustomError(
            "surrogate", "contains half of a surrogate pair; send whole characters"
        ) from None
    return text


def _message(text: str) -> str:
    size = len(_unicode(text).encode("utf-8"))
    if size > MESSAGE_MAX_BYTES:
        raise PydanticCustomError(
            "message_too_long",
            "has {size} bytes; allowed are {most}: shorten it",
            {"size": size, "most": MESSAGE_MAX_BYTES},
        )
    if not text.strip():
        raise PydanticCustomError("blank", "is blank; send at least one visible character")
    return text


def _model(text: str) -> str:
    return _name(text, most=MODEL_MAX_CHARACTERS)


def _user_id(text: str) -> str:
    return _name(text, most=USER_ID_MAX_CHARACTERS)


def _name(text: str, *, most: int) -> str:
    if len(_unicode(text)) > most:
        raise PydanticCustomError(
            "too_long",
            "has {size} characters; allowed are {most}: send a shorter one or leave it out",
            {"size": len(text), "most": most},
        )
    if any(unicodedata.category(character) in CONTROL_CATEGORIES for character in text):
        raise PydanticCustomError("control", "contains a control character; remove it")
    if not text.strip():
        raise PydanticCustomError("blank", "is blank; send a name or leave it out")
    return text


ModelName = Annotated[str, AfterValidator(_model)]


class _Body(BaseModel):
    model_config = ConfigDict(strict=True)

    message: Annotated[str, AfterValidator(_message)]
    model: ModelName | None = None
    user_id: Annotated[str, AfterValidator(_user_id)] | None = None
    stream: bool | None = None


def _refuse(error: ErrorDetails) -> NoReturn:
    field = str(error["loc"][0])
    problem = validation.problem(error, missing=f"is missing; send a body like {EXAMPLE}")
    too_long = error["type"] == "message_too_long"
    raise ApiError(
        413 if too_long else 422,
        "message_too_long" if too_long else f"invalid_{field}",
        f'"{field}" {problem}.',
    )


def _unknown(field: str) -> str:
    """The message for a field that POST /chat does not have."""
    shown = json.dumps(field[:NAME_SHOWN])
    if instead := ELSEWHERE.get(field):
        return f"{shown} is not a field of POST /chat; {instead}."
    near = get_close_matches(field[:NAME_SHOWN], _Body.model_fields, n=1)
    meant = f' Did you mean "{near[0]}"?' if near else ""
    fields = ", ".join(f'"{name}"' for name in _Body.model_fields)
    return f"{shown} is not a field of POST /chat.{meant} It takes {fields}."
