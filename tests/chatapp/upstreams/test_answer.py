"""The wait that a provider requests, and details of its bills: both are untrusted."""

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from pydantic import ValidationError

from chatapp.catalogue.usage import Usage
from chatapp.upstreams.answer import WAIT_MAX_S, regained_after_s, retry_after_s
from chatapp.upstreams.anthropic import Bill


@pytest.mark.parametrize(
    ("headers", "wait_s"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after-ms": "1500", "retry-after": "7"}, 1.5),
        ({"retry-after-ms": "soon", "retry-after": "7"}, 7.0),
        ({"retry-after": "0"}, None),
        ({"retry-after": "-5"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "1" + "0" * 400}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, None),
        ({"retry-after": "Wed, 99 Oct 2015 07:28:00 GMT"}, None),
        ({"retry-after": "Wed, 21 Oct 99999999999999999999 07:28:00 GMT"}, None),
    ],
)
def test_a_wait_is_a_positive_number_or_none(headers: dict[str, str], wait_s: float | None) -> None:
    """An invalid value counts as absent."""
    assert retry_after_s(headers) == wait_s


@pytest.mark.parametrize("zone", [UTC, None])
def test_a_wait_may_be_a_date(zone: object) -> None:
    """A date is relative to now, and in UTC if it has no zone."""
    begin = datetime.now(UTC)
    date = (begin + timedelta(seconds=30)).replace(tzinfo=zone)  # type: ignore[arg-type]
    wait_s = retry_after_s({"retry-after": format_datetime(date)})
    assert wait_s is not None
    passed_s = (datetime.now(UTC) - begin).total_seconds()
    assert 29 - passed_s < wait_s <= 30  # the date has no parts of a second


@pytest.mark.parametrize("days", [1, 20, 400])
def test_a_cap_ends_on_the_named_date(days: int) -> None:
    """By UTC. A date in a year is not believed."""
    end = datetime.now(UTC) + timedelta(days=days)
    for text in (f"{end:%Y-%m-%d} at {end:%H:%M} UTC.", f"{end:%Y-%m-%d}"):
        wait_s = regained_after_s(f"You will regain access on {text}")
        assert wait_s is not None
        assert min(timedelta(days=days - 1).total_seconds(), WAIT_MAX_S) <= wait_s <= WAIT_MAX_S


@pytest.mark.parametrize("when", ["2015-10-21 at 07:28 UTC", "2026-02-30", "Tuesday", ""])
def test_a_cap_without_a_date_has_no_end(when: str) -> None:
    """Nor one with a past or an impossible date."""
    assert regained_after_s(f"You will regain access on {when}") is None


@pytest.mark.parametrize("detail", [None, 5, "many", [1], {}, {"thinking_tokens": None}])
def test_a_detail_without_its_fields_counts_as_absent(detail: object) -> None:
    """The rest of the bill is what the provider bills."""
    tokens = {"input_tokens": 9, "output_tokens": 4}
    bill = {**tokens, "output_tokens_details": detail, "server_tool_use": detail}
    assert Bill.model_validate(bill).usage() == Usage(9, 4)


def test_an_invalid_figure_of_a_detail_makes_a_bill_invalid() -> None:
    """The call is estimated then."""
    bill = {"input_tokens": 9, "output_tokens": 4, "output_tokens_details": {"thinking_tokens": -1}}
    with pytest.raises(ValidationError):
        Bill.model_validate(bill)
