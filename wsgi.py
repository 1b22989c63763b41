"""What a WSGI server is pointed at: `gunicorn wsgi:app`.

`flask --app wsgi run` serves it too, for a look: in one process, whose limits are in its own memory
where no storage is set and no gunicorn runs in the same directory. What is in memory
`flask --app wsgi chat block` cannot reach.
"""

from __future__ import annotations

import sys

from chatapp import MISTAKES, POLICY_FILE, cli, create_app, valid_policy

# gunicorn's own status of a worker that cannot start: its master ends as well then, where after any
# other it would try again for ever.
CANNOT_START = 3

try:
    if cli.checks_policy():
        app = create_app({valid_policy.POLICY_FILE: None})  # the command says what is wrong with it
    else:
        app = valid_policy.created(create_app, POLICY_FILE, MISTAKES)
except MISTAKES as mistake:
    sys.stderr.write(f"chatapp cannot start.\n{mistake}\n")
    sys.exit(CANNOT_START)
