"""The body of POST /chat: a valid ModelRequest, or an ApiError that says what is wrong."""

from __future__ import annotations

import json
import unicodedata
from difflib import get_close_matches
from functools import partial
from typing import Annotated, Any, Final, Literal, LiteralString, NoReturn

from flask import Request
from pydantic import AfterValidator, BaseModel, ConfigDict, FailFast, Field, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from chatapp import validation
from chatapp.upstreams import File, Message, Turn
from chatapp.upstreams.router import ModelUnavailableError, Router, UnknownModelError
from chatapp.web.authentication import act_for_named
from chatapp.web.current_request import ModelRequest
from chatapp.web.errors import ApiError
from chatapp.web.identities import request_class
from chatapp.web.requests import json_body
from chatapp.web.requests.files import TOO_LARGE, Files, checked_count, files_of

MESSAGE_MAX_BYTES: Final = 32_000
#: All messages of a conversation together: about 100,000 tokens of English.
CONVERSATION_MAX_BYTES: Final = 400_000
MESSAGES_MOST: Final = 1_000
USER_ID_MAX_CHARACTERS: Final = 256
MODEL_MAX_CHARACTERS: Final = 100
# Not allowed in names: control characters, and separators that break a line.
CONTROL_CATEGORIES: Final = frozenset({"Cc", "Zl", "Zp"})
TOO_LONG: Final = ("message_too_long", "conversation_too_long", TOO_LARGE)
EXAMPLE: Final = '{"message": "hello"}'
# How much of a field's name is shown.
NAME_SHOWN: Final = 64
PROTOCOLS: Final = "POST /v1/chat/completions and POST /v1/messages"
_LONGEST: Final = f"the operator sets the longest answer; {PROTOCOLS} take one of the caller's"
_TURNS: Final = 'send the whole conversation as "messages"'
_OTHERS: Final = f"send it to {PROTOCOLS}"
# Fields that other APIs have, and what to do instead.
ELSEWHERE: Final = {
    "max_tokens": _LONGEST,
    "max_completion_tokens": _LONGEST,
    "history": _TURNS,
    "temperature": _OTHERS,
    "tools": _OTHERS,
    "prompt": 'send it as "message"',
    "user": 'send it as "user_id"',
    **dict.fromkeys(("images", "attachments"), 'send it as "files"'),
}


def read(request: Request, router: Router) -> ModelRequest:
    """Return the request's body, checked; ApiError (400, 413 or 422) if it is invalid."""
    fields = json_body.read_object(request, example=EXAMPLE)
    for field in fields:
        # Not ignored: the caller expects an effect of it, such as a shorter answer.
        if field not in FIELDS:
            raise ApiError(422, "unknown_field", _unknown(field), param=field)
    if "message" in fields and "messages" in fields:
        raise ApiError(
            422, "invalid_messages", '"message" is set beside "messages". Send one of them.'
        )
    if "files" in fields and "messages" in fields:
        raise ApiError(
            422, "invalid_files", '"files" is set beside "messages". Put it into a message.'
        )
    form = WholeConversation if "messages" in fields else OneMessage
    try:
        body = form.model_validate(fields)
    except ValidationError as error:
        _refuse(error.errors(include_url=False)[0])
    act_for_named(fields)
    try:
        model = router.model(body.model)
    except UnknownModelError as error:
        raise ApiError(422, "unknown_model", str(error)) from error
    except ModelUnavailableError as error:
        raise ApiError(422, "model_unavailable", str(error)) from error
    system = () if body.system is None else (Message("system", body.system),)
    conversation = (*system, *body.conversation)
    *history, last = conversation
    class_name = request_class() if router.sends_classes else None
    return ModelRequest(
        turn=Turn(last.text, model, tuple(history), last.files, class_name),
        fields={
            "messages": [
                {"role": m.role, "content": m.content(_counted) if m.files else m.text}
                for m in conversation
            ]
        },
        user_id=body.user_id,
        most_output_tokens=router.max_tokens,
        stream=body.stream or False,
        names_model=body.model is not None,
    )


def _counted(file: File) -> dict[str, object]:
    """Return what the estimates count: an image by its kind, a PDF file by its length."""
    return {"type": "image"} if file.kind == "image" else {"type": "file", "file_data": file.data}


def _unicode(text: str) -> str:
    """Refuse NUL, and lone surrogates, which no encoding can represent."""
    if "\x00" in text:
        raise ValueError("contains the character NUL; remove it")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError("contains half of a surrogate pair; send whole characters") from None
    return text


def _message(text: str) -> str:
    _bounded(
        _unicode(text),
        MESSAGE_MAX_BYTES,
        "message_too_long",
        "has {size} bytes (at most {most}): shorten it",
    )
    return _visible(text)


def _bounded(text: str, most: int, kind: LiteralString, sentence: LiteralString) -> None:
    if (size := len(text.encode("utf-8"))) > most:
        raise PydanticCustomError(kind, sentence, {"size": size, "most": most})


def _visible(text: str) -> str:
    if not text.strip():
        raise ValueError("is blank; send at least one visible character")
    return text


def checked_user_id(text: str) -> str:
    """Return a user id that is not in a body; ApiError (422) if it is invalid."""
    try:
        return _name(text, most=USER_ID_MAX_CHARACTERS)
    except ValueError as error:
        raise ApiError(422, "invalid_user_id", f'"user_id" {error}.') from None


def _name(text: str, *, most: int, otherwise: str = " or leave it out") -> str:
    if len(_unicode(text)) > most:
        raise ValueError(
            f"has {len(text)} characters (at most {most}): send a shorter one{otherwise}"
        )
    if not CONTROL_CATEGORIES.isdisjoint(map(unicodedata.category, text)):
        raise ValueError("contains a control character; remove it")
    if not text.strip():
        raise ValueError(f"is blank; send a name{otherwise}")
    return text


def _described(**keywords: Any) -> Any:
    return Field(json_schema_extra={"minLength": 1, **keywords})


Text = Annotated[
    str, AfterValidator(_message), _described(description=f"At most {MESSAGE_MAX_BYTES} bytes.")
]
ModelName = Annotated[
    str,
    AfterValidator(partial(_name, most=MODEL_MAX_CHARACTERS, otherwise="")),
    _described(maxLength=MODEL_MAX_CHARACTERS),
]


class SpokenMessage(BaseModel):
    """One message of a conversation, as both providers write it."""

    model_config = ConfigDict(strict=True, extra="forbid")

    role: Literal["user", "assistant"]
    content: Annotated[str, AfterValidator(_unicode), AfterValidator(_visible)]
    files: Files = []


def _conversation(messages: list[SpokenMessage]) -> list[SpokenMessage]:
    if len(messages) > MESSAGES_MOST:
        raise ValueError(
            f"has {len(messages)} messages (at most {MESSAGES_MOST}): leave out the oldest ones"
        )
    for place, message in (("begins", messages[0]), ("ends", messages[-1])):
        if message.role != "user":
            raise ValueError(
                f"{place} with a message of the assistant; begin and end it with one of the user"
            )
    if any(message.files for message in messages if message.role == "assistant"):
        raise ValueError("has files in a message of the assistant; only the user's can have some")
    checked_count(sum(len(message.files) for message in messages))
    _bounded(
        messages[-1].content,
        MESSAGE_MAX_BYTES,
        "message_too_long",
        "ends with a message of {size} bytes (at most {most}): shorten it",
    )
    _bounded(
        "".join(message.content for message in messages),
        CONVERSATION_MAX_BYTES,
        "conversation_too_long",
        "has {size} bytes (at most {most}): leave out the oldest messages",
    )
    return messages


class _Options(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    model: ModelName | None = None
    user_id: (
        Annotated[
            str,
            AfterValidator(partial(_name, most=USER_ID_MAX_CHARACTERS)),
            _described(maxLength=USER_ID_MAX_CHARACTERS),
        ]
        | None
    ) = None
    stream: bool | None = None
    system: Text | None = None


class OneMessage(_Options):
    """The body with a single message."""

    message: Text
    files: Files = []

    @property
    def conversation(self) -> list[Message]:
        return [Message("user", self.message, files_of(self.files) if self.files else ())]


class WholeConversation(_Options):
    """The body with a conversation, which ends with the message to answer."""

    messages: Annotated[
        list[SpokenMessage], Field(min_length=1), FailFast(), AfterValidator(_conversation)
    ]

    @property
    def conversation(self) -> list[Message]:
        return [
            Message(m.role, m.content, files_of(m.files) if m.files else ()) for m in self.messages
        ]


FIELDS: Final = ("message", "messages", "files", *_Options.model_fields)


def _refuse(error: ErrorDetails) -> NoReturn:
    place, kind = validation.location(error), error["type"]
    problem = validation.problem(error)
    if place == "message" and kind == "missing":
        problem = f"is missing; send a body like {EXAMPLE}"
    too_long = kind in TOO_LONG
    raise ApiError(
        413 if too_long else 422,
        kind if too_long else f"invalid_{error['loc'][0]}",
        f'"{place[:NAME_SHOWN]}" {problem}.',
    )


def _unknown(field: str) -> str:
    shown = json.dumps(field[:NAME_SHOWN])
    if instead := ELSEWHERE.get(field):
        return f"{shown} is not a field of POST /chat; {instead}."
    near = get_close_matches(field[:NAME_SHOWN], FIELDS, n=1)
    meant = f' Did you mean "{near[0]}"?' if near else ""
    fields = ", ".join(f'"{name}"' for name in FIELDS)
    return f"{shown} is not a field of POST /chat.{meant} It takes {fields}."
