"""The ledger beside a provider that keeps its own bill: every planted error is found, and quiet
days raise no alarm."""

from __future__ import annotations

import random
import re
from collections import defaultdict
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from chatapp import catalogue
from chatapp.catalogue.usage import Usage
from chatapp.ledger.call import Call
from chatapp.ledger.reconciliation import compare, problems
from chatapp.ledger.table import row_of
from tests.chatapp.ledger.biller import DATED, MODELS, Biller
from tests.chatapp.ledger.calls import begun, finished

START = datetime(2020, 1, 1, tzinfo=UTC)
SLUGS = {
    "openai": ("gpt-5.4-mini", "gpt-6.2-sol"),
    "anthropic": ("claude-haiku-4-5", "claude-opus-4-5"),
}
CATALOGUE = catalogue.load()


class Month:
    """Calls of a gateway that were billed by a provider, on some days from START on. On ``plain``
    days, each has its bill on the day on which it began."""

    def __init__(
        self,
        provider: str,
        *,
        seed: int,
        days: int = 30,
        calls: int = 12,
        plain: bool = False,
        start: datetime = START,
    ) -> None:
        self.start = start
        self.plain = plain
        self.random = random.Random(seed)
        self.provider = Biller(provider)
        self.days = days
        self.rows: list[dict[str, Any]] = []
        for day in range(days):
            for _ in range(calls):
                self.call(start + timedelta(days=day))

    def usage(self, slug: str) -> Usage:
        """A usage as agents have it; a few are long, or of a tier."""
        chance = self.random
        read = int(chance.lognormvariate(9, 1.2))
        if CATALOGUE.tariffs[slug].long and chance.random() < 0.05:
            read += 280_000
        cached = int(read * chance.choice((0, 0, 0.5, 0.9)))
        written = int((read - cached) * chance.choice((0, 0, 0.3)))
        for_an_hour = written // 2 if self.provider.name == "anthropic" else 0
        tiers = ("priority",) if slug == "gpt-6.2-sol" and chance.random() < 0.1 else ()
        output = int(chance.lognormvariate(6, 1))
        return Usage(read, output, cached, written, 0, for_an_hour, tiers=tiers)

    def call(self, day: datetime, **fields: Any) -> None:
        """A call of that day, as the ledger has it, and its bill."""
        chance, name = self.random, self.provider.name
        slug = chance.choice(SLUGS[name])
        usage = self.usage(slug)
        began = day + timedelta(seconds=chance.uniform(0, 86_399))
        lasted = timedelta(seconds=chance.lognormvariate(2.5, 1))
        if self.plain:
            lasted, began = timedelta(seconds=9), day + timedelta(seconds=chance.uniform(0, 80_000))
        elif chance.random() < 0.02:  # near midnight
            began = day + timedelta(days=1) - lasted * chance.random()
        billed_at = began + lasted if name == "openai" else began
        searches = int(chance.random() < 0.05)
        usage = usage._replace(tool_calls={"web_search": searches} if searches else {})
        call = begun(
            started_at=began,
            slug=slug,
            model=slug,
            provider=name,
            total_ms=int(lasted.total_seconds() * 1000),
        )
        match 1 if self.plain else chance.random():
            case kind if kind < 0.01:  # the client left, and what may have been billed was charged
                real = usage._replace(output_tokens=int(usage.output_tokens * chance.random()))
                uncached = usage._replace(cached_input_tokens=0, cache_write_tokens=0)
                uncached = uncached._replace(cache_write_1h_tokens=0)
                self.write(call._replace(estimated=True, basis="time", status="cut_off"), uncached)
            case kind if kind < 0.015:  # the worker died
                real = usage._replace(output_tokens=int(usage.output_tokens * chance.random()))
                cost = CATALOGUE.price(slug, usage)
                estimate = {
                    "estimated_input_tokens": usage.input_tokens,
                    "estimated_output_tokens": usage.output_tokens,
                }
                call = call._replace(total_ms=None, cost_micro_usd=cost, **estimate)
                self.rows.append(row_of(call))
            case kind if kind < 0.03:  # the provider answered with an error
                self.write(call._replace(status="overloaded", estimated=False), Usage(0, 0))
                return
            case _:
                real = usage
                self.write(call._replace(status="answered", estimated=False), usage)
        self.provider.bill(slug, real, billed_at, searches=searches)

    def write(self, call: Call, usage: Usage) -> None:
        cost = CATALOGUE.price(call.slug, usage)
        self.rows.append(row_of(call._replace(usage=usage, cost_micro_usd=cost)))

    def compared(self) -> list[Any]:
        name = self.provider.name
        lines, since = self.provider.lines(), self.start
        rows = compare(self.rows, lines, CATALOGUE, name, since)
        found = list(rows)
        for row in found:
            differs = row["reported_usd"] - row["ledger_usd"]
            assert sum(row["causes"].values()) == pytest.approx(differs, abs=1e-6)
        return found


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
def test_quiet_days_raise_no_alarm(provider: str) -> None:
    """5,000 days of each provider, each alone and all together: with estimates, dead workers, calls
    at midnight, long calls, tiers, tools and failures."""
    month = Month(provider, seed=1, days=5_000, calls=3, start=START - timedelta(days=5_000))
    rows = month.compared()
    by_day = defaultdict(list)
    for row in rows:
        by_day[row["day"]].append(row)
    assert len(by_day) >= 5_000
    alarms = [sentence for day in (*by_day.values(), rows) for sentence in problems(day)]
    assert alarms == []
    seen = {cause for row in rows for cause in row["causes"]}
    assert seen == {"rounding", "estimates"}


# -- planted errors ------------------------------------------------------------------------------


@pytest.fixture(params=[("openai", 2), ("openai", 3), ("anthropic", 4), ("anthropic", 5)])
def month(request: pytest.FixtureRequest) -> Month:
    """Thirty plain days."""
    name, seed = request.param
    return Month(name, seed=seed, calls=40, plain=True)


def planted(month: Month) -> list[str]:
    """The sentences of all problems."""
    return list(problems(month.compared()))


def dollars(sentence: str) -> Decimal:
    [amount] = re.findall(r"bills ([+-]\d+\.\d\d) USD for ", sentence)
    return Decimal(amount)


DAY = START + timedelta(days=20)


def test_a_month_without_an_error_has_no_problem(month: Month) -> None:
    """The others start from it."""
    assert planted(month) == []


def test_a_price_that_changed(month: Month) -> None:
    """The tokens agree from the first day to the last, and the dollars do from a day on no more."""
    slug = SLUGS[month.provider.name][0]
    month.provider.raised[slug] = Decimal("1.25")
    for day in range(30, 34):
        for _ in range(40):
            month.call(START + timedelta(days=day))
    [sentence] = planted(month)
    assert sentence.startswith(f"{month.provider.name} bills +")
    assert f" USD for {slug} on 2020-01-31 to 2020-02-03: its price differs" in sentence
    by_day = [row["causes"] for row in month.compared() if row["model"] == slug]
    assert ["price" in causes for causes in by_day] == [False] * 30 + [True] * 4


def test_a_tool_that_became_dearer(month: Month) -> None:
    """It has no tokens, so nothing explains it."""
    month.provider.search_usd *= 3
    for _ in range(200):
        month.call(DAY)
    [sentence] = planted(month)
    assert " USD for tools and others on " in sentence
    assert sentence.endswith(": nothing explains it.")


@pytest.mark.parametrize("times", ["1", "0.5"])
def test_a_key_that_is_used_elsewhere(month: Month, times: str) -> None:
    """Its tokens are reported and not in the ledger; also those of a batch, at half the price."""
    slug, name = SLUGS[month.provider.name][1], "key_of_a_notebook"
    usage = Usage(900_000, 70_000, 100_000)
    usd = sum(
        month.provider.bill(slug, usage._replace(readings=()), at, key=name, times=Decimal(times))
        for at in (DAY, DAY + timedelta(days=2))
    )
    [sentence] = planted(month)
    assert f"{slug} on 2020-01-21 to 2020-01-23: 1940000 tokens are not in the ledger" in sentence
    assert f"; key: {name}" in sentence
    if MODELS[slug].get("long_context") is None:
        assert abs(dollars(sentence) - usd) <= Decimal("0.01")


def test_a_key_of_the_gateway_that_leaked(month: Month) -> None:
    """It has more tokens than the ledger lacks, so no other key is named."""
    slug = SLUGS[month.provider.name][0]
    month.provider.bill(slug, Usage(30_000, 60_000), DAY)
    [sentence] = planted(month)
    assert f"{slug} on 2020-01-21: 90000 tokens are not in the ledger" in sentence
    assert sentence.endswith("; key: one of the gateway's.")


def test_a_model_that_the_ledger_has_never_had(month: Month) -> None:
    """Storage, too: neither is in the ledger at all."""
    name = month.provider.name
    other = {"openai": "gpt-5.4-nano", "anthropic": "claude-sonnet-4-5"}[name]
    usd = month.provider.bill(other, Usage(10**6, 10**6), DAY, key="key_b")
    month.provider.charge("2020-01-21", "vector storage", Decimal(7))
    model, rest = planted(month)
    assert f"for {other} on 2020-01-21: 2000000 tokens are not in the ledger" in model
    assert abs(dollars(model) - usd) <= Decimal("0.01")
    # Web searches of the day are in the ledger, and may be none.
    assert "tools and others on 2020-01-21" in rest
    assert dollars(rest) == Decimal(7)


def test_a_call_that_the_ledger_counts_twice(month: Month) -> None:
    """It is not billed."""
    slug = SLUGS[month.provider.name][1]
    call = begun(started_at=DAY, slug=slug, model=slug, provider=month.provider.name, total_ms=9)
    usage = Usage(40_000, 50_000)
    cost = CATALOGUE.price(slug, usage)
    month.rows.append(row_of(finished(call, usage=usage, cost_micro_usd=cost)))
    [sentence] = planted(month)
    assert f"{slug} on 2020-01-21: 90000 tokens in the ledger are not billed" in sentence
    assert abs(dollars(sentence) + Decimal(cost) / 10**6) <= Decimal("0.01")


def test_dollars_without_tokens(month: Month) -> None:
    """A fee on a model whose tokens do not agree, either: the rest is one number."""
    slug = SLUGS[month.provider.name][0]
    model = DATED[month.provider.name].format(slug)
    month.provider.bill(slug, Usage(100_000, 100_000), DAY, key="key_b")
    month.provider.charge("2020-01-21", f"{model}, input", Decimal(9))
    unseen, rest = planted(month)
    assert f"{slug} on 2020-01-21: 200000 tokens are not in the ledger" in unseen
    assert f"bills +9.00 USD for {slug} on 2020-01-21: nothing explains it." in rest


@pytest.mark.parametrize("name", ["openai", "anthropic"])
@pytest.mark.parametrize("seed", range(5))
def test_several_errors_on_days_with_estimates(name: str, seed: int) -> None:
    """Each is found, of its own model, and nothing else is a problem."""
    month = Month(name, seed=seed, calls=60)
    one, other = SLUGS[name]
    month.provider.raised[one] = Decimal("0.8")
    for _ in range(200):
        month.call(DAY)
    month.provider.bill(other, Usage(9_000_000, 900_000, readings=(1,)), DAY, key="key_b")
    price, unseen = planted(month)
    assert f"USD for {one} on " in price
    assert "2020-01-21: its price differs" in price or "2020-01-30: its" in price
    assert dollars(price) < 0
    assert f"{other} on 2020-01-21: " in unseen
    assert "key: key_b" in unseen


def test_an_estimate_that_stayed_is_no_problem() -> None:
    """A call without a bill: the provider billed nothing of what was charged."""
    month = Month("openai", seed=6, days=1, calls=0)
    usage, slug = Usage(1_000_000, 100_000), "gpt-5.4-mini"
    cost = CATALOGUE.price(slug, usage)
    call = begun(started_at=START, slug=slug, provider="openai", estimated=True)
    ended = call._replace(usage=usage, cost_micro_usd=cost, status="timeout")
    month.rows.append(row_of(ended))
    [row] = month.compared()
    assert row["causes"] == {"estimates": -cost / 10**6}
    assert planted(month) == []


def test_a_day_is_final_a_day_after_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until then, nothing that differs is a problem: a report lags."""
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    month = Month("anthropic", seed=7, days=0)
    usage = Usage(1_000_000, 0)
    cost = CATALOGUE.price("claude-haiku-4-5", usage)
    for days in range(3):
        call = begun(started_at=today - timedelta(days=days), total_ms=9)
        month.rows.append(row_of(finished(call, usage=usage, cost_micro_usd=cost)))
    final, *others = month.compared()
    assert [list(row["causes"]) for row in others] == [["not final"]] * 2
    assert final["causes"] == {"unbilled": -cost / 10**6}
    [sentence] = planted(month)
    assert f"on {today - timedelta(days=2):%Y-%m-%d}" in sentence


def test_names_of_other_upstreams_and_unlisted_models() -> None:
    """An upstream with keys of its own at the same provider has the same models; what is unlisted
    counts together, as in the ledger."""
    usage = Usage(1000, 100)
    cost = CATALOGUE.price("gpt-5.4-mini", usage)
    of = {"started_at": START, "total_ms": 9}
    calls = [
        begun(**of, slug="second/gpt-5.4-mini", provider="second"),
        begun(**of, slug="second-other", provider="second"),
    ]
    rows = [row_of(finished(call, usage=usage, cost_micro_usd=cost)) for call in calls]
    provider = Biller("openai")
    provider.bill("gpt-5.4-mini", usage, START)
    provider.used["2020-01-01", None, "gpt-99"]["output"] = 5
    found = list(compare(rows, provider.lines(), CATALOGUE, "openai", START))
    named = [(row["model"], row["ledger_tokens"], row["reported_tokens"]) for row in found]
    assert named == [("gpt-5.4-mini", 1100, 1100), ("openai-other", 1100, 5)]
    assert found[1]["keys"] == {"none": 5}


def test_a_call_at_midnight_may_be_billed_on_either_day() -> None:
    """Also one of the day before, which is not compared itself."""
    usage, slug = Usage(1_000_000, 100_000), "gpt-5.4-mini"
    cost = CATALOGUE.price(slug, usage)
    late = START - timedelta(seconds=5)
    call = begun(started_at=late, slug=slug, provider="openai", total_ms=9_000)
    rows = [row_of(finished(call, usage=usage, cost_micro_usd=cost))]
    for billed_at in (late, START):
        provider = Biller("openai")
        provider.bill(slug, usage, billed_at)
        found = list(compare(rows, provider.lines(), CATALOGUE, "openai", START))
        causes = [row["causes"] for row in found]
        assert causes == ([{"estimates": cost / 10**6}] if billed_at == START else [])
