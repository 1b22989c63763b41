"""Attacks on the money, each with the provider's bill beside what the caller is charged. The
promise for all of them: what is charged is within 2 % of the bill, or under it by less than one
call's capped output; ledger and limits agree to the micro-dollar; a bystander is served, and
charged exactly its own bill."""

import itertools
import select
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from decimal import Decimal
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import openai
import pytest

from chatapp.estimates.tokens import tokenizer
from tests.e2e.money.billed_gateway import (
    MICRO,
    MONTH_USD,
    Account,
    Gateway,
    roomy_policy,
    threaded,
    write_table,
)
from tests.e2e.money.billing_provider import FILLER, BillingProvider, marker
from tests.servers import eventually

pytestmark = pytest.mark.slow

GPT, CLAUDE, DEAREST = "gpt-5.4", "claude-opus-5", "o1-pro"
CHAT, OPENAI, ANTHROPIC = "/chat", "/v1/chat/completions", "/v1/messages"
RESPONSES = "/v1/responses"
STARTER_HOUR_USD = 2
TIMEOUT_S = 2.0  # longer than a busy machine pauses, as it also bounds the bystander
BYSTANDER = "bystander"
ids = map(str, itertools.count())

MakeGateway = Callable[..., Gateway]


@pytest.fixture
def make_gateway(provider: BillingProvider, tmp_path: Path) -> Iterator[MakeGateway]:
    """Makes the application. A bystander calls before and after the attack."""
    with ExitStack() as stack:
        made = []

        def make(*, keep: tuple[str, ...] = (), limits: Any = None, **config: object) -> Gateway:
            policy = roomy_policy(tmp_path / "policy.toml", keep=keep, **(limits or {}))
            config["RATELIMIT_POLICY_FILE"] = str(policy)
            gateway = stack.enter_context(threaded(provider, tmp_path / "calls.db", **config))
            made.append(gateway)
            be_served(gateway)
            return gateway

        yield make
        for gateway in made:
            be_served(gateway)
            account = gateway.account(BYSTANDER)
            assert account.billed <= account.charged == account.ledger <= account.billed + 10


@pytest.fixture
def gateway(make_gateway: MakeGateway) -> Gateway:
    """The application whose provider may take `TIMEOUT_S`."""
    return make_gateway(CHATAPP_PROVIDER_TIMEOUT_S=TIMEOUT_S)


@pytest.fixture
def patient(make_gateway: MakeGateway) -> Gateway:
    """The application with a long timeout for its provider."""
    return make_gateway()


@pytest.fixture
def starter(make_gateway: MakeGateway) -> Gateway:
    """The application with a bound on calls at once, and mallory on the smallest plan."""
    gateway = make_gateway(keep=("at-once",))
    gateway.key("mallory", plan="starter")
    return gateway


def be_served(gateway: Gateway) -> None:
    """The bystander's ordinary calls: one to each provider."""
    said = says("normal", caller=BYSTANDER, tokens=20)
    answer = gateway.openai(BYSTANDER).chat.completions.create(model=GPT, messages=said)
    said = says("normal", caller=BYSTANDER, tokens=20)
    assert answer.choices[0].message.content == FILLER * 20
    message = gateway.anthropic(BYSTANDER).messages.create(
        model=CLAUDE, max_tokens=100, messages=said
    )
    assert message.usage.output_tokens == 20


def says(scenario: str, *, caller: str, **options: object) -> Any:
    """The messages of a call with this behaviour and a new id."""
    options = {"id": next(ids), **options}
    return [{"role": "user", "content": marker(scenario, caller=caller, **options)}]


def body_of(path: str, said: Any, *, most: int) -> dict[str, Any]:
    """A call at that address with a bound, of its usual model."""
    if path == CHAT:
        return {"model": GPT, "message": said[0]["content"]}
    if path == RESPONSES:
        return {"model": GPT, "input": said, "max_output_tokens": most}
    return {"model": CLAUDE if path == ANTHROPIC else GPT, "messages": said, "max_tokens": most}


def attempt(gateway: Gateway, caller: str, model: str, messages: Any, **more: Any) -> str | None:
    """One call through the SDK, read to its end. Returns the name of its error, if any."""
    retries = more.pop("max_retries", 0)
    try:
        if model.startswith("claude"):
            client: Any = gateway.anthropic(caller, max_retries=retries)
            # The SDK refuses long plain answers that have no timeout of their own.
            fields = {"max_tokens": 64_000, "timeout": 60, **more}
            answer = client.messages.create(model=model, messages=messages, **fields)
        else:
            client = gateway.openai(caller, max_retries=retries)
            answer = client.chat.completions.create(model=model, messages=messages, **more)
        if more.get("stream"):
            for _ in answer:
                pass
    except Exception as error:  # noqa: BLE001 - the SDK's, or its transport's of a broken stream
        return type(error).__name__
    return None


def stream_and_leave(gateway: Gateway, caller: str, path: str, body: Any, until: int) -> None:
    """Stream, disconnect when so many tokens have arrived and the provider has no more, and wait
    until that is settled: calls at once are another attack, with another bound."""
    connection = gateway.begin(caller, path, {**body, "stream": True})
    try:
        with connection.getresponse() as response:  # which has the socket
            if response.status != 200:
                return
            said = (body.get("messages") or body["input"])[0]["content"]
            call_id = said.partition("id=")[2].partition(" ")[0]
            tokens = 0
            while tokens < until and (line := response.readline()):
                tokens += line.decode().count(FILLER)
            gateway.reached(call_id.removesuffix("]]"), sent=True)
    finally:
        gateway.leave(connection)
    gateway.settle(caller)


@pytest.fixture(scope="module")
def table(request: pytest.FixtureRequest) -> Iterator[list[tuple[str, Account]]]:
    """What each attack cost, printed at the end."""
    lines: list[tuple[str, Account]] = []
    yield lines
    write_table(request.config, "attack", lines)


@pytest.fixture
def figures(
    table: list[tuple[str, Account]], request: pytest.FixtureRequest
) -> Callable[..., Account]:
    """The account of the attacker, which is added to the table; ledger and limits must agree."""

    def read(gateway: Gateway, caller: str = "mallory") -> Account:
        account = gateway.account(caller)
        table.append((request.node.name.removeprefix("test_"), account))
        assert account.ledger == account.charged, f"ledger and limits differ: {account}"
        return account

    return read


Figures = Callable[..., Account]


def is_charged_its_bill(account: Account) -> None:
    assert account.is_paid, account
    assert account.is_not_overcharged, account


# 1. Timeouts


@pytest.mark.parametrize("model", [GPT, CLAUDE])
@pytest.mark.parametrize("scenario", ["timeout", "silent"])
def test_1_timeouts_are_paid(gateway: Gateway, figures: Figures, scenario: str, model: str) -> None:
    """A call that is billed in full and never answers is charged to the caller's budget."""
    gateway.key("mallory", plan="starter")
    for _ in range(3):
        said = says(scenario, caller="mallory", tokens="all")
        assert attempt(gateway, "mallory", model, said, stream=scenario == "silent")
    account = figures(gateway)
    assert account.is_paid, account


@pytest.mark.parametrize("scenario", ["timeout", "silent"])
def test_1_bounded_timeouts_are_paid(gateway: Gateway, figures: Figures, scenario: str) -> None:
    """A call with `max_tokens` that times out costs at most that, and not less."""
    for _ in range(3):
        said = says(scenario, caller="mallory", tokens="all")
        stream = scenario == "silent"
        attempt(gateway, "mallory", GPT, said, max_completion_tokens=3000, stream=stream)
    is_charged_its_bill(figures(gateway))


# 2. Disconnecting before usage arrives


SENT = ("text", "hidden_reasoning", "tool_arguments", "custom_input", "refusal")
STREAMED = [
    *((OPENAI, kind) for kind in (*SENT, "function_call")),
    *((ANTHROPIC, kind) for kind in ("text", "thinking", "hidden_thinking", "tool_arguments")),
    *((RESPONSES, kind) for kind in (*SENT, "thinking")),
]


@pytest.mark.parametrize(("path", "kind"), STREAMED)
def test_2_a_disconnect_before_the_usage_is_paid(
    patient: Gateway, figures: Figures, path: str, kind: str
) -> None:
    """Every kind of output is counted, and hidden output costs what was held."""
    visible = 0 if kind.startswith("hidden") else 2000
    for _ in range(5):
        body = body_of(path, says(kind, caller="mallory", tokens=2000), most=2000)
        stream_and_leave(patient, "mallory", path, body, visible)
    is_charged_its_bill(figures(patient))


@pytest.mark.parametrize("kind", ["cut", "error_event"])
@pytest.mark.parametrize("path", [OPENAI, ANTHROPIC, RESPONSES])
def test_2_a_broken_stream_costs_what_was_received(
    patient: Gateway, figures: Figures, kind: str, path: str
) -> None:
    """A partial answer is billed as a partial answer, and raises in the SDK."""
    for _ in range(5):
        body = body_of(path, says(kind, caller="mallory", tokens=2000), most=2000)
        if path == RESPONSES:
            with pytest.raises(openai.APIError):
                list(patient.openai("mallory").responses.create(stream=True, **body))
        else:
            assert attempt(patient, "mallory", stream=True, **body)
    is_charged_its_bill(figures(patient))


@pytest.mark.parametrize(
    ("kind", "options", "stream"),
    [
        ("normal", {"tokens": 321}, False),
        ("normal", {"tokens": 321}, True),
        ("normal", {"tokens": 40_000, "input": 272_001, "cached": 100_000, "written": 9}, True),
        ("normal", {"tokens": 7, "searches": 3}, False),
        ("normal", {"tokens": 7, "searches": 3}, True),
        ("normal", {"tokens": 99, "tier": "priority"}, True),
        ("failed", {"tokens": 321}, True),
    ],
)
def test_2_a_response_costs_its_bill(
    patient: Gateway, figures: Figures, kind: str, options: dict[str, Any], stream: bool
) -> None:
    """To the micro-dollar, rounded up once for each call."""
    client: Any = patient.openai("mallory")
    for _ in range(3):
        said = says(kind, caller="mallory", **options)
        tools = [{"type": "web_search"}]
        answer = client.responses.create(model=GPT, input=said, tools=tools, stream=stream)
        if stream:
            *_, last = answer
            assert last.type == ("response.failed" if kind == "failed" else "response.completed")
    account = figures(patient)
    assert account.billed <= account.charged < account.billed + 3


# 3. A plain call whose caller has left


@pytest.mark.parametrize("path", [CHAT, OPENAI, ANTHROPIC, RESPONSES])
def test_3_a_plain_call_ends_when_its_caller_disconnects(
    make_gateway: MakeGateway, figures: Figures, path: str
) -> None:
    """The provider is disconnected at once, and what it had generated is paid, if a whole answer
    would cost no less: it may have the 1,000 tokens that are expected."""
    patient = make_gateway(CHATAPP_MAX_TOKENS=1000)
    said = says("normal", caller="mallory", id="left", tokens=1000, wait_ms=4000, stops=1)
    connection = patient.begin("mallory", path, body_of(path, said, most=1000))
    patient.reached("left")
    patient.leave(connection)
    eventually(lambda: patient.provider.calls(id="left")[0].sent)
    account = figures(patient)
    assert account.charged >= account.billed, account
    assert patient.provider.calls(id="left")[0].hung_up, account


@pytest.mark.parametrize("model", [GPT, CLAUDE])
def test_3_each_retry_of_a_timeout_is_paid(gateway: Gateway, figures: Figures, model: str) -> None:
    """This server does not repeat a call that timed out, and does not forbid its retry: what
    an SDK repeats is billed and charged each time, as without this server."""
    said = says("timeout", caller="mallory", id="slow", tokens=1000)
    fields = {"max_tokens": 1000, "max_retries": 2}
    assert attempt(gateway, "mallory", model, said, **fields)
    body = {"model": model, "max_tokens": 1000, "messages": said}
    path = ANTHROPIC if model == CLAUDE else OPENAI
    status, headers, _ = gateway.post("mallory", path, body)
    assert (status, headers.get("x-should-retry")) == (504, None)
    account = figures(gateway)
    assert len(gateway.provider.calls(id="slow")) == 3 + 1, account
    assert account.is_paid, account


# 4. Debt


def test_4_parallel_calls_cannot_owe_more_than_one_budget(
    patient: Gateway, figures: Figures
) -> None:
    """Three calls at once without `max_tokens`, on 2 USD an hour: the bill exceeds the budget by
    at most one call's capped output, and the next call is refused."""
    patient.key("mallory", plan="starter")
    together(patient, "mallory", 3)
    account = figures(patient)
    assert account.is_paid, account
    assert account.billed <= 2 * STARTER_HOUR_USD * MICRO, account
    said = says("normal", caller="mallory")
    assert attempt(patient, "mallory", DEAREST, said) == "RateLimitError"


def test_4_short_answers_do_not_lower_the_hold_of_others(
    patient: Gateway, figures: Figures
) -> None:
    """Another caller's hold stays at 1,024 tokens of output, the attacker's at 256, and neither
    exceeds the budget by more than one call's capped output."""
    patient.key("poison", plan="starter")
    patient.key("mallory", plan="starter")
    for _ in range(25):
        said = says("normal", caller="poison", tokens=1, input=10)
        assert attempt(patient, "poison", DEAREST, said, max_tokens=1) is None
    said = says("normal", caller="poison", tokens=1, input=10)
    assert attempt(patient, "poison", DEAREST, said) is None
    together(patient, "mallory", 4)
    account = figures(patient)
    assert account.is_paid, account
    assert account.billed <= 2 * STARTER_HOUR_USD * MICRO, account
    assert patient.rows("poison")[-1]["estimated_output_tokens"] >= 256
    assert patient.rows("mallory")[0]["estimated_output_tokens"] >= 1024


def together(gateway: Gateway, caller: str, calls: int) -> None:
    """Calls of the most expensive model at once, each with the longest possible answer."""
    with ThreadPoolExecutor(calls) as pool:
        for _ in range(calls):
            said = says("normal", caller=caller, tokens=100_000, wait_ms=700)
            pool.submit(attempt, gateway, caller, DEAREST, said)


def test_4_the_excess_is_carried_into_the_next_window(
    make_gateway: MakeGateway, figures: Figures
) -> None:
    """A call that settles after its window ended is charged to the next one."""
    gateway = make_gateway(limits={"usd-hour": "100 usd/3 second"})
    assert attempt(gateway, "mallory", GPT, says("normal", caller="mallory")) is None
    wait_ms = round(1000 * gateway.limits("mallory")["usd-hour"]["reset_after"]) + 300
    said = says("normal", caller="mallory", tokens=100_000, wait_ms=wait_ms)
    assert attempt(gateway, "mallory", GPT, said) is None
    left_usd = gateway.left("mallory")["usd-hour"]
    account = figures(gateway)
    assert 100 - left_usd >= 0.9 * float(account.billed / MICRO)


# 5. Prices that callers choose


PRICES: dict[str, tuple[str, dict[str, object], dict[str, object]]] = {
    "speed fast": (CLAUDE, {"tokens": 10_000}, {"speed": "fast"}),
    "speed fast, dearer": ("claude-opus-4-6", {"tokens": 10_000}, {"speed": "fast"}),
    "service_tier priority": (GPT, {"tokens": 6_000}, {"service_tier": "priority"}),
    "priority by the project's default": (
        GPT,
        {"tokens": 6_000, "tier": "priority"},
        {"service_tier": "auto"},
    ),
    "one-hour cache write": (
        CLAUDE,
        {"written_1h": 100_000},
        {"cache_control": {"type": "ephemeral", "ttl": "1h"}},
    ),
    "five-minute cache write": (
        CLAUDE,
        {"written": 100_000},
        {"cache_control": {"type": "ephemeral"}},
    ),
    "web searches": (
        "claude-haiku-4-5",
        {"searches": 20, "tokens": 1000},
        {"tools": [{"type": "web_search_20250305", "name": "web_search"}]},
    ),
}


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize("name", PRICES)
def test_5_what_changes_the_price_is_priced_or_refused(
    patient: Gateway, figures: Figures, name: str, stream: bool
) -> None:
    """It is charged as billed; or it is a 400, and the provider is not called."""
    model, options, fields = PRICES[name]
    said = says("normal", caller="mallory", **options)
    error = attempt(patient, "mallory", model, said, stream=stream, extra_body=fields)
    assert error in {None, "BadRequestError"}
    if error is not None:
        assert not patient.provider.calls(caller="mallory")
        return
    account = figures(patient)
    assert account.is_paid, account
    assert account.billed * Decimal("0.98") <= account.charged, account
    assert account.is_not_overcharged, account


# 6. Files


def five_documents(said: Any) -> Any:
    source = {"type": "url", "url": "https://example.com/report.pdf"}
    documents = [{"type": "document", "source": source}] * 5
    return [{"role": "user", "content": [*documents, {"type": "text", "text": said[0]["content"]}]}]


def test_6_documents_by_url_are_held(gateway: Gateway, figures: Figures) -> None:
    """Five documents that the provider bills as 720,000 tokens, on 2 USD an hour: the call is
    refused or paid."""
    gateway.key("mallory", plan="starter")
    for _ in range(4):
        said = five_documents(says("timeout", caller="mallory", input=720_000, tokens=5))
        attempt(gateway, "mallory", CLAUDE, said, max_tokens=100)
    account = figures(gateway)
    one_prompt = Decimal(1_000_000 * 5)  # the whole context
    assert account.charged >= account.billed - one_prompt, account


def test_6_a_pdf_is_admitted(make_gateway: MakeGateway) -> None:
    """A PDF of 250 kB passes on the smallest plan."""
    gateway = make_gateway(keep=("tokens",))
    gateway.key("alice", plan="starter")
    source = {"type": "base64", "media_type": "application/pdf", "data": "JVBERi0x" * 42_000}
    text = {"type": "text", "text": says("normal", caller="alice", input=30_000)[0]["content"]}
    said = [{"role": "user", "content": [{"type": "document", "source": source}, text]}]
    assert attempt(gateway, "alice", "claude-haiku-4-5", said, max_tokens=100) is None


# 7. The second choice


@pytest.mark.parametrize("spent_usd", [0.0, 1.8])
def test_7_an_expensive_fallback_stays_within_the_budget(
    make_gateway: MakeGateway, figures: Figures, spent_usd: float
) -> None:
    """The fallback is decided with its own estimate, and its output is capped by the rest of the
    budget."""
    gateway = make_gateway(CHATAPP_FALLBACK_MODELS={"gpt-5.4-nano": DEAREST})
    gateway.key("mallory", plan="starter")
    if spent_usd:
        said = says("normal", caller="mallory", tokens=3000, input=0)
        assert attempt(gateway, "mallory", DEAREST, said, max_tokens=3000) is None
    cheap = "gpt-5.4-nano"  # refused; the dear one answers at length
    said = says("refuse", caller="mallory", status=429, only=cheap, tokens=20_000, retry_after=30)
    attempt(gateway, "mallory", cheap, said)
    account = figures(gateway)
    assert account.is_paid, account
    assert account.billed <= STARTER_HOUR_USD * MICRO * Decimal("1.02"), account


# 8. Answers without a bill


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize("scenario", ["no_usage", "bad_usage"])
@pytest.mark.parametrize("model", [GPT, CLAUDE])
def test_8_chat_without_usage_is_charged_by_its_text(
    patient: Gateway, figures: Figures, model: str, scenario: str, stream: bool
) -> None:
    """POST /chat: an answer with an unreadable usage is charged by its text."""
    for _ in range(3):
        said = says(scenario, caller="mallory", tokens=2000)
        body = {"message": said[0]["content"], "model": model, "stream": stream}
        patient.post("mallory", CHAT, body)
    is_charged_its_bill(figures(patient))


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize("scenario", ["no_usage", "bad_usage"])
@pytest.mark.parametrize("model", [GPT, CLAUDE])
@pytest.mark.parametrize("tokens", [8, 2000])
def test_8_an_answer_without_usage_is_charged_by_its_text(
    patient: Gateway, figures: Figures, model: str, scenario: str, stream: bool, tokens: int
) -> None:
    """The providers' endpoints: by the text in the answer, not by the JSON around it."""
    for _ in range(3):
        said = says(scenario, caller="mallory", tokens=tokens)
        attempt(patient, "mallory", model, said, max_tokens=2000, stream=stream)
    account = figures(patient)
    assert account.is_paid, account
    if tokens > 1000:  # else the estimate of the prompt is most of it
        assert account.is_not_overcharged, account
    for row in patient.rows("mallory"):
        assert row["output_tokens"] <= tokens * 1.02 + 1


# 9. Refused calls


@pytest.mark.parametrize("model", [GPT, CLAUDE])
@pytest.mark.parametrize("status", [400, 404, 413, 422])
def test_9_a_refused_call_keeps_its_request(
    patient: Gateway, figures: Figures, status: int, model: str
) -> None:
    """The provider's refusal of a request costs the request, and no tokens or dollars."""
    before = patient.left("mallory")
    for _ in range(3):
        said = says("refuse", caller="mallory", status=status)
        assert attempt(patient, "mallory", model, said, max_tokens=1000)
    account = figures(patient)
    after = patient.left("mallory")
    assert len(patient.provider.calls(caller="mallory")) == 3
    assert account.charged == account.billed == 0
    assert before["plan"] - after["plan"] == 3
    assert after["tokens"] == before["tokens"]


def test_9_refused_calls_are_no_faster_than_others(make_gateway: MakeGateway) -> None:
    """The provider rejects 60 calls. Its quota sees what the caller's limit admits: 10 at once and
    one every 2 s."""
    gateway = make_gateway(keep=("user",))
    gateway.key("mallory", plan="starter")
    began = time.monotonic()
    with ThreadPoolExecutor(4) as pool:
        for _ in range(60):
            said = says("refuse", caller="mallory", status=400)
            pool.submit(attempt, gateway, "mallory", GPT, said)
    admitted = 10 + (time.monotonic() - began) / 2
    assert len(gateway.provider.calls(caller="mallory")) <= admitted


# 10. Amplification


@pytest.mark.parametrize("model", ["gpt-5.4-mini", "claude-haiku-4-5"])
@pytest.mark.parametrize("status", [500, 529])
def test_10_a_lasting_failure_is_not_amplified(
    patient: Gateway, figures: Figures, status: int, model: str
) -> None:
    """Each of the two tries of an SDK is at most two calls to the provider, by the server's one
    retry, and none is charged. A further try is not forbidden, and has its wait. Anthropic's
    clients are answered 529 if their provider is overloaded."""
    said = says("refuse", caller="mallory", id="lasting", status=status)
    assert attempt(patient, "mallory", model, said, max_tokens=100, max_retries=1)
    assert len(patient.provider.calls(id="lasting")) <= 4
    path = ANTHROPIC if model.startswith("claude") else OPENAI
    body = {"model": model, "max_tokens": 100, "messages": said}
    refused, headers, _ = patient.post("mallory", path, body)
    expected = 529 if (path, status) == (ANTHROPIC, 529) else 503
    assert (refused, headers["retry-after"], headers.get("x-should-retry")) == (expected, "5", None)
    account = figures(patient)
    assert account.charged == account.billed == 0


# 28. One caller's special tier


SPECIAL: dict[str, tuple[str, dict[str, object]]] = {
    "speed fast": (CLAUDE, {"speed": "fast"}),
    "service_tier priority": (GPT, {"service_tier": "priority"}),
    "service_tier flex": (GPT, {"service_tier": "flex"}),
}


@pytest.mark.parametrize("name", SPECIAL)
def test_28_a_special_tier_pauses_only_its_caller(patient: Gateway, name: str) -> None:
    """A 429 of a tier with `retry-after: 3000`: standard calls of the model pass at once."""
    model, fields = SPECIAL[name]
    said = says("tier_429", caller="mallory", retry_after=3000)
    assert attempt(patient, "mallory", model, said, extra_body=fields)
    for caller in ("alice", "bob"):
        said = says("tier_429", caller=caller)
        assert attempt(patient, caller, model, said, max_tokens=100) is None


def test_28_a_long_context_pauses_only_long_contexts(patient: Gateway) -> None:
    """A 429 for a prompt in the long context does not stop short prompts."""
    long = says("tier_429", caller="mallory", tier="flex", retry_after=3000)
    long[0]["content"] += "word " * 250_000
    assert attempt(patient, "mallory", "claude-sonnet-4-5", long, max_tokens=100)
    said = says("tier_429", caller="alice")
    assert attempt(patient, "alice", "claude-sonnet-4-5", said, max_tokens=100) is None


def test_28_no_pause_is_longer_than_a_minute(patient: Gateway) -> None:
    """A provider that names a wait of 3,000 s is called again after 60 s at the latest."""
    model = "gpt-5.4-mini"  # the bystander's models stay open
    said = says("refuse", caller="mallory", status=429, retry_after=3000)
    assert attempt(patient, "mallory", model, said)
    body = {"model": model, "messages": says("normal", caller="alice")}
    status, headers, _ = patient.post("alice", OPENAI, body)
    assert status == 503
    assert int(headers["retry-after"]) <= 60


def test_the_bystander_is_served_during_an_attack(make_gateway: MakeGateway) -> None:
    """While eight callers wait for timeouts, other callers get answers. It is long enough that a
    busy machine is no silent provider to these."""
    gateway = make_gateway(CHATAPP_PROVIDER_TIMEOUT_S=3 * TIMEOUT_S)
    callers = [f"mallory{number}" for number in range(8)]
    for caller in callers:
        gateway.key(caller)
    stop = threading.Event()

    def attack(caller: str) -> None:
        while not stop.is_set():
            attempt(gateway, caller, GPT, says("timeout", caller=caller, tokens=3000))

    with ThreadPoolExecutor(len(callers)) as pool:
        pool.map(attack, callers)
        try:
            for _ in range(8):
                be_served(gateway)
        finally:
            stop.set()


# 11. Free rides: what a caller uses and does not wait to pay

HOUR = Decimal(STARTER_HOUR_USD * MICRO)
HOUR_S, DAY_S = 3600, 86_400
#: A file, and what a token of it costs at most.
FILE_TOKENS, FILE_MICRO_USD = 900_000, 5
OPEN_TOOLS = "mcp,web_fetch"
MCP = {"type": "mcp", "server_label": "mine", "server_url": "https://example.com/mcp"}
FETCH = {"type": "web_fetch_20250910", "name": "web_fetch"}


def word_and_leave(gateway: Gateway, caller: str, path: str, body: Any, *, after: int = 1) -> bool:
    """Stream, disconnect after so many tokens (0: as soon as the provider works), and wait until
    that is settled; False if the call was refused."""
    said = (body.get("messages") or body["input"])[0]["content"]
    text = said if isinstance(said, str) else said[-1]["text"]
    call_id = text.partition("id=")[2].split("]")[0].split(" ")[0]
    connection = gateway.begin(caller, path, {"stream": True, **body})
    try:
        if not after:
            eventually(lambda: gateway.provider.calls(id=call_id) or is_answered(connection))
            reached = bool(gateway.provider.calls(id=call_id))
        else:
            with connection.getresponse() as response:
                reached, tokens = response.status == 200, 0
                while reached and tokens < after and (line := response.readline()):
                    tokens += line.decode().count(FILLER)
    finally:
        gateway.leave(connection)
    if reached:
        gateway.settle(caller)
    return reached


def is_answered(connection: HTTPConnection) -> bool:
    return bool(select.select([connection.sock], [], [], 0)[0])


def is_within(account: Account, budget: Decimal = HOUR) -> bool:
    """Whether the bill is at most the budget and one call's bounded output; all of it but that is
    charged."""
    return account.is_paid and account.billed <= budget + account.one_call


@pytest.mark.parametrize(
    ("path", "model", "tool"),
    [(RESPONSES, "gpt-5.5-pro", MCP), (ANTHROPIC, CLAUDE, FETCH)],
    ids=["the caller's MCP server", "fetched pages"],
)
def test_11_results_of_tools(
    make_gateway: MakeGateway, figures: Figures, path: str, model: str, tool: object
) -> None:
    """8 × 100,000 tokens, which the model reads again after each; left after the first word."""
    gateway = make_gateway(keep=("at-once",), CHATAPP_OPEN_TOOLS=OPEN_TOOLS)
    gateway.key("mallory", plan="starter")
    for _ in range(3):
        said = says("rounds", caller="mallory", input=200, tokens=1, rounds=8, result=100_000)
        prompt = {"input": said} if path == RESPONSES else {"messages": said, "max_tokens": 1000}
        word_and_leave(gateway, "mallory", path, {"model": model, "tools": [tool], **prompt})
    account = figures(gateway)
    assert account.billed
    assert is_within(account), account


@pytest.mark.parametrize("ahead", [0, 1])
@pytest.mark.parametrize("leaves", [False, True])
def test_11_results_of_an_mcp_server_that_nothing_bounds(
    make_gateway: MakeGateway, figures: Figures, *, leaves: bool, ahead: int
) -> None:
    """Anthropic bounds neither how often Claude calls it nor how much it reads. The call is ended,
    and what it was billed by then is charged, also if the provider had gone far ahead. A client
    that is there learns why its stream ends."""
    gateway = make_gateway(keep=("at-once",), CHATAPP_OPEN_TOOLS=OPEN_TOOLS)
    gateway.key("mallory", plan="starter")
    said = says(
        "rounds", caller="mallory", input=200, tokens=1, rounds=8, result=100_000, ahead=ahead
    )
    servers = [{"type": "url", "name": "mine", "url": "https://example.com/mcp"}]
    body = {"model": CLAUDE, "messages": said, "mcp_servers": servers, "max_tokens": 1000}
    if leaves:
        word_and_leave(gateway, "mallory", ANTHROPIC, body)
    else:
        _, _, raw = gateway.post("mallory", ANTHROPIC, {"stream": True, **body})
        assert b"was stopped: its tools' results use up your budget" in raw, raw[-500:]
        gateway.settle("mallory")
    account = figures(gateway)
    assert account.billed > HOUR
    assert account.charged >= account.billed * (1 - Decimal("0.02")), account


def test_11_input_that_is_not_cached_any_more(starter: Gateway, figures: Figures) -> None:
    """Two calls teach that all of it is cached; the next ones are not, and are left."""
    for _ in range(2):
        said = says("normal", caller="mallory", input=0, cached=200_000, tokens=1)
        said[0]["content"] += " word" * 200_000
        assert attempt(starter, "mallory", GPT, said) is None
    for _ in range(12):
        leave_an_uncached_prompt(starter)
    account = figures(starter)
    assert is_within(account), account
    assert account.billed > HOUR / 2


@pytest.mark.parametrize("at_once", [1, 4])
def test_11_a_file_that_is_larger_than_it_was_held(
    starter: Gateway, figures: Figures, at_once: int
) -> None:
    """A `file_url` with 900,000 tokens. It cannot be known before; one such call may exceed the
    budget, and is charged."""
    with ThreadPoolExecutor(at_once) as pool:
        list(pool.map(leave_a_file, [starter] * 4))
    account = figures(starter)
    assert is_within(account, HOUR + FILE_TOKENS * FILE_MICRO_USD), account


@pytest.mark.parametrize(("plan", "calls", "usd"), [("pro", 16, 20), ("team", 64, 200)])
def test_11_silent_calls_at_once(
    make_gateway: MakeGateway, figures: Figures, plan: str, calls: int, usd: int
) -> None:
    """As many as the plan allows, each with the longest answer that it may have, none of which
    arrives: the provider does not end them."""
    gateway = make_gateway(keep=("at-once",), CHATAPP_PROVIDER_TIMEOUT_S=TIMEOUT_S)
    gateway.key("mallory", plan=plan)
    for _ in range(2):
        with ThreadPoolExecutor(calls) as pool:
            for _ in range(calls):
                said = says("silent", caller="mallory", tokens="all")
                pool.submit(attempt, gateway, "mallory", "gpt-5.4", said, stream=True)
    account = figures(gateway)
    assert is_within(account, Decimal(usd * MICRO)), account


def test_11_silent_calls_that_are_left(starter: Gateway, figures: Figures) -> None:
    """Left at once, they are charged what they cost."""
    for _ in range(4):
        said = says("silent_until", caller="mallory", tokens=20_000, input=100)
        body = {"model": "gpt-5.4-mini", "messages": said}
        word_and_leave(starter, "mallory", OPENAI, body, after=0)
    account = figures(starter)
    assert account.billed <= account.charged + account.one_call / 100, account
    assert account.is_not_overcharged, account


@pytest.mark.parametrize("at_once", [1, 4])
def test_11_compactions(starter: Gateway, figures: Figures, at_once: int) -> None:
    """Nothing bounds their output. Left at once, they are charged what they cost."""
    with ThreadPoolExecutor(at_once) as pool:
        list(pool.map(leave_a_compaction, [starter] * 4))
    account = figures(starter)
    assert is_within(account), account


def test_11_dense_text(starter: Gateway, figures: Figures) -> None:
    """Tokens of one byte where a count of fixed places sees long words."""
    text = hidden_between_slices(640_000)
    model = GPT
    for _ in range(6):
        said = says("late", caller="mallory", input=tokens_in(text), tokens=1)
        said[0]["content"] += text
        word_and_leave(starter, "mallory", OPENAI, {"model": model, "messages": said})
    account = figures(starter)
    assert account.billed
    assert account.billed <= max(HOUR, account.charged * Decimal("1.1")), account


def hidden_between_slices(characters: int) -> str:
    """Dense text, but for the places that the golden ratio leads to."""
    golden = (1 + 5**0.5) / 2
    dense = "".join(chr(0x4E00 + n * 7919 % 20_000) for n in range(characters))
    places = [int((n + n * golden % 1) * (characters - 512) / 64) for n in range(64)]
    parts, end = [], 0
    for place in places:
        start = max(end, place - 600)
        stop = min(characters, place + 1112)
        parts += [dense[end:start], "internationalization "[: stop - start] * 1]
        parts[-1] = (" internationalization" * 200)[: stop - start]
        end = stop
    return "".join([*parts, dense[end:]])


def tokens_in(text: str) -> int:
    return tokenizer("o200k_base").count(text)


@pytest.mark.parametrize("n", [1, 8])
@pytest.mark.parametrize("after", [0, 1])
def test_11_hidden_reasoning_at_250_tokens_a_second(
    starter: Gateway, figures: Figures, n: int, after: int
) -> None:
    """Seconds of it before or after the first word, also in eight answers at once."""
    for _ in range(20):  # so that little is expected
        said = says("normal", caller="mallory", input=20, tokens=1)
        assert attempt(starter, "mallory", GPT, said) is None
    for _ in range(2):
        scenario = "late" if after else "silent_until"
        said = says(scenario, caller="mallory", input=20, tokens=after, hidden=750, speed=250)
        body = {"model": GPT, "messages": said, "n": n}
        connection = starter.begin("mallory", OPENAI, {**body, "stream": True})
        time.sleep(2)
        starter.leave(connection)
        starter.settle("mallory")
    account = figures(starter)
    assert account.charged >= account.billed * (1 - Decimal("0.02")), account


@pytest.mark.parametrize("by_day", [True, False])
def test_11_a_day_of_attacks(
    make_gateway: MakeGateway, figures: Figures, monkeypatch: pytest.MonkeyPatch, *, by_day: bool
) -> None:
    """Every hour the attacks, until its budget is used up, by a clock that is set forward: the bill
    exceeds no hour's budget, and not the day's, by more than one call. Then without the budget of
    the day, which ends the attacks in its first hours."""
    began_at, real = time.time(), time.time
    midnight = began_at - began_at % DAY_S + DAY_S
    at = [midnight]
    monkeypatch.setattr(time, "time", lambda: at[0] + real() - began_at)
    limits = {} if by_day else {"usd-day": f"{MONTH_USD} usd/day"}
    gateway = make_gateway(keep=("at-once",), limits=limits, CHATAPP_PROVIDER_TIMEOUT_S=TIMEOUT_S)
    gateway.key("mallory", plan="starter")
    billed = [Decimal(0)]
    for hour in range(24):
        at[0] = midnight + hour * HOUR_S - (real() - began_at)
        for number in range(len(ATTACKS)):
            left, ask = gateway.left("mallory"), ATTACKS[(hour + number) % len(ATTACKS)]
            if min(left["usd-hour"], left["usd-day"]) <= 0:
                break
            with ThreadPoolExecutor(4) as pool:
                list(pool.map(ask, [gateway] * 4))
            gateway.settle("mallory")
        billed.append(gateway.provider.billed_micro_usd(caller="mallory"))
    account = figures(gateway)
    excess = account.one_call + FILE_TOKENS * FILE_MICRO_USD
    assert account.is_paid, account
    assert max(after - before for before, after in itertools.pairwise(billed)) <= HOUR + excess
    assert account.billed <= (Decimal(5 * MICRO) if by_day else 24 * HOUR) + excess, account
    assert account.billed >= 5 * MICRO * (1 if by_day else 4), account


def leave_an_uncached_prompt(gateway: Gateway) -> None:
    said = says("late", caller="mallory", input=200_000, tokens=1)
    said[0]["content"] += " word" * 200_000
    word_and_leave(gateway, "mallory", OPENAI, {"model": GPT, "messages": said})


def leave_a_compaction(gateway: Gateway) -> None:
    said = says("normal", caller="mallory", tokens="all", input=100, wait_ms=300)
    body = {"model": GPT, "input": said, "stream": False}
    word_and_leave(gateway, "mallory", f"{RESPONSES}/compact", body, after=0)


def leave_a_file(gateway: Gateway) -> None:
    file = {"type": "input_file", "file_url": "https://example.com/report.pdf"}
    said = says("late", caller="mallory", input=FILE_TOKENS, tokens=1)
    text = {"type": "input_text", "text": said[0]["content"]}
    body = {"model": GPT, "input": [{"role": "user", "content": [file, text]}]}
    word_and_leave(gateway, "mallory", RESPONSES, body)


def wait_for_a_silent_answer(gateway: Gateway) -> None:
    said = says("silent", caller="mallory", tokens="all")
    attempt(gateway, "mallory", GPT, said, stream=True)


ATTACKS = [leave_an_uncached_prompt, leave_a_compaction, wait_for_a_silent_answer, leave_a_file]


# 12. Honest clients, who must pay no more for the defences


@pytest.mark.parametrize("model", [GPT, CLAUDE])
def test_12_a_stop_in_a_visible_answer_ends_the_call(
    starter: Gateway, figures: Figures, model: str
) -> None:
    """Esc after 2,000 tokens of an answer that may have 128,000: the provider is disconnected at
    once, and what was sent is charged."""
    said = says("text", caller="mallory", id="esc", input=20, tokens=2000)
    path = ANTHROPIC if model == CLAUDE else OPENAI
    body = {"model": model, "messages": said}
    stream_and_leave(
        starter, "mallory", path, body if path == OPENAI else {**body, "max_tokens": 64_000}, 2000
    )
    account = figures(starter)
    assert starter.provider.calls(id="esc")[0].hung_up
    is_charged_its_bill(account)


@pytest.mark.parametrize("path", [OPENAI, RESPONSES])
@pytest.mark.parametrize("tokens", [0, 40])
def test_12_a_stop_of_a_model_that_thinks_costs_what_the_time_allows(
    starter: Gateway, figures: Figures, monkeypatch: pytest.MonkeyPatch, path: str, tokens: int
) -> None:
    """Before the first word or after 40, of the default model: at least the bill, and at most what
    500 tokens a second are since the call began and a quarter of a second more, not the hold."""
    monkeypatch.setattr("chatapp.calls.upstream_call.LEFT_S", 0.5)
    scenario = "late" if tokens else "silent_until"
    options = {"tokens": tokens, "input": 20, "hidden": 100_000, "speed": 100}
    said = says(scenario, caller="mallory", **options)
    prompt = "input" if path == RESPONSES else "messages"
    began_at = time.monotonic()
    word_and_leave(starter, "mallory", path, {"model": "gpt-5.6-luna", prompt: said}, after=tokens)
    lasted_s = time.monotonic() - began_at
    account = figures(starter)
    [row] = starter.rows("mallory")
    assert account.billed <= account.charged, account
    assert row["output_tokens"] <= min(tokens + 500 * (lasted_s + 0.25) + 1, 16_384)
    assert (row["basis"], row["client_left"]) == ("time", 1)


def test_12_a_stop_of_a_cached_prompt_costs_its_bill(starter: Gateway, figures: Figures) -> None:
    """An agent's 100,000 tokens, of which nearly all are cached: the rest of a short answer costs
    less than an uncached prompt."""
    text = " word" * 100_000
    for scenario in ("normal", "normal", "late", "late"):
        said = says(scenario, caller="mallory", input=1000, cached=99_000, tokens=300)
        said[0]["content"] += text
        if scenario == "normal":  # its bill teaches what is cached
            assert attempt(starter, "mallory", GPT, said) is None
        else:
            word_and_leave(starter, "mallory", OPENAI, {"model": GPT, "messages": said})
    account = figures(starter)
    assert len(starter.rows("mallory")) == 4
    is_charged_its_bill(account)


@pytest.mark.parametrize(("plan", "agents"), [("starter", 4), ("pro", 16), ("team", 22)])
def test_12_agents_at_once_are_all_served(
    make_gateway: MakeGateway, figures: Figures, plan: str, agents: int
) -> None:
    """Each with a large prompt, cached but for the first turn, and with tools of its own and the
    provider's: several turns, none of which is refused."""
    gateway = make_gateway(keep=("at-once",))
    gateway.key("mallory", plan=plan)
    large = " word" * 20_000
    tools = [{"type": "function", "name": "shell"}, {"type": "web_search"}]

    def work(_: int) -> list[int]:
        statuses = []
        for turn in range(3):
            read = {"input": 500, "cached": 20_000} if turn else {"input": 20_500}
            said = says("normal", caller="mallory", tokens=400, wait_ms=200, **read)
            said[0]["content"] += large
            body = {"model": "gpt-5.6-terra", "input": said, "tools": tools}
            statuses.append(gateway.post("mallory", RESPONSES, body)[0])
        return statuses

    with ThreadPoolExecutor(agents) as pool:
        statuses = [status for each in pool.map(work, range(agents)) for status in each]
    account = figures(gateway)
    assert statuses == [200] * 3 * agents
    assert account.billed <= account.charged <= account.billed + len(statuses), account
