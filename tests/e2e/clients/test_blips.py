"""A provider that refuses some or all calls for a while: what callers get through this server, and
what they get without it. Always with the installed SDKs; RATELIMIT_CLIENT_MATRIX=1 tries every
client of the matrix and longer blips, =write puts the tables into docs/benchmarks/clients.md."""

import datetime as dt
import json
import os
import random
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import pytest

from tests.chatapp.upstream_server import (
    Answer,
    Call,
    UpstreamServer,
    anthropic_error,
    openai_error,
    success,
)
from tests.e2e.clients.client_matrix import CACHE, CLAUDE, CLIENTS, SAID, Client, said, variables
from tests.e2e.money.billed_gateway import roomy_policy
from tests.gunicorn_master import gunicorn

pytestmark = pytest.mark.slow

MATRIX = os.environ.get("RATELIMIT_CLIENT_MATRIX")
in_matrix = pytest.mark.skipif(
    not MATRIX, reason="RATELIMIT_CLIENT_MATRIX=1 makes an environment for each client"
)
FILE = "tests/e2e/clients/test_blips.py"
PAGE = Path(__file__).resolve().parents[3] / "docs" / "benchmarks" / "clients.md"
OUTCOMES = CACHE / "blips"
WAIT = {"Retry-After": "2"}
BROKEN, OVERLOADED, LIMITED = "500", "503 or 529", "429, wait 2 s"
ERRORS = {
    (BROKEN, False): openai_error(500, code="server_error"),
    (BROKEN, True): anthropic_error(500, kind="api_error"),
    (OVERLOADED, False): openai_error(503, code="server_is_overloaded"),
    (OVERLOADED, True): anthropic_error(529, kind="overloaded_error"),
    (LIMITED, False): openai_error(429, code="rate_limit_exceeded", headers=WAIT),
    (LIMITED, True): anthropic_error(429, kind="rate_limit_error", headers=WAIT),
}
KINDS = (BROKEN, OVERLOADED, LIMITED)
ALL, HALF = Fraction(1), Fraction(1, 2)
SHARES = [Fraction(1, 50), Fraction(1, 10), HALF, Fraction(2, 3), ALL]
LENGTHS = (8, 40) if MATRIX else (8,)
CALLS_PER_S = {8: 3, 40: 1}
#: How long calls go on after the recovery of the provider.
AFTERWARDS_S = 4
#: The time after the recovery, and after the last named wait, from which no caller may be refused.
RECOVERED_S = {BROKEN: 1, OVERLOADED: 1, LIMITED: 3}
WITHIN = 0.02
#: A client that takes longer is ended.
TIMEOUT_S = 300
#: So many commands run at once.
RUNS = 6
BUDGETS = {"usd_hour": "1000000 usd/hour", "usd_day": "1000000 usd/day"}
PROMPT = re.compile(rb"ping-\d+")

#: In the environment of the tests.
INSTALLED = [
    Client("installed openai", "openai_sdk.py"),
    Client("installed anthropic", "anthropic_sdk.py", CLAUDE),
]
#: Those with retries of their own, of which one process makes many calls.
RETRYING = {
    *("openai 1.109", "openai 2", "openai 3", "anthropic 0.60", "anthropic 1", "anthropic 2"),
    *("openai, Node", "@anthropic-ai/sdk", "Vercel ai, openai", "Vercel ai, anthropic"),
    "litellm, anthropic",
}
#: Those that are commands, with retries of their own, which go on for longer.
COMMANDS = {"aider, openai", "aider, anthropic", "Claude Code", "Codex"}
TRIED = [client for client in CLIENTS if client.name in RETRYING] if MATRIX else INSTALLED
RUN = [client for client in CLIENTS if client.name in COMMANDS]
#: All others leave retries to an SDK.
FRAMEWORKS = [client for client in CLIENTS if client.name not in RETRYING | COMMANDS]


@dataclass
class Blip:
    """Calls of one model, of which the provider refuses a share for some seconds from the first on.
    Whether it refuses an attempt of a call does not depend on `way`: direct, or here."""

    client: Client
    kind: str
    share: Fraction
    seconds: int
    way: str
    began_at: float | None = None
    calls: int = 0
    answered: int = 0
    #: Refusals that this server has sent after RECOVERED_S.
    late: int = 0

    def __post_init__(self) -> None:
        words = f"{self.client.name} {self.kind} {self.share} {self.seconds} {self.way}"
        begin = "claude" if self.client.is_anthropic else "gpt"
        self.model = f"{begin}-{re.sub('[^a-z0-9]+', '-', words.lower())}"
        self._attempts = Counter[bytes]()
        self._lock = threading.Lock()

    @property
    def attempts(self) -> int:
        return self._attempts.total()

    def answer(self, prompt: bytes) -> Answer | None:
        """What the provider says; None: what was asked for."""
        with self._lock:
            now = time.monotonic()
            self.began_at = began_at = self.began_at or now
            self._attempts[prompt] += 1
            chance = random.Random(f"{self.kind} {prompt!r} {self._attempts[prompt]}").random()
        is_refused = now - began_at < self.seconds and chance < self.share
        return ERRORS[self.kind, self.client.is_anthropic] if is_refused else None

    def note_refusal(self, at: float) -> None:
        recovered_at = (self.began_at or at) + self.seconds
        self.late += at > recovered_at + RECOVERED_S[self.kind]


Pair = tuple[Blip, Blip]


@dataclass
class Place:
    """A provider with these blips by model, and a gateway before it."""

    folder: Path
    urls: dict[str, str]
    blips: dict[str, Blip]

    def pairs(self, client: Client, shares: Sequence[Fraction], *lengths: int) -> list[Pair]:
        """New blips, each direct and here."""
        whats = [(kind, share, each) for kind in KINDS for share in shares for each in lengths]
        pairs = [(Blip(client, *what, "direct"), Blip(client, *what, "here")) for what in whats]
        self.blips |= {blip.model: blip for pair in pairs for blip in pair}
        return pairs

    def judge(self, pairs: list[Pair]) -> None:
        """Keep what became of the calls. No client may be worse off here."""
        here_by_model = {here.model: here for _, here in pairs}
        for line in (self.folder / "refusals").read_text().splitlines():
            at, model = line.split()
            if model in here_by_model:
                here_by_model[model].note_refusal(float(at))
        for direct, here in pairs:
            keep(here, direct)
            print(here.model, direct.answered, here.answered, here.calls, here.late)  # noqa: T201
        for direct, here in pairs:
            assert here.answered >= direct.answered - WITHIN * direct.calls, here
            assert here.late == 0, here


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder, blips = tmp_path_factory.mktemp("blips"), dict[str, Blip]()
    (folder / "refusals").touch()

    def answer(call: Call) -> object:
        blip, prompt = blips.get(str(call.body.get("model"))), PROMPT.search(call.raw)
        refusal = blip.answer(prompt[0]) if blip and prompt else None
        return refusal or success(call.path, call.body)

    with UpstreamServer.running() as provider:
        provider.answer = answer  # type: ignore[method-assign, assignment]
        with gunicorn(
            "tests.e2e.apps.notes_refusals:app",
            folder,
            RATELIMIT_POLICY_FILE=str(roomy_policy(folder / "policy.toml", **BUDGETS)),
            **provider.variables,
            REFUSALS=str(folder / "refusals"),
        ) as master:
            urls = {"direct": provider.url, "here": f"http://127.0.0.1:{master.port}"}
            yield Place(folder, urls, blips)
            assert "Traceback" not in master.log


@pytest.fixture(scope="module", autouse=True)
def page() -> Iterator[None]:
    """Write the tables into the page at the end: outcomes of this run and of earlier ones."""
    OUTCOMES.mkdir(parents=True, exist_ok=True)
    yield
    if MATRIX == "write":
        text = PAGE.read_text()
        for name, table in (("blips", table_of_calls()), ("outages", table_of_runs())):
            text = re.sub(
                f"(?<=<!-- {name} -->\n).*(?=<!-- /{name} -->)",
                lambda _, table=table: table,  # type: ignore[misc]
                text,
                flags=re.DOTALL,
            )
        PAGE.write_text(text)


@pytest.mark.parametrize("client", TRIED, ids=lambda client: client.name)
@pytest.mark.parametrize("seconds", LENGTHS)
def test_a_blip_is_no_worse_than_without_us(place: Place, client: Client, seconds: int) -> None:
    """Of the calls in each blip as many are answered as without this server, or more, and none is
    refused once the provider has recovered for a second."""
    pairs = place.pairs(client, SHARES, seconds)
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda blips: call_each(place, blips), zip(*pairs, strict=True)))
    place.judge(pairs)


def call_each(place: Place, blips: Sequence[Blip]) -> None:
    """One call after the other begins in each of the blips, whatever becomes of those before, all
    by one process of the client."""
    client, way, by_model = blips[0].client, blips[0].way, {blip.model: blip for blip in blips}
    home = place.folder / f"{client.name} {way}".replace("/", "-")
    home.mkdir(exist_ok=True)
    environment = client.environment() if client.pip or client.npm else Path(sys.prefix)
    process = subprocess.Popen(
        [*client.command(environment), place.urls[way], "sk-any", client.model, "many", "ping"],
        cwd=home,
        env=variables(environment, home),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    asks, says = process.stdin, process.stdout
    assert asks is not None
    assert says is not None

    def call(model: str, number: int) -> None:
        asks.write(f"{model} ping-{number}\n")
        asks.flush()

    try:
        call(client.model, 0)  # so that everything is imported
        assert SAID in json.loads(says.readline())["text"]
        began_at, seconds = time.monotonic(), blips[0].seconds
        per_s = CALLS_PER_S[seconds]
        with ThreadPoolExecutor(1) as pool:
            reading = pool.submit(says.readlines)
            for number in range(per_s * (seconds + AFTERWARDS_S)):
                for place_in_turn, blip in enumerate(blips):
                    turn = number + place_in_turn / len(blips)
                    time.sleep(max(0.0, began_at + turn / per_s - time.monotonic()))
                    blip.calls += 1
                    call(blip.model, number)
            asks.close()
            process.wait(TIMEOUT_S)
            for said_by in map(json.loads, reading.result()):
                by_model[said_by["model"]].answered += SAID in (said_by["text"] or "")
    finally:
        process.kill()
        process.wait()


@in_matrix
@pytest.mark.parametrize("client", RUN, ids=lambda client: client.name)
def test_a_run_outlives_what_it_outlives_without_us(place: Place, client: Client) -> None:
    """Or more. Each run begins with the blip."""
    pairs = place.pairs(client, [HALF, ALL], *LENGTHS)
    with ThreadPoolExecutor(RUNS) as pool:
        list(pool.map(lambda blip: run(place, blip), (blip for pair in pairs for blip in pair)))
    place.judge(pairs)


def run(place: Place, blip: Blip) -> None:
    folder, url = place.folder / blip.model, place.urls[blip.way]
    text = said(blip.client, url, blip.model, folder, "ping-1", TIMEOUT_S)
    blip.calls, blip.answered = 1, int(SAID in text)


@in_matrix
@pytest.mark.parametrize("client", FRAMEWORKS, ids=lambda client: client.name)
def test_a_framework_leaves_retries_to_an_sdk(client: Client, tmp_path: Path) -> None:
    """All attempts at its call are of one of the SDKs above, which count them in a header."""
    seen: list[tuple[str, str]] = []
    soon = {"retry-after-ms": "10"}
    if client.is_anthropic:
        error = anthropic_error(500, kind="api_error", headers=soon)
    else:
        error = openai_error(500, code="server_error", headers=soon)

    def answer(call: Call) -> object:
        headers = call.headers
        seen.append((headers["x-stainless-package-version"], headers["x-stainless-retry-count"]))
        return error

    with UpstreamServer.running() as provider:
        provider.answer = answer  # type: ignore[method-assign, assignment]
        said(client, provider.url, client.model, tmp_path / "run", "ping", TIMEOUT_S)
    ((version, _), *_) = seen
    assert seen == [(version, str(number)) for number in range(3)]
    sdk = "anthropic" if client.is_anthropic else "openai"
    assert f"{sdk} {version.partition('.')[0]}" in RETRYING


# -- the tables --------------------------------------------------------------------------------


def keep(here: Blip, direct: Blip) -> None:
    """Note the outcome for the tables."""
    words = f"{here.client.name} {here.kind} {here.share} {here.seconds}".replace("/", "-")
    figures = {"direct": direct.answered, "here": here.answered, "calls": here.calls}
    (OUTCOMES / f"{words}.json").write_text(json.dumps(figures))


def kept(client: Client, kind: str, share: Fraction, seconds: int) -> dict[str, int] | None:
    words = f"{client.name} {kind} {share} {seconds}".replace("/", "-")
    file = OUTCOMES / f"{words}.json"
    return json.loads(file.read_text()) if file.exists() else None  # type: ignore[no-any-return]


def table(heads: Sequence[str], rows: Iterator[Sequence[str]]) -> str:
    today = dt.datetime.now(dt.UTC).date()
    return "\n".join(
        [
            f"Generated on {today} by `RATELIMIT_CLIENT_MATRIX=write python -m pytest {FILE}`.\n",
            *(f"| {' | '.join(row)} |" for row in (heads, ["---"] * len(heads), *rows)),
            "",
        ]
    )


def table_of_calls() -> str:
    """The share that is answered, of all kinds together: direct, and here."""

    def rows() -> Iterator[Sequence[str]]:
        for client in CLIENTS:
            for seconds in (8, 40):
                cells = []
                for share in SHARES:
                    found = [kept(client, kind, share, seconds) for kind in KINDS]
                    if client.name in RETRYING and all(found):
                        calls = sum(each["calls"] for each in found if each)
                        direct, here = (
                            100 * sum(each[way] for each in found if each) // calls
                            for way in ("direct", "here")
                        )
                        cells.append(f"{direct} / {here}")
                if cells:
                    yield [client.name, f"{seconds} s", *cells]

    shares = ("1 of 50", "1 of 10", "1 of 2", "2 of 3", "all")
    return table(["client", "for", *shares], rows())


def table_of_runs() -> str:
    """Whether a run has ended with its answer: direct, and here."""
    columns = [(kind, seconds) for seconds in (8, 40) for kind in KINDS]

    def rows() -> Iterator[Sequence[str]]:
        for client in RUN:
            for share, refused in ((HALF, "1 of 2"), (ALL, "all")):
                found = [kept(client, kind, share, seconds) for kind, seconds in columns]
                if all(found):
                    marks = ("–✓"[each["direct"]] + " / " + "–✓"[each["here"]] for each in found)
                    yield [client.name, refused, *marks]

    heads = [f"{kind}, {seconds} s" for kind, seconds in columns]
    return table(["client", "refused", *heads], rows())
