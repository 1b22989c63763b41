"""/admin/api/v1: what the commands and /admin show and do, as JSON, by the same functions."""

from __future__ import annotations

from chatapp.blueprints.management import accounts, admin_keys, ledger, limits
from chatapp.blueprints.management.access import bp, unrouted
from chatapp.blueprints.management.actions import ACTIONS, Action

__all__ = ["ACTIONS", "Action", "accounts", "admin_keys", "bp", "ledger", "limits", "unrouted"]
