"""A policy against traffic, in virtual time: by the same algorithms, without a storage.

:mod:`traffic` reads or makes calls, :mod:`replay` decides them, :mod:`demand` says who would have
needed what, :mod:`report` shows it. :mod:`ratelimit_ext.cli.simulation` compiles a policy to the
rules that are simulated.
"""
