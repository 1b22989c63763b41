"""Calls to keep, for the ledger's tests."""

from datetime import UTC, datetime
from typing import Any

from chatapp.catalogue.usage import Usage
from chatapp.ledger.call import Call, new_call_id

NOON = datetime(2026, 11, 25, 12, 0, 0, 123456, tzinfo=UTC)
USAGE = Usage(1000, 200, cached_input_tokens=600, cache_write_tokens=100, reasoning_tokens=50)


def begun(**fields: Any) -> Call:
    """A call whose provider has just been asked."""
    call = Call(
        id=new_call_id(),
        started_at=NOON,
        user="user:alice",
        key_id="0123456789abcdef",
        plan="pro",
        endpoint="chat.chat",
        model="claude-haiku-4-5-20251001",
        slug="claude-haiku-4-5",
        provider="anthropic",
        estimated_input_tokens=900,
        estimated_output_tokens=500,
        cost_micro_usd=3400,
        estimated=True,
    )
    return call._replace(**fields)


def renewed(call: Call, **fields: Any) -> Call:
    """The same call as a stream that has come so far: 900 × 1 and 20 × 5 micro-dollars."""
    under_way = call._replace(usage=Usage(900, 20), cost_micro_usd=1000)
    return under_way._replace(**fields)


def finished(call: Call, **fields: Any) -> Call:
    """The same call with its answer: 300 × 1, 600 × 0.1, 100 × 1.25 and 200 × 5 micro-dollars."""
    ended = call._replace(usage=USAGE, estimated=False, cost_micro_usd=1485, status="answered")
    return ended._replace(**fields)
