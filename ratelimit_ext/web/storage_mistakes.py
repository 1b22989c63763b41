"""Mistakes in the address or the options of a storage, which would look like an outage otherwise.

An outage ends when the server is back. A misspelt option, a certificate that is not trusted or a
missing module needs another setting, so it stops the start. Therefore one connection is made there,
and closed. A password that the server refuses is an outage: the server may accept it later.
"""

from __future__ import annotations

import inspect
import logging
import re
import ssl
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import click
from limits.errors import ConfigurationError as LimitsConfigurationError
from limits.storage import SCHEMES, MemcachedStorage, RedisClusterStorage, RedisStorage, Storage  # type: ignore[attr-defined]

from ratelimit_ext.core.errors import ConfigurationError, did_you_mean, not_allowed
from ratelimit_ext.engine.engine import causes

OPTIONS: Final = "The storage's options"
MOST_PORT: Final = 65_535
_END_OF_HOSTS: Final = re.compile("[/?#]")

#: Storages whose path is the number of a database. The client ignores any other.
_NUMBERED: Final = ("redis", "rediss", "valkey", "valkeys")
_UNKNOWN_OPTION: Final = re.compile(r"unexpected keyword argument '(\w+)'")
_MISSING_MODULE: Final = re.compile(r"'(\w+)' prerequisite not available")
_INVALID: Final = re.compile(r"(?:ERR )?(?:DB|invalid DB) index|RedisCluster requires|Invalid SSL")
_FILES: Final = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
_MISTAKES: Final = (ImportError, LimitsConfigurationError, OverflowError, TypeError, ValueError)
#: In INFO, if the memory has a bound and the server makes room by deleting keys.
_EVICTION: Final = re.compile(r"(?s)maxmemory:[1-9].*maxmemory_policy:(?!noeviction)([\w-]+)")
EVICTS: Final = "The storage deletes limits when full (maxmemory-policy %s). Set it to noeviction."
#: Reasons of TLS errors that come again.
_TLS_MISTAKES: Final = re.compile(r"CERT|UNKNOWN_CA|VERSION|NO_SHARED|HANDSHAKE_FAILURE")


class InvalidStorageError(ConfigurationError, LimitsConfigurationError):
    """An invalid address or option of a storage. The library `limits` raises its base for this."""


def check_storage_uri(uri: str, where: str) -> None:
    """Raise ``InvalidStorageError`` for a scheme that no storage has, or an invalid port. The rest
    of the URI, which may have a password, is not shown."""
    scheme, colon, rest = uri.partition("://")
    if uri and scheme not in SCHEMES:
        what = f"the scheme {scheme!r}" if colon else "no scheme"
        schemes = ("memory://", "redis://HOST:PORT", "rediss://…", "redis+cluster://…")
        hint = did_you_mean(scheme, SCHEMES) if colon else ""
        raise InvalidStorageError(
            f"{where}: found {what}; allowed: {', '.join(schemes)} and others of the library "
            f"`limits`.{hint}"
        )
    hosts = _END_OF_HOSTS.split(rest, maxsplit=1)[0]
    path = re.split("[?#]", rest[len(hosts) :], maxsplit=1)[0].strip("/")
    if scheme in _NUMBERED and "@" not in path and not re.fullmatch(r"[0-9]*", path):
        raise InvalidStorageError(f"{where}: found the database {path!r}; allowed: a number.")
    for host in hosts.rpartition("@")[2].split(","):
        port = host.rpartition("]")[2].rpartition(":")[2] if ":" in host else ""
        if port and not (port.isascii() and port.isdigit() and 0 < int(port) <= MOST_PORT):
            # Else a part of the password is where the port should be.
            is_port = "@" not in rest[len(hosts) :]
            what = f"the port {port!r}" if is_port else "a password with /, ? or #"
            allowed = f"a number from 1 to {MOST_PORT}" if is_port else "%2F, %3F and %23 for them"
            raise InvalidStorageError(f"{where}: found {what}; allowed: {allowed}.")


def checked_options(options: object, where: str) -> dict[str, Any]:
    """Return the options of a storage. ``InvalidStorageError`` unless they are a dictionary."""
    if not isinstance(options, Mapping):
        allowed = not_allowed(options, "a dictionary, as {'socket_timeout': 0.1}")
        raise InvalidStorageError(f"{where}: {allowed}")
    return dict(options)


@contextmanager
def refused_mistakes(uri: str, where: str) -> Iterator[None]:
    """Raise ``InvalidStorageError`` for a mistake that the block meets. Its message does not have
    the URI, which may have a password."""
    try:
        yield
    except ConfigurationError:
        raise
    except Exception as error:
        sentence = _sentence(error, where)
        if sentence is None:
            raise
        raise InvalidStorageError(sentence.replace(uri, "…") if uri else sentence) from error


def connect_once(storage: Storage | None, options: Mapping[str, Any]) -> None:
    """Connect to the storage as a request would, log if it deletes limits, and disconnect. Raises
    the client's error for a mistake, and nothing if the storage is down."""
    if isinstance(storage, MemcachedStorage):
        _ = storage.storage  # `limits` makes the client of the options, which does not connect
    if not isinstance(storage, RedisStorage):
        return
    client: Any = storage.get_connection()
    if isinstance(storage, RedisClusterStorage):
        _check_cluster_options(storage, options)
        get = getattr(client, "get_redis_connection", None) or client.get_valkey_connection
        client = get(client.get_default_node())
    pool = client.connection_pool
    for option in _FILES:
        file = pool.connection_kwargs.get(option)
        if file and not Path(file).is_file():
            raise InvalidStorageError(f"{OPTIONS}: {option}: there is no file {str(file)!r}.")
    once = {"retry": None} if "retry" in _parameters(*pool.connection_class.__mro__) else {}
    connection = pool.connection_class(**{**pool.connection_kwargs, **once})
    try:
        connection.connect()
        if click.get_current_context(silent=True) is None:  # no command
            connection.send_command("INFO", "memory")
            if evicts := _EVICTION.search(str(connection.read_response())):
                logging.getLogger("ratelimit_ext").warning(EVICTS, evicts[1])
    except (OSError, storage.base_exceptions) as error:  # type: ignore[misc] # a type, or several
        if _sentence(error, "") is not None:
            raise
    finally:
        with suppress(Exception):
            connection.disconnect()


def _check_cluster_options(storage: RedisClusterStorage, options: Mapping[str, Any]) -> None:
    """Raise ``TypeError`` for an unknown option, which the client of a cluster ignores."""
    client = type(storage.get_connection())
    library = sys.modules[client.__module__]
    names = {*_parameters(client), *_parameters(type(storage))}
    for name in ("REDIS_ALLOWED_KEYS", "VALKEY_ALLOWED_KEYS"):
        names.update(getattr(library, name, ()))
    if unknown := [name for name in options if name not in names]:
        raise TypeError(f"unexpected keyword argument {unknown[0]!r}")


def _parameters(*classes: type) -> list[str]:
    makers = [vars(cls)["__init__"] for cls in classes if "__init__" in vars(cls)]
    return [name for make in makers for name in inspect.signature(make).parameters]


def _sentence(error: BaseException, where: str) -> str | None:
    """Return what is wrong and what to do; ``None`` for an outage."""
    for cause in causes(error):
        text = str(cause)
        if match := _UNKNOWN_OPTION.search(text):
            import redis  # noqa: PLC0415 - takes longer to import than everything else here

            names = {*_parameters(*redis.SSLConnection.__mro__), "max_connections"} - {"ssl"}
            return f"{OPTIONS}: unknown option {match[1]!r}.{did_you_mean(match[1], names)}"
        if match := _MISSING_MODULE.match(text):
            return f"{where}: this storage needs the module {match[1]!r}. Install it with pip."
        if isinstance(cause, ssl.SSLCertVerificationError):
            return (
                f"{where}: the server's certificate is not trusted: {cause.verify_message}. Set "
                "'ssl_ca_certs' in the storage's options to the file of its authority."
            )
        reason = cause.reason if isinstance(cause, ssl.SSLError) else ""
        if (
            isinstance(cause, _MISTAKES)
            or _TLS_MISTAKES.search(reason or "")
            or _INVALID.match(text)
        ):
            text = text.partition(" Please ")[0].rstrip(".")  # then come examples in Python
            return f"{where} or the storage's options: {type(cause).__name__}: {text}."
    return None
