"""All actions, and the blueprint that answers them."""

from __future__ import annotations

from chatapp.blueprints.management import accounts, ledger, limits
from chatapp.blueprints.management.access import bp, unrouted
from chatapp.blueprints.management.actions import ACTIONS, Action

__all__ = ["ACTIONS", "Action", "accounts", "bp", "ledger", "limits", "unrouted"]
