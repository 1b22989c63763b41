"""Mutants of the code that decides: are they noticed? See `python -m tests.mutants --help`."""
