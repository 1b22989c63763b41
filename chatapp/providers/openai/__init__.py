"""OpenAI's models, over the chat completions of its official synchronous SDK."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Final

from chatapp.per_process import PerProcess
from chatapp.providers import (
    AnswerStream,
    Completion,
    Extras,
    Passage,
    Passed,
    Prompt,
    ProviderError,
    Timeouts,
)
from chatapp.providers.openai.answer import Answer, size_of, usage_of
from chatapp.providers.openai.chunks import ChunkReader
from chatapp.providers.openai.extras import extras_of
from chatapp.providers.openai.failures import NAME, told
from chatapp.providers.openai.quotas import quotas
from chatapp.upstream_response import content_type, no_cookies, passed_headers, remember_refusal
from chatapp.upstream_stream import UpstreamStream
from chatapp.upstream_wait import can_be_ended, timeout, wait_longer

if TYPE_CHECKING:
    import httpx2
    import openai

KEY_VARIABLE: Final = "OPENAI_API_KEY"
PATH: Final = "/chat/completions"
#: The fields that bound an answer; the first is the current one.
BOUNDS: Final = ("max_completion_tokens", "max_tokens")
# What an answer's reader may need to talk to OpenAI about it. Not the limits: those are ours.
PASSED_HEADERS: Final = ("x-request-id",)


class OpenAI:
    """Asks OpenAI, or whatever speaks its protocol at OPENAI_BASE_URL."""

    name: Final = NAME
    patterns: Final = ("gpt-*", "chatgpt-*", "o1", "o1-*", "o3", "o3-*", "o4-*")

    def __init__(self, timeouts: Timeouts) -> None:
        self._timeouts = timeouts
        self._client = PerProcess(self._connect)
        self.missing: Final = None if os.environ.get(KEY_VARIABLE) else KEY_VARIABLE
        if self.missing is None:
            # The SDK takes about half a second to import: at the start rather than in somebody's
            # request, and not at all for those who have no key.
            import openai  # noqa: F401, PLC0415

    def serves(self, model: str) -> bool:
        return any(fnmatchcase(model, pattern) for pattern in self.patterns)

    def complete(self, prompt: Prompt) -> Completion:
        with told():
            response = self._client.get().chat.completions.with_raw_response.create(
                model=prompt.model,
                messages=[{"role": m.role, "content": m.text} for m in prompt.messages],  # type: ignore[misc]
                max_completion_tokens=prompt.max_tokens,
            )
            parsed = response.parse()
            answer = Answer.model_validate(parsed)
            return answer.completion(usage_of(parsed), quotas(response.headers))

    def stream(self, prompt: Prompt) -> AnswerStream:
        fields = {
            "model": prompt.model,
            "messages": [{"role": m.role, "content": m.text} for m in prompt.messages],
            "max_completion_tokens": prompt.max_tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        return self._streamed(json.dumps(fields).encode(), prompt.model, {}, lenient=False)

    def extras(self, fields: Mapping[str, object]) -> Extras:
        return extras_of(fields)

    def bounded(self, passage: Passage, most_output_tokens: int) -> Passage:
        said = [name for name in BOUNDS if isinstance(passage.fields.get(name), int)]
        lowered = {
            name: most_output_tokens
            for name in said or BOUNDS[:1]
            if not said or passage.fields[name] > most_output_tokens  # type: ignore[operator]
        }
        return passage.with_fields(**lowered)

    def forward(self, passage: Passage) -> Passed:
        with told():
            response = self._post(passage.raw, passage.headers, stream=False)
            fields = json.loads(response.content)
        return Passed(
            response.content,
            content_type(response),
            passed_headers(response, PASSED_HEADERS),
            usage_of(fields),
            size_of(fields),
            quotas(response.headers),
        )

    def forward_stream(self, passage: Passage) -> AnswerStream:
        raw, added = _with_usage(passage)
        model = str(passage.fields.get("model"))
        choices = passage.fields.get("n")
        return self._streamed(
            raw,
            model,
            passage.headers,
            lenient=True,
            hides_usage=added,
            choices=choices if isinstance(choices, int) else 1,
        )

    def _streamed(
        self,
        raw: bytes,
        model: str,
        headers: Mapping[str, str],
        *,
        lenient: bool,
        hides_usage: bool = False,
        choices: int = 1,
    ) -> AnswerStream:
        with told():
            # Compressed, events would be late by as much as a block holds.
            response = self._post(raw, {**headers, "Accept-Encoding": "identity"}, stream=True)
            wait_longer(response, self._timeouts)
        return UpstreamStream(
            response,
            ChunkReader(model, hides_usage=hides_usage, choices=choices),
            provider=self.name,
            headers=passed_headers(response, PASSED_HEADERS),
            quotas=quotas(response.headers),
            lenient=lenient,
        )

    def _post(self, raw: bytes, headers: Mapping[str, str], *, stream: bool) -> httpx2.Response:
        import httpx2  # noqa: PLC0415
        import openai  # noqa: PLC0415

        return self._client.get().post(
            PATH,
            cast_to=httpx2.Response,
            content=raw,
            options={"headers": dict(headers), "timeout": timeout(self._timeouts, stream=stream)},
            stream=stream,
            stream_cls=openai.Stream[object],
        )  # type: ignore[return-value]  # the response itself, streamed or not

    def _connect(self) -> openai.OpenAI:
        import openai  # noqa: PLC0415

        # No retries of the SDK's own: a call that timed out may have been billed, and a retry
        # would be a call that no limit has seen.
        waits = timeout(self._timeouts, stream=False)
        # Nor redirects: each would be a call that no limit has counted, to wherever it points.
        client = can_be_ended(
            openai.DefaultHttpxClient(
                timeout=waits,
                follow_redirects=False,
                cookies=no_cookies(),
                event_hooks={"response": [remember_refusal]},
            )
        )
        return openai.OpenAI(timeout=waits, max_retries=0, http_client=client)


def _with_usage(passage: Passage) -> tuple[bytes, bool]:
    """The body, which asks for the stream's usage, and whether that had to be added."""
    options = passage.fields.get("stream_options")
    if isinstance(options, dict) and options.get("include_usage") is True:
        return passage.raw, False
    if not isinstance(options, dict | None):
        return passage.raw, False  # OpenAI says what is wrong with it
    asking = {**passage.fields, "stream_options": {**(options or {}), "include_usage": True}}
    try:
        return json.dumps(asking, allow_nan=False).encode(), True
    except ValueError as error:  # 1e999 is JSON, and no number here
        raise ProviderError(NAME, "bad_request", message=str(error)) from error
