"""The body of a request in a provider's own protocol.

Only the fields that limits and prices depend on are read and checked. All others are forwarded
unread.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Annotated, ClassVar, Final, NamedTuple, NoReturn

from flask import Blueprint, Request
from flask.globals import request_ctx
from pydantic import AfterValidator, BaseModel, ConfigDict, FailFast, Field, ValidationError

from chatapp import validation
from chatapp.catalogue import Model
from chatapp.ledger.stored_answers import ID_MAX, StoredAnswer, StoredAnswersUnavailableError
from chatapp.services import current_services
from chatapp.upstreams import OPEN_TOOLS, Extras, RawRequest, Turn
from chatapp.upstreams.openai_responses import ID, MCP, is_looked_up, is_reference
from chatapp.upstreams.router import ModelUnavailableError, UnknownModelError
from chatapp.web import allowed_models
from chatapp.web.authentication import act_for_named
from chatapp.web.current_request import ModelRequest, current_request
from chatapp.web.errors import ApiError, current_query, unavailable
from chatapp.web.formats import addresses
from chatapp.web.identities import request_class
from chatapp.web.requests import json_body
from chatapp.web.requests.chat import ModelName
from chatapp.web.requests.named_files import shared_id

# Far more than any conversation has.
MESSAGES_MOST: Final = 10_000
PARTS_MOST: Final = 20_000
# More than any model can generate; the provider checks its own maximum.
TOKENS_MOST: Final = 1_000_000
# Each choice is billed as a separate answer.
CHOICES_MOST: Final = 8
HEADER_MAX_CHARACTERS: Final = 1000
OFFLINE: Final = "offline"
SHOWN_CHARACTERS: Final = 100
#: Codes at which the provider's SDK sends the request again without the field, by the field.
DECLINED: Final = {"thread": "thread_unsupported_request"}


def _few(messages: list[dict[str, object]]) -> list[dict[str, object]]:
    contents = (message.get("content") for message in messages)
    parts = sum(len(content) for content in contents if isinstance(content, list))
    if len(messages) > MESSAGES_MOST or parts > PARTS_MOST:
        raise ValueError(
            f"has {len(messages)} messages with {parts} parts; send at most {MESSAGES_MOST} with "
            f"{PARTS_MOST}"
        )
    return messages


TokenCount = Annotated[int, Field(ge=1, le=TOKENS_MOST)]
Messages = Annotated[list[dict[str, object]], Field(min_length=1), FailFast(), AfterValidator(_few)]


class Fields(BaseModel):
    """The fields that are read in every body."""

    model_config = ConfigDict(strict=True, extra="ignore")

    most_json_tokens: ClassVar[int] = json_body.TOKENS_MOST
    makes_embeddings: ClassVar[bool] = False

    model: ModelName
    stream: bool | None = None

    @property
    def last_text(self) -> str:
        """The text that the offline model answers."""
        return ""

    @property
    def choices(self) -> int:
        return 1

    @property
    def most_output_tokens(self) -> int | None:
        """Of all choices together; None if the request sets no bound."""
        return None


class MessageFields(Fields):
    """A body with messages, in either provider's protocol."""

    messages: Messages

    @property
    def last_text(self) -> str:
        return text_of(self.messages[-1])


def _bounded_input(items: object) -> object:
    if isinstance(items, list):
        _few([item if isinstance(item, dict) else {} for item in items])
    elif not isinstance(items, str | None):
        raise ValueError("is neither a string nor a list")  # noqa: TRY004 - pydantic's rule
    return items


class InputFields(Fields):
    """A body of OpenAI's Responses API: a text or items, which may continue a stored response."""

    input: Annotated[object, AfterValidator(_bounded_input)] = None
    previous_response_id: Annotated[str, Field(max_length=ID_MAX)] | None = None

    def ids(self, has: Callable[[dict[str, object]], bool]) -> tuple[str, ...]:
        """Return the ids of items of the input that have that."""
        items = self.input if isinstance(self.input, list) else ()
        ids = (item.get("id") for item in items if isinstance(item, dict) and has(item))
        return tuple(id_ for id_ in ids if isinstance(id_, str) and id_)

    @property
    def last_text(self) -> str:
        return text_of(
            self.input[-1] if isinstance(self.input, list) and self.input else self.input
        )


class Address(NamedTuple):
    """An address: what is read of its bodies, a valid one, and its path at the provider, if it is
    not the one that prompts are sent to."""

    fields: type[Fields]
    example: str
    path: str = ""


def install(
    bp: Blueprint,
    protocol: str,
    addresses: Mapping[str, Address],
    *,
    headers: Collection[str] = (),
    query: Collection[str] = (),
) -> None:
    """Check the bodies for these views of a blueprint before the views, in which limits are
    decided. ``headers`` and ``query`` name what is forwarded of a request besides its body."""
    by_endpoint = {f"{bp.name}.{name}": address for name, address in addresses.items()}
    keys = {f"HTTP_{name.upper().replace('-', '_')}": name for name in headers}

    @bp.before_request
    def read_request() -> None:
        request = request_ctx.request  # not the proxy, which looks it up for each attribute
        address = by_endpoint.get(request.endpoint or "")
        if address is not None and request.method == "POST":
            current = current_request()
            current.model_request = _read(request, address, protocol, keys, query)
            allowed_models.check(current)


def _read(
    request: Request,
    address: Address,
    protocol: str,
    headers: Mapping[str, str],
    query: Collection[str],
) -> ModelRequest:
    """Return the request's body, checked; ApiError if it is invalid. ``headers`` are the names of
    those that are forwarded, by their keys in the WSGI environment."""
    services, environ = current_services(), request.environ
    # It may be larger than at other endpoints, because it may contain images.
    request.max_content_length = services.settings.max_body_bytes
    raw, body = json_body.read_document(
        request, example=address.example, most_tokens=address.fields.most_json_tokens
    )
    act_for_named(body)
    try:
        fields = address.fields.model_validate(body)
    except ValidationError as error:
        refuse(error)
    model = served_model(fields.model, protocol=protocol)
    _check_kind(model, makes_embeddings=fields.makes_embeddings)
    continued, previous = _continued(fields, model), body.get("previous_response_id")
    if continued:
        model = replace(model, key=continued[0].key)
    raw_request = RawRequest(
        raw=raw,
        fields=body,
        headers={n: _plain(n, environ[key]) for key, n in headers.items() if key in environ},
        query=parameters(request, query),
        path=address.path,
        traffic_class=request_class() if services.router.sends_classes else None,
    )
    extras = _extras(model, raw_request)
    _check_shared(raw_request)
    if MCP in extras.tools and not fields.stream:
        raise ApiError(
            400,
            "unsupported_mcp",
            "Calls with an MCP server must be streamed, so that what the server returns can be "
            'counted. Send "stream": true.',
            param="stream",
        )
    return ModelRequest(
        turn=Turn(fields.last_text, model),
        fields=body,
        most_output_tokens=fields.most_output_tokens,
        stream=fields.stream or False,
        raw_request=raw_request,
        choices=fields.choices,
        extras=extras,
        # Those of the stored conversation that the request continues; None if unknown.
        history_tokens=next((a.tokens for a in continued if a.id == previous), 0),
        is_tied=bool(continued),
    )


def _check_kind(model: Model, *, makes_embeddings: bool) -> None:
    """ApiError (404) if the model cannot answer at an address of this kind."""
    catalogue = current_services().router.catalogue
    if makes_embeddings == (model.slug in catalogue.embedding):
        return
    if model.slug not in catalogue.slugs.values():
        return  # the provider knows
    if makes_embeddings:
        names = ", ".join(sorted(catalogue.embedding))
        raise _not_found(
            f'The model "{model.name}" does not make embeddings. Choose one of {names}.'
        )
    raise _not_found(f'The model "{model.name}" makes embeddings only. Use POST /v1/embeddings.')


def _continued(fields: Fields, model: Model) -> list[StoredAnswer]:
    """Return what the request names of the answers that the model's provider keeps; ApiError (404)
    unless the caller made each of them there."""
    if not isinstance(fields, InputFields):
        return []
    previous, items = fields.previous_response_id, fields.ids(is_reference)
    completed = fields.ids(is_looked_up)  # from stored responses, by the provider
    wanted = {*items, *([] if previous is None else [previous])}
    if not wanted and not completed:
        return []
    answers = {i: a for i, a in own_answers(wanted).items() if a.provider == model.upstream}
    if previous is not None and previous not in answers:
        raise ApiError(
            404,
            "previous_response_not_found",
            f"Previous response with id {previous[:SHOWN_CHARACTERS]!r} not found.",
            param="previous_response_id",
        )
    others = _answers_of_others(completed, model.upstream)
    for id_ in (*items, *completed):
        if id_ in others or (id_ in wanted and id_ not in answers):
            message = f"Item with id {id_[:SHOWN_CHARACTERS]!r} not found."
            raise ApiError(404, "item_not_found", message, param="input")
    return list(answers.values())


def own_answers(ids: Collection[str]) -> dict[str, StoredAnswer]:
    """Return those of the stored answers that the caller made. ApiError (503) if unknown."""
    current = current_request()
    with _available():
        return current.services.stored_answers.find(
            _possible(ids),
            user=current.user,
            before_wait=current.services.limiter.current.admit_edge,
        )


def _answers_of_others(ids: Collection[str], upstream: str) -> set[str]:
    """Return those of the upstream's stored answers that others made. ApiError (503) if unknown."""
    if not ids:
        return set()
    current = current_request()
    with _available():
        return current.services.stored_answers.of_others(
            _possible(ids), user=current.user, provider=upstream
        )


def _possible(ids: Collection[str]) -> set[str]:
    """Return the ids of a form that is recorded. Others may be no text for a database."""
    return {id_ for id_ in ids if ID.fullmatch(id_)}


@contextmanager
def _available() -> Iterator[None]:
    try:
        yield
    except StoredAnswersUnavailableError as error:
        cause = "Stored responses cannot be checked at the moment."
        raise unavailable("stored_responses_unavailable", cause) from error


def served_model(name: str, *, protocol: str) -> Model:
    """Return the model of that name at the endpoints of that protocol, which serve models in that
    protocol and the offline model; ApiError (404) if they do not serve it."""
    router = current_services().router
    try:
        model = router.model(name)
    except ModelUnavailableError as error:
        raise _not_found(str(error)) from error
    except UnknownModelError as error:
        names = ", ".join(router.models_of(protocol, OFFLINE))
        raise _not_found(
            f'Unknown model "{name[:SHOWN_CHARACTERS]}". Choose one of {names}.'
        ) from error
    if model.protocol not in {protocol, OFFLINE}:
        paths = " or ".join(addresses(f"{model.protocol}_"))
        raise _not_found(
            f'The model "{name}" belongs to the protocol {model.protocol}. Use {paths} for it, or '
            f"choose a model of the protocol {protocol}."
        )
    return model


def _not_found(message: str) -> ApiError:
    return ApiError(404, "model_not_found", message, param="model")


def parameters(request: Request, names: Collection[str]) -> dict[str, list[str]]:
    """Return the query parameters of these names; ApiError (400) if they cannot be forwarded."""
    if not request.query_string:
        return {}
    query = current_query()
    return {
        name: [_plain(name, value) for value in query.getlist(name)]
        for name in names
        if name in query
    }


def _extras(model: Model, raw_request: RawRequest) -> Extras:
    """Return what changes the price; ApiError (400) for a field without a known price."""
    router = current_services().router
    extras = router.extras(model, raw_request)
    for name, why in extras.refused.items():
        raise _unpriced(name, why)
    for name, tier in extras.tiers.items():
        if not router.catalogue.prices_tier(model, tier):
            raise _unpriced(name, f"has the value {tier!r}, which has no price for {model.name}")
    for tool in extras.tools:
        if tool in OPEN_TOOLS and tool not in current_services().settings.open_tools:
            raise ApiError(
                400,
                "tool_not_allowed",
                f'"tools" has {tool!r}, which is off on this server. Leave it out, or have the '
                f"operator allow it with CHATAPP_OPEN_TOOLS={tool}.",
                param="tools",
            )
        if tool not in {*OPEN_TOOLS, *router.catalogue.tools.get(model.upstream, ())}:
            raise _unpriced("tools", f"has {tool!r}, which has no price here")
    return extras


def _check_shared(sent: RawRequest) -> None:
    """ApiError (403) for an id of what a provider keeps, unless the caller may name files."""
    principal = current_request().principal
    if (principal and principal.files) or (name := shared_id(sent.fields, sent.raw)) is None:
        return
    shown = name[:SHOWN_CHARACTERS]
    raise ApiError(
        403,
        "file_not_allowed",
        f"All clients of this server share the files that a provider keeps for it, and {shown!r} "
        "names some. Send the content, or have the operator allow it: "
        "`chat keys set KEY --files`.",
        param=shown,
    )


def _unpriced(field: str, problem: str) -> ApiError:
    code = DECLINED.get(field, "unpriced_field")
    return ApiError(400, code, f'"{field}" {problem}. Leave it out.', param=field)


def text_of(message: object) -> str:
    content = message.get("content") if isinstance(message, Mapping) else message
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
