"""Budgets of keys, models and teams with many callers at once, each of whom has the provider write
as much as it is allowed: the provider's own bill exceeds no budget by more than one call."""

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from decimal import Decimal
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from chatapp.accounts.people import HEADERS, People
from chatapp.services import services_of
from tests.chatapp.upstream_server import ANTHROPIC_PATH
from tests.e2e.money.billed_gateway import MICRO, Gateway, deployed, roomy_policy, threaded
from tests.e2e.money.billing_provider import BillingProvider, marker
from tests.servers import eventually

pytestmark = pytest.mark.slow

GPT, CHAT, RESPONSES = "gpt-5.4", "/v1/chat/completions", "/v1/responses"
TIMEOUT_S = 2.0

MODEL_BUDGET = (
    '{"name" = "model-usd-day", "limit" = "1 usd/day", "strategy" = "fixed-window", '
    '"anchor" = "day", "key" = "model", "on_failure" = "local"}'
)


@pytest.fixture
def make_gateway(provider: BillingProvider, tmp_path: Path) -> Iterator[Callable[..., Gateway]]:
    """Makes the application; a team's budget is shared fairly, or a model has one."""
    with ExitStack() as stack:

        def make(*, fair: bool = False, by_model: bool = False, **config: object) -> Gateway:
            policy = roomy_policy(tmp_path / "policy.toml")
            found, text = '{"name" = "team-usd-day"', policy.read_text("utf-8")
            assert found in text
            text = text.replace(found, f'{found}, "fair" = "user"' if fair else found)
            text = text.replace(found, f"{MODEL_BUDGET}, {found}" if by_model else found)
            policy.write_text(text, "utf-8")
            config = {"RATELIMIT_POLICY_FILE": str(policy), **config}
            return stack.enter_context(threaded(provider, tmp_path / "calls.db", **config))

        yield make


Figures = Callable[[str, float, float], None]


@pytest.fixture(scope="module")
def figures(request: pytest.FixtureRequest) -> Iterator[Figures]:
    """Prints what was billed, in the report of the run."""
    lines: list[str] = []

    def note(title: str, billed: float, one_call: float) -> None:
        lines.append(f"{title:<40} {billed:>6.2f} USD billed, a call at most {one_call:.2f}\n")

    yield note
    terminal: Any = request.config.pluginmanager.get_plugin("terminalreporter")
    capture: Any = request.config.pluginmanager.get_plugin("capturemanager")
    with capture.global_and_fixture_disabled():
        terminal.write("\n" + "".join(lines))


def ask(
    gateway: Gateway, key: str, path: str, body: object, person: str = ""
) -> tuple[int, dict[str, str], Any]:
    """Status, headers in lower case and body of one call."""
    with closing(HTTPConnection(urlsplit(gateway.url).netloc, timeout=60)) as connection:
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
        if person:
            headers[HEADERS[0]] = person
        connection.request("POST", path, json.dumps(body), headers)
        response = connection.getresponse()
        raw = response.read()
        headers = {name.lower(): value for name, value in response.getheaders()}
    return response.status, headers, json.loads(raw)


def all_at_once(
    gateway: Gateway, callers: Sequence[tuple[str, str]], scenario: str = "normal", **options: Any
) -> Counter[str]:
    """One call of each of these keys and persons at the same time: how many have which status."""
    barrier = threading.Barrier(len(callers))

    def call(caller: tuple[str, str]) -> str:
        said = marker(scenario, caller="them", tokens="all", **options)
        body = {"model": GPT, "messages": [{"role": "user", "content": said}]}
        barrier.wait()
        status, headers, answer = ask(gateway, caller[0], CHAT, body, caller[1])
        if status != 429:
            return str(status)
        code = answer["error"]["code"]
        if code == "budget_in_use":
            assert int(headers["retry-after"]) <= 2, headers
            assert "x-should-retry" not in headers
        return f"429 {code}"

    with ThreadPoolExecutor(len(callers)) as pool:
        return Counter(pool.map(call, callers))


def people_of(gateway: Gateway, count: int, **limits: str) -> list[tuple[str, str]]:
    """People behind one key, whose budgets these are."""
    accounts = services_of(gateway.app).accounts
    people = People(headers=(HEADERS[0],), plan="team", most_new=1_000)
    made = accounts.create_key(
        "webui", plan="team", default_plan="starter", people=people, limits=limits
    )
    return [(made.text, f"person-{n}@example.com") for n in range(count)]


def members_of(gateway: Gateway, count: int, budget_usd: int) -> list[tuple[str, str]]:
    """Keys of members of a team with that budget for the day."""
    run = gateway.app.test_cli_runner()
    words = ["chat", "teams", "create", "office", f"--limit=team-usd-day={budget_usd} usd/day"]
    made = run.invoke(args=words)
    assert made.exit_code == 0, made.output
    keys = []
    for n in range(count):
        words = ["chat", "keys", "create", "--user", f"m{n}", "--plan", "team", "--team", "office"]
        made = run.invoke(args=words)
        assert made.exit_code == 0, made.output
        keys.append((made.stdout.strip(), ""))
    return keys


def billed_usd(gateway: Gateway) -> tuple[float, float]:
    """What the provider has billed, and what its dearest call may cost."""
    provider = gateway.provider
    one = max(map(provider.capped_micro_usd, provider.calls()), default=Decimal(0))
    return float(provider.billed_micro_usd() / MICRO), float(one / MICRO)


@pytest.mark.parametrize("budget", ["key", "model", "team", "fair team"])
def test_callers_at_once_share_what_a_budget_has_left(
    make_gateway: Callable[..., Gateway], figures: Figures, budget: str
) -> None:
    """Three times all of them: those in flight together are billed the budget, and at most one call
    more."""
    gateway = make_gateway(
        fair=budget == "fair team", by_model=budget == "model", CHATAPP_PROVIDER_TIMEOUT_S=60
    )
    amount = 1 if budget == "model" else 2
    if budget == "key":
        callers = people_of(gateway, 24, **{"key-usd-day": "2 usd/day"})
    elif budget == "model":
        callers = people_of(gateway, 24)
    else:
        callers = members_of(gateway, 40, 2)
    counts: Counter[str] = Counter()
    for _ in range(3):
        counts += all_at_once(gateway, callers, wait_ms=1_000)
    billed, one_call = billed_usd(gateway)
    figures(f"{budget} of {amount} USD, {len(callers)} at once", billed, one_call)
    assert counts["200"] >= 8, counts
    assert amount * 0.5 < billed <= amount + one_call, counts
    assert one_call <= amount


def test_a_hundred_streams_share_one_dollar(
    provider: BillingProvider, tmp_path: Path, figures: Figures
) -> None:
    """Of one key, at two workers, each of which may cost 0.04 USD: until the dollar is spent, give
    or take less than a call. The ledger is the bill."""
    body = {"model": "claude-haiku-4-5", "max_tokens": 8_000, "stream": True}
    body["messages"] = [{"role": "user", "content": marker("normal", tokens="all", wait_ms=500)}]
    with deployed(provider, tmp_path, workers=2, GUNICORN_THREADS="64") as gateway:
        limit = "key-usd-day=1 usd/day"
        words = ["chat", "keys", "set", gateway.key("agent"), "--limit", limit]
        assert gateway.app.test_cli_runner().invoke(args=words).exit_code == 0

        def stream(_: int) -> int:
            with closing(gateway.begin("agent", ANTHROPIC_PATH, body)) as connection:
                response = connection.getresponse()
                assert (b"message_stop" in response.read()) == (response.status == 200)
                return response.status

        with ThreadPoolExecutor(100) as pool:
            statuses = Counter(status for _ in range(3) for status in pool.map(stream, range(100)))
        gateway.settle("agent")
        ledger = sum(row["cost_micro_usd"] for row in gateway.rows("agent"))
    billed, one_call = billed_usd(gateway)
    figures("100 streams on 1 USD", billed, one_call)
    assert {200, 429} <= statuses.keys() <= {200, 429, 503}, statuses  # 503: no thread is free
    assert 1 - one_call < billed < 1 + one_call  # the last one may leave a debt
    assert 0 <= ledger - billed * MICRO <= statuses[200]


@pytest.mark.parametrize("budget", ["key", "team"])
def test_silent_calls_spend_a_shared_budget_once(
    make_gateway: Callable[..., Gateway], figures: Figures, budget: str
) -> None:
    """Ten new callers with one call each that times out unbilled: the first escapes, and from then
    on each is charged all that it may have been billed."""
    gateway = make_gateway(CHATAPP_PROVIDER_TIMEOUT_S=TIMEOUT_S)
    if budget == "key":
        callers = people_of(gateway, 10, **{"key-usd-day": "2 usd/day"})
    else:
        callers = members_of(gateway, 10, 2)
    counts: Counter[str] = Counter()
    for caller in callers:
        counts += all_at_once(gateway, [caller], "timeout")
    billed, one_call = billed_usd(gateway)
    figures(f"{budget} of 2 USD, 10 silent calls", billed, one_call)
    assert counts["504"] >= 3, counts
    assert billed <= 2 + one_call <= 4, counts


FILE = {"type": "input_file", "file_url": "https://example.com/report.pdf"}


@pytest.mark.parametrize("kind", ["file", "compaction"])
def test_a_cheap_call_beside_one_of_unknown_cost_is_served(
    make_gateway: Callable[..., Gateway], kind: str
) -> None:
    """What that one may cost is bounded by its model: the rest serves others. A second one that
    does not fit is asked to retry soon."""
    gateway = make_gateway(CHATAPP_PROVIDER_TIMEOUT_S=60)
    accounts = services_of(gateway.app).accounts
    limits = {"key-usd-day": "1 usd/day"}
    key = accounts.create_key("ada", plan="team", default_plan="team", limits=limits).text
    said = marker("normal", caller="ada", id="open", input=100, tokens=20, wait_ms=6_000)
    text = {"type": "input_text", "text": said}
    content = [FILE, text] if kind == "file" else [text]
    items = [{"role": "user", "content": content}]
    path = f"{RESPONSES}/compact" if kind == "compaction" else RESPONSES
    body = {"model": GPT, "input": items}
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(ask, gateway, key, path, body)
        eventually(lambda: gateway.provider.calls(id="open"))
        cheap = marker("normal", caller="ada", tokens=20)
        asked = {"model": GPT, "messages": [{"role": "user", "content": cheap}]}
        for _ in range(3):
            status, headers, answer = ask(gateway, key, CHAT, asked)
            assert status == 200, (headers, answer)
        status, headers, answer = ask(gateway, key, path, body)
        assert (status, answer["error"]["code"]) == (429, "budget_in_use"), answer
        assert int(headers["retry-after"]) <= 2
        assert "x-should-retry" not in headers
        slow.result()
