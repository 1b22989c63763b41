"""All acts."""

from __future__ import annotations

from chatapp.actions import accounts, ledger, limits
from chatapp.actions.action import ACTIONS, ITEMS, Action

__all__ = ["ACTIONS", "ITEMS", "Action", "accounts", "ledger", "limits"]
