"""Whether it is a command that runs, or a server."""

from __future__ import annotations

import os
import sys
from typing import Final

import click

# Set by Flask where it runs from the command line, a server of its own too.
FROM_COMMAND_LINE: Final = "FLASK_RUN_FROM_CLI"
SERVER: Final = "run"


def from_command_line() -> bool:
    """Whether `flask` runs, with whichever command."""
    return os.environ.get(FROM_COMMAND_LINE) == "true"


def checks_policy() -> bool:
    """Whether `flask … chat policy check` runs, which needs an application whatever the policy."""
    return from_command_line() and "chat policy check" in " ".join(sys.argv)


def serves() -> bool:
    """Whether this process is going to answer requests: no command of `flask` does, but `run`."""
    context = click.get_current_context(silent=True)
    return not from_command_line() or (context is not None and context.info_name == SERVER)
