"""`priority = "request_class"`: a person's own agent goes before their subagents, by what Claude
Code says of each request. A header can only lower."""

from pathlib import Path
from typing import Any, Final

import pytest
from flask import Flask
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chatapp.accounts.store import Accounts
from chatapp.web.identities import CLASS_HEADER, LAST, request_class, traffic_class
from chatapp.web.tags import UNATTENDED
from tests.chatapp.application.limits.test_traffic_classes import policy, remaining
from tests.chatapp.conftest import AppMaker
from tests.chatapp.upstream_server import UpstreamServer

AGENT, PARENT = "X-Claude-Code-Agent-Id", "X-Claude-Code-Parent-Agent-Id"
TYPE, CLASS = "X-Claude-Code-Agent-Type", "X-Claude-Code-Request-Class"
SUBAGENT: Final = {AGENT: "a7", CLASS: "subagent"}
AT_ONCE = 'name = "at-once"\nlimit = "4 in flight"\nkey = "user"\n'


@pytest.fixture
def by_request(make_app: AppMaker, provider: UpstreamServer, tmp_path: Path) -> Flask:
    file = Path(policy(tmp_path))
    file.write_text(file.read_text().replace('priority = "class"', 'priority = "request_class"'))
    return make_app(RATELIMIT_POLICY_FILE=str(file))


@pytest.mark.parametrize(
    ("plan", "headers", "left"),
    [
        ("pro", {}, 9),
        ("pro", {CLASS: "main"}, 9),
        ("pro", {CLASS: "compaction"}, 9),
        ("pro", {CLASS: "side_reply"}, 9),
        ("pro", {CLASS: "of the future"}, 9),
        *[("pro", {CLASS: name}, 1) for name in sorted(UNATTENDED)],
        ("pro", {AGENT: "a7"}, 1),
        ("pro", {AGENT: "a7", CLASS: "main"}, 1),
        ("pro", {CLASS_HEADER: "lowest"}, 1),
        ("starter", {}, 3),
        ("starter", {CLASS: "main"}, 3),
        ("starter", {CLASS: "interactive"}, 3),
        ("starter", SUBAGENT, 1),
    ],
)
def test_a_header_only_lowers(
    by_request: Flask, accounts: Accounts, plan: str, headers: dict[str, str], left: int
) -> None:
    """A subagent has the lowest class, with and without the hint headers; others have the class of
    the caller, whatever they say."""
    key = accounts.create_key("ada", plan=plan, default_plan=plan)
    assert remaining(by_request, key.text, more_headers=headers) == left


NAMES = [AGENT, PARENT, TYPE, CLASS, CLASS_HEADER, "X-Chat-Tags", "X-Priority"]
WORDS = ["main", "subagent", "interactive", "batch", "lowest", "", *UNATTENDED]
VALUES = st.sampled_from(WORDS) | st.text(st.characters(min_codepoint=32, max_codepoint=126))


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.sampled_from(NAMES), VALUES))
def test_no_header_raises_a_class(client: Any, headers: dict[str, str]) -> None:
    """Whatever is sent, the class is the caller's without any header, or the lowest; so is the one
    of `class`, and a header never leaves the lowest class."""
    app = client.application
    with app.test_request_context("/chat", method="POST"):
        own = traffic_class()
    with app.test_request_context("/chat", method="POST", headers=headers):
        assert request_class() in {own, LAST}
        assert traffic_class() in {own, LAST}
        assert request_class() == LAST or traffic_class() != LAST
