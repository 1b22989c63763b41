"""The group `flask chat`, with all its commands."""

from __future__ import annotations

from typing import cast

import click

from chatapp.cli.acts import HINTS, add_commands
from chatapp.cli.maintenance import check_providers, db, export_users, prices
from chatapp.cli.presenters import PRESENTERS
from chatapp.operators.errors import operator_error
from ratelimit_ext import OperatorError
from ratelimit_ext.terminal import OperatorGroup


class ChatGroup(OperatorGroup):
    def operator_error(self, error: Exception) -> OperatorError | None:
        return operator_error(error) or super().operator_error(error)


chat = ChatGroup("chat", hints=HINTS)
add_commands(chat, PRESENTERS)
chat.add_command(db)
chat.add_command(prices)
for group, command in (("providers", check_providers), ("users", export_users)):
    cast(click.Group, chat.commands[group]).add_command(command)
