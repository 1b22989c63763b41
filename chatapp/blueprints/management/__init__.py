"""/admin/api/v1: what the commands and /admin show and do, as JSON, by the same functions."""

from __future__ import annotations

from chatapp.blueprints.management import accounts, ledger, limits
from chatapp.blueprints.management.access import bp
from chatapp.blueprints.management.actions import ACTIONS, Action

__all__ = ["ACTIONS", "Action", "accounts", "bp", "ledger", "limits"]
