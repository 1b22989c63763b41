"""The callers of the plain extension during a scenario, and what has to hold for each of them."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tests.faults.application import AMOUNT
from tests.faults.load import NO_ANSWER, REFUSED, Answer, Answers, Load, Phase, Request
from tests.gunicorn_master import Master
from tests.servers import eventually

#: The issue's figures, on a machine with time: 30 s of outage under 200 requests a second.
IS_LONG = os.environ.get("RATELIMIT_LONG_FAULTS") == "1"
PER_S = 200 if IS_LONG else 60
BEFORE_S = 1.0
FAULT_S = 30.0 if IS_LONG else 1.5
AFTER_S = 5.0 if IS_LONG else 2.2

#: Never denied by a limit, with each policy for an outage: `local`, `open` and `closed`.
ROOMY, OPEN, CLOSED = "roomy", "open", "closed"
#: Has used up its amount before the fault.
EARLY = "early"
#: Sends its first request during the fault, and many more than its amount until it ends.
LATE = "late"
#: Sends its first request after the repair.
FRESH = "fresh"
#: With their names in the table.
LIMITED = {EARLY: "used up before", LATE: "new callers", FRESH: "callers after it"}

#: On an answer that a worker decided in place of the storage.
DEGRADED = "x-ratelimit-degraded"
#: Connections that the kernel holds at the moment at which nothing listens any more.
MOST_QUEUED = 2
#: Where the storage is to decide everything: a pause of a busy machine is no outage.
PATIENT = {"RATELIMIT_DEADLINE_SECONDS": "5"}

#: Whose turn it is.
TURNS: dict[Phase, tuple[str, ...]] = {
    "before": (ROOMY, EARLY, OPEN, EARLY, CLOSED, EARLY, ROOMY, EARLY),
    "during": (ROOMY, LATE, OPEN, EARLY, CLOSED, LATE, EARLY, LATE),
    "after": (ROOMY, FRESH, OPEN, EARLY, CLOSED, LATE, FRESH, LATE),
}


def traffic(number: int, phase: Phase) -> Request:
    """The next request. Each caller is an identity; the limited ones share a route."""
    caller = TURNS[phase][number % 8]
    path = "/scarce" if caller in LIMITED else f"/{caller}"
    return Request(caller, path, {"X-Caller": caller})


@contextmanager
def around(master: Master, cause: Callable[[], object] = lambda: None) -> Iterator[Load]:
    """Traffic to this gunicorn before, during and after the block, which breaks something
    and repairs it. What ``cause`` breaks is broken before the first request of the fault. Requests
    are answered while it is, and afterwards each worker returns to the storage."""
    with Load(master.port, traffic, per_s=PER_S, in_step=True) as load:
        load.run(BEFORE_S)
        cause()
        with load.fault():
            yield load
        load.run(AFTER_S)
        eventually(lambda: set(map(str, master.workers())) <= returned(load))


def returned(load: Load) -> set[str]:
    """The workers of which the storage has decided a request since the repair."""
    after = load.answers.of(None, "after")
    return Answers(answer for answer in after if not is_degraded(answer)).values("x-worker")


def is_degraded(answer: Answer) -> bool:
    """Whether the storage did not decide it."""
    return answer in Answers([answer]).failed or DEGRADED in answer.headers


def assert_unnoticed(load: Load) -> None:
    """The storage decided everything, exactly."""
    assert set(load.answers.statuses) == {200, 429}
    assert not any(map(is_degraded, load.answers))
    assert counts(load.answers) == "exact"


def assert_bridged(load: Load, *, most: int = AMOUNT) -> None:
    """The workers decided in place of the storage: at once, and no more than ``most`` for a caller
    from the first decision of each on; a worker that had denied a caller before, nothing."""
    answers = load.answers
    # Before the fault, a pause of a busy machine may have been an outage, too.
    later = answers.of(None, "during", "after")
    degraded = Answers(filter(is_degraded, later))
    assert degraded.of(None, "during")
    assert set(answers.of(OPEN).statuses) == {200}
    refused = Answers(answer for answer in answers if answer.status == 503)
    assert {answer.caller for answer in refused} <= {CLOSED}
    assert all(1 <= int(answer.headers["retry-after"]) <= 30 for answer in refused)
    assert set(answers.statuses) <= {200, 429, 503}
    recovery_s = load.recovery_s(is_degraded)
    # Later a pause of a busy machine may fail a single request, which a worker decides alone.
    single = Answers(a for a in degraded if a.at_s > load.repaired_at_s + recovery_s)
    # Until each worker has decided alone, the storage may admit for another one.
    first_s = max(
        min(answer.ended_at_s for answer in degraded if answer.headers["x-worker"] == worker)
        for worker in degraded.values("x-worker")
    )
    outage = Answers(a for a in later if is_degraded(a) or a.at_s >= first_s)
    admitted = {each: outage.of(each).admitted - single.of(each).admitted for each in LIMITED}
    passed = [
        (a.caller, a.headers["x-worker"], is_degraded(a), round(a.at_s, 3), round(a.ended_at_s, 3))
        for a in outage
        if a.status == 200 and admitted.get(a.caller, 0) > most
    ]
    assert max(admitted.values()) <= most, (admitted, first_s, load.repaired_at_s, passed)
    denied = [a for a in answers.of(EARLY, "before") if a.status == 429 and not is_degraded(a)]
    for again in degraded.of(EARLY):
        known = Answers(answer for answer in denied if answer.ended_at_s < again.at_s)
        assert again.status != 200 or again.headers["x-worker"] not in known.values("x-worker")
    # A request whose reply is lost may be charged in the storage, too.
    assert later.of(FRESH).admitted >= AMOUNT - len(degraded.of(FRESH))


def assert_finished(load: Load, *, takes_s: float) -> None:
    """Requests, which take so long, were answered in full or refused. A connection that was not
    accepted any more may have been reset."""
    ended = [answer for answer in load.answers if answer.status == NO_ANSWER]
    assert set(load.answers.statuses) <= {200, REFUSED, NO_ANSWER}
    assert len(ended) <= MOST_QUEUED
    assert all(answer.took_s < takes_s / 2 for answer in ended)


def counts(answers: Answers) -> str:
    """How many requests of limited callers were admitted besides their amount, in words."""
    wrong = {}
    for caller, name in LIMITED.items():
        surplus = answers.of(caller).admitted - AMOUNT
        if surplus:
            wrong[name] = f"{abs(surplus)} of {AMOUNT} too {'many' if surplus > 0 else 'few'}"
    if not wrong:
        return "exact"
    return ", ".join(f"{name}: {words}" for name, words in wrong.items()) + ", else exact"
