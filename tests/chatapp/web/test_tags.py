"""Tags of a call: bounded, cleaned, in the ledger, and of no influence on limits."""

import json
from typing import Any

import anthropic
import openai
import pytest
from flask.testing import FlaskClient
from sqlalchemy import Text, cast, func, literal, select

from chatapp.database.connection import Database
from chatapp.ledger import table
from chatapp.services import services_of
from chatapp.web.tags import (
    HEADER,
    NAME_MAX_CHARACTERS,
    TAGS_MOST,
    VALUE_MAX_BYTES,
    VALUE_MAX_CHARACTERS,
    tags_of,
)
from tests.chatapp.cli.test_commands import run
from tests.chatapp.ledger.calls import begun, finished
from tests.chatapp.ledger.recording_ledger import RecordingLedger
from tests.chatapp.upstream_server import UpstreamServer
from tests.chatapp.web.test_identities import left

#: Of SECURITY.md.
ROW_MOST_BYTES = 5_000
ASKED: Any = [{"role": "user", "content": "ping"}]


def test_openais_tags_are_in_the_ledger(
    served: str, ledger: RecordingLedger, provider: UpstreamServer
) -> None:
    """The header's, the user's, the cache's key, and all of the metadata; the provider gets the
    body unchanged, and not the header."""
    with openai.OpenAI(base_url=f"{served}/v1", api_key="mine") as sdk:
        sdk.chat.completions.create(
            model="gpt-5.4-mini",
            messages=ASKED,
            user="u1",
            prompt_cache_key="k",
            metadata={"ticket": "4711"},
            extra_headers={"X-Chat-Tags": "project=a, run=7"},
        )
    (call,) = ledger.finished(1)
    assert call.tags == {
        "project": "a",
        "run": "7",
        "user": "u1",
        "prompt_cache_key": "k",
        "ticket": "4711",
    }
    assert provider.calls[0].body["metadata"] == {"ticket": "4711"}
    assert "x-chat-tags" not in provider.calls[0].headers


def test_claude_codes_tags_are_in_the_ledger(served: str, ledger: RecordingLedger) -> None:
    """Its session, and the user in the metadata."""
    user = f"user_{'a' * 64}_account_{'b' * 36}_session_{'c' * 36}"
    with anthropic.Anthropic(base_url=served, api_key="mine") as sdk:
        sdk.messages.create(
            model="claude-haiku-4-5",
            max_tokens=9,
            messages=ASKED,
            metadata={"user_id": user},
            extra_headers={"X-Claude-Code-Session-Id": "c" * 36},
        )
    (call,) = ledger.finished(1)
    assert call.tags == {"session": "c" * 36, "user_id": user}


ODD: dict[str, tuple[dict[str, str], dict[str, object], dict[str, str]]] = {
    "nothing": ({}, {}, {}),
    "no pairs": ({HEADER: "a, =b, c=, ,=,"}, {}, {}),
    "blanks": ({HEADER: "  a  =  b c  "}, {}, {"a": "b c"}),
    "an equals sign in a value": ({HEADER: "a=b=c"}, {}, {"a": "b=c"}),
    "control characters": ({}, {"user": "a\x00b\nc\ud800d"}, {"user": "abcd"}),
    "a name with signs": ({}, {"metadata": {"a b/ü": "x"}}, {"a_b_": "x"}),
    "a name of signs only": ({}, {"metadata": {"💰": "x"}}, {"_": "x"}),
    "long ones": (
        {HEADER: f"{'n' * 99}={'v' * 999}"},
        {},
        {"n" * NAME_MAX_CHARACTERS: "v" * VALUE_MAX_CHARACTERS},
    ),
    "other types": ({}, {"user": 5, "metadata": {"a": ["x"], "b": None, "c": {"d": "e"}}}, {}),
    "metadata that is no object": ({}, {"metadata": ["a"]}, {}),
    "the same name twice": ({HEADER: "user=a"}, {"user": "b"}, {"user": "a"}),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_tags_are_cleaned(name: str) -> None:
    """None of them is an error."""
    headers, fields, tags = ODD[name]
    assert tags_of(headers, fields) == tags


def test_the_number_of_tags_is_bounded() -> None:
    """Those of the header come first."""
    metadata = {f"m{number}": "x" for number in range(100)}
    tags = tags_of({HEADER: "a=1"}, {"metadata": metadata})
    assert list(tags) == ["a", *(f"m{number}" for number in range(TAGS_MOST - 1))]


def test_spending_is_shown_by_tag(online: FlaskClient) -> None:
    """Of calls with the tag and without it; a name may have any form of a tag's."""
    app = online.application
    for tag in ("my.project=a", "my.project=b", "my.project=b", "other=x"):
        headers = {"X-Chat-Tags": tag}
        answer = online.post("/chat", json={"message": "hi", "model": "gpt-4o"}, headers=headers)
        assert answer.status_code == 200
    assert services_of(app).ledger.flush()
    rows = run(app, "ledger", "days", "--by", "tag:my.project").output.splitlines()
    assert [row.split()[1:3] for row in rows[1:]] == [["-", "1"], ["a", "1"], ["b", "2"]]
    assert len(run(app, "ledger", "days", "--by", "model").output.splitlines()) == 2
    for unknown in ("tags", "tag:"):
        refused = run(app, "ledger", "days", "--by", unknown, status=2)
        assert "choose one of user, key, team, model, agent, tag:NAME" in refused.stderr


def test_tags_change_no_limit(online: FlaskClient) -> None:
    """A caller who invents tags is the same caller."""
    remaining = [
        left(online.post("/chat", json={"message": "hi"}, headers={"X-Chat-Tags": f"user={n}"}))[
            "user"
        ]
        for n in range(3)
    ]
    assert remaining == [9, 8, 7]


@pytest.mark.parametrize("sign", ["\U0001f600", "字", '"', "\\", "a"])
def test_a_row_with_the_largest_tags_is_bounded(database: Database, sign: str) -> None:
    """In bytes as the ledger has them, with the longest names of user and model: what SECURITY.md
    says. An ordinary value of 200 characters is whole."""
    sent = {f"{n}{'n' * 40}": sign * 300 for n in range(20)}
    tags = tags_of({}, {"metadata": sent, "user": sign * 300})
    assert len(tags) == TAGS_MOST
    whole = min(VALUE_MAX_CHARACTERS, VALUE_MAX_BYTES // (len(json.dumps(sign)) - 2))
    assert {*map(len, tags.values())} == {whole}
    long = begun(user=f"user:{sign * 256}", model=sign * 256, team=sign * 64, tags=tags)
    table.write(database, [finished(long)])
    columns = (func.octet_length(cast(each, Text)) for each in table.CALLS.c)
    size = sum((func.coalesce(each, 0) for each in columns), start=literal(0))
    with database.reading() as connection:
        assert connection.scalar(select(size)) <= ROW_MOST_BYTES
