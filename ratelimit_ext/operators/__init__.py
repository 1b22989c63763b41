"""What operators ask of limits, and change: the answers behind ``flask ratelimit`` and an
application's pages. They read the storage that the workers share."""

from ratelimit_ext.operators.api import NOT_SHARED, Operators
from ratelimit_ext.operators.definitions import definitions_of, policy_as_json
from ratelimit_ext.operators.denials import explained, record_as_json
from ratelimit_ext.operators.shadow import advice_text
from ratelimit_ext.operators.texts import (
    instant_s,
    iso_time,
    printable,
    span_s,
    span_text,
    time_text,
    with_times,
)
from ratelimit_ext.operators.usage import Block, State

__all__ = [
    "NOT_SHARED",
    "Block",
    "Operators",
    "State",
    "advice_text",
    "definitions_of",
    "explained",
    "instant_s",
    "iso_time",
    "policy_as_json",
    "printable",
    "record_as_json",
    "span_s",
    "span_text",
    "time_text",
    "with_times",
]
