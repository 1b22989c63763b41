"""The WSGI application: `gunicorn wsgi:app`.

`flask --app wsgi run` serves it for a first look, in one process. Without RATELIMIT_STORAGE_URI and
without a gunicorn in the same directory, its limits are in its memory, which other processes such
as `flask --app wsgi chat block` cannot reach.
"""

from __future__ import annotations

import gc
import sys

# What a start creates stays, so a search for garbage finds little: meanwhile and at the exit, it
# would take a third of a command's time.
gc.disable()

from chatapp import MISTAKES, cli, create_app  # noqa: E402 - see above
from chatapp.server import valid_files  # noqa: E402 - see above

# gunicorn's status for a worker that cannot boot.
CANNOT_START = 3

try:
    app = valid_files.created(create_app, MISTAKES, of_command=cli.command_config())
except MISTAKES as mistake:
    sys.stderr.write(f"chatapp cannot start.\n{mistake}\n")
    sys.exit(CANNOT_START)

if cli.serves():
    gc.collect()
# Later searches, for which all threads of a worker wait, skip what exists now.
gc.freeze()
# What calls in flight have made is hardly garbage. Searched after every 700 objects, as by default,
# it took 2 % of a worker's time with 16 calls at once, and 5 % with 128.
gc.set_threshold(10_000)
gc.enable()
