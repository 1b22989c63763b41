"""gunicorn's workers die, are replaced, are stopped, or have wrong clocks."""

from __future__ import annotations

import http.client
import itertools
import os
import signal
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.faults import traffic
from tests.faults.application import ROOMY, SLOW_S
from tests.faults.conftest import Record, Start
from tests.faults.load import NO_ANSWER, REFUSED, Answers, Load, Phase, Request
from tests.faults.traffic import FAULT_S, PATIENT
from tests.gunicorn_master import Answer, Master, gunicorn
from tests.servers import Server, alive, eventually

APPLICATION = "tests.faults.application:create_app()"
DAY_S = 86_400


@pytest.mark.fault(
    breaks="A worker is killed",
    to_do="Look for the reason in the kernel's log (memory). gunicorn starts another worker.",
)
def test_a_worker_is_killed(storage: Server, start: Start, record: Record) -> None:
    """Only requests that this worker had are lost; what they were charged stays charged."""
    with start(storage.uri, **PATIENT) as master, traffic.around(master) as load:
        dead, kept = master.workers()
        killed_at_s = kill(dead)
        load.run(FAULT_S)
        eventually(lambda: load.answers.values("x-worker") - {str(dead), str(kept)})
    lost = load.answers.statuses[NO_ANSWER]
    assert_lost_with_a_worker(load, killed_at_s)
    for caller in traffic.LIMITED:
        assert 0 <= traffic.AMOUNT - load.answers.of(caller).admitted <= lost
    record(load)


def kill(worker: int) -> float:
    """Kill it, and return when it was dead."""
    os.kill(worker, signal.SIGKILL)
    eventually(lambda: not alive(worker))
    return time.monotonic()


def assert_lost_with_a_worker(load: Load, killed_at_s: float) -> None:
    """Requests without an answer were sent before this worker was dead; all others were decided."""
    assert set(load.answers.statuses) <= {200, 429, NO_ANSWER}
    lost = [answer for answer in load.answers if answer.status == NO_ANSWER]
    assert all(answer.at_s < killed_at_s for answer in lost)


@pytest.mark.fault(
    breaks="A worker is killed, and no other can boot, also after a `HUP`",
    to_do="Repair what the log names (`A worker cannot start`): a worker is tried every 30 s.",
    before="gunicorn ended with status 3, after a `HUP` with 1",
)
def test_no_worker_can_boot(storage: Server, start: Start, record: Record, tmp_path: Path) -> None:
    """The other worker serves all requests; two serve again without a restart."""
    obstacle = tmp_path / "obstacle"
    variables = {**PATIENT, "CANNOT_BOOT": str(obstacle)}
    with start(storage.uri, **variables) as master, traffic.around(master) as load:
        obstacle.touch()
        dead, kept = master.workers()
        killed_at_s = kill(dead)
        load.run(FAULT_S)
        eventually(lambda: tries(master))
        tried = tries(master)
        master.signal(signal.SIGHUP)
        load.run(FAULT_S)
        eventually(lambda: tries(master) > tried)
        assert kept in master.workers()
        obstacle.unlink()
        eventually(lambda: not alive(kept))
    assert_lost_with_a_worker(load, killed_at_s)
    assert len(load.answers.of(None, "after").values("x-worker")) == 2
    record(load)


def tries(master: Master) -> int:
    return master.log.count("A worker cannot start: RuntimeError: the schema is of a newer version")


@pytest.mark.fault(breaks="gunicorn is reloaded (`HUP`)", to_do="Nothing.")
def test_reload(storage: Server, start: Start, record: Record) -> None:
    """Old workers serve until the new ones do, and each request is counted."""
    with start(storage.uri, **PATIENT) as master, traffic.around(master) as load:
        old = master.workers()
        master.signal(signal.SIGHUP)
        eventually(lambda: not any(map(alive, old)))
        eventually(lambda: len(master.workers()) == 2)
        log = master.log
    assert log.rindex("Worker is ready") < log.index("Worker exiting")
    traffic.assert_unnoticed(load)
    served = {int(worker) for worker in load.answers.of(None, "after").values("x-worker")}
    assert len(served) == 2
    assert not served & set(old)
    record(load)


@pytest.mark.fault(
    breaks="Redis is killed, and in the outage all workers, twice (`kill -9`)",
    to_do="Restart Redis. New workers go on with what the killed ones had decided.",
    before="500 of 300 for a caller",
)
def test_workers_are_killed_in_an_outage(durable: Server, start: Start, record: Record) -> None:
    """No caller gets a new allowance, and the storage is charged what the dead had admitted."""
    with start(durable.uri, **PATIENT) as master, traffic.around(master, durable.kill) as load:
        load.run(FAULT_S)
        for _ in range(2):
            old = master.workers()
            for worker in old:
                os.kill(worker, signal.SIGKILL)
            eventually(lambda: not set(old) & set(master.workers()))  # noqa: B023
            eventually(lambda: len(master.workers()) == 2)
            eventually(master.is_serving)
            load.run(FAULT_S)
        durable.relaunch()
    assert_exact(load)
    record(load)


@pytest.mark.fault(
    breaks="Redis is killed, and in the outage gunicorn is reloaded three times (`HUP`)",
    to_do="Restart Redis.",
    before="1,047 of 300 for a caller",
)
def test_reloads_in_an_outage(durable: Server, start: Start, record: Record) -> None:
    """No caller gets a new allowance, neither a new one nor one that was denied before."""
    with start(durable.uri, **PATIENT) as master, traffic.around(master, durable.kill) as load:
        load.run(FAULT_S)
        for reloads in range(3):
            old = master.workers()
            master.signal(signal.SIGHUP)
            eventually(lambda: not set(old) & set(master.workers()))  # noqa: B023
            ready = 2 * (reloads + 2)
            eventually(lambda: master.log.count("Worker is ready") == ready)  # noqa: B023
            load.run(FAULT_S)
        durable.relaunch()
    assert_exact(load)
    record(load)


def test_a_caller_of_one_worker(durable: Server, start: Start) -> None:
    """A caller has used up its amount over one connection. The worker that knows it tells the
    others, those that follow, too."""
    caller = {"X-Caller": "ada"}
    with start(durable.uri, **PATIENT) as master:
        connection = http.client.HTTPConnection("127.0.0.1", master.port)

        def ask_one_worker(path: str) -> tuple[int, str | None]:
            connection.request("GET", path, headers=caller)
            response = connection.getresponse()
            response.read()
            return response.status, response.headers["X-Worker"]

        answers = [ask_one_worker("/scarce") for _ in range(traffic.AMOUNT)]
        assert {status for status, _ in answers} == {200}
        assert len({worker for _, worker in answers}) == 1
        durable.kill()
        for _ in range(3):
            assert ask_one_worker("/roomy")[0] == 200
        connection.close()

        def deny() -> None:
            """Until two workers have answered."""
            workers = set()

            def denies() -> bool:
                answer = master.request("/scarce", headers=caller)
                assert answer.status == 429
                workers.add(int(answer.headers["x-worker"]))
                return len(workers - old) == 2

            eventually(denies)

        old: set[int] = set()
        deny()
        old = set(master.workers())
        master.signal(signal.SIGHUP)
        deny()


def test_two_hosts(durable: Server, tmp_path: Path) -> None:
    """Each has its part of what was left of a caller, and one loses all workers meanwhile
    (`kill -9`). Both return, and the storage is charged what each has admitted, once."""
    variables = {"RATELIMIT_STORAGE_URI": durable.uri, "RATELIMIT_WORKERS": "4"}
    admitted, returned = Counter[str](), set[str]()

    def ask(host: Master, caller: str, path: str = "/scarce") -> Answer:
        answer = host.request(path, headers={"X-Caller": caller})
        admitted[caller] += answer.status == 200
        if traffic.DEGRADED not in answer.headers:
            returned.add(answer.headers["x-worker"])
        return answer

    def ask_all(hosts: list[Master]) -> None:
        for host, _ in itertools.product(hosts, range(traffic.AMOUNT)):
            ask(host, "known")
            ask(host, "new")
            ask(host, "roomy", "/roomy")

    with ExitStack() as stack:
        hosts = []
        for name in ("one", "two"):
            (tmp_path / name).mkdir()
            hosts.append(stack.enter_context(gunicorn(APPLICATION, tmp_path / name, **variables)))
        first, second = [http.client.HTTPConnection("127.0.0.1", host.port) for host in hosts]
        assert [is_admitted(each) for each in (first, second, first, second)] == [True] * 4
        durable.kill()
        assert [is_admitted(each) for each in (first, second)] == [True] * 2
        first.close()
        second.close()
        admitted["known"] = 6
        ask_all(hosts)
        old = hosts[0].workers()
        for worker in old:
            kill(worker)
        hosts[0].await_successors(old)
        ask_all(hosts)
        returned.clear()
        durable.relaunch()
        workers = {str(worker) for host in hosts for worker in host.workers()}
        eventually(lambda: [ask(h, "roomy", "/roomy") for h in hosts] and workers <= returned)

        def is_charged() -> bool:
            answer = ask(hosts[0], "roomy", "/roomy")
            return int(answer.headers["x-ratelimit-remaining"]) == ROOMY - admitted["roomy"]

        eventually(is_charged)
        assert [ask(host, name).status for host in hosts for name in ("known", "new")] == [429] * 4
    assert (admitted["known"], admitted["new"]) == (traffic.AMOUNT, traffic.AMOUNT)


def is_admitted(connection: http.client.HTTPConnection) -> bool:
    """Whether the same worker as before admits a caller that others ask for, too."""
    connection.request("GET", "/scarce", headers={"X-Caller": "known"})
    response = connection.getresponse()
    response.read()
    return response.status == 200


def assert_exact(load: Load) -> None:
    """Each caller got its amount, and only requests of killed workers have no answer."""
    assert set(load.answers.statuses) <= {200, 429, 503, NO_ANSWER, REFUSED}
    assert load.answers.of(None, "during")
    for caller in traffic.LIMITED:
        answers = load.answers.of(caller)
        known = answers.admitted - unaware(answers).admitted
        assert 0 <= traffic.AMOUNT - known <= answers.statuses[NO_ANSWER]


def unaware(answers: Answers) -> Answers:
    """Decisions in the outage of a worker that had decided nothing of the caller before, until one
    that had tells the others with its first decision: that may have been stopped meanwhile."""
    alone = [answer for answer in answers if traffic.DEGRADED in answer.headers]
    before = [answer for answer in answers.of(None, "before") if answer not in alone]
    knowing = Answers(before).values("x-worker")
    known_at = [each.ended_at_s for each in alone if each.headers["x-worker"] in knowing]
    return Answers(
        each
        for each in alone
        if each.headers["x-worker"] not in knowing and each.at_s < min(known_at, default=0.0)
    )


@pytest.mark.fault(
    breaks="gunicorn is stopped (`TERM`)",
    to_do="Start it again. A proxy should send requests elsewhere meanwhile.",
)
def test_graceful_stop(storage: Server, start: Start, record: Record) -> None:
    """Requests that have begun are answered, each in full; later ones are refused."""

    def slow(number: int, _phase: Phase) -> Request:
        caller = f"caller {number % 2}"
        return Request(caller, "/slow", {"X-Caller": caller})

    with start(storage.uri) as master, Load(master.port, slow, per_s=traffic.PER_S / 2) as load:
        load.run(traffic.BEFORE_S)
        with load.fault():
            master.signal(signal.SIGTERM)
            assert master.process.wait(60) == 0
            load.run(0.5)
    traffic.assert_finished(load, takes_s=SLOW_S)
    record(load, counted="exact")


@pytest.mark.fault(
    breaks="The workers' clocks are an hour ahead or behind, and Redis is killed",
    to_do="Repair the clocks for logs and the ledger: limits are by Redis's clock.",
)
def test_wrong_clocks(durable: Server, start: Start, record: Record, tmp_path: Path) -> None:
    """Decisions and headers are by the clock of the storage; a worker's own one serves only to
    measure an outage."""
    clocks = {"WRONG_CLOCKS": str(tmp_path / "first")}
    with start(durable.uri, **clocks) as master, traffic.around(master, durable.kill) as load:
        load.run(FAULT_S)
        durable.relaunch()
    before = load.answers.of(traffic.EARLY, "before")
    errors_s = {round(float(clock) - time.time(), -3) for clock in before.values("x-clock")}
    assert errors_s == {4000, -4000}
    assert before.admitted == traffic.AMOUNT
    for reset in before.values("x-ratelimit-reset"):
        assert abs(int(reset) - time.time() - DAY_S) < 60
    traffic.assert_bridged(load)
    record(load)
