"""The audit of the ledger."""

from datetime import timedelta

import pytest

from chatapp import catalogue
from chatapp.ledger.audit import Findings, audit
from chatapp.ledger.call import Call
from chatapp.ledger.table import row_of
from tests.chatapp.ledger.calls import NOON, USAGE, begun, finished, renewed

LEASE = timedelta(minutes=2)


def audited(*calls: Call, priced_since: timedelta = timedelta(days=-1)) -> Findings:
    """The findings two minutes after noon."""
    return audit(
        [row_of(call) for call in calls],
        catalogue.load(),
        now=NOON + LEASE,
        lease=LEASE,
        priced_since=NOON + priced_since,
    )


RIGHT = {
    "answered": finished(begun()),
    "under way": begun(),
    "under way, its prompt probably cached": begun(cost_micro_usd=2000),
    "a stream under way": renewed(begun()),
    "without an answer": begun(status="overloaded", cost_micro_usd=0),
    "left by its client": finished(begun(), status="cut_off", client_left=True, estimated=True),
}


@pytest.mark.parametrize("name", RIGHT)
def test_what_is_right_is_no_problem(name: str) -> None:
    """Each valid outcome of a call."""
    assert audited(RIGHT[name]).problems == []


WRONG = {
    "its worker died": (
        begun(started_at=NOON - LEASE),
        "unfinished: its worker died; its cost is an estimate",
    ),
    "its stream's worker died": (
        renewed(begun(started_at=NOON - LEASE)),
        "unfinished: its worker died; its cost is its last known usage",
    ),
    "a stream at its estimate's price": (
        renewed(begun(), cost_micro_usd=3400),
        "price of its tokens is 1000",
    ),
    "a micro-dollar too much": (finished(begun(), cost_micro_usd=1486), "its tokens is 1485"),
    "a micro-dollar too little": (finished(begun(), cost_micro_usd=1484), "its tokens is 1485"),
    "estimates at no price": (begun(cost_micro_usd=0), "price of its tokens is 3400"),
    "a cost for nothing": (begun(status="overloaded"), "price of its tokens is 0"),
    "another model's price": (finished(begun(), slug="claude-opus-4-5"), "is 7425"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_found(name: str) -> None:
    """With the call's id."""
    call, says = WRONG[name]
    (problem,) = audited(call).problems
    assert says in problem
    assert call.id in problem


def test_a_call_from_before_the_prices_is_not_checked() -> None:
    """A call from before the prices is counted, and its cost is not checked."""
    found = audited(finished(begun(), cost_micro_usd=1), priced_since=timedelta(days=1))
    assert found.problems == []
    assert found.unpriced == 1


def test_sums_are_by_user_and_month() -> None:
    """And to the micro-dollar."""
    last_month = NOON - timedelta(days=30)
    found = audited(
        *(finished(begun()) for _ in range(3)),
        finished(begun(started_at=last_month, user="user:bob"), usage=USAGE),
    )
    assert found.spent_micro_usd == {
        ("user:alice", "2026-11"): 3 * 1485,
        ("user:bob", "2026-10"): 1485,
    }
    assert (found.calls, found.running) == (4, [])
