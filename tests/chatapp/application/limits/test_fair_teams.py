"""A team's budget in fair parts: the lines of the policy that switch it on, and where members and
operators see their shares."""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from flask import Flask

from chatapp import POLICY_FILE
from chatapp.services import services_of
from tests.chatapp.application.limits.test_teams import ask, new_key, usage_of
from tests.chatapp.blueprints.conftest import TOKEN
from tests.chatapp.blueprints.test_admin import log_in
from tests.chatapp.cli.test_commands import run
from tests.chatapp.conftest import AppMaker, policy_file
from tests.chatapp.upstream_server import Answer, UpstreamServer, openai_body

OFF = '# fair = "user" #'


def switched_on(tmp_path: Path) -> str:
    """The packaged policy, with hours of the day that have not begun: until then the line does not
    rise."""
    text, now = POLICY_FILE.read_text(), datetime.now(UTC)
    zone = "UTC" if now.hour < 22 else "Etc/GMT+12"
    now = now if now.hour < 22 else now - timedelta(hours=12)
    hours = f'fair = "user"\nhours = "{now.hour + 1}-24"\ntimezone = "{zone}" #'
    assert text.count(OFF) == 2
    return policy_file(tmp_path, text.replace(OFF, hours, 1))


@pytest.fixture
def start(
    make_app: AppMaker, provider: UpstreamServer, uri: str, tmp_path: Path
) -> Callable[[], Flask]:
    """Starts a worker on the shared storage; it knows what the commands have changed."""
    words = {"RATELIMIT_STORAGE_URI": uri, "RATELIMIT_POLICY_FILE": switched_on(tmp_path)}
    words["CHATAPP_ADMIN_TOKEN"] = TOKEN
    return lambda: make_app(**words)


def test_a_loop_leaves_the_others_their_shares(
    start: Callable[[], Flask], provider: UpstreamServer
) -> None:
    """Its calls cost 15,020 micro-dollars each, and a share is 50,000; the refusal, GET /usage,
    `chat teams list` and the pages of /admin say so."""
    app = start()
    run(app, "teams", "create", "research", "--limit", "team-usd-day=1 usd/day")
    loop, ada = (new_key(app, user, "--team", "research") for user in ("loop", "ada"))
    app = start()
    body: Any = openai_body(model="gpt-4o")
    body["usage"] |= {"completion_tokens": 1500, "total_tokens": 1512}
    provider.script(*[Answer(200, body)] * 3)
    answers = [ask(app, loop) for _ in range(5)]
    assert [each.status_code for each in answers] == [200, 200, 200, 429, 429]
    refusal: Any = answers[-1].json
    assert refusal["error"].startswith("Your share of 'team-usd-day' is used: ")
    assert (refusal["code"], refusal["policy"]) == ("rate_limited", "team-usd-day-share")
    assert ask(app, ada).status_code == 200

    [own] = [each for each in usage_of(app, ada)["limits"] if "share" in each]
    assert own["name"] == "team-usd-day-share"
    assert own["share"]["used"] == pytest.approx(0.00007)
    assert own["share"]["of"] == 0.05
    assert own["share"]["ahead"] == pytest.approx(0.04513)
    assert own["share"]["ahead_for"] > 0

    [team] = json.loads(run(app, "teams", "list", "--json").stdout)
    used = {each["identity"]: float(each["used"]) for each in team["shares"]}
    assert used == pytest.approx({"user:ada": 7e-05, "user:loop": 0.04506})
    listed = run(app, "teams", "list").stdout
    assert "ada team-usd-day-share=0.00007 of 0.05 usd" in listed
    assert "usd ahead of its pace, for " in listed

    admin = app.test_client()
    assert log_in(admin).status_code == 303
    page = admin.get("/admin/team?name=research").text
    assert "usd ahead of its pace, for " in page
    assert "0.00007 of 0.05 usd" in page
    assert "team-usd-day-share" in admin.get("/admin/user?name=ada").text

    assert services_of(app).ledger.flush()
    checked = run(app, "ledger", "check", status=0)
    assert "limits of 2 users and 1 team compared; 0 problems" in checked.output
