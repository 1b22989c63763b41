"""People of one trusted key, such as Open WebUI's, call at once until their budgets are used up:
each spends their own budget, to 2 %, and everything is in the ledger as it was billed.

RATELIMIT_PEOPLE=1000 is the full run, of some minutes."""

import json
import os
import random
import sqlite3
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from decimal import Decimal
from http.client import HTTPConnection
from pathlib import Path
from threading import local
from urllib.parse import urlsplit

import pytest

from chatapp.accounts.people import HEADERS, People
from chatapp.services import services_of
from tests.chatapp.upstream_server import OPENAI_PATH
from tests.e2e.money.billed_gateway import MICRO, Gateway, deployed, roomy_policy
from tests.e2e.money.billing_provider import BillingProvider, marker
from tests.servers import eventually

PEOPLE = int(os.environ.get("RATELIMIT_PEOPLE", "10"))
THREADS = 16
#: 60 calls of 1,000 tokens at 4.50 USD a million, and a tenth more than the budget has room for.
BUDGET_USD, CALLS, TOKENS = Decimal("0.27"), 66, 1_000


@pytest.fixture
def gateway(provider: BillingProvider, tmp_path: Path) -> Iterator[Gateway]:
    policy = roomy_policy(tmp_path / "people.toml", usd_day=f"{BUDGET_USD} usd/day")
    with deployed(provider, tmp_path, workers=2, RATELIMIT_POLICY_FILE=str(policy)) as gateway:
        yield gateway


def test_each_person_spends_their_own_budget(gateway: Gateway) -> None:
    """No one is refused before their budget is used up, and no one goes beyond it."""
    accounts = services_of(gateway.app).accounts
    people = People(headers=(HEADERS[0],), plan="starter", most_new=PEOPLE)
    key = accounts.create_key("webui", plan="team", default_plan="starter", people=people).text
    names = [f"person-{n}@example.com" for n in range(PEOPLE)]
    calls = names * CALLS
    random.Random(7).shuffle(calls)
    of_thread = local()

    def call(person: str) -> tuple[str, int, str]:
        if not hasattr(of_thread, "connection"):
            of_thread.connection = HTTPConnection(urlsplit(gateway.url).netloc, timeout=60)
        text = marker("normal", tokens=TOKENS, caller=person.partition("@")[0])
        body = {
            "model": "gpt-5.4-mini",
            "max_tokens": TOKENS,
            "messages": [{"role": "user", "content": text}],
        }
        headers = {
            "Content-Type": "application/json",
            "Authorization": f"Bearer {key}",
            HEADERS[0]: person,
        }
        while True:
            of_thread.connection.request("POST", OPENAI_PATH, json.dumps(body), headers)
            with of_thread.connection.getresponse() as response:
                answer = json.loads(response.read())
                code = answer["error"]["code"] if response.status != 200 else ""
                if code != "budget_in_use":
                    return person, response.status, code
            time.sleep(0.2)  # as an SDK does: other calls of this person may give something back

    with ThreadPoolExecutor(THREADS) as pool:
        answers = list(pool.map(call, calls))
    refused = Counter((status, code) for _, status, code in answers if status != 200)
    assert set(refused) == {(429, "insufficient_quota")}, refused

    served = Counter(person for person, status, _ in answers if status == 200)
    eventually(lambda: ledger(gateway)[0] == served)
    spent = ledger(gateway)[1]
    budget = float(BUDGET_USD * MICRO)
    assert set(spent) == set(names)
    assert {p: usd for p, usd in spent.items() if not 0.98 <= usd / budget <= 1.02} == {}
    billed: dict[str, Decimal] = defaultdict(Decimal)
    for made in gateway.provider.calls():
        billed[f"{made.scenario.caller}@example.com"] += gateway.provider.price_of(made)
    assert {p: (usd, billed[p]) for p, usd in spent.items() if abs(usd - billed[p]) > CALLS} == {}


def ledger(gateway: Gateway) -> tuple[Counter[str], Counter[str]]:
    """The calls of each person in the ledger, and what they cost in micro-dollars."""
    with closing(sqlite3.connect(gateway.database)) as connection:
        rows = connection.execute(
            'SELECT "user", COUNT(*), SUM(cost_micro_usd) FROM calls '
            "WHERE status <> 'unfinished' GROUP BY 1"
        ).fetchall()
    calls: Counter[str] = Counter()
    spent: Counter[str] = Counter()
    for user, count, cost in rows:
        person = user.removeprefix("user:")
        calls[person], spent[person] = count, cost
    return calls, spent
