"""A table on standard output."""

from __future__ import annotations

from collections.abc import Iterable

import click


def echo_table(heads: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> None:
    """Print aligned columns."""
    lines = [heads, *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        click.echo("  ".join(cells).rstrip())
