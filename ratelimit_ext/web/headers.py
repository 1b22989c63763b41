"""Rate limit headers, all from the decision's own reply.

``RateLimit-Policy`` and ``RateLimit`` (draft-ietf-httpapi-ratelimit-headers-10) name every enforced
limit; the ``X-RateLimit-*`` of Flask-Limiter show the one nearest to exhaustion. ``Retry-After``
stands on refusals alone.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

from flask_limiter import HeaderNames
from werkzeug.datastructures import Headers
from werkzeug.http import http_date

from ratelimit_ext.web.cause import ENDLESS_MS
from ratelimit_ext.web.entry import Entry
from ratelimit_ext.web.request_state import LimitedRequest

#: Above this many milliseconds a client had better not wait in its retry loop (docs/answers.md).
LONGEST_RETRY_MS = 60_000

EXPOSED = ("RateLimit", "RateLimit-Policy", "retry-after-ms", "x-should-retry")


def write_limits(
    headers: Headers, request: LimitedRequest, names: Mapping[HeaderNames, str]
) -> None:
    """Write what the limits say; nothing where none was decided."""
    nearest = request.nearest()
    if nearest is None:
        return
    headers.add("RateLimit-Policy", ", ".join([e.claim.policy for e in request.entries]))
    headers.add("RateLimit", ", ".join([_state(entry) for entry in request.entries]))
    limit = nearest.claim.limit
    headers.add(names[HeaderNames.LIMIT], str(limit.outside(limit.capacity)))
    headers.add(names[HeaderNames.REMAINING], str(limit.outside(nearest.verdict.remaining)))
    # Flask-Limiter's rounding: the first whole second at which the limit is surely reset.
    headers.add(names[HeaderNames.RESET], str(int(nearest.reset_at + 1)))


def write_refusal(
    headers: Headers, wait_ms: int, *, budget: bool, name: str, as_date: bool
) -> None:
    """Write how long to wait, in whole seconds rounded up and in milliseconds; ``budget``: it is
    money that is spent."""
    headers["Cache-Control"] = "no-store"
    if wait_ms <= ENDLESS_MS:
        seconds = max(1, -(-wait_ms // 1000))
        headers[name] = http_date(time.time() + seconds) if as_date else str(seconds)
        headers["retry-after-ms"] = str(max(1, wait_ms))
    if budget or wait_ms > LONGEST_RETRY_MS:
        # SDKs would sleep for that long, or hammer: tell them to hand the error to their caller.
        headers["x-should-retry"] = "false"


def expose(headers: Headers, names: Mapping[HeaderNames, str]) -> None:
    """Let scripts of other origins read the headers, where the application allows such origins."""
    if "Access-Control-Allow-Origin" in headers:
        ours = ", ".join([*EXPOSED, *names.values()])
        present = headers.get("Access-Control-Expose-Headers")
        headers["Access-Control-Expose-Headers"] = f"{present}, {ours}" if present else ours


def _state(entry: Entry) -> str:
    """One item of ``RateLimit``. ``t`` is not later than the wait of a limit that denied."""
    verdict = entry.verdict
    reset_us = verdict.reset_after_us
    if not verdict.allowed and verdict.retry_after_us is not None:
        reset_us = min(reset_us, verdict.retry_after_us)
    t = -(-reset_us // 1_000_000)
    return f"{entry.claim.header};r={verdict.remaining};t={t}"
