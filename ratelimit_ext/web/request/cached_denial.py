"""The answer to a denial that a worker repeats from memory: rendered once, but for the wait.

It is used where raising the exception would have no other effect than its default response: no
callback, no error handler and no refusal handler of the application concerns the denial.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, Final, NamedTuple

import flask
from werkzeug.datastructures import Headers

from ratelimit_ext.core.errors import wait_text
from ratelimit_ext.engine.denial_cache import CachedDecision
from ratelimit_ext.web.bound_limit import ChargeRecord, Records
from ratelimit_ext.web.declarations.definitions import contexts
from ratelimit_ext.web.errors import RateLimitExceeded, try_again
from ratelimit_ext.web.mcp import is_mcp

#: How many answers of one denial are kept: it may concern several routes, and callers of whose
#: other limits more or less is known.
MOST_ANSWERS: Final = 16
#: How many bodies of an answer are kept, and for which header Accept: clients choose it.
MOST_BODIES: Final = 8
LONGEST_ACCEPT: Final = 256

#: What stands for the wait in a body. No text of an application has these.
_WORDS: Final = uuid.uuid4().hex
_NUMBER: Final = uuid.uuid4().hex
_STATUS: Final = "429 TOO MANY REQUESTS"
_IN_JSON: Final = '"retry_after": '
#: The same in whole seconds, for the Model Context Protocol.
_WHOLE: Final = uuid.uuid4().hex
_IN_MCP: Final = '"retryAfter": '

#: The headers that werkzeug changes for the server.
_CHANGED: Final = frozenset(["location", "content-location"])
SECOND: Final = 1_000_000  # in microseconds
name_of: Final = itemgetter(0)


@dataclass(slots=True)
class ReadyHeaders:
    """The headers that stay the same, and for each item of ``RateLimit`` the name, what remains and
    the time to its reset, ``written_us`` after the answer was made."""

    static: Sequence[tuple[str, str]]
    items: Sequence[tuple[str, int, int]]
    written_us: int
    #: The last text, and since and until when it is right.
    last: tuple[str, int, int] = "", 0, 0

    def rate_limit(self, passed_us: int) -> str:
        """Return ``RateLimit``, so much later than the answer was made."""
        text, since_us, until_us = self.last
        if not since_us <= passed_us < until_us:
            later_us = passed_us - self.written_us
            items = [(name, left, max(0, us - later_us)) for name, left, us in self.items]
            text = ", ".join([f"{name};r={left};t={-(-us // SECOND)}" for name, left, us in items])
            until_us = passed_us + min([(us - 1) % SECOND + 1 for _, _, us in items])
            self.last = text, passed_us, until_us
        return text


class ReadyResponse(flask.Response):
    """Flask's, of which the server gets the headers as they are: werkzeug's copy takes as long as
    all else of the answer."""

    def get_wsgi_headers(self, environ: Any) -> Headers:
        names = {*map(str.lower, map(name_of, self.headers))}
        if self.status_code != 429 or "content-length" not in names or names & _CHANGED:
            return super().get_wsgi_headers(environ)
        return self.headers


class ReadyAnswer:
    """The answer to one denial on one route, made ``made_us`` after the denial was decided."""

    def __init__(
        self,
        route_limits: object,
        cached: CachedDecision,
        error: RateLimitExceeded,
        breached: Sequence[ChargeRecord],
    ) -> None:
        self._kept = route_limits, cached.cached_verdicts  # as their ids are the key
        self._error = error
        self._bodies: dict[str, tuple[str, str]] = {}
        self._wait_us = max(verdict.retry_after_us or 0 for verdict in cached.denials)
        self._wait_ms = cached.retry_after_ms or 0
        self.made_us = cached.elapsed_us
        #: With the names of the buckets, because the limits may be compiled again meanwhile.
        self.breached = [(record.bound, record.verdict.charge.key) for record in breached]
        self.is_budget = error.is_budget
        self.cause = error.cause
        #: ``None``: not written yet.
        self.headers: ReadyHeaders | None = None

    def wait_ms(self, passed_us: int) -> int:
        """Return the wait, so much later than the answer was made."""
        return -(-max(1, self._wait_us - passed_us) // 1000)

    def response(self, wait_ms: int) -> flask.Response:
        context = contexts.get()
        environ, response_class = context.request.environ, context.app.response_class
        accept = environ.get("HTTP_ACCEPT", "")
        has_id = is_mcp(environ)
        rendered = None if has_id else self._bodies.get(accept)
        if rendered is None:
            rendered = self._rendered()
            if not has_id and len(self._bodies) < MOST_BODIES and len(accept) <= LONGEST_ACCEPT:
                self._bodies[accept] = rendered
        text, content_type = rendered
        body = text.replace(_WORDS, wait_text(wait_ms)).replace(_NUMBER, str(wait_ms / 1000))
        if has_id:
            body = body.replace(_WHOLE, str(-(-wait_ms // 1000)))
        encoded = body.encode()
        headers = Headers()
        # Without the checks of new headers, which take longer than all of this.
        headers._list += (("Content-Type", content_type), ("Content-Length", str(len(encoded))))  # noqa: SLF001
        made = ReadyResponse if response_class is flask.Response else response_class
        response: flask.Response = made([encoded], _STATUS, headers)
        return response

    def _rendered(self) -> tuple[str, str]:
        """Return the body with marks for the wait, and its type, as the request accepts it."""
        response = self._error.get_response()
        text = response.get_data(as_text=True)
        if not self._error.has_own_message:  # that is sent unchanged
            sentence = try_again(self._wait_ms)
            text = text.replace(sentence, sentence.replace(wait_text(self._wait_ms), _WORDS))
        text = text.replace(f"{_IN_JSON}{self._wait_ms / 1000}", f"{_IN_JSON}{_NUMBER}")
        text = text.replace(f"{_IN_MCP}{-(-self._wait_ms // 1000)}", f"{_IN_MCP}{_WHOLE}")
        return text, response.content_type or ""


class CachedAnswer(NamedTuple):
    """A ready answer to the current request, with what is needed to show its limits. ``passed_us``
    is the time since the answer was made."""

    answer: ReadyAnswer
    records: Records
    passed_us: int


def answer_key(route_limits: object, cached: CachedDecision) -> tuple[int, ...] | None:
    """Return the key of the answer among those of the denial; ``None`` if its verdicts were not all
    decided together, so that each has a time of its own."""
    ages_us = cached.ages_us
    if ages_us.count(cached.elapsed_us) < len(ages_us):
        return None
    return (id(route_limits), *map(id, cached.cached_verdicts))
