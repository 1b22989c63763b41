"""Errors of operators' acts as one exception, whose sentence fits a terminal and a page."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

from flask import Blueprint, request
from flask.typing import ResponseReturnValue
from sqlalchemy.exc import SQLAlchemyError

from chatapp.accounts.admin_keys import UnknownAdminKeyError
from chatapp.accounts.store import Owner, RefusedChangeError, UnknownOwnerError
from chatapp.database.backup import BackupError
from chatapp.database.migration import UnknownSchemaError
from ratelimit_ext import OperatorError, StorageUnavailable

log = logging.getLogger(__name__)

#: The codes of errors that no operator has caused.
DOWN: Final = frozenset({"database", "storage"})
#: What :func:`operator_error` knows.
REPORTED: Final = (
    *(OperatorError, UnknownOwnerError, UnknownAdminKeyError, RefusedChangeError),
    *(BackupError, StorageUnavailable, SQLAlchemyError, OSError),
)


def operator_error(error: Exception) -> OperatorError | None:
    """Return the error as one whose sentence is for operators; None for what is not REPORTED."""
    match error:
        case OperatorError():
            return error
        case UnknownOwnerError():
            return unknown(error.owner, error.name)
        case UnknownAdminKeyError():
            code, sentence = "unknown_admin_key", f"There is no management key {str(error)[:16]}."
        case RefusedChangeError():
            code, sentence = error.code, str(error)
        case BackupError():
            code, sentence = "backup", str(error)
        case StorageUnavailable():
            code, sentence = "storage", f"The limits cannot be reached: {error}"
        case UnknownSchemaError():
            code, sentence = "schema", f"DATABASE_URL: {error}"
        # A broken pipe, as in `… | head`, is click's, which ends the command without a word.
        case SQLAlchemyError() | OSError() if not isinstance(error, BrokenPipeError):
            reason = str(getattr(error, "orig", None) or error).strip()
            code, sentence = "database", f"The database failed: {reason}."
        case _:
            return None
    return OperatorError(code, sentence)


def install(bp: Blueprint, answer: Callable[[OperatorError], ResponseReturnValue]) -> None:
    """Have a blueprint answer errors of acts. Those that no operator has caused are logged."""

    def report(error: Exception) -> ResponseReturnValue:
        if (cause := operator_error(error)) is None:
            raise error
        if cause.code in DOWN:
            log.error("%s %s: %s", request.method, request.path, cause)
        return answer(cause)

    for kind in REPORTED:
        bp.register_error_handler(kind, report)


def unknown(owner: Owner, name: str) -> OperatorError:
    # A key's text may have its secret in it.
    shown = name[:16] if owner == "key" else repr(name)
    return OperatorError(f"unknown_{owner}", f"There is no {owner} {shown}.")
