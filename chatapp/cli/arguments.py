"""The types of the commands' arguments: see chatapp/operators/arguments.py."""

from functools import partial
from typing import Final

import click

from chatapp.operators import arguments
from ratelimit_ext.terminal import Parsed

USER: Final = Parsed("name", partial(arguments.name, most=arguments.USER))
NEW_USER: Final = Parsed("name", arguments.new_user)
TEAM: Final = Parsed("name", partial(arguments.name, most=arguments.TEAM))
KEY_NAME: Final = Parsed("name", partial(arguments.name, most=arguments.KEY_NAME))
OWN_LIMIT: Final = Parsed("limit=amount", arguments.own_limit)
MODELS: Final = Parsed("model", arguments.models)
HEADER: Final = Parsed("header", arguments.header)
TRAFFIC_CLASS: Final = Parsed("class", arguments.traffic_class)
DAY: Final = Parsed("day", arguments.day)
MONTH: Final = Parsed("month", arguments.month)
WEEK: Final = Parsed("week", arguments.week)
SUBJECT: Final = Parsed("subject", arguments.subject)
DURATION: Final = Parsed("duration", arguments.duration)
DOLLARS: Final = Parsed("dollars", arguments.dollars)
END: Final = Parsed("time", arguments.end)

#: How long a key that is replaced stays valid.
with_overlap: Final = click.option(
    "--overlap",
    type=Parsed("duration", partial(arguments.duration, least_s=0)),
    default="24h",
    help="How long KEY stays valid: 0s, 2h, 7d; default 24h.",
)
