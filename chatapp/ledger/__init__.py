"""The usage and the cost of each call: one row a call, written in the background."""
