"""The callers of the plain extension during a scenario, and what has to hold for each of them."""

from __future__ import annotations

import os

from tests.e2e.gunicorn_master import Master
from tests.faults.application import AMOUNT
from tests.faults.load import Answers, Load, Phase, Request

#: The issue's figures, on a machine with time: 30 s of outage under 200 requests a second.
IS_LONG = os.environ.get("RATELIMIT_LONG_FAULTS") == "1"
PER_S = 200 if IS_LONG else 60
BEFORE_S = 1.0
FAULT_S = 30.0 if IS_LONG else 2.0
AFTER_S = 5.0 if IS_LONG else 2.0

#: Never denied by a limit.
ROOMY = "roomy"
#: Has used up its amount before the fault.
EARLY = "early"
#: Sends its first request during the fault, and many more than its amount until it ends.
LATE = "late"
#: Sends its first request after the repair.
FRESH = "fresh"
LIMITED = (EARLY, LATE, FRESH)


def traffic(number: int, phase: Phase) -> Request:
    """A third of the requests is roomy; each limited caller sends a sixth or more."""
    turns = {
        "before": (ROOMY, EARLY, ROOMY, EARLY, ROOMY, EARLY),
        "during": (ROOMY, EARLY, LATE, ROOMY, LATE, LATE),
        "after": (ROOMY, EARLY, LATE, FRESH, ROOMY, FRESH),
    }
    caller = turns[phase][number % 6]
    path = "/roomy" if caller == ROOMY else "/scarce"
    return Request(caller, path, {"X-Caller": caller})


def load(master: Master) -> Load:
    """The usual traffic to this gunicorn."""
    return Load(master.port, traffic, per_s=PER_S)


def count(answers: Answers, caller: str) -> str:
    """How many requests of a caller were admitted beside its amount, in words."""
    admitted = answers.of(caller).admitted
    if admitted == AMOUNT:
        return "exact"
    return f"{abs(admitted - AMOUNT)} of {AMOUNT} too {'many' if admitted > AMOUNT else 'few'}"


def counts(answers: Answers) -> str:
    """The same for all limited callers."""
    found = {caller: count(answers, caller) for caller in LIMITED}
    if set(found.values()) == {"exact"}:
        return "exact"
    return "; ".join(f"{caller}: {words}" for caller, words in found.items())
