"""The group `flask chat`, with all its commands."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from chatapp.cli.accounts import keys, plans, teams, users
from chatapp.cli.admin_keys import admin_keys
from chatapp.cli.blocks import block, unblock
from chatapp.cli.ledger import alerts, give_credit, ledger, spend, usage
from chatapp.cli.maintenance import db, providers
from chatapp.database.migration import COMMAND
from chatapp.operators.amounts import COUNTED
from chatapp.operators.errors import operator_error
from ratelimit_ext import OperatorError
from ratelimit_ext.terminal import OperatorGroup

#: What to do about an error, by its code.
HINTS: Final[Mapping[str, str]] = {
    **{f"unknown_{each}": f"`chat {each}s list` lists the {each}s." for each in COUNTED},
    "unknown_team": "`chat teams list` lists the teams; `chat teams create` creates one.",
    "unknown_caller": "`chat users list` and `chat ledger show` list the users.",
    "unknown_admin_key": "`chat admin-keys list` lists them.",
    "other_plan": "`chat plans set` changes it.",
    "other_team": "`chat users set-team` moves a user.",
    "existing_team": "`chat teams set-amount` changes its budgets.",
    "deactivated_user": "`chat users activate` does that.",
    "has_keys": "`chat keys revoke` revokes a key.",
    "unusable_key": "`create` of keys or admin-keys creates another.",
    "no_amount": "`list` of users, keys and teams lists the amounts.",
    "no_name": "Write `chat block KIND NAME`.",
    "database": f"If it is new, or of another version, run `{COMMAND}`.",
}


class ChatGroup(OperatorGroup):
    """Commands that change accounts and limits."""

    def operator_error(self, error: Exception) -> OperatorError | None:
        return operator_error(error) or super().operator_error(error)


chat = ChatGroup("chat", hints=HINTS)
for command in (
    *(keys, users, teams, plans, usage, spend, give_credit, block, unblock),
    *(providers, ledger, alerts, db, admin_keys),
):
    chat.add_command(command)
