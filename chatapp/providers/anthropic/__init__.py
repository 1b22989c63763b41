"""Anthropic's models, over the messages of its official synchronous SDK."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Final

from chatapp.per_process import PerProcess
from chatapp.providers import AnswerStream, Completion, Extras, Passage, Passed, Prompt, Timeouts
from chatapp.providers.anthropic.answer import Answer, size_of, usage_of
from chatapp.providers.anthropic.events import EventReader
from chatapp.providers.anthropic.extras import extras_of
from chatapp.providers.anthropic.failures import NAME, told
from chatapp.providers.anthropic.quotas import quotas
from chatapp.upstream_response import content_type, no_cookies, passed_headers, remember_refusal
from chatapp.upstream_stream import UpstreamStream
from chatapp.upstream_wait import can_be_ended, timeout, wait_longer

if TYPE_CHECKING:
    import anthropic
    import httpx2

KEY_VARIABLE: Final = "ANTHROPIC_API_KEY"
PATH: Final = "/v1/messages"
COUNT_PATH: Final = "/v1/messages/count_tokens"
#: How long a count may take: it generates nothing, and there is an estimate in its place.
COUNT_WITHIN_S: Final = 10.0
#: The least that `thinking.budget_tokens` may be, and what is left for the answer beside it.
LEAST_THINKING: Final = 1024
LEAST_ANSWER: Final = 256
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
            parsed = response.parse()
            answer = Answer.model_validate(parsed)
            return answer.completion(usage_of(parsed), quotas(response.headers))

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

    def extras(self, fields: Mapping[str, object]) -> Extras:
        return extras_of(fields)

    def bounded(self, passage: Passage, most_output_tokens: int) -> Passage:
        said, thinking = passage.fields.get("max_tokens"), passage.fields.get("thinking")
        if not isinstance(said, int) or said <= most_output_tokens:
            return passage
        budget = thinking.get("budget_tokens") if isinstance(thinking, dict) else None
        if not (isinstance(budget, int) and budget > most_output_tokens - LEAST_ANSWER):
            return passage.with_fields(max_tokens=most_output_tokens)
        # Thinking has to leave room for an answer, and has a least budget.
        assert isinstance(thinking, dict)
        most = min(said, max(most_output_tokens, LEAST_THINKING + LEAST_ANSWER))
        less = {**thinking, "budget_tokens": max(LEAST_THINKING, most // 2)}
        return passage.with_fields(max_tokens=most, thinking=less)

    def forward(self, passage: Passage) -> Passed:
        with told():
            response = self._post(passage, passage.headers, stream=False)
            fields = json.loads(response.content)
        return Passed(
            response.content,
            content_type(response),
            passed_headers(response, PASSED_HEADERS),
            usage_of(fields),
            size_of(fields),
            quotas(response.headers),
        )

    def count(self, passage: Passage) -> Passed:
        with told():
            response = self._post(
                passage, passage.headers, stream=False, path=COUNT_PATH, within_s=COUNT_WITHIN_S
            )
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
            wait_longer(response, self._timeouts)
        return UpstreamStream(
            response,
            EventReader(str(passage.fields.get("model"))),
            provider=self.name,
            headers=passed_headers(response, PASSED_HEADERS),
            quotas=quotas(response.headers),
            lenient=lenient,
        )

    def _post(
        self,
        passage: Passage,
        headers: Mapping[str, str],
        *,
        stream: bool,
        path: str = PATH,
        within_s: float | None = None,
    ) -> httpx2.Response:
        import anthropic  # noqa: PLC0415
        import httpx2  # noqa: PLC0415

        limits = self._timeouts
        if within_s is not None:
            limits = replace(limits, read_s=min(within_s, limits.read_s))
        return self._client.get().post(
            path,
            cast_to=httpx2.Response,
            content=passage.raw,
            options={
                "headers": dict(headers),
                "params": dict(passage.query),
                "timeout": timeout(limits, stream=stream),
            },
            stream=stream,
            stream_cls=anthropic.Stream[object],
        )  # type: ignore[return-value]  # the response itself, streamed or not

    def _connect(self) -> anthropic.Anthropic:
        import anthropic  # noqa: PLC0415

        # No retries of the SDK's own: a call that timed out may have been billed, and a retry
        # would be a call that no limit has seen.
        waits = timeout(self._timeouts, stream=False)
        # Nor redirects: each would be a call that no limit has counted, to wherever it points.
        client = can_be_ended(
            anthropic.DefaultHttpxClient(
                timeout=waits,
                follow_redirects=False,
                cookies=no_cookies(),
                event_hooks={"response": [remember_refusal]},
            )
        )
        return anthropic.Anthropic(timeout=waits, max_retries=0, http_client=client)


def _parted(prompt: Prompt) -> tuple[str, list[dict[str, str]]]:
    """Instructions and conversation: here the one stands beside the other, not in it."""
    system = "\n\n".join(m.text for m in prompt.messages if m.role == "system")
    spoken = [{"role": m.role, "content": m.text} for m in prompt.messages if m.role != "system"]
    return system, spoken
