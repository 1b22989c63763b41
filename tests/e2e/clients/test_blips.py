"""A provider that refuses some or all calls for a while: what callers of the real SDKs get through
this server, and what they get without it. `RATELIMIT_BLIPS=write` measures the long blips too, and
writes the table into docs/clients.md."""

from __future__ import annotations

import datetime as dt
import os
import random
import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import anthropic
import httpx2
import openai
import pytest

from tests.chatapp import upstream_server
from tests.chatapp.upstream_server import (
    Answer,
    Call,
    UpstreamServer,
    anthropic_error,
    openai_error,
    success,
)
from tests.e2e.gunicorn_master import gunicorn
from tests.e2e.money.billed_gateway import roomy_policy

pytestmark = pytest.mark.slow

WRITES = os.environ.get("RATELIMIT_BLIPS") == "write"
FILE = "tests/e2e/clients/test_blips.py"
PAGE = Path(__file__).resolve().parents[3] / "docs" / "clients.md"
TABLE = re.compile(r"(?<=<!-- blips -->\n).*(?=<!-- /blips -->)", re.DOTALL)
SHARES = [Fraction(1, 50), Fraction(1, 10), Fraction(1, 2), Fraction(2, 3), Fraction(1)]
CALLS_PER_S = 3
#: How long calls go on after the recovery of the provider.
AFTERWARDS_S = 4
#: The time after the recovery from which no caller may be refused.
RECOVERED_S = 1
WITHIN = 0.02
BUDGETS = {"usd_hour": "1000000 usd/hour", "usd_day": "1000000 usd/day"}
COLUMNS = (
    *("status", "refused", "for", "answered, direct", "here", "attempts, direct", "here"),
    "refused late",
)
ERRORS = {
    500: openai_error(500, code="server_error"),
    503: openai_error(503, code="server_is_overloaded"),
    529: anthropic_error(529, kind="overloaded_error"),
}


@dataclass
class Blip:
    """Calls of one model, of which the provider refuses a share with that status at first."""

    status: int
    share: Fraction
    seconds: int
    way: str
    begins_at: float = 0.0
    answered: list[bool] = field(default_factory=list)
    #: When a client received a refusal, in seconds after the provider's recovery.
    refused_at: list[float] = field(default_factory=list)
    asked: int = 0

    def __post_init__(self) -> None:
        protocol = "claude" if self.status == 529 else "gpt"
        share = str(self.share).replace("/", "-of-")
        self.model = f"{protocol}-{self.status}-{share}-{self.seconds}-s-{self.way}"
        self._random = random.Random(self.model)
        self._lock = threading.Lock()

    def answer(self) -> Answer | None:
        """What the provider says; None: what was asked for."""
        with self._lock:
            self.asked += 1
            is_over = time.monotonic() - self.begins_at >= self.seconds
            is_refused = not is_over and self._random.random() < self.share
        return ERRORS[self.status] if is_refused else None

    def note(self, response: httpx2.Response) -> None:
        """A client has received this."""
        if response.is_error:
            self.refused_at.append(time.monotonic() - self.begins_at - self.seconds)

    @property
    def share_answered(self) -> float:
        return sum(self.answered) / len(self.answered)

    @property
    def refused_late(self) -> int:
        return sum(at > RECOVERED_S for at in self.refused_at)


def play(blip: Blip, url: str) -> None:
    """One call after the other begins, whatever becomes of those before, as the SDK makes it."""
    http = httpx2.Client(event_hooks={"response": [blip.note]}, trust_env=False)
    message: Any = {"role": "user", "content": "ping"}
    if blip.status == 529:
        claude = anthropic.Anthropic(base_url=url, api_key="sk-any", http_client=http)

        def call() -> object:
            return claude.messages.create(model=blip.model, max_tokens=9, messages=[message])
    else:
        gpt = openai.OpenAI(base_url=f"{url}/v1", api_key="sk-any", http_client=http)

        def call() -> object:
            return gpt.chat.completions.create(
                model=blip.model, max_completion_tokens=9, messages=[message]
            )

    def succeeds() -> bool:
        try:
            return bool(call())
        except (openai.APIStatusError, anthropic.APIStatusError):
            return False

    calls = CALLS_PER_S * (blip.seconds + AFTERWARDS_S)
    blip.begins_at = began_at = time.monotonic()
    with closing(http), ThreadPoolExecutor(calls) as pool:
        waiting = []
        for number in range(calls):
            time.sleep(max(0.0, began_at + number / CALLS_PER_S - time.monotonic()))
            waiting.append(pool.submit(succeeds))
        blip.answered = [each.result() for each in waiting]


@contextmanager
def provider_with(blips: list[Blip]) -> Iterator[UpstreamServer]:
    """A provider with these blips."""
    by_model = {blip.model: blip for blip in blips}

    def answer(call: Call) -> object:
        refusal = by_model[str(call.body["model"])].answer()
        return refusal or success(call.path, call.body)

    with upstream_server.running() as provider:
        provider.answer = answer  # type: ignore[method-assign, assignment]
        yield provider


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Blip, Blip]]:
    """Each blip without this server and with it, all of one length at the same time."""
    folder = tmp_path_factory.mktemp("blips")
    found = [
        tuple(Blip(status, share, seconds, way) for way in ("direct", "gateway"))
        for seconds in ((8, 40) if WRITES else (8,))
        for status in ERRORS
        for share in SHARES
    ]
    with ExitStack() as stack:
        provider = stack.enter_context(provider_with([blip for pair in found for blip in pair]))
        master = stack.enter_context(
            gunicorn(
                "wsgi:app",
                state=folder / "state",
                log=folder / "log",
                RATELIMIT_POLICY_FILE=str(roomy_policy(folder / "policy.toml", **BUDGETS)),
                OPENAI_API_KEY="sk-openai-test",
                OPENAI_BASE_URL=f"{provider.url}/v1",
                ANTHROPIC_API_KEY="sk-ant-test",
                ANTHROPIC_BASE_URL=provider.url,
                NO_PROXY="127.0.0.1",
            )
        )
        urls = {"direct": provider.url, "gateway": f"http://127.0.0.1:{master.port}"}
        for seconds in sorted({pair[0].seconds for pair in found}):
            blips = [blip for pair in found for blip in pair if blip.seconds == seconds]
            with ThreadPoolExecutor(len(blips)) as pool:
                list(pool.map(lambda blip: play(blip, urls[blip.way]), blips))
        assert "Traceback" not in master.log
    return found  # type: ignore[return-value]


def test_a_blip_is_no_worse_than_without_us(pairs: list[tuple[Blip, Blip]]) -> None:
    """Of the calls of each blip as many are answered as without this server, or more, and none is
    refused once the provider has recovered for a second."""
    print(*map(line, pairs), sep="\n")  # noqa: T201 - shown if the test fails
    if WRITES:
        PAGE.write_text(TABLE.sub(lambda _: table(pairs), PAGE.read_text()))
    for direct, gateway in pairs:
        assert gateway.share_answered >= direct.share_answered - WITHIN, gateway.model
        assert gateway.refused_late == 0, gateway.model


def line(pair: tuple[Blip, Blip]) -> str:
    direct, gateway = pair
    refused = "all" if direct.share == 1 else str(direct.share).replace("/", " of ")
    answered = (f"{blip.share_answered:.0%}".replace("%", " %") for blip in pair)
    asked = f"{direct.asked} | {gateway.asked}"
    late = f"{gateway.refused_late}"
    cells = [f"{direct.status}", refused, f"{direct.seconds} s", *answered, asked, late]
    return f"| {' | '.join(cells)} |"


def table(pairs: list[tuple[Blip, Blip]]) -> str:
    """The table of the page."""
    today = dt.datetime.now(dt.UTC).date()
    return "\n".join(
        [
            f"Generated on {today} by `RATELIMIT_BLIPS=write python -m pytest {FILE}`.\n",
            f"| {' | '.join(COLUMNS)} |",
            "| --- " * len(COLUMNS) + "|",
            *map(line, pairs),
            "",
        ]
    )
