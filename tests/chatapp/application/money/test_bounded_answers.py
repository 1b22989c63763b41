"""An answer is bounded by what the caller's budget pays, and every price that a caller can choose
is counted."""

import json
import re
from itertools import permutations
from typing import Any

import pytest
from flask.testing import FlaskClient

from chatapp import catalogue
from chatapp.accounts.store import Accounts
from chatapp.catalogue.usage import Usage
from chatapp.upstreams.anthropic import extras_of as anthropic_extras
from chatapp.upstreams.openai import extras_of as openai_extras
from chatapp.upstreams.openai_responses import extras_of as responses_extras
from tests.chatapp.application.upstreams.workers import left
from tests.chatapp.conftest import AppMaker, whole
from tests.chatapp.upstream_server import (
    Answer,
    Stream,
    UpstreamServer,
    anthropic_body,
    anthropic_events,
    openai_body,
    openai_chunks,
)
from tests.servers import eventually

MESSAGES = [{"role": "user", "content": "ping"}]
SEARCH = {"type": "web_search_20260318", "name": "web_search"}
SEARCH_ONCE = {"type": "web_search_20260318", "max_uses": 1}
CATALOGUE = catalogue.load()
DEAR = "o1-pro"  # 150 and 600 dollars per million tokens: 2 dollars an hour pay 3,300 of output
PAID = CATALOGUE.output_tokens_for(2_000_000, DEAR, Usage(8, 0))


def ask(client: FlaskClient, path: str, body: dict[str, object]) -> Any:
    return whole(client, path, json={"messages": MESSAGES, **body})


def cost_of(client: FlaskClient, path: str, body: dict[str, object]) -> int:
    """What a call that is answered takes from the day's dollars, in micro-dollars."""
    before = left(client)["usd-day"]
    assert ask(client, path, body).status_code == 200
    return round((before - left(client)["usd-day"]) * 1e6)


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize(
    ("sent", "asked"),
    [
        ({}, {"max_completion_tokens": PAID}),
        ({"max_completion_tokens": 50_000}, {"max_completion_tokens": PAID}),
        ({"max_tokens": 50_000}, {"max_tokens": PAID}),
        ({"max_tokens": 100}, {"max_tokens": 100}),
        # OpenAI refuses two bounds, and other servers read one or the other.
        *(
            ({low: 100, high: 50_000}, {low: 100, high: PAID})
            for low, high in permutations(("max_tokens", "max_completion_tokens"))
        ),
        ({"n": 2}, {"max_completion_tokens": PAID // 2}),
    ],
)
def test_an_expensive_answer_is_bounded_by_the_budget(
    online: FlaskClient,
    provider: UpstreamServer,
    sent: dict[str, object],
    asked: dict[str, object],
    stream: bool,
) -> None:
    """The request to the provider has the bound that the rest of the hour's two dollars pays, if
    the caller set a higher one or none."""
    response = ask(online, "/v1/chat/completions", {"model": DEAR, "stream": stream, **sent})
    assert response.status_code == 200
    [call] = provider.calls
    bounds = {"max_tokens", "max_completion_tokens"}
    assert {name: value for name, value in call.body.items() if name in bounds} == asked
    assert 3_000 < PAID < 3_334


def test_a_request_within_the_budget_is_unchanged(
    online: FlaskClient, provider: UpstreamServer
) -> None:
    """The bytes stay the same if the budget pays the model's longest answer."""
    raw = b'{"model":"gpt-4o-mini",  "messages":[{"role":"user","content":"p\\u0069ng"}]}'
    content = {"Content-Type": "application/json"}
    assert online.post("/v1/chat/completions", data=raw, headers=content).status_code == 200
    assert provider.calls[0].raw == raw


def test_anthropics_bound_leaves_room_for_an_answer(
    online: FlaskClient, provider: UpstreamServer
) -> None:
    """`max_tokens` is lowered together with the thinking budget: Anthropic rejects a budget above
    the bound."""
    body = {"model": "claude-fable-5", "max_tokens": 100_000}
    assert ask(online, "/v1/messages", body).status_code == 200
    paid = provider.calls[-1].body["max_tokens"]
    assert isinstance(paid, int)
    assert 35_000 < paid < 40_000
    for budget in (90_000, paid - 5):
        thinking = {"type": "enabled", "budget_tokens": budget, "display": "omitted"}
        assert ask(online, "/v1/messages", {**body, "thinking": thinking}).status_code == 200
        call = provider.calls[-1]
        most = call.body["max_tokens"]
        assert isinstance(most, int)
        assert most <= paid
        assert call.body["thinking"] == {**thinking, "budget_tokens": most // 2}


def test_parallel_calls_without_a_bound_cannot_spend_a_multiple(
    online: FlaskClient, provider: UpstreamServer
) -> None:
    """Each further bound is lower by what is held; an excess is debt, and the next call waits."""
    long = openai_body(model=DEAR)
    usage = {"prompt_tokens": 8, "completion_tokens": PAID, "total_tokens": PAID + 8}
    provider.script(Answer(200, {**long, "usage": usage}))
    assert ask(online, "/v1/chat/completions", {"model": DEAR}).status_code == 200
    assert left(online)["usd-hour"] < 0.001
    refused = ask(online, "/v1/chat/completions", {"model": DEAR})
    assert (refused.status_code, refused.json["error"]["code"]) == (429, "insufficient_quota")


OPUS, HAIKU, LUNA = "claude-opus-5", "claude-haiku-4-5", "gpt-5.6-luna"


@pytest.mark.parametrize(
    ("slug", "usage", "micro_usd"),
    [
        (OPUS, Usage(1_000, 100), 7_500),
        (OPUS, Usage(1_000, 100, tiers=("fast",)), 15_000),
        (OPUS, Usage(1_000, 100, tiers=("fast", "us")), 16_500),
        ("claude-opus-4-6", Usage(1_000, 100, tiers=("fast",)), 45_000),
        (OPUS, Usage(1_000, 0, cache_write_tokens=1_000), 6_250),
        (OPUS, Usage(1_000, 0, cache_write_tokens=1_000, cache_write_1h_tokens=1_000), 10_000),
        (OPUS, Usage(1_000, 0, cache_write_tokens=800, cache_write_1h_tokens=300), 7_125),
        (OPUS, Usage(1_000, 100, tool_calls={"web_search": 20}), 207_500),
        (LUNA, Usage(1_000, 100, tiers=("priority",)), 640),
        ("gpt-5-mini", Usage(1_000, 100, tiers=("priority",)), 810),
        ("gpt-5-mini", Usage(1_000, 100, tiers=("flex",)), 225),
        # A tier that this model has no multiple for: the highest of all models'.
        (LUNA, Usage(1_000, 100, tiers=("fast",)), 1_920),
        ("claude-new-7", Usage(1_000_000, 0, tiers=("us",)), 165_000_000),
        # A tier that no model has is standard.
        (LUNA, Usage(1_000, 100, tiers=("on_demand",)), 320),
        ("claude-sonnet-4-5", Usage(200_001, 100), 1_202_256),
        ("gpt-6.2-sol", Usage(272_001, 100, cached_input_tokens=200_000), 329_504),
        ("gpt-6.2-astra", Usage(1_000, 100, cached_input_tokens=500), 8_200),
    ],
)
def test_every_option_with_a_price_is_charged(slug: str, usage: Usage, micro_usd: int) -> None:
    """Tiers and speeds, one-hour cache writes, web searches, long context."""
    assert CATALOGUE.price(slug, usage) == micro_usd


@pytest.mark.parametrize("amount", [8_000, 54_321, 2_000_000])
@pytest.mark.parametrize(
    ("slug", "tiers"), [(DEAR, ()), (OPUS, ("fast", "us")), ("gpt-5.4", ()), ("gpt-99", ())]
)
def test_the_output_for_an_amount_is_exact(slug: str, tiers: tuple[str, ...], amount: int) -> None:
    """It costs at most the amount, and one token more would cost more."""
    prompt = Usage(40, 0, tiers=tiers)
    paid = CATALOGUE.output_tokens_for(amount, slug, prompt)
    assert paid > 0
    assert CATALOGUE.price(slug, Usage(40, paid, tiers=tiers)) <= amount
    assert CATALOGUE.price(slug, Usage(40, paid + 1, tiers=tiers)) > amount
    assert CATALOGUE.output_tokens_for(1, slug, prompt) == 0


def test_every_entry_of_the_catalogue_is_consistent() -> None:
    """A long context's price begins below the context, and an answer is not longer than the
    context."""
    for slug, entry in CATALOGUE.entries.items():
        assert entry.long_context is None or entry.long_context.over < entry.context, slug
        assert (entry.max_output or 1) <= entry.context, slug


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/v1/messages", {"model": OPUS, "speed": "fast"}),
        ("/v1/messages", {"model": OPUS, "billing_policy": {"bill_to": "self"}}),
        ("/v1/messages", {"model": OPUS, "speed": "standard", "inference_geo": "us"}),
        ("/v1/messages", {"model": OPUS, "tools": [SEARCH_ONCE, {"name": "f"}]}),
        ("/v1/messages", {"model": OPUS, "tools": [{"type": "bash_20250124"}, {"type": "custom"}]}),
        ("/v1/chat/completions", {"model": LUNA, "service_tier": "priority"}),
        ("/v1/chat/completions", {"model": LUNA, "service_tier": "auto"}),
        ("/v1/chat/completions", {"model": "gpt-5-mini", "service_tier": "flex"}),
        ("/v1/chat/completions", {"model": LUNA, "tools": [{"type": "function"}, {}]}),
    ],
)
def test_a_field_with_a_price_is_forwarded(
    online: FlaskClient, provider: UpstreamServer, path: str, fields: dict[str, object]
) -> None:
    """Unchanged."""
    assert ask(online, path, {"max_tokens": 10, **fields}).status_code == 200
    assert {name: provider.calls[0].body[name] for name in fields} == fields


def test_a_call_that_may_search_holds_one_search(
    make_app: AppMaker, provider: UpstreamServer, accounts: Accounts
) -> None:
    """A cent more than the same call without; what the provider reports is charged."""
    held = {}
    limits = {"key-usd-day": "1 usd/day"}
    keys = {
        name: accounts.create_key(name, plan="pro", default_plan="starter", limits=limits)
        for name in ("plain", "searching")
    }
    client = make_app().test_client()
    for name, key in keys.items():
        client.environ_base["HTTP_X_API_KEY"] = key.text
        provider.script(Answer(200, anthropic_body(model=HAIKU)))
        body = {"model": HAIKU, "max_tokens": 10, "tools": [SEARCH] if name == "searching" else []}
        answer = ask(client, "/v1/messages", body)
        assert answer.status_code == 200, answer.text
        left_now = re.search(r'"key-usd-day";r=(\d+)', answer.headers["RateLimit"])
        assert left_now is not None
        held[name] = 1_000_000 - int(left_now[1])
    assert 10_000 <= held["searching"] - held["plain"] < 12_000, held


def test_the_tier_that_was_served_is_billed(online: FlaskClient, provider: UpstreamServer) -> None:
    """Not the requested one: a call in a tier without capacity is served as a standard one, and a
    project may have another default."""
    body = {"model": LUNA, "max_tokens": 10, "service_tier": "priority"}
    standard = CATALOGUE.price(LUNA, Usage(12, 5, cached_input_tokens=8))
    priority = CATALOGUE.price(LUNA, Usage(12, 5, cached_input_tokens=8, tiers=("priority",)))
    for tier, billed in [("default", standard), ("priority", priority)]:
        provider.script(Answer(200, {**openai_body(model=LUNA), "service_tier": tier}))
        assert cost_of(online, "/v1/chat/completions", body) == billed
    pieces = [
        p.replace(b'"usage"', b'"service_tier": "priority", "usage"') for p in openai_chunks()
    ]
    provider.script(Stream(pieces))
    assert cost_of(online, "/v1/chat/completions", {**body, "stream": True}) == priority


def test_anthropics_bill_is_read_completely(online: FlaskClient, provider: UpstreamServer) -> None:
    """Speed, region, one-hour writes, searches, and the compaction of the context."""
    usage = {
        "input_tokens": 100,
        "output_tokens": 10,
        "cache_creation_input_tokens": 50,
        "cache_creation": {"ephemeral_1h_input_tokens": 40, "ephemeral_5m_input_tokens": 10},
        "server_tool_use": {"web_search_requests": 3, "web_fetch_requests": 1},
        "speed": "fast",
        "inference_geo": "us",
        "service_tier": "standard",
        "iterations": [
            {"type": "compaction", "input_tokens": 1000, "output_tokens": 200},
            {"type": "message", "input_tokens": 100, "output_tokens": 10},
            {"type": "of tomorrow", "input_tokens": "many"},
        ],
    }
    provider.script(Answer(200, {**anthropic_body(model=OPUS), "usage": usage}))
    written = {"cache_write_tokens": 50, "cache_write_1h_tokens": 40}
    how = {"tool_calls": {"web_search": 3}, "tiers": ("fast", "us")}
    billed = CATALOGUE.price(OPUS, Usage(1_150, 210, **written, **how))
    assert cost_of(online, "/v1/messages", {"model": OPUS, "max_tokens": 300}) == billed


@pytest.mark.parametrize(
    ("hour", "minutes", "in_the_end"), [(40, 10, 290), (0, 50, 0), (50, 0, 300)]
)
def test_writes_after_a_search_have_the_lifetime_of_the_first(
    online: FlaskClient, provider: UpstreamServer, hour: int, minutes: int, in_the_end: int
) -> None:
    """The end of a stream has their sum alone."""
    start, *events = anthropic_events(model=OPUS)
    lifetimes = {"ephemeral_1h_input_tokens": hour, "ephemeral_5m_input_tokens": minutes}
    first = {"cache_creation_input_tokens": 50, "cache_creation": lifetimes}
    last = {"output_tokens": 5, "cache_creation_input_tokens": 300}
    details = {"output_tokens_details": {"thinking_tokens": 4}}
    provider.script(
        Stream([with_usage(start, first), *[with_usage(e, {**last, **details}) for e in events]])
    )
    body = {"model": OPUS, "max_tokens": 300, "stream": True}
    written = {"cache_write_tokens": 300, "cache_write_1h_tokens": in_the_end}
    billed = CATALOGUE.price(OPUS, Usage(12 + 8 + 300, 5, cached_input_tokens=8, **written))
    assert cost_of(online, "/v1/messages", body) == billed


def with_usage(event: bytes, usage: dict[str, object]) -> bytes:
    """The event with this usage, if it has one."""
    head, _, data = event.partition(b"data: ")
    fields = json.loads(data)
    for place in (fields, fields.get("message", {})):
        if "usage" in place:
            place["usage"].update(usage)
    return head + b"data: " + json.dumps(fields).encode() + b"\n\n"


@pytest.mark.parametrize(
    "odd", [None, [], "x", 3, {}, {"type": 3}, [None], [3], [{"type": []}], [[]]], ids=repr
)
def test_invalid_fields_do_not_raise(odd: object) -> None:
    """Any JSON is refused or left to the provider."""
    for extras in (openai_extras, responses_extras, anthropic_extras):
        names = ("tools", "messages", "thinking", "speed", "inference_geo", "service_tier")
        for name in (*names, "modalities", "container", "audio", "input", "prediction"):
            extras({name: odd})
        for name in ("prompt_cache_options", "reasoning", "thinking", "billing_policy"):
            extras({name: {"ttl": odd, "mode": odd, "effort": odd, "type": odd, "bill_to": odd}})
        part = {"type": odd, "tool": odd, "tool_changes": odd, "prompt_cache_breakpoint": odd}
        for name in ("messages", "input"):
            extras({name: [{"content": [part], "tools": [{"type": odd, "environment": odd}]}]})


def test_after_a_call_without_a_bill_every_cost_is_counted(
    make_app: AppMaker, provider: UpstreamServer, redis_client: Any, redis_server: Any
) -> None:
    """Until each budget's window ends, in every worker, up to half of what it has left is held for
    each call and bounds its answer, so that unreported usage is charged."""
    config = {"CHATAPP_PROVIDER_TIMEOUT_S": 0.5, "RATELIMIT_STORAGE_URI": redis_server.uri}
    one, other = (make_app(**config).test_client() for _ in range(2))
    path, body = "/v1/chat/completions", {"model": DEAR}
    provider.silence()
    assert ask(one, path, body).status_code == 504
    remaining = left(other)["usd-hour"]
    assert 1.38 < remaining < 1.39  # 1,024 tokens of output were held
    assert ask(other, path, body).status_code == 504
    assert left(other)["usd-hour"] == pytest.approx(remaining / 2, abs=0.001)
    eventually(lambda: len(provider.calls) == 2)
    bounds = [call.body["max_completion_tokens"] for call in provider.calls]
    assert all(isinstance(bound, int) for bound in bounds)
    half = CATALOGUE.output_tokens_for(int(remaining * 1e6) // 2, DEAR, Usage(8, 0))
    assert bounds == [PAID, pytest.approx(half, abs=2)]


def test_a_reported_call_releases_its_reservation(
    online: FlaskClient, provider: UpstreamServer
) -> None:
    """A caller who has stopped one stream is not kept from further calls."""
    call_unseen(online, provider, "/v1/chat/completions", {"model": "gpt-5.4"})
    billed = CATALOGUE.price("gpt-5.4", Usage(12, 5, cached_input_tokens=8))
    for _ in range(5):
        before = left(online)
        assert ask(online, "/v1/chat/completions", {"model": "gpt-5.4"}).status_code == 200
        assert round((before["usd-hour"] - left(online)["usd-hour"]) * 1e6) == billed
    assert provider.calls[-1].body["max_completion_tokens"] == 16_384


def call_unseen(
    client: FlaskClient, provider: UpstreamServer, path: str, body: dict[str, object]
) -> None:
    """A call whose answer is unreadable, and may be billed."""
    provider.script(Answer(200, b"{odd"))
    answer = ask(client, path, body)
    assert answer.status_code == 502, answer.text


def test_an_unreported_tier_is_billed_as_requested(
    online: FlaskClient, provider: UpstreamServer
) -> None:
    """If the answer does not name the served one."""
    body = {"model": LUNA, "max_tokens": 10, "service_tier": "priority"}
    billed = CATALOGUE.price(LUNA, Usage(12, 5, cached_input_tokens=8, tiers=("priority",)))
    assert cost_of(online, "/v1/chat/completions", body) == billed


def test_only_more_dollars_are_held(make_app: AppMaker, provider: UpstreamServer) -> None:
    """Not tokens, and not the usual spending of the key: three agents at once continue."""
    body = {"model": "claude-haiku-4-5", "max_tokens": 64_000}
    client = make_app(CHATAPP_PROVIDER_TIMEOUT_S=0.5).test_client()
    call_unseen(client, provider, "/v1/messages", body)
    provider.silence()  # all that is held stays charged
    before = left(client)
    assert ask(client, "/v1/messages", body).status_code == 504
    after = left(client)
    assert 0.08 < before["usd-hour"] - after["usd-hour"] < 0.09


def test_the_answer_of_an_unlisted_model_is_bounded(
    make_app: AppMaker, provider: UpstreamServer, tmp_path: Any
) -> None:
    """By the most that any model can generate, even with a large budget."""
    config = {"CHATAPP_PLANS": {"ada": "team"}}
    client = make_app(**config).test_client()
    model = CATALOGUE.model("gpt-99", "openai")
    assert CATALOGUE.bound(model, None, 150_000) == 32_768
    assert CATALOGUE.bound(model, None, 20_000) == 20_000
    assert CATALOGUE.bound(model, None, 10**9) is None
    assert CATALOGUE.bound(model, 50_000, 40_000) == 40_000
    assert client.post("/chat", json={"message": "x", "user_id": "ada"}).status_code == 200


MCP = {"type": "mcp", "server_label": "mine", "server_url": "https://example.com/mcp"}
FETCH = {"type": "web_fetch_20250910", "name": "web_fetch"}
OPEN: dict[str, tuple[str, str, dict[str, object]]] = {
    "mcp": ("mcp", "/v1/responses", {"model": LUNA, "input": "p", "tools": [MCP]}),
    "fetch": ("web_fetch", "/v1/messages", {"model": OPUS, "tools": [FETCH]}),
    "toolset": ("mcp", "/v1/messages", {"model": OPUS, "tools": [{"type": "mcp_toolset"}]}),
    "servers": ("mcp", "/v1/messages", {"model": OPUS, "mcp_servers": [{"url": "x"}]}),
}


@pytest.mark.parametrize("name", OPEN)
def test_a_tool_with_endless_results_is_off_until_it_is_allowed(
    make_app: AppMaker, provider: UpstreamServer, name: str
) -> None:
    """With the setting's name. Allowed MCP has to be streamed, so that its results are counted."""
    tool, path, body = OPEN[name]
    body = {"max_tokens": 10, **body} if path == "/v1/messages" else body
    refused = ask(make_app().test_client(), path, body)
    assert (refused.status_code, provider.calls) == (400, [])
    assert f"CHATAPP_OPEN_TOOLS={tool}" in refused.text
    client = make_app(CHATAPP_OPEN_TOOLS=tool).test_client()
    plain = ask(client, path, body)
    assert plain.status_code == (400 if tool == "mcp" else 200), plain.text
    assert ("streamed" in plain.text) == (tool == "mcp")


@pytest.mark.parametrize(
    ("own", "uses", "size"), [({}, 4, 16_000), ({"max_uses": 2, "max_content_tokens": 500}, 2, 500)]
)
def test_uses_of_tools_are_bounded_by_the_budget(
    make_app: AppMaker, provider: UpstreamServer, own: dict[str, object], uses: int, size: int
) -> None:
    """Half of two dollars pays four readings of up to 64,000 tokens; a caller may want less."""
    client = make_app(CHATAPP_OPEN_TOOLS="web_fetch").test_client()
    tools = [{**SEARCH, **own}, {**FETCH, **own}, {"name": "f"}]
    body = {"model": OPUS, "max_tokens": 10, "tools": tools}
    assert ask(client, "/v1/messages", body).status_code == 200
    search, fetch, function = provider.calls[0].body["tools"]  # type: ignore[misc]
    assert (search["max_uses"], fetch["max_uses"], function) == (uses, uses, {"name": "f"})
    assert fetch["max_content_tokens"] == size
    tools = [{"type": "web_search"}]
    body = {"model": "gpt-5.4", "input": "ping", "tools": tools}
    assert ask(client, "/v1/responses", body).status_code == 200
    assert provider.calls[1].body["max_tool_calls"] == 6


def test_each_reading_has_the_price_of_its_length() -> None:
    """Not the sum of all: three readings of 100,000 tokens are no long context."""
    usage = {"output_tokens": 100, "cached_input_tokens": 30_000}
    short = Usage(300_000, readings=(100_000,) * 3, **usage)
    assert CATALOGUE.price("gpt-5.4", short) == 270_000 * 2.5 + 30_000 * 0.25 + 100 * 15
    mixed = Usage(400_000, 0, readings=(100_000, 300_000))
    assert CATALOGUE.price("gpt-5.4", mixed) == 100_000 * 2.5 + 300_000 * 5
    assert CATALOGUE.price("gpt-5.4", Usage(300_000, 0)) == 300_000 * 5


def test_no_more_input_is_cached_than_there_is(
    online: FlaskClient, provider: UpstreamServer
) -> None:
    """A provider that reports more of it, or of what was written, is charged as if all was."""
    details = {"cached_tokens": 9_000_000, "cache_write_tokens": 9_000_000}
    usage = {"prompt_tokens": 100, "completion_tokens": 1, "prompt_tokens_details": details}
    provider.script(Answer(200, {**openai_body(model=LUNA), "usage": usage}))
    billed = CATALOGUE.price(LUNA, Usage(100, 1, cached_input_tokens=100))
    assert cost_of(online, "/v1/chat/completions", {"model": LUNA}) == billed
