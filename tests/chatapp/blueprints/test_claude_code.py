"""What Claude Code asks after a sign-in: the managed settings, and what its /usage shows."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from chatapp import MISTAKES
from chatapp.accounts import managed_settings
from chatapp.accounts.store import Accounts
from chatapp.operators import sign_in
from chatapp.server import valid_files
from chatapp.services import services_of
from ratelimit_ext import StorageUnavailable
from tests.chatapp.conftest import NO_LIMITS, AppMaker, json_of
from tests.chatapp.identity_provider import IdentityProvider
from tests.chatapp.upstream_server import Answer, UpstreamServer, anthropic_body

ALICE = "alice@example.com"
UNIFIED = "anthropic-ratelimit-unified-"
#: Of claude-haiku-4-5.
OUTPUT_USD = 5e-6
POLICY = {"permissions": {"deny": ["WebFetch", "É"]}, "model": "claude-sonnet-4-6"}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "managed.json"
    rows = {"pro/red": {"model": "opus"}, "pro/research": POLICY, "starter": {}}
    path.write_text(json.dumps(rows))
    return path


@pytest.fixture
def configured(file: Path) -> dict[str, str]:
    """A sign-in at a provider that is not asked, and the file."""
    idp = IdentityProvider()
    idp.url = "http://127.0.0.1:1"
    return {**idp.settings, "CHATAPP_MANAGED_SETTINGS_FILE": str(file)}


@pytest.fixture
def app(make_app: AppMaker, configured: dict[str, str], accounts: Accounts) -> Flask:
    accounts.create_team("research")
    accounts.create_key(ALICE, plan="pro", default_plan="starter", team="research")
    return make_app(**configured)


@pytest.fixture
def client(app: Flask, stopped_clock: None) -> Iterator[FlaskClient]:
    with app.app_context():
        yield signed_in(app, ALICE)


def signed_in(app: Flask, user: str) -> FlaskClient:
    """A client with the key of a new sign-in."""
    client = app.test_client()
    with app.app_context():
        key = sign_in.make_key(user)
    client.environ_base["HTTP_AUTHORIZATION"] = f"Bearer {key}"
    return client


def code_of(answer: TestResponse) -> tuple[int, str]:
    assert answer.headers["Cache-Control"] == "no-store"
    return answer.status_code, json_of(answer)["error"]["details"]["error_code"]


def test_the_first_row_that_fits_a_person_counts(client: FlaskClient) -> None:
    """The checksum is the client's: of the settings with sorted keys and without whitespace."""
    answer = client.get("/managed/settings")
    text = '{"model":"claude-sonnet-4-6","permissions":{"deny":["WebFetch","É"]}}'
    checksum = f"sha256:{sha256(text.encode()).hexdigest()}"
    shown = json_of(answer)
    assert (answer.status_code, shown["checksum"], shown["settings"]) == (200, checksum, POLICY)
    assert re.fullmatch(r"[0-9a-f-]{36}", shown["uuid"])
    assert answer.headers["ETag"] == f'"{checksum}"'
    assert answer.headers["Cache-Control"] == "no-store"


def test_a_client_that_has_the_settings_gets_304(client: FlaskClient) -> None:
    """And 200 with the checksum of others."""
    etag = client.get("/managed/settings").headers["ETag"]
    statuses = [
        client.get("/managed/settings", headers={"If-None-Match": sent}).status_code
        for sent in (etag, '"sha256:0"')
    ]
    assert statuses == [304, 200]


def test_settings_follow_the_plan_and_the_team(app: Flask, accounts: Accounts) -> None:
    """An empty row is an empty policy, which differs from none."""
    accounts.create_key("bob", plan="starter", default_plan="starter")
    accounts.create_key("eve", plan="pro", default_plan="starter")
    assert json_of(signed_in(app, "bob").get("/managed/settings"))["settings"] == {}
    assert code_of(signed_in(app, "eve").get("/managed/settings")) == (404, "no_settings")


@pytest.mark.parametrize(
    ("row", "team", "fits"),
    [
        ("pro", None, True),
        ("pro/research", None, False),
        ("*/research", "research", True),
        ("*/research", "red", False),
        ("*", None, True),
        ("starter", "research", False),
    ],
)
def test_a_row_is_for_a_plan_a_team_or_everyone(row: str, team: str | None, *, fits: bool) -> None:
    """A person without a team has no row of a team."""
    assert (managed_settings.answer({row: POLICY}, "pro", team) is not None) == fits


@pytest.mark.parametrize("path", ["/managed/settings", "/api/oauth/usage"])
def test_only_the_key_of_a_sign_in_opens_it(app: Flask, accounts: Accounts, path: str) -> None:
    """A key that an operator has made does not, nor does none."""
    key = accounts.create_key(ALICE, plan=None, default_plan="starter").text
    client = app.test_client()
    assert code_of(client.get(path, headers={"x-api-key": key})) == (404, "no_sign_in")
    assert code_of(client.get(path)) == (401, "invalid_api_key")


def test_without_a_sign_in_there_are_no_addresses(make_app: AppMaker) -> None:
    """As before: Claude Code takes the 404 for no policy."""
    client = make_app().test_client()
    assert client.get("/managed/settings").status_code == 404
    assert client.get("/api/oauth/usage").status_code == 404


@pytest.mark.parametrize(
    ("text", "mistake"),
    [
        ("{", "cannot be read as JSON"),
        ('{"*": {"a": NaN}}', "cannot be read as JSON"),
        ('{"*": {"a": "\\ud800"}}', "cannot be read as JSON"),
        ('{"*": ' * 50_000, "cannot be read as JSON"),
        ('{"model": "opus"}', "object of rows"),
        ('{"permissions": {}}', "unknown plan 'permissions' of the row 'permissions'"),
        ('{"gold/red": {}}', "unknown plan 'gold' of the row 'gold/red'"),
        (None, "cannot be read as JSON"),
    ],
)
def test_a_mistake_in_the_file_ends_the_start(
    make_app: AppMaker, configured: dict[str, str], file: Path, text: str | None, mistake: str
) -> None:
    """With a sentence that names the setting."""
    if text is None:
        file.unlink()
    else:
        file.write_text(text)
    with pytest.raises(MISTAKES) as caught:
        make_app(**configured)
    assert str(caught.value).startswith("CHATAPP_MANAGED_SETTINGS_FILE: ")
    assert mistake in str(caught.value)


def test_a_later_mistake_keeps_the_last_valid_file(
    make_app: AppMaker,
    configured: dict[str, str],
    file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Claude Code does not start without an answer, so a typo must not end workers."""
    (tmp_path / "valid").mkdir()
    monkeypatch.setenv(valid_files.DIRECTORY, str(tmp_path / "valid"))
    for name, value in configured.items():
        monkeypatch.setenv(name, value)

    def started(served: str) -> Flask:
        monkeypatch.setenv(valid_files.HAS_SERVED, served)
        return valid_files.created(lambda c: make_app(**c), MISTAKES, of_command=None)

    rows = services_of(started("")).managed_settings
    file.write_text("{")
    assert services_of(started("1")).managed_settings == rows != {}
    with pytest.raises(MISTAKES):
        started("")


def used_by(client: FlaskClient) -> Any:
    answer = client.get("/api/oauth/usage")
    assert (answer.status_code, answer.headers["Cache-Control"]) == (200, "no-store")
    return json_of(answer)


def test_usage_is_the_fullest_budget_of_the_person(client: FlaskClient, app: Flask) -> None:
    """The month's, once an operator has lowered it; its rows have their ends to the second."""
    before = used_by(client)
    assert [row["group"] for row in before["limits"]] == ["daily", "monthly"]
    assert [row["is_active"] for row in before["limits"]] == [True, False]
    limits = {each["name"]: each for each in json_of(client.get("/usage"))["limits"]}
    assert before["extra_usage"]["monthly_limit"] == limits["usd-day"]["limit"] * 100
    services_of(app).accounts.set_amount("user", ALICE, "usd-month", "0 usd/month")
    after = used_by(signed_in(app, ALICE))
    assert after["extra_usage"] == {
        "is_enabled": True,
        "currency": "USD",
        "monthly_limit": 0,
        "used_credits": 0,
        "utilization": 100,
    }
    day, month = after["limits"]
    assert (day["severity"], month["severity"], month["is_active"]) == ("normal", "critical", True)
    now = datetime.now(UTC)
    ends = datetime.fromisoformat(month["resets_at"])
    assert (ends.day, ends.hour, ends.minute, ends.second) == (1, 0, 0, 0)
    assert 0 < (ends - now).days + 1 <= 31


def standing(answer: TestResponse) -> dict[str, str]:
    """What Claude Code reads of an answer about a budget, without the names' beginning."""
    headers = answer.headers.items()
    return {name.removeprefix(UNIFIED): value for name, value in headers if UNIFIED in name}


def say_hi(client: FlaskClient, path: str = "/v1/messages", **headers: str) -> TestResponse:
    messages = [{"role": "user", "content": "hi"}]
    body = {"model": "claude-haiku-4-5", "max_tokens": 1, "messages": messages}
    return client.post(path, json=body, headers=headers)


@pytest.mark.parametrize(
    ("used", "status", "passed"),
    [
        (0.5, "allowed", {}),
        (0.75, "allowed", {}),
        (0.77, "allowed_warning", {"overage-surpassed-threshold": "0.75"}),
        (0.97, "allowed_warning", {"overage-surpassed-threshold": "0.95"}),
    ],
)
def test_an_answer_has_the_fullest_budget_of_the_person(
    provider: UpstreamServer, app: Flask, used: float, status: str, passed: dict[str, str]
) -> None:
    """As its share, its end and the threshold that it passes, all as in the usage."""
    services_of(app).accounts.set_amount("user", ALICE, "usd-day", "1 usd/day")
    client = signed_in(app, ALICE)
    usage = {"input_tokens": 1, "output_tokens": round(used / OUTPUT_USD)}
    provider.script(Answer(200, {**anthropic_body(), "usage": usage}))
    assert say_hi(client).status_code == 200
    shown = standing(say_hi(client))
    (row,) = [row for row in used_by(client)["limits"] if row["is_active"]]
    ends = datetime.fromisoformat(row["resets_at"])
    assert shown == {
        "status": status,
        "reset": f"{ends.timestamp():.0f}",
        "representative-claim": "overage",
        "overage-status": status,
        "overage-reset": f"{ends.timestamp():.0f}",
        "overage-utilization": f"{row['percent'] / 100:.2f}",
        **passed,
    }
    assert row["percent"] == round(used * 100)


def test_only_an_answer_to_a_call_after_a_sign_in_has_a_budget(
    provider: UpstreamServer, app: Flask, accounts: Accounts
) -> None:
    """Not that to another key, a count of tokens, or an error; a refusal has its own headers."""
    key = accounts.create_key(ALICE, plan=None, default_plan="starter").text
    client = signed_in(app, ALICE)
    answers = [
        say_hi(app.test_client(), **{"x-api-key": key}),
        say_hi(client, "/v1/messages/count_tokens"),
    ]
    provider.script(Answer(400, {}))
    answers.append(say_hi(client))
    assert [each.status_code for each in answers] == [200, 200, 400]
    assert [standing(each) for each in answers] == [{}, {}, {}]
    services_of(app).accounts.set_amount("user", ALICE, "usd-day", "0 usd/day")
    refusal = say_hi(signed_in(app, ALICE))
    names = {"status", "overage-disabled-reason"}  # 0 never resets
    assert (refusal.status_code, standing(refusal).keys()) == (429, names)


def test_usage_without_a_budget_is_what_was_spent(
    make_app: AppMaker, configured: dict[str, str], app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In cents, by day, week and month; a limit of 0 would be a budget of nothing."""
    del configured["CHATAPP_MANAGED_SETTINGS_FILE"]
    bare = make_app(**configured, **NO_LIMITS)
    reports = services_of(bare).reports
    spent = {"today_usd": 0.5, "week_usd": 1.25, "month_usd": 12.349}
    monkeypatch.setattr(reports, "spent_usd", lambda _: spent)
    shown = used_by(signed_in(bare, ALICE))
    assert shown["limits"] == []
    assert shown["extra_usage"] == {
        "is_enabled": True,
        "currency": "USD",
        "monthly_limit": None,
        "utilization": None,
        "used_credits": 1234,
        "daily": {"limit": None, "used_credits": 50, "utilization": None},
        "weekly": {"limit": None, "used_credits": 125, "utilization": None},
    }
    monkeypatch.setattr(reports, "spent_usd", lambda _: None)
    answer = signed_in(bare, ALICE).get("/api/oauth/usage")
    assert code_of(answer) == (503, "ledger_unavailable")


def test_limits_that_cannot_be_read_are_503(
    client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Claude Code shows no amounts then."""

    def fail(_: object) -> None:
        raise StorageUnavailable("down")

    monkeypatch.setattr("chatapp.web.call_limits.remaining_limits", fail)
    assert code_of(client.get("/api/oauth/usage")) == (503, "storage_unavailable")
