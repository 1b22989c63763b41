"""Strategies that protect something else than an allowance of the caller."""
