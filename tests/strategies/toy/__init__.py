"""A strategy that is not the library's: what a user would write."""
