"""Mistakes in a policy: all of them are collected, then told in one error."""

from __future__ import annotations

from types import TracebackType

from ratelimit_ext.core.errors import ConfigurationError
from ratelimit_ext.policy.place import Place


class Mistake(ValueError):
    """One mistake, without its place: what was found, what is allowed, what to do."""


class Mistakes:
    """The mistakes found so far, each with its place."""

    def __init__(self) -> None:
        self._found: list[tuple[Place, str]] = []

    def add(self, place: Place, text: object) -> None:
        """Note a mistake; what is noted becomes one line."""
        self._found.append((place, " ".join(str(text).split())))

    def noted_at(self, place: Place) -> _Noted:
        """A context that notes the mistake that ends its block, and goes on after it."""
        return _Noted(self, place)

    def __len__(self) -> int:
        return len(self._found)

    def raise_if_any(self, where: str = "the limits by configuration") -> None:
        """Raise one :class:`ConfigurationError` with a line for each mistake, by file and line."""
        if not self._found:
            return
        # Sorting is stable: within a line, and where lines are unknown, the order found remains.
        found = sorted(self._found, key=lambda mistake: mistake[0].order)
        lines = list(dict.fromkeys(f"  {place.located}: {text}" for place, text in found))
        count = "1 mistake" if len(lines) == 1 else f"{len(lines)} mistakes"
        raise ConfigurationError("\n".join([f"{count} in {where}:", *lines]))


class _Noted:
    """Swallows a :class:`Mistake` or :class:`ConfigurationError`, having noted it."""

    def __init__(self, mistakes: Mistakes, place: Place) -> None:
        self._mistakes, self._place = mistakes, place

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        if not isinstance(error, Mistake | ConfigurationError):
            return False
        self._mistakes.add(self._place, error)
        return True
