"""The stream of a provider whose protocol the client speaks: its bytes, as they are."""

from __future__ import annotations

from chatapp.blueprints import provider_trouble
from chatapp.blueprints.shape import Shape
from chatapp.providers import Part, Progress, ProviderError


class PassedOn:
    """Nothing is added, but where the provider breaks off: then its protocol's error."""

    def __init__(self, shape: Shape) -> None:
        self._shape = shape

    def start(self) -> bytes:
        return b""

    def part(self, part: Part) -> bytes:
        return part.raw

    def end(self, progress: Progress) -> bytes:
        return b""

    def error(self, error: ProviderError) -> bytes:
        return self._shape.error_event(provider_trouble.told_to_its_own(error))
