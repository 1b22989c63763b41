"""The names of buckets in a Redis or Valkey server, for commands: no request looks for names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, Final

#: How many names one SCAN step looks at, and how many are deleted at once.
SCAN_COUNT: Final = 1000
#: The number of holds in a bucket's string (1 byte) and beside it (3): see reservations.lua.
_COUNTS: Final = 4


def stored_names(client: Any, prefix: str, most: int | None = None) -> Iterator[str]:
    """The names that begin with the prefix, by SCAN, which does not block the server; on a cluster,
    of all masters. A name may come twice. At most ``most`` names. Raises the client's errors."""
    pattern = "".join(f"\\{c}" if c in "*?[]\\^" else c for c in prefix) + "*"
    found = client.scan_iter(match=pattern, count=SCAN_COUNT)
    for name in islice(found, most):
        yield name if isinstance(name, str) else name.decode("utf-8", "replace")


def held_calls(client: Any, keys: Sequence[str]) -> list[int]:
    """How many calls hold an estimate in each of these buckets, whose limits reserve. Raises the
    client's errors."""
    heads = [client.getrange(key, 0, _COUNTS - 1) for key in keys]
    return [raw[0] + int.from_bytes(raw[1:], "little") if raw else 0 for raw in map(_bytes, heads)]


def _bytes(raw: str | bytes) -> bytes:
    return raw if isinstance(raw, bytes) else raw.encode("utf-8", "surrogateescape")
