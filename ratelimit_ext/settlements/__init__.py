"""Costs that are estimates first: reservations, and what settles them later."""
