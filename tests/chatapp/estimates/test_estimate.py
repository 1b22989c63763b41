"""Estimates of whole calls, and what they learn from ended calls."""

import base64
import logging
import zlib
from decimal import Decimal

import pytest
from sqlalchemy import text

from chatapp import catalogue
from chatapp.catalogue.usage import Usage
from chatapp.database.connection import Database
from chatapp.estimates.estimate import Estimate, Estimator
from chatapp.estimates.outputs import (
    ENOUGH_CALLS,
    LEAST_OUTPUT_TOKENS,
    MOST_CALLS,
    UNKNOWN_OUTPUT_TOKENS,
)
from chatapp.estimates.tokens import of_body
from chatapp.ledger import table
from chatapp.services import services_of
from chatapp.upstreams import Extras
from ratelimit_ext import Limiter
from tests.chatapp.conftest import AppMaker
from tests.chatapp.ledger.calls import begun, finished

MODELS = catalogue.load()
GPT = MODELS.model("gpt-4o", "openai")
CLAUDE = MODELS.model("claude-haiku-4-5", "anthropic")
BODY = {"messages": [{"role": "user", "content": "hello"}]}


@pytest.fixture
def estimator() -> Estimator:
    return Estimator(MODELS)


def teach(
    estimator: Estimator, output_tokens: int, *, choices: int = 1, caller: str = "ada"
) -> None:
    """Observe enough calls of GPT with that output."""
    estimate = Estimate(10, 100, choices)
    for _ in range(ENOUGH_CALLS):
        estimator.observe(GPT.slug, estimate, Usage(10, output_tokens * choices), caller)


def test_an_unknown_model_has_the_default(estimator: Estimator) -> None:
    """Without calls, the estimate is the input and the documented default."""
    estimate = estimator.estimate(GPT, BODY)
    assert (estimate.input_tokens, estimate.output_tokens) == (8, UNKNOWN_OUTPUT_TOKENS)
    assert estimate.tokens == 8 + UNKNOWN_OUTPUT_TOKENS


def test_one_use_of_each_billed_tool_is_held(estimator: Estimator) -> None:
    """In dollars only: many calls with searches at once cannot all begin on the last cent."""
    plain = estimator.estimate(CLAUDE, BODY)
    searching = estimator.estimate(CLAUDE, BODY, extras=Extras(tools=("web_search",)))
    assert searching.tokens == plain.tokens
    fee = MODELS.price(CLAUDE.slug, searching.usage) - MODELS.price(CLAUDE.slug, plain.usage)
    assert fee == 10_000


def test_experience_replaces_it(estimator: Estimator) -> None:
    """With enough calls, the estimate is what nearly all of them used, not the worst case: exact
    for the caller, by the model's histogram for an unknown caller."""
    teach(estimator, 3_000)
    expected = estimator.estimate(GPT, BODY, most_output_tokens=16_384).output_tokens
    assert 3_000 <= expected < 3_600
    assert estimator.estimate(GPT, BODY, caller="ada").output_tokens == 3_000


def test_short_answers_lower_only_their_callers_hold(estimator: Estimator) -> None:
    """After sixty answers of one token the hold of their caller is the least, and that of others is
    unchanged."""
    for _ in range(3):
        teach(estimator, 1, caller="mallory")
    assert estimator.estimate(GPT, BODY, caller="mallory").output_tokens == LEAST_OUTPUT_TOKENS
    for caller in ("ada", None):
        estimate = estimator.estimate(GPT, BODY, caller=caller)
        assert estimate.output_tokens == UNKNOWN_OUTPUT_TOKENS


def test_input_that_was_cached_lately_is_expected_to_be(estimator: Estimator) -> None:
    """An agent's next turn: the limit in tokens leaves cached input out, and dollars use its price.
    One call is not enough, and the lower of two shares counts."""
    body = {"messages": [{"role": "user", "content": "word " * 1_000}]}
    plain = estimator.estimate(GPT, body, caller="agent", most_output_tokens=10)
    assert plain.tokens == plain.input_tokens + 10
    for cached in (900, 950):
        estimator.observe(GPT.slug, plain, Usage(1_000, 10, cached_input_tokens=cached), "agent")
    learned = estimator.estimate(GPT, body, caller="agent", most_output_tokens=10)
    assert learned.cached_input_tokens == int(plain.input_tokens * 0.9)
    assert learned.tokens == plain.input_tokens - learned.cached_input_tokens + 10
    assert MODELS.price(GPT.slug, learned.usage) < MODELS.price(GPT.slug, plain.usage)
    assert estimator.estimate(GPT, body, most_output_tokens=10).cached_input_tokens == 0
    longer = {"messages": [{"role": "user", "content": "word " * 9_000}]}
    longer_one = estimator.estimate(GPT, longer, caller="agent")
    assert longer_one.cached_input_tokens == 1_000, "the cache knows no more than was sent"


def test_what_was_written_to_the_cache_is_expected_to_be_read(estimator: Estimator) -> None:
    """From the first call on; no longer after a call that did not read it."""
    body = {"messages": [{"role": "user", "content": "word " * 1_000}]}

    def expected() -> int:
        return estimator.estimate(CLAUDE, body, caller="agent").cached_input_tokens

    def call(cached: int, written: int) -> None:
        plain = estimator.estimate(CLAUDE, body)
        usage = Usage(1_000, 10, cached_input_tokens=cached, cache_write_tokens=written)
        estimator.observe(CLAUDE.slug, plain, usage, "agent")

    assert expected() == 0
    call(0, 900)
    assert expected() == 900
    call(900, 90)
    assert expected() == 990
    call(0, 990)  # another conversation: nothing was read
    assert expected() == 0
    call(950, 40)
    assert expected() == 990
    call(950, 0)
    assert expected() > 0, "the share of the last calls"


def test_a_file_by_its_name_is_a_guess(estimator: Estimator) -> None:
    """Its size is unknown before the provider reads it: a constant, of which nothing is certain."""
    claude = MODELS.model("claude-sonnet-4-6", "anthropic")
    source = {"type": "url", "url": "https://example.com/report.pdf"}
    parts = [{"type": "document", "source": source}] * 5
    body = {"messages": [{"role": "user", "content": parts}]}
    estimate = estimator.estimate(claude, body, most_output_tokens=100)
    assert estimate.input_tokens > 5 * 50_000
    assert estimate.least_tokens < 20
    file = {"type": "file", "file": {"file_id": "file-1"}}
    chat = {"messages": [{"role": "user", "content": [file]}]}
    assert estimator.estimate(MODELS.model("gpt-5.4", "openai"), chat).input_tokens > 50_000


def pdf(pages: int, *, compressed: bool = False) -> bytes:
    """A file of 30 kB or less, as a report with few words on each page is."""
    objects = b"".join(b"<</Type/Page /Parent 1 0 R>>\n" for _ in range(pages))
    if compressed:
        packed = zlib.compress(objects)
        objects = b"<</Type /ObjStm /Filter/FlateDecode>>\nstream\r\n%b\nendstream" % packed
    return b"%PDF-1.5\n<</Type /Pages>>\n" + objects


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("form", ["chat completions", "responses", "messages", "/chat"])
def test_each_page_of_a_pdf_counts(estimator: Estimator, form: str, compressed: bool) -> None:
    """Providers read each page as an image and its text, however few bytes it has."""
    data = base64.b64encode(pdf(40, compressed=compressed)).decode()
    url = f"data:application/pdf;base64,{data}"
    part = {
        "chat completions": {"type": "file", "file": {"file_data": url}},
        "responses": {"type": "input_file", "file_data": url},
        "messages": {"type": "document", "source": {"type": "base64", "data": data}},
        "/chat": {"type": "file", "file_data": data},
    }[form]
    body = {"messages": [{"role": "user", "content": [part]}]}
    tokens = estimator.estimate(CLAUDE, body).input_tokens
    assert 40 * (1_600 + 1_500) < tokens < 40 * (1_600 + 1_500) + 100


def test_many_files_do_not_keep_the_server_busy() -> None:
    """A body of a megabyte has room for 5,000 streams, which took seconds. What is not unpacked is
    counted by its length."""
    data = base64.b64encode(pdf(1, compressed=True) * 60).decode()
    parts = [{"type": "input_file", "file_data": data}] * 3
    contents = of_body({"input": [{"role": "user", "content": parts}]})
    assert contents.pages == 100
    assert contents.opaque_bytes > 3 * len(data)


@pytest.mark.parametrize(
    "data",
    [
        b"%PDF-1.5 /ObjStm",
        b"%PDF-1.5 /ObjStm stream\r\nencrypted",
        b"%PDF-1.5 /ObjStm stream\n" + zlib.compress(b"/Type /Page " * 10)[:-9],
        pdf(0) + b"/Type /ObjStm stream\n" * 100_000,
    ],
)
def test_a_file_without_visible_pages_is_counted_by_its_length(
    estimator: Estimator, data: bytes
) -> None:
    """Objects that are encrypted or broken hide them; so does a text that is not base64."""
    encoded = base64.b64encode(data).decode()
    for sent in (encoded, encoded[:-1], "é" + encoded):
        part = {"type": "input_file", "file_data": sent}
        body = {"input": [{"role": "user", "content": [part]}]}
        tokens = estimator.estimate(GPT, body, most_output_tokens=1).input_tokens
        assert tokens >= min(len(sent) // 3, 128_000)


@pytest.mark.parametrize(("most", "expected"), [(50, 50), (-3, 0), (10**12, 1_024)])
def test_a_bound_is_a_bound(estimator: Estimator, most: int, expected: int) -> None:
    """The estimate never exceeds the bound of the request, whatever the bound."""
    assert estimator.estimate(GPT, BODY, most_output_tokens=most).output_tokens == expected


@pytest.mark.parametrize(("effort", "expected"), [("low", 1_024), ("high", 4_096), ("max", 8_192)])
def test_more_effort_is_expected_to_take_more(
    estimator: Estimator, effort: str, expected: int
) -> None:
    """Of an unknown caller; a known one's calls show it."""
    assert estimator.estimate(GPT, BODY, extras=Extras(effort=effort)).output_tokens == expected
    teach(estimator, 300, caller="user:ada")
    known = estimator.estimate(GPT, BODY, extras=Extras(effort=effort), caller="user:ada")
    assert known.output_tokens < 400


def test_choices_are_expected_each(estimator: Estimator) -> None:
    """Three answers are estimated as three times one, and observed as one."""
    teach(estimator, 3_000, choices=4)
    estimate = estimator.estimate(GPT, BODY, choices=3)
    assert 3 * 3_000 <= estimate.output_tokens < 3 * 3_600
    assert estimator.estimate(GPT, BODY, choices=3, most_output_tokens=90).output_tokens == 90
    assert estimator.estimate(GPT, BODY, choices=-1).choices == 1


def test_no_estimate_exceeds_the_context(estimator: Estimator) -> None:
    """Tokens that a provider would refuse are not held: they are never billed."""
    model = MODELS.model("gpt-4", "openai")
    estimate = estimator.estimate(model, {"messages": [{"role": "user", "content": "x " * 50_000}]})
    assert estimate.input_tokens == MODELS.entry("gpt-4").context == 8_192
    for _ in range(ENOUGH_CALLS):
        estimator.observe("gpt-4", estimate, Usage(10, 500_000), "ada")
    assert estimator.estimate(model, BODY).output_tokens == 8_192


def test_an_unlisted_model_is_estimated(estimator: Estimator) -> None:
    """A name that the catalogue does not know has an estimate and a price."""
    model = MODELS.model("gpt-99", "openai")
    estimate = estimator.estimate(model, BODY)
    assert estimate.output_tokens == UNKNOWN_OUTPUT_TOKENS
    assert MODELS.price(model.slug, estimate.usage) > 0


def test_the_error_is_known(estimator: Estimator, caplog: pytest.LogCaptureFixture) -> None:
    """The log compares every call with its estimate; `chat ledger estimates` sums them up."""
    with caplog.at_level(logging.DEBUG, logger="chatapp.estimates.estimate"):
        estimator.observe("gpt-4o", Estimate(100, 1_000), Usage(90, 250), "ada")
    assert caplog.messages == ["gpt-4o used 0.90 × the input and 0.25 × the output estimated"]


@pytest.mark.parametrize("usage", [Usage(0, 0), Usage(-1, -1), Usage(10**15, 10**15)])
def test_odd_usages_do_not_raise(estimator: Estimator, usage: Usage) -> None:
    """Whatever usage a provider reports, nothing is raised."""
    estimator.observe("gpt-4o", Estimate(0, 0), usage, "ada")


def test_it_begins_with_the_calls_of_the_ledger(estimator: Estimator) -> None:
    """By model, and with the latest of many."""
    learned = [("gpt-4o", 50_000)] * 900 + [("gpt-4o", 3_000)] * MOST_CALLS
    estimator.learn([("claude-haiku-4-5", 100), *learned])
    assert 3_000 <= estimator.estimate(GPT, BODY).output_tokens < 3_600
    assert estimator.estimate(CLAUDE, BODY).output_tokens == UNKNOWN_OUTPUT_TOKENS


def test_a_worker_begins_with_the_calls_of_its_ledger(
    make_app: AppMaker, database_url: str
) -> None:
    """Of those that have a bill, and not of others."""
    usage = Usage(10, 3_000)
    calls = [finished(begun(slug="gpt-4o"), usage=usage) for _ in range(ENOUGH_CALLS)]
    guessed = [finished(begun(slug="gpt-4.1"), usage=usage, estimated=True) for _ in calls]
    table.write(Database(database_url), [*calls, *guessed])
    estimator = services_of(make_app()).estimator
    assert 3_000 <= estimator.estimate(GPT, BODY).output_tokens < 3_600
    other = MODELS.model("gpt-4.1", "openai")
    assert estimator.estimate(other, BODY).output_tokens == UNKNOWN_OUTPUT_TOKENS


def test_a_worker_starts_without_its_ledger(
    make_app: AppMaker, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Its estimates begin without calls, and the log says so."""
    with Database(database_url).writing() as connection:
        connection.execute(text("DROP TABLE calls"))
    estimator = services_of(make_app()).estimator
    assert estimator.estimate(GPT, BODY).output_tokens == UNKNOWN_OUTPUT_TOKENS
    assert "Estimates start without the ledger's calls" in caplog.text


def test_it_fits_the_limiters_estimators(estimator: Estimator) -> None:
    """A limiter accepts the tokens and dollars of an estimate."""
    from flask import Flask, g

    app = Flask(__name__)
    limiter = Limiter(lambda: "erin", app=app, storage_uri="memory://")
    limiter.estimator("tokens")(lambda: g.estimate.tokens)
    limiter.estimator("usd")(lambda: Decimal(MODELS.price("gpt-4o", g.estimate.usage)).scaleb(-6))

    @app.before_request
    def estimate() -> None:
        g.estimate = estimator.estimate(GPT, BODY, most_output_tokens=992)

    @app.get("/")
    @limiter.limit("1500/minute", unit="tokens", strategy="token-bucket")
    @limiter.limit("1 usd/day", strategy="fixed-window")
    def view() -> str:
        limiter.settle(tokens=1_000, usd=Decimal("0.01"))
        return "answered"

    client = app.test_client()
    assert [client.get("/").status_code for _ in range(2)] == [200, 429]
