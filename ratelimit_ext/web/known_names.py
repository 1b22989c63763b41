"""The names that limits have, for those who ask for limits by name.

An application may ask for a limit that a policy of its operator's does not have: then there is
nothing to do, and no error. But a name that is misspelt would do nothing, either, for ever. So the
log has a warning, once for each name; but none where no limit has a name that it could be.
"""

from __future__ import annotations

import logging
from typing import Any, Final

import flask

from ratelimit_ext.core.limit import NO_OPTIONS
from ratelimit_ext.core.limit_string import states_strategy
from ratelimit_ext.core.traits import strategies_taking
from ratelimit_ext.policy import did_you_mean
from ratelimit_ext.web.manager import Manager

_logger: Final = logging.getLogger("ratelimit_ext")
#: A name that is made of a request's data would fill log and memory.
MOST_TOLD: Final = 100


class KnownNames:
    """What the limits of one extension are called."""

    def __init__(self, manager: Manager) -> None:
        self._manager = manager
        self._told: set[tuple[str, str]] = set()

    def doubt_name(self, name: str, asks: str, *, change: str = "") -> None:
        """Log that no limit has the name, where none has; ``asks`` is who asked for it, and
        ``change`` what its strategy must take."""
        known = {getattr(definition, "name", "") for definition in self._of(change)} - {""}
        kind = " 'unless blocked'" if change else ""
        self._doubt(name, asks, known, f"no limit{kind} is called {name!r}")

    def doubt_unit(self, unit: str, asks: str) -> None:
        """The same for the unit of a limit ``as reported``."""
        reported = self._of("report")
        known = {getattr(definition, "unit", "") or "requests" for definition in reported}
        self._doubt(unit, asks, known, f"no limit 'as reported' is in {unit!r}")

    def _doubt(self, asked: str, asks: str, known: set[str], finding: str) -> None:
        if not known or asked in known:
            return
        if (asks, asked) in self._told or len(self._told) >= MOST_TOLD:
            return
        self._told.add((asks, asked))
        logger = flask.current_app.logger if flask.has_app_context() else _logger
        listed = ", ".join(sorted(map(repr, known)))
        logger.warning(
            "%s(%r) does nothing: %s; there are: %s.%s",
            asks,
            asked,
            finding,
            listed,
            did_you_mean(asked, known),
        )

    def _of(self, change: str) -> list[Any]:
        """The definitions whose strategy takes the change, or may: what a function returns is
        unknown."""
        filed = list(self._manager.filed())
        if not change:
            return filed
        return [
            definition
            for definition in filed
            if callable(definition.limit_provider)
            or states_strategy(
                definition.limit_provider,
                getattr(definition, "options", NO_OPTIONS),
                strategies_taking(change),
            )
        ]
