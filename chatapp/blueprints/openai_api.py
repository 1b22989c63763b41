"""OpenAI's protocol, at the addresses that generate: `openai.OpenAI(base_url=…)` works with this
server unchanged."""

from __future__ import annotations

from typing import Annotated, Final

from flask import Blueprint, Response, request
from pydantic import AfterValidator, Field

from chatapp.web.formats import OPENAI, RESPONSES
from chatapp.web.formats.errors import FormatErrors
from chatapp.web.requests import forwarded
from chatapp.web.requests.forwarded import CHOICES_MOST, Address, TokenCount
from chatapp.web.responses import respond
from ratelimit_ext import Limiter

bp = Blueprint("openai_api", __name__, url_prefix="/v1")
Limiter.group("calls")(bp)
RESPONSES_PATH: Final = "/v1/responses"
FormatErrors(
    lambda: OPENAI, lambda: RESPONSES if request.path.startswith(RESPONSES_PATH) else OPENAI
).install(bp)

# Codex says with the second one that the tools of its newest models come in an item of the input.
HEADERS: Final = ("OpenAI-Beta", "x-openai-internal-codex-responses-lite")
CHAT_EXAMPLE: Final = '{"model": "offline", "messages": [{"role": "user", "content": "hello"}]}'
INPUT_EXAMPLE: Final = '{"model": "offline", "input": "hello"}'
EMBEDDING_EXAMPLE: Final = '{"model": "text-embedding-3-small", "input": "hello"}'


class _ChatFields(forwarded.MessageFields):
    max_tokens: TokenCount | None = None
    max_completion_tokens: TokenCount | None = None
    n: Annotated[int, Field(ge=1, le=CHOICES_MOST)] | None = None

    @property
    def choices(self) -> int:
        return self.n or 1

    @property
    def most_output_tokens(self) -> int | None:
        most = max(self.max_completion_tokens or 0, self.max_tokens or 0)  # servers read either
        return most * self.choices or None


def _answered_at_once(background: object) -> object:
    if background is None or background is False:
        return background
    raise ValueError("is not supported here; stream the response instead")


def _answered_whole(stream: bool | None) -> bool | None:  # noqa: FBT001
    if stream:
        raise ValueError("is not supported at this address; leave it out")
    return stream


class _ResponseFields(forwarded.InputFields):
    max_output_tokens: TokenCount | None = None
    background: Annotated[object, AfterValidator(_answered_at_once)] = None

    @property
    def most_output_tokens(self) -> int | None:
        return self.max_output_tokens


class _CompactionFields(forwarded.InputFields):
    stream: Annotated[bool | None, AfterValidator(_answered_whole)] = None


class _EmbeddingFields(forwarded.Fields):
    makes_embeddings = True
    # OpenAI accepts 300,000 tokens, which may come as numbers.
    most_json_tokens = 400_000

    input: str | list[object]
    stream: Annotated[bool | None, AfterValidator(_answered_whole)] = None

    @property
    def most_output_tokens(self) -> int:
        return 0


ADDRESSES: Final = {
    "chat_completions": Address(_ChatFields, CHAT_EXAMPLE, "/chat/completions"),
    "responses": Address(_ResponseFields, INPUT_EXAMPLE, "/responses"),
    "compact": Address(_CompactionFields, INPUT_EXAMPLE, "/responses/compact"),
    "embeddings": Address(_EmbeddingFields, EMBEDDING_EXAMPLE, "/embeddings"),
}
forwarded.install(bp, OPENAI.protocol, ADDRESSES, headers=HEADERS)


@bp.post("/chat/completions")
def chat_completions() -> Response:
    return respond(lambda _: OPENAI)


@bp.post("/responses")
def responses() -> Response:
    return respond(lambda _: RESPONSES)


@bp.post("/responses/compact")
def compact() -> Response:
    return respond(lambda _: RESPONSES)


@bp.post("/embeddings")
def embeddings() -> Response:
    return respond(lambda _: OPENAI)
