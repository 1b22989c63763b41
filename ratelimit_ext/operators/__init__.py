"""What operators ask of limits: the answers behind ``flask ratelimit`` and an application's pages.

They read the storage that the workers share. Nothing here charges a limit.
"""

from ratelimit_ext.operators.denials import denials_of, explained
from ratelimit_ext.operators.shadow import advice_text, shadow_results
from ratelimit_ext.operators.texts import printable, span_text, time_text
from ratelimit_ext.operators.usage import Block, State, blocked, states_of, used_states, wait_text

__all__ = [
    "Block",
    "State",
    "advice_text",
    "blocked",
    "denials_of",
    "explained",
    "printable",
    "shadow_results",
    "span_text",
    "states_of",
    "time_text",
    "used_states",
    "wait_text",
]
