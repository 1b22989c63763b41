"""The provider of the money tests bills what it reports."""

import json
from decimal import Decimal

import anthropic
import openai
import pytest

from tests.e2e.money.billing_provider import (
    FILLER,
    BillingProvider,
    Consumption,
    PriceTable,
    marker,
)
from tests.servers import eventually


def ask(provider: BillingProvider, scenario: str, **more: object) -> openai.types.CompletionUsage:
    """The usage of one plain call through OpenAI's SDK."""
    fields = {"model": "gpt-5.4-mini", "messages": said(scenario), **more}
    client = openai.OpenAI(base_url=f"{provider.url}/v1", api_key="none", max_retries=0)
    with client:
        answer = client.chat.completions.create(**fields)  # type: ignore[call-overload]
    return answer.usage  # type: ignore[no-any-return]


def said(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


@pytest.mark.parametrize(
    ("model", "used", "micro_usd"),
    [
        ("gpt-5.4-mini", Consumption(input_tokens=100, output_tokens=10), "120"),
        ("gpt-5.4-mini", Consumption(cached_tokens=1), "0.075"),
        ("gpt-5.4-mini-2026-01-01", Consumption(output_tokens=2), "9"),
        ("gpt-5.4", Consumption(input_tokens=272_000), "680000"),
        ("gpt-5.4", Consumption(input_tokens=272_001), "1360005"),
        ("gpt-5.4", Consumption(output_tokens=10, tier="priority"), "300"),
        ("claude-haiku-4-5", Consumption(written_tokens=4), "5"),
        ("claude-haiku-4-5", Consumption(written_1h_tokens=4), "8"),
        ("claude-haiku-4-5", Consumption(output_tokens=1, searches=20), "200005"),
        ("claude-opus-4-6", Consumption(output_tokens=1, tier="fast"), "150"),
        ("claude-opus-5", Consumption(output_tokens=1, tier="fast"), "50"),
    ],
)
def test_a_price_is_exact(model: str, used: Consumption, micro_usd: str) -> None:
    """Each kind of token at its price, times the tier, plus the tools."""
    assert PriceTable().micro_usd(model, used) == Decimal(micro_usd)


def test_the_bill_is_the_reported_usage(provider: BillingProvider) -> None:
    """A normal call is billed by its reported usage, within the bound of its request."""
    usage = ask(provider, marker("normal", tokens=900, input=10, id=1), max_completion_tokens=300)
    assert (usage.prompt_tokens, usage.completion_tokens) == (10, 300)
    assert provider.billed_micro_usd() == provider.billed_micro_usd(id="1") == Decimal("1357.5")


def test_every_choice_is_billed(provider: BillingProvider) -> None:
    """`n` answers cost n times as much."""
    usage = ask(provider, marker("normal", tokens=50, input=0), n=3)
    assert usage.completion_tokens == 150
    assert provider.billed_micro_usd() == 150 * Decimal("4.5")


def test_a_timeout_is_billed(provider: BillingProvider) -> None:
    """The prompt and all output, although nothing is sent."""
    with pytest.raises(openai.APITimeoutError):
        ask(provider, marker("timeout", tokens=2000, input=100), timeout=0.1)
    assert provider.billed_micro_usd() == 100 * Decimal("0.75") + 2000 * Decimal("4.5")
    eventually(lambda: provider.calls()[0].hung_up)


def test_a_stopped_answer_is_billed_until_the_disconnect(provider: BillingProvider) -> None:
    """A slow answer that stops on a disconnect costs what had been generated."""
    scenario = marker("normal", tokens=10_000, input=0, wait_ms=5000, stops=1)
    with pytest.raises(openai.APITimeoutError):
        ask(provider, scenario, timeout=0.5)
    eventually(lambda: provider.calls()[0].hung_up)
    assert 0 < provider.calls()[0].used.output_tokens < 5_000


@pytest.mark.parametrize("status", [400, 404, 413, 422, 429, 500, 529])
def test_a_refusal_is_free(provider: BillingProvider, status: int) -> None:
    """It is counted as an attempt."""
    with pytest.raises(openai.APIStatusError) as raised:
        ask(provider, marker("refuse", status=status, id="x"))
    assert raised.value.status_code == status
    assert provider.billed_micro_usd() == 0
    assert len(provider.calls(id="x")) == 1


def test_a_tier_may_have_no_capacity(provider: BillingProvider) -> None:
    """429 with a long wait for the special tier; a standard call passes."""
    scenario = marker("tier_429", retry_after=3000)
    with pytest.raises(openai.RateLimitError) as raised:
        ask(provider, scenario, service_tier="priority")
    assert raised.value.response.headers["retry-after"] == "3000"
    assert ask(provider, scenario).completion_tokens == 5


def test_anthropic_reports_what_changes_the_price(provider: BillingProvider) -> None:
    """Speed, cache writes by lifetime and searches are in the usage, and are billed."""
    scenario = marker("normal", tokens=40, input=7, written_1h=1000, searches=2)
    client = anthropic.Anthropic(base_url=provider.url, api_key="none", max_retries=0)
    fields = {"model": "claude-opus-5", "max_tokens": 100, "messages": said(scenario)}
    with client, client.messages.stream(**fields, extra_body={"speed": "fast"}) as stream:  # type: ignore[arg-type]
        usage = stream.get_final_message().usage
    assert usage.output_tokens == 40
    assert usage.cache_creation is not None
    assert usage.cache_creation.ephemeral_1h_input_tokens == 1000
    assert usage.server_tool_use is not None
    assert usage.server_tool_use.web_search_requests == 2
    tokens = (7 * 5 + 1000 * 10 + 40 * 25) * 2
    assert provider.billed_micro_usd() == tokens + 20_000


@pytest.mark.parametrize(
    "kind", ["text", "tool_arguments", "function_call", "custom_input", "thinking", "refusal"]
)
def test_every_kind_of_output_streams(provider: BillingProvider, kind: str) -> None:
    """All of it is sent and billed, then the stream waits until its client disconnects."""
    client = openai.OpenAI(base_url=f"{provider.url}/v1", api_key="none", max_retries=0)
    with client:
        stream = client.chat.completions.create(
            model="gpt-5.4-mini",
            messages=said(marker(kind, tokens=1200)),  # type: ignore[arg-type]
            stream=True,
        )
        sent = [json.dumps(next(stream).to_dict()) for _ in range(4)]
        stream.close()
    assert "".join(sent).count(FILLER) == 1200
    eventually(lambda: provider.calls()[0].hung_up)
    assert provider.calls()[0].used.output_tokens == 1200
