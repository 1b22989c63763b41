"""``flask ratelimit``: see, check and change limits while workers run.

The commands read and change the storage that the workers share. Nothing here charges a limit.
Beside the group, these names are public, for an application's own commands.
"""

from flask.cli import AppGroup

from ratelimit_ext.cli.arguments import UNTIL, by_operator, with_json
from ratelimit_ext.cli.changes import override, reset, show_log
from ratelimit_ext.cli.definitions import check, show
from ratelimit_ext.cli.output import echo_json, echo_table
from ratelimit_ext.cli.records import shadow, why
from ratelimit_ext.cli.simulation import simulate_command, suggest_command
from ratelimit_ext.cli.usage import blocks, inspect, near, top

__all__ = [
    "UNTIL",
    "by_operator",
    "echo_json",
    "echo_table",
    "ratelimit",
    "with_json",
]

ratelimit = AppGroup("ratelimit", help="See, check and change limits.")
for command in (
    *(check, show, inspect, why, top, near, blocks, shadow),
    *(reset, override, show_log, simulate_command, suggest_command),
):
    ratelimit.add_command(command)
