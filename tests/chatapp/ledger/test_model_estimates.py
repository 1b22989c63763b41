"""How good estimates were, as the ledger knows it."""

from __future__ import annotations

from datetime import timedelta

import pytest

from chatapp.database.connection import Database
from chatapp.ledger import table
from chatapp.ledger.call import Call
from chatapp.ledger.model_estimates import ModelEstimates, Tokens, model_estimates
from chatapp.providers import Usage
from tests.chatapp.ledger.calls import NOON, begun, finished


def used(input_tokens: int, output_tokens: int, **fields: object) -> Call:
    """A call of which 900 and 500 were expected."""
    return finished(begun(**fields), usage=Usage(input_tokens, output_tokens))


def test_estimates_are_compared_by_model(database: Database) -> None:
    """Sums over all its calls, whosever they are, and who used more than was expected of him."""
    calls = [used(1000, 100), used(900, 501, user="user:bob"), used(1, 0, slug="gpt-4o")]
    table.write(database, calls)
    assert model_estimates(database, since=None) == [
        ModelEstimates("claude-haiku-4-5", 2, Tokens(1800, 1900, 1), Tokens(1000, 601, 1)),
        ModelEstimates("gpt-4o", 1, Tokens(900, 1, 0), Tokens(500, 0, 0)),
    ]


def test_they_are_compared_from_an_instant_on(database: Database) -> None:
    """The call at that instant is one of them, the one a microsecond before it is not."""
    before = used(5, 5, started_at=NOON - timedelta(microseconds=1))
    table.write(database, [before, used(7, 7)])
    (found,) = model_estimates(database, since=NOON)
    assert (found.calls, found.input.used, found.output.used) == (1, 7, 7)
    (found,) = model_estimates(database, since=NOON - timedelta(days=1))
    assert found.calls == 2


UNTOLD = {
    "under way, or its worker died": begun(),
    "estimated from its size": finished(begun(), estimated=True),
    "left by its client": finished(begun(), status="cut_off", estimated=True, client_left=True),
    "refused": finished(begun(), status="overloaded", usage=Usage(0, 0), cost_micro_usd=0),
    "late": finished(begun(), status="timeout", usage=Usage(900, 0), estimated=True),
}


@pytest.mark.parametrize("name", UNTOLD)
def test_what_no_provider_told_is_no_measure(database: Database, name: str) -> None:
    """It would compare one estimate with another, or a model with a provider's bad day."""
    table.write(database, [UNTOLD[name]])
    assert model_estimates(database, since=None) == []
    table.write(database, [used(900, 250)])
    (found,) = model_estimates(database, since=None)
    assert (found.calls, found.input.ratio, found.output.ratio) == (1, 1.0, 0.5)


def test_more_than_nothing_is_a_ratio_too() -> None:
    """An estimate of no token is taken for one, as each worker takes it."""
    assert Tokens(estimated=0, used=3, calls_over=1).ratio == 3.0
