"""``flask ratelimit``: see, check and change limits while workers run.

The commands read and change the storage that the workers share. Nothing here charges a limit.
"""

from ratelimit_ext.cli.definitions import check, show
from ratelimit_ext.cli.overrides import log, override, reset
from ratelimit_ext.cli.records import shadow, why
from ratelimit_ext.cli.simulation import simulate, suggest
from ratelimit_ext.cli.usage import blocks, inspect, near, top
from ratelimit_ext.terminal import OperatorGroup

HINTS = {"uncounted": "`flask ratelimit show` lists all."}

ratelimit = OperatorGroup("ratelimit", hints=HINTS, help="See, check and change limits.")
for command in (
    *(check, show, inspect, why, top, near, blocks, shadow),
    *(reset, override, log, simulate, suggest),
):
    ratelimit.add_command(command)
