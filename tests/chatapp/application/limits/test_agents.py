"""Agents: long prompts that the provider has cached, and limits that do not count what it has."""

from __future__ import annotations

import pytest
from werkzeug.test import TestResponse

from chatapp.accounts.store import Accounts
from chatapp.database.connection import Database
from tests.chatapp.application.money.test_surge import Clock
from tests.chatapp.conftest import AppMaker
from tests.chatapp.provider_server import Answer, ProviderServer, anthropic_body
from tests.chatapp.web.test_identities import left

MODEL = "claude-haiku-4-5"
TURNS = 8
#: A fast pace of turns.
BETWEEN_TURNS_S = 10


def answer(*, cached: int, written: int) -> Answer:
    """A turn's answer of 500 tokens; all but 20 tokens of its prompt are cached or being cached."""
    usage = {
        "input_tokens": 20,
        "cache_read_input_tokens": cached,
        "cache_creation_input_tokens": written,
        "output_tokens": 500,
    }
    return Answer(200, {**anthropic_body(model=MODEL), "usage": usage})


@pytest.mark.parametrize(
    ("begin", "grows"), [(20_000, 20_000), (150_000, 2_000)], ids=["grows", "resumes"]
)
def test_an_agent_is_not_refused_for_what_is_cached(
    make_app: AppMaker,
    provider: ProviderServer,
    database_url: str,
    monkeypatch: pytest.MonkeyPatch,
    begin: int,
    grows: int,
) -> None:
    """On Starter, with 200,000 tokens a minute: an agent whose context grows to 160,000 tokens, and
    one that resumes such a conversation, which the provider caches at its first turn. The limit
    counts what is new of 900,000 tokens a minute."""
    clock = Clock(monkeypatch)
    key = Accounts(Database(database_url)).create_key("ada", plan=None, default_plan="starter")
    client = make_app().test_client()

    def turn(tokens: int) -> TestResponse:
        text = {"type": "text", "text": "word " * tokens, "cache_control": {"type": "ephemeral"}}
        body = {"max_tokens": 8000, "messages": [{"role": "user", "content": [text]}]}
        headers = {"x-api-key": key.text, "anthropic-version": "2023-06-01"}
        with client.post("/v1/messages", json={"model": MODEL, **body}, headers=headers) as done:
            done.get_data()
            return done

    known = 0
    for tokens in range(begin, begin + TURNS * grows, grows):
        provider.script(answer(cached=known, written=tokens - known))
        done = turn(tokens)
        assert done.status_code == 200, done.text
        known = tokens
        clock.forward(BETWEEN_TURNS_S)
    assert left(done)["usd-hour"] > 0
