"""A block by an operator and a cool-down take effect in all of gunicorn's workers at once."""

import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.chatapp.upstream_server import UpstreamServer, openai_error
from tests.e2e.command import flask
from tests.gunicorn_master import Answer, Master, gunicorn
from tests.servers import eventually

WORKERS = 4
HELLO = {"message": "hello", "user_id": "alice", "model": "gpt-5.4-mini"}


@pytest.fixture
def master(provider: UpstreamServer, tmp_path: Path) -> Iterator[Master]:
    """Four workers on the embedded server, in front of a scripted provider."""
    with gunicorn("wsgi:app", tmp_path, workers=WORKERS, **provider.variables) as running:
        eventually(lambda: len(running.workers()) == WORKERS)
        yield running


def together(master: Master, calls: int, payload: object = HELLO) -> list[Answer]:
    """That many calls at once, each on a new connection, so that all workers get some."""
    with ThreadPoolExecutor(calls) as pool:
        return list(pool.map(lambda _: master.request("/chat", payload), range(calls)))


def test_a_block_is_obeyed_by_all_workers_at_once(master: Master, tmp_path: Path) -> None:
    """The command finds the embedded server. No call passes after the block, and every call passes
    after it was lifted."""
    assert Counter(answer.status for answer in together(master, 4)) == {200: 4}
    assert "in all workers" in flask(tmp_path, "chat", "block", "user", "alice")
    assert Counter(answer.status for answer in together(master, 24)) == {403: 24}
    other = {**HELLO, "user_id": "bob"}
    assert Counter(answer.status for answer in together(master, 2, other)) == {200: 2}
    flask(tmp_path, "chat", "unblock", "user", "alice")
    assert Counter(answer.status for answer in together(master, 4)) == {200: 4}


@pytest.mark.slow
def test_everything_can_be_switched_off(master: Master, tmp_path: Path) -> None:
    """503 in every worker for every caller, and the provider is not called."""
    flask(tmp_path, "chat", "block", "all", "--for", "1h")
    answers = together(master, 24)
    assert {answer.body["code"] for answer in answers} == {"switched_off"}
    assert {answer.status for answer in answers} == {503}


def test_a_cool_down_is_obeyed_by_all_workers(master: Master, provider: UpstreamServer) -> None:
    """The provider names a wait of 30 s to one worker, once; no worker calls it again."""
    provider.script(openai_error(429, code="rate_limit_exceeded", headers={"Retry-After": "30"}))
    began = time.monotonic()
    first = master.request("/chat", HELLO)
    assert (first.status, first.headers["retry-after"]) == (503, "30")
    answers = together(master, 24)
    assert {answer.body["code"] for answer in answers} == {"server_is_overloaded"}
    least = 30 - (time.monotonic() - began)
    assert all(least <= int(answer.headers["retry-after"]) <= 30 for answer in answers)
    assert len(provider.calls) == 1
