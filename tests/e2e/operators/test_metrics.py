"""Metrics of several workers: any of them answers for all, also for those that have ended."""

import os
import re
import signal
from pathlib import Path

from tests.gunicorn_master import Master, gunicorn
from tests.servers import alive, eventually

TOKEN = "a token of some length"
CALLS = re.compile(
    rb'^chatapp_calls_total\{model="offline",status="answered"\} (\d+)', re.MULTILINE
)


def calls(master: Master) -> list[int]:
    """What several scrapes say of the calls; each may be answered by another worker."""
    found = []
    for _ in range(4):
        answer = master.request("/metrics", headers={"Authorization": f"Bearer {TOKEN}"})
        assert answer.status == 200, answer.body
        assert b"ratelimit_storage_up 1.0" in answer.body
        assert b"\nchatapp_calls_in_flight 0.0" in answer.body
        found += [int(count) for count in CALLS.findall(answer.body)]
    return found


def test_any_worker_answers_for_all(tmp_path: Path) -> None:
    """Eight calls over two workers; after one of them was killed, and replaced, still eight."""
    figures = tmp_path / "figures"
    figures.mkdir()
    with gunicorn(
        "wsgi:app", tmp_path, CHATAPP_METRICS_TOKEN=TOKEN, PROMETHEUS_MULTIPROC_DIR=str(figures)
    ) as master:
        for number in range(8):
            answer = master.request("/chat", {"message": "hello", "user_id": f"user {number}"})
            assert answer.status == 200, master.log
        assert calls(master) == [8] * 4
        victim = master.workers()[0]
        os.kill(victim, signal.SIGKILL)
        eventually(lambda: not alive(victim) and len(master.workers()) == 2)
        eventually(lambda: not list(figures.glob(f"gauge_live*_{victim}.db")))
        assert calls(master) == [8] * 4
