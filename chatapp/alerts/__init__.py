"""Alerts about spending: what is said, who has heard it, and how it is sent."""
