"""The storage is away while calls end: each is charged what it cost, once, to the micro-dollar.

`pytest -s tests/faults/test_money.py` also prints what each caller was billed and charged. With
RATELIMIT_LONG_FAULTS=1 the calls take 10 s to end.
"""

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path

import pytest

from tests.e2e.money.billed_gateway import (
    DOLLARS_OF_ALL_TIME,
    MICRO,
    MONTH_USD,
    Account,
    Gateway,
    deployed,
    write_table,
)
from tests.e2e.money.billing_provider import BillingProvider, marker
from tests.faults.load import Answer, Answers, Request, ask, chat
from tests.faults.table import Row
from tests.faults.traffic import IS_LONG
from tests.servers import Server, eventually
from tests.settlements.test_journal import lines

CALLS = 100
CALLERS = [f"caller-{number}" for number in range(10)]
OUTAGE_S = 10.0 if IS_LONG else 1.0
#: From the return of the storage until every caller has been charged.
RECOVERY_S = 10.0
#: New workers on a busy machine.
START_S = 60.0
WORKERS = 2


class Calls:
    """Calls in flight through chatapp: the provider has all of them, and ends them on demand."""

    def __init__(self, gateway: Gateway, pool: ThreadPoolExecutor) -> None:
        assert gateway.master is not None
        self.gateway, self.master = gateway, gateway.master
        for number, caller in enumerate(CALLERS):  # a worker's first calls take longer
            assert self._call(caller, number, gated=0).status == 200
        self._running: list[Future[Answer]] = [
            pool.submit(self._call, CALLERS[number % len(CALLERS)], number, gated=1)
            for number in range(CALLS)
        ]
        reached = CALLS + len(CALLERS)
        eventually(lambda: len(gateway.provider.calls()) == reached, within_s=START_S)

    def end(self) -> Answers:
        """Let them end, one after the other, until all are in the ledger; return what their clients
        saw."""
        self.gateway.provider.gate.set()
        answers = Answers(call.result() for call in self._running)
        eventually(self._are_recorded)
        return answers

    def again(self) -> Answers:
        """As many calls more, one after the other, until all are in the ledger."""
        answers = Answers(
            self._call(CALLERS[number % len(CALLERS)], CALLS + number, gated=0)
            for number in range(CALLS)
        )
        all_calls = 2 * CALLS + len(CALLERS)
        eventually(lambda: sum(len(self.gateway.rows(each)) for each in CALLERS) == all_calls)
        eventually(self._are_recorded)
        return answers

    def accounts(self) -> dict[str, Account]:
        """What each caller has been billed and charged by now; nothing of a caller without an
        answer from the storage."""
        accounts = {}
        for caller in CALLERS:
            try:
                left_usd = self.gateway.left(caller)[DOLLARS_OF_ALL_TIME]
            except (AssertionError, OSError):
                continue
            accounts[caller] = Account(
                billed=self.gateway.provider.billed_micro_usd(caller=caller),
                charged=MONTH_USD * MICRO - round(left_usd * MICRO),
                ledger=sum(row["cost_micro_usd"] for row in self.gateway.rows(caller)),
                one_call=Decimal(0),
            )
        return accounts

    def pending(self) -> int:
        """The number of calls whose settlements are on disk."""
        files = self.gateway.database.with_name("settlements").glob("*.journal")
        settled = [text for file in files for text in lines(file)[1:] if b'"verb":"settle"' in text]
        return len(settled)

    def _are_recorded(self) -> bool:
        rows = [row for caller in CALLERS for row in self.gateway.rows(caller)]
        return not any(row["status"] == "unfinished" for row in rows)

    def _call(self, caller: str, number: int, *, gated: int) -> Answer:
        wait_ms = int(number * 1000 * OUTAGE_S / CALLS) if gated else 0
        options = {"tokens": 10 + 13 * number, "gated": gated, "wait_ms": wait_ms}
        text = marker("normal", caller=caller, id=f"{gated}-{number}", **options)
        path, body = chat(number, text)
        headers = {"Authorization": f"Bearer {self.gateway.key(caller)}"}
        while True:
            began = time.monotonic()
            status, received = ask(self.master.port, Request(caller, path, headers, body))
            took_s = time.monotonic() - began
            if status != 503 or self.gateway.provider.gate.is_set():
                return Answer(caller, path, "during", began, took_s, status, received)
            # On a busy machine, a worker may have had no thread in time.


Check = Callable[..., None]


@pytest.fixture
def calls(durable: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Calls]:
    """Calls in flight through gunicorn."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    settings = {
        "GUNICORN_THREADS": "60",
        "RATELIMIT_STORAGE_URI": durable.uri,
        # The storage decides all calls, also on a busy machine.
        "RATELIMIT_DEADLINE_SECONDS": "2",
    }
    with (
        BillingProvider.running() as provider,
        deployed(provider, tmp_path, workers=WORKERS, **settings) as gateway,
        ThreadPoolExecutor(CALLS) as pool,
    ):
        try:
            yield Calls(gateway, pool)
        finally:
            provider.gate.set()


@pytest.fixture
def assert_charged(request: pytest.FixtureRequest, record_property: Callable[..., None]) -> Check:
    """Waits, once the storage has returned, until ledger and limits agree, and records the row."""
    marker = request.node.get_closest_marker("fault")

    def check(calls: Calls, answers: Answers, *, of_each: int = 1 + CALLS // len(CALLERS)) -> None:
        returned = time.monotonic()
        accounts: dict[str, Account] = {}

        def agree() -> bool:
            accounts.update(calls.accounts())
            settled = [each for each in accounts.values() if each.charged == each.ledger]
            return len(settled) == len(CALLERS)

        try:
            eventually(agree, within_s=RECOVERY_S)
        finally:
            write_table(request.config, request.node.name, list(accounts.items()))
        recovery_s = time.monotonic() - returned
        assert answers.statuses == {200: CALLS}
        for account in accounts.values():  # each call is rounded up
            assert account.billed <= account.charged <= account.billed + of_each
        counted = f"{CALLS} calls: ledger = limits, to the micro-dollar"
        row = Row(**marker.kwargs, answers=answers, counted=counted, recovery_s=recovery_s)
        record_property("row", row)

    return check


@pytest.mark.fault(
    breaks="Redis hangs while calls to models run (`SIGSTOP`)",
    to_do="For the money nothing: the calls are charged when Redis is back.",
)
def test_redis_hangs(durable: Server, calls: Calls, assert_charged: Check) -> None:
    """What Redis had received when it hung, and what is sent again, is applied once."""
    durable.process.send_signal(signal.SIGSTOP)
    answers = calls.end()
    durable.process.send_signal(signal.SIGCONT)
    assert_charged(calls, answers)


@pytest.mark.fault(
    breaks="Redis is killed while calls to models run, and restarted with its data",
    to_do="Restart Redis: the calls are charged then.",
)
def test_redis_is_killed(durable: Server, calls: Calls, assert_charged: Check) -> None:
    """What the workers had to queue is sent as soon as the storage is back."""
    durable.kill()
    answers = calls.end()
    durable.launch()
    assert_charged(calls, answers)


@pytest.mark.fault(
    breaks="Redis is killed while calls to models run, then all workers, and Redis is restarted",
    to_do="Restart Redis: new workers charge the calls of the dead ones.",
)
def test_workers_are_killed(durable: Server, calls: Calls, assert_charged: Check) -> None:
    """A settlement that the storage did not take is on disk; nothing has to be saved at the end."""
    durable.kill()
    answers = calls.end()
    eventually(lambda: calls.pending() == CALLS)
    for worker in calls.master.workers():
        os.kill(worker, signal.SIGKILL)
    eventually(calls.master.is_serving, within_s=START_S)
    durable.launch()
    assert_charged(calls, answers)
    eventually(lambda: calls.pending() == 0)


@pytest.mark.fault(
    breaks="Redis is killed, then calls to models run, then all workers are killed",
    to_do="Restart Redis: new workers charge the calls that the dead ones had admitted.",
    before="nothing of 24 calls was charged",
)
def test_workers_are_killed_that_admitted_alone(
    durable: Server, calls: Calls, assert_charged: Check
) -> None:
    """Calls that begin and end in the outage, of which the storage knows nothing."""
    calls.end()
    durable.kill()
    answers = calls.again()
    for worker in calls.master.workers():
        os.kill(worker, signal.SIGKILL)
    eventually(calls.master.is_serving, within_s=START_S)
    durable.launch()
    assert_charged(calls, answers, of_each=1 + 2 * CALLS // len(CALLERS))


@pytest.mark.fault(
    breaks="Redis is killed while calls to models run, and gunicorn is reloaded before it is back",
    to_do="Restart Redis: new workers charge the calls of the old ones.",
)
def test_a_reload(durable: Server, calls: Calls, assert_charged: Check) -> None:
    """The old workers stop soon, and leave their settlements."""
    durable.kill()
    answers = calls.end()
    old = set(calls.master.workers())
    calls.master.signal(signal.SIGHUP)
    eventually(lambda: not old & set(calls.master.workers()), within_s=2 * START_S)
    ready = 2 * WORKERS
    eventually(lambda: calls.master.log.count("Worker is ready") == ready, within_s=START_S)
    durable.launch()
    assert_charged(calls, answers)
    assert calls.master.log.count("settlements are left in") == WORKERS
    eventually(lambda: calls.pending() == 0)


@pytest.mark.fault(
    breaks="Redis is killed after calls to models, and comes back without its data",
    to_do="`flask chat ledger restore --apply`: limits in dollars and tokens count again what the "
    "ledger has.",
)
def test_redis_comes_back_empty(durable: Server, calls: Calls, assert_charged: Check) -> None:
    """Workers serve while the budgets are rebuilt from the ledger."""
    answers = calls.end()
    durable.kill()
    shutil.rmtree(durable.directory / "appendonlydir")
    durable.relaunch()
    gateway = calls.gateway
    eventually(lambda: gateway.left(CALLERS[0])[DOLLARS_OF_ALL_TIME] == MONTH_USD)
    gateway.restore(durable.uri)
    assert_charged(calls, answers)
