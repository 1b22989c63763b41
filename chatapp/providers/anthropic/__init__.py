"""Anthropic's models, over the messages of its official synchronous SDK."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Final

from pydantic import ValidationError

from chatapp.per_process import PerProcess
from chatapp.providers import AnswerStream, Completion, Passage, Passed, Prompt, Timeouts
from chatapp.providers.anthropic.answer import Answer, Billed
from chatapp.providers.anthropic.events import EventReader
from chatapp.providers.anthropic.failures import NAME, told
from chatapp.providers.anthropic.quotas import quotas
from chatapp.upstream_response import content_type, passed_headers, remember_refusal
from chatapp.upstream_stream import UpstreamStream
from chatapp.upstream_wait import can_be_ended

if TYPE_CHECKING:
    import anthropic
    import httpx2

KEY_VARIABLE: Final = "ANTHROPIC_API_KEY"
PATH: Final = "/v1/messages"
COUNT_PATH: Final = "/v1/messages/count_tokens"
# What an answer's reader may need to talk to Anthropic about it. Not the limits: those are ours.
PASSED_HEADERS: Final = ("request-id",)


class Anthropic:
    """Asks Anthropic, or whatever speaks its protocol at ANTHROPIC_BASE_URL."""

    name: Final = NAME
    patterns: Final = ("claude-*",)

    def __init__(self, timeouts: Timeouts) -> None:
        self._timeouts = timeouts
        self._client = PerProcess(self._connect)
        self.missing: Final = None if os.environ.get(KEY_VARIABLE) else KEY_VARIABLE
        if self.missing is None:
            # The SDK takes about a second to import: at the start rather than in somebody's
            # request, and not at all for those who have no key.
            import anthropic  # noqa: F401, PLC0415

    def serves(self, model: str) -> bool:
        return any(fnmatchcase(model, pattern) for pattern in self.patterns)

    def complete(self, prompt: Prompt) -> Completion:
        import anthropic  # noqa: PLC0415

        system, spoken = _parted(prompt)
        with told():
            response = self._client.get().messages.with_raw_response.create(
                model=prompt.model,
                max_tokens=prompt.max_tokens,
                system=system or anthropic.omit,
                messages=spoken,  # type: ignore[arg-type]
            )
            answer = Answer.model_validate(response.parse())
            return answer.completion(quotas(response.headers))

    def stream(self, prompt: Prompt) -> AnswerStream:
        system, spoken = _parted(prompt)
        fields = {
            "model": prompt.model,
            "max_tokens": prompt.max_tokens,
            "messages": spoken,
            "stream": True,
            **({"system": system} if system else {}),
        }
        passage = Passage(raw=json.dumps(fields).encode(), fields=fields)
        return self._streamed(passage, lenient=False)

    def forward(self, passage: Passage) -> Passed:
        with told():
            response = self._post(passage, passage.headers, stream=False)
            fields = json.loads(response.content)
        try:
            usage = Billed.model_validate(fields).usage.usage()
        except ValidationError:
            usage = None
        return Passed(
            response.content,
            content_type(response),
            passed_headers(response, PASSED_HEADERS),
            usage,
            quotas(response.headers),
        )

    def count(self, passage: Passage) -> Passed:
        with told():
            response = self._post(passage, passage.headers, stream=False, path=COUNT_PATH)
            json.loads(response.content)
        headers = passed_headers(response, PASSED_HEADERS)
        return Passed(response.content, content_type(response), headers, usage=None)

    def forward_stream(self, passage: Passage) -> AnswerStream:
        return self._streamed(passage, lenient=True)

    def _streamed(self, passage: Passage, *, lenient: bool) -> AnswerStream:
        with told():
            # Compressed, events would be late by as much as a block holds.
            headers = {**passage.headers, "Accept-Encoding": "identity"}
            response = self._post(passage, headers, stream=True)
        return UpstreamStream(
            response,
            EventReader(str(passage.fields.get("model"))),
            provider=self.name,
            headers=passed_headers(response, PASSED_HEADERS),
            quotas=quotas(response.headers),
            lenient=lenient,
        )

    def _post(
        self, passage: Passage, headers: Mapping[str, str], *, stream: bool, path: str = PATH
    ) -> httpx2.Response:
        import anthropic  # noqa: PLC0415
        import httpx2  # noqa: PLC0415

        return self._client.get().post(
            path,
            cast_to=httpx2.Response,
            content=passage.raw,
            options={"headers": dict(headers), "params": dict(passage.query)},
            stream=stream,
            stream_cls=anthropic.Stream[object],
        )  # type: ignore[return-value]  # the response itself, streamed or not

    def _connect(self) -> anthropic.Anthropic:
        import anthropic  # noqa: PLC0415
        import httpx2  # noqa: PLC0415

        # No retries of the SDK's own: a call that timed out may have been billed, and a retry
        # would be a call that no limit has seen.
        timeout = httpx2.Timeout(self._timeouts.read_s, connect=self._timeouts.connect_s)
        # Nor redirects: each would be a call that nobody has counted, to wherever it points.
        client = can_be_ended(
            anthropic.DefaultHttpxClient(
                timeout=timeout,
                follow_redirects=False,
                event_hooks={"response": [remember_refusal]},
            )
        )
        return anthropic.Anthropic(timeout=timeout, max_retries=0, http_client=client)


def _parted(prompt: Prompt) -> tuple[str, list[dict[str, str]]]:
    """Instructions and conversation: here the one stands beside the other, not in it."""
    system = "\n\n".join(m.text for m in prompt.messages if m.role == "system")
    spoken = [{"role": m.role, "content": m.text} for m in prompt.messages if m.role != "system"]
    return system, spoken
