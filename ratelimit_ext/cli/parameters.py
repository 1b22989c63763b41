"""What commands read of the command line: instants and lengths of time."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Final, TypeVar

import click

from ratelimit_ext.core.errors import OperatorError
from ratelimit_ext.operators.texts import instant_s, span_s
from ratelimit_ext.records.denials import KEEP_S

T = TypeVar("T")


class Parsed(click.ParamType[T]):
    """An argument that a function reads, which raises ``OperatorError``."""

    def __init__(self, name: str, parse: Callable[[str], T]) -> None:
        self.name = name
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> T:
        try:
            return self._parse(value)
        except OperatorError as error:
            self.fail(str(error), param, ctx)


UNTIL: Final = Parsed("time", instant_s)
SINCE: Final = Parsed("time", partial(instant_s, past=True))
SPAN: Final = Parsed("time", partial(span_s, most_s=KEEP_S))
