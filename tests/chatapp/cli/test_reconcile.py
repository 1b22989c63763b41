"""`chat ledger reconcile`: a month of both providers, by the command."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from flask import Flask

from chatapp import catalogue
from chatapp.catalogue.usage import Usage
from chatapp.database.connection import Database
from chatapp.ledger import table
from chatapp.ledger.billing_report import ADDRESSES, variable
from chatapp.services import services_of
from tests.chatapp.alerts.receiver import SECRET as SIGNING
from tests.chatapp.alerts.receiver import Receiver
from tests.chatapp.cli.test_commands import run
from tests.chatapp.conftest import AppMaker, raised_alerts
from tests.chatapp.ledger.biller import SECRET, Biller, reporting
from tests.chatapp.ledger.calls import begun, finished

TODAY = datetime.now(UTC).replace(hour=12, minute=0, second=0, microsecond=0)
SLUGS = {"openai": "gpt-5.4-mini", "anthropic": "claude-haiku-4-5"}
USAGE = Usage(100_000, 20_000, 60_000)


@pytest.fixture
def providers(monkeypatch: pytest.MonkeyPatch, database_url: str) -> Iterator[dict[str, Biller]]:
    """Both, with admin keys. Each had a call a day for ten days, which the ledger has, too."""
    both = {name: Biller(name) for name in ADDRESSES}
    costs, calls = catalogue.load(), []
    for name, provider in both.items():
        for day in range(2, 12):
            at = TODAY - timedelta(days=day)
            provider.bill(SLUGS[name], USAGE, at)
            call = begun(started_at=at, slug=SLUGS[name], provider=name, total_ms=9)
            cost = costs.price(SLUGS[name], USAGE)
            calls.append(finished(call, usage=USAGE, cost_micro_usd=cost))
    table.write(Database(database_url), calls)
    with reporting(both["openai"]) as one, reporting(both["anthropic"]) as other:
        for name, address in (("openai", one), ("anthropic", other)):
            monkeypatch.setenv(variable(name), SECRET)
            monkeypatch.setitem(ADDRESSES, name, address)
        yield both


@pytest.fixture
def app(make_app: AppMaker, providers: dict[str, Biller]) -> Flask:
    return make_app()


def test_equal_bills(app: Flask, database_url: str) -> None:
    """There is nothing to list, and no alert. A credit is of no provider."""
    credit = begun(started_at=TODAY - timedelta(days=4), provider="", status="credited")
    table.write(Database(database_url), [credit._replace(cost_micro_usd=-5_000_000)])
    done = run(app, "ledger", "reconcile")
    assert "None differs." in done.stderr
    usd = sum(row["cost_micro_usd"] for row in services_of(app).reports.calls())
    usd = (usd + 5_000_000) / 10**6
    shown = [f"ledger usd: {usd:g}", f"reported usd: {usd:g}", "unexplained usd: 0"]
    assert done.stdout.splitlines() == shown
    assert raised_alerts(app) == []


def test_problems_are_listed_and_raise_alerts(
    make_app: AppMaker, providers: dict[str, Biller], receiver: Receiver
) -> None:
    """Once, however often it is run. The exit status is 1, and neither output nor alert has the
    admin key."""
    webhook = {"CHATAPP_ALERT_WEBHOOK_URL": receiver.url, "CHATAPP_ALERT_WEBHOOK_SECRET": SIGNING}
    app = make_app(**webhook)
    at = TODAY - timedelta(days=5)
    usd = providers["openai"].bill("gpt-5.4-mini", Usage(10**6, 10**6), at, key="key_b")
    providers["anthropic"].charge(f"{at:%Y-%m-%d}", "web search tool calls", Decimal(3))
    for _ in range(2):
        done = run(app, "ledger", "reconcile", status=1)
        unseen, tools = done.stderr.splitlines()
        assert unseen == (
            f"openai bills +{usd:.2f} USD for gpt-5.4-mini on {at:%Y-%m-%d}: 2000000 tokens are "
            "not in the ledger; key: key_b or key_ours."
        )
        assert tools == (
            f"anthropic bills +3.00 USD for tools and others on {at:%Y-%m-%d}: nothing explains it."
        )
        assert f"unseen={usd.normalize()}" in done.stdout
        assert "unexplained usd: 3" in done.stdout.splitlines()
        assert SECRET not in done.output
    alerts = raised_alerts(app)
    assert {alert["type"] for alert in alerts} == {"ledger.differs"}
    assert sorted(alert["name"] for alert in alerts) == sorted((unseen, tools))
    sent = [each.body for each in receiver.received(2)]
    assert {body["text"] for body in sent} == {unseen, tools}


def test_one_provider_one_project_and_json(app: Flask, providers: dict[str, Biller]) -> None:
    """Of some days only, which the ledger has all."""
    providers["anthropic"].projects = {"key_ours": "wrkspc_1"}
    providers["anthropic"].bill("claude-opus-4-5", USAGE, TODAY - timedelta(days=3), key="key_b")
    since, until = (f"{TODAY - timedelta(days=days):%Y-%m-%d}" for days in (4, 3))
    options = ["--provider", "anthropic", "--since", since, "--until", until, "--json"]
    done = run(app, "ledger", "reconcile", *options, "--project", "wrkspc_1")
    answer: Any = json.loads(done.stdout)
    assert answer["problems"] == []
    assert [(row["day"], row["keys"]) for row in answer["days"]] == [
        (day, {"key_ours": 120_000}) for day in (since, until)
    ]
    assert not providers["openai"].requests
    refused = run(app, "ledger", "reconcile", *options, "--until", "9d", status=2)
    assert "--until is before --since; send a later day." in refused.stderr
    refused = run(app, "ledger", "reconcile", "--project", "wrkspc_1", status=2)
    assert "--provider" in refused.stderr


def test_only_upstreams_with_the_providers_address_are_compared(
    make_app: AppMaker, providers: dict[str, Biller], tmp_path: Path, database_url: str
) -> None:
    """Another service with the same protocol has a bill of its own."""
    file = tmp_path / "providers.toml"
    file.write_text(
        'version = 1\n[upstreams.openai]\nprotocol = "openai"\nkeys = ["env:OPENAI_API_KEY"]\n'
        '[upstreams.azure]\nprotocol = "openai"\nbase_url = "https://a.openai.azure.com/v1"\n'
        'models_of = "openai"\n'
    )
    call = begun(started_at=TODAY - timedelta(days=4), slug="azure/gpt-4o", provider="azure")
    table.write(Database(database_url), [finished(call)])
    app = make_app(CHATAPP_PROVIDERS_FILE=str(file))
    done = run(app, "ledger", "reconcile", "--provider", "openai")
    assert "None differs." in done.stderr


def test_a_report_that_cannot_be_read(
    app: Flask, providers: dict[str, Biller], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Says what to do; nothing is compared."""
    providers["openai"].status = 403
    done = run(app, "ledger", "reconcile", status=1)
    assert "cannot be read with OPENAI_ADMIN_KEY: Client error '403 Forbidden'" in done.stderr
    for name in ADDRESSES:
        monkeypatch.delenv(variable(name))
    done = run(app, "ledger", "reconcile", status=1)
    assert "Set OPENAI_ADMIN_KEY or ANTHROPIC_ADMIN_KEY to an admin key" in done.stderr
    assert raised_alerts(app) == []
