"""Spending alerts of several workers: one budget, each threshold once, and none lost at the end."""

import re
import signal
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from chatapp.accounts.store import Accounts
from chatapp.database import migration
from chatapp.database.connection import Database
from tests.chatapp.alerts.receiver import SECRET, Receiver
from tests.chatapp.upstream_server import UpstreamServer
from tests.gunicorn_master import Master, gunicorn

#: One call costs 70 micro-dollars, and holds 30.
CALL = {"model": "gpt-4o", "max_tokens": 1, "messages": [{"role": "user", "content": "ping"}]}
LIMITS = {"team-usd-day": "0.0028 usd/day"}  # 40 calls
#: Each may make ten calls at once.
MEMBERS = ("ada", "bob", "cleo", "dan", "eve", "fay")


def ask(master: Master, keys: Sequence[str], calls: int) -> list[int]:
    """The statuses of calls of all members in turn, four at a time."""

    def status(number: int) -> int:
        headers = {"Authorization": f"Bearer {keys[number % len(keys)]}"}
        return master.request("/v1/chat/completions", CALL, headers=headers).status

    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(status, range(calls)))


def test_two_workers_raise_each_threshold_once(
    provider: UpstreamServer, receiver: Receiver, tmp_path: Path
) -> None:
    """Half of a team's budget, and all of it just before the server stops."""
    url = f"sqlite:///{tmp_path / 'calls.db'}"
    database = Database(url)
    migration.upgrade(database)
    accounts = Accounts(database)
    accounts.create_team("research", limits=LIMITS)
    keys = [
        accounts.create_key(name, plan=None, default_plan="starter", team="research").text
        for name in MEMBERS
    ]
    database.close()
    with gunicorn(
        "wsgi:app",
        tmp_path,
        workers=2,
        DATABASE_URL=url,
        **provider.variables,
        CHATAPP_ALERT_WEBHOOK_URL=receiver.url,
        CHATAPP_ALERT_WEBHOOK_SECRET=SECRET,
    ) as master:
        assert ask(master, keys, 22) == [200] * 22
        receiver.received(1)
        assert 200 in ask(master, keys, 24)
        master.signal(signal.SIGTERM)
        master.process.wait(60)
        log = master.log
    requests = receiver.received(2)
    assert all(request.is_signed for request in requests)
    data = [request.body["data"] for request in requests]
    assert {(each["team"], each["budget"]) for each in data} == {("research", "team-usd-day")}
    # 80 % is raised only if it was not passed in the same moment as 100 %.
    thresholds = [each["threshold"] for each in data]
    assert (thresholds[0], thresholds[-1]) == (50, 100)
    assert thresholds == sorted(set(thresholds))
    assert log.count("Team research has spent") == len(requests)
    # A server with API keys logs with the time, too.
    assert len(re.findall(r"\n\[[-\d]+ [:,\d]+\] WARNING in watch: Team", log)) == len(requests)
    assert "only here" not in log
