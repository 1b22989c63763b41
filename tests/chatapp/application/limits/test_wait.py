"""A policy in which calls wait for their turn instead of being refused."""

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from chatapp import POLICY_FILE
from tests.chatapp.blueprints.conftest import TOKEN
from tests.chatapp.blueprints.test_admin import log_in
from tests.chatapp.conftest import AppMaker, policy_file
from tests.chatapp.upstream_server import UpstreamServer
from tests.clocks import Night

BODY = {"model": "gpt-5.4-mini", "messages": [{"role": "user", "content": "ping"}]}
USER = 'limit = "30/minute"\n'
SLOTS = 'limit = "4 in flight"\n'


@pytest.fixture
def policy(tmp_path: Path) -> str:
    """The packaged policy, with a wait on the limits `user` and `at-once` of the plan Starter."""
    text = POLICY_FILE.read_text()
    assert text.count(USER) == text.count(SLOTS) == 1
    for limit in (USER, SLOTS):
        text = text.replace(limit, f'{limit}wait = "10 seconds"\n')
    return policy_file(tmp_path, text)


@pytest.mark.parametrize("stream", [False, True])
def test_fifteen_calls_and_no_refusal(
    make_app: AppMaker,
    provider: UpstreamServer,
    policy: str,
    uri: str,
    monkeypatch: pytest.MonkeyPatch,
    stream: bool,
) -> None:
    """Ten at once, then one every two seconds; a stream waits before its first byte. `/admin`
    shows who waits for what."""
    night, shown = Night(monkeypatch), list[str]()
    config = {"RATELIMIT_STORAGE_URI": uri, "CHATAPP_ADMIN_TOKEN": TOKEN}
    client = make_app(RATELIMIT_POLICY_FILE=policy, **config).test_client()

    def look(_: float) -> bool:
        with client.application.app_context():
            operator = client.application.test_client()
            log_in(operator)
            shown.append(operator.get("/admin/limits").text)
        return True

    night.instead = look
    for number in range(15):
        with client.post("/v1/chat/completions", json={**BODY, "stream": stream}) as answer:
            assert (number, answer.status_code) == (number, 200)
            assert answer.get_data()
            assert ("RateLimit-Wait-Ms" in answer.headers) == (number >= 10)
    assert len(shown) == 5
    assert all(re.search(r"in \d+ s, 1 in line", page) for page in shown)


def test_more_calls_at_once_than_slots(
    make_app: AppMaker, provider: UpstreamServer, policy: str
) -> None:
    """They wait until others are over."""
    app = make_app(RATELIMIT_POLICY_FILE=policy)

    def call(_: int) -> int:
        return app.test_client().post("/v1/chat/completions", json=BODY).status_code

    with ThreadPoolExecutor(9) as pool:
        assert list(pool.map(call, range(9))) == [200] * 9
