"""The operator's session: a signed cookie with an end, and the token of its forms.

Nothing is stored: every worker knows the cookies that any of them has signed. Another
CHATAPP_ADMIN_TOKEN ends all sessions.
"""

from __future__ import annotations

import hmac
import secrets
from functools import cache, cached_property
from hashlib import scrypt
from typing import Any, Final, NamedTuple

from flask import Response, after_this_request, request
from itsdangerous import BadData, URLSafeTimedSerializer

from chatapp.operators.rights import NAMELESS, Operator, operator_of
from chatapp.services import current_services

COOKIE: Final = "chatapp_admin"
PATH: Final = "/admin"
LENGTH_S: Final = 8 * 3600
#: The log of operators has it after the name of who changes something with the token.
PAGE: Final = "admin page"
#: How long the sentence about a change may be shown.
SENTENCE_S: Final = 60
#: The cookie that takes a new key to the page that shows it, and for how long it may.
KEY_COOKIE: Final = "chatapp_admin_key"
KEY_S: Final = 60
#: No script reads the cookies, and no other site has them sent.
FOR_THIS_SITE: Final[dict[str, Any]] = {"httponly": True, "samesite": "Strict"}


class Session(NamedTuple):
    """A valid session. Its forms carry ``form_token``, which no other site can read."""

    form_token: str
    operator: Operator

    def accepts(self, token: str) -> bool:
        return hmac.compare_digest(token.encode("utf-8", "replace"), self.form_token.encode())


class Sessions:
    """Begins and checks the sessions of operators."""

    def __init__(self, token: str) -> None:
        self._token = token.encode()

    @cached_property
    def _key(self) -> bytes:
        """Return the signing key, slowly: so a stolen cookie does not help to guess the token."""
        return scrypt(self._token, salt=b"chatapp /admin", n=2**14, r=8, p=1)

    def begin(self, response: Response, *, name: str, key_id: str) -> None:
        """Set the cookie of a new session: of a management key, or with the token of the operator
        of that name; may be empty."""
        text = self._signer("session").dumps([secrets.token_urlsafe(16), name, key_id])
        response.set_cookie(
            COOKIE, text, LENGTH_S, path=PATH, secure=request.is_secure, **FOR_THIS_SITE
        )

    @staticmethod
    def end(response: Response) -> None:
        response.delete_cookie(COOKIE, path=PATH, **FOR_THIS_SITE)

    def current(self) -> Session | None:
        """Return the session of the request; None without a valid cookie or key."""
        session = self._read("session", request.cookies.get(COOKIE, ""), LENGTH_S)
        if session is None:
            return None
        id_, name, key_id = session
        operator: Operator | None = Operator(f"{name} ({PAGE})" if name else NAMELESS)
        if key_id:
            operator = operator_of(current_services().admin_keys.find(key_id))
        return None if operator is None else self.of(operator, id_)

    def of(self, operator: Operator, id_: str = "") -> Session:
        """Return the session of an operator: of one that began here, or of a trusted proxy's."""
        text = f"form {id_}" if id_ else f"form of {operator.by}"
        return Session(hmac.new(self._key, text.encode(), "sha256").hexdigest(), operator)

    def sealed(self, sentence: str) -> str:
        """Return the sentence for an address: a link cannot make the page state anything else."""
        return self._signer("sentence").dumps(sentence)

    def sentence(self, sealed: str) -> str | None:
        """Return the sentence, for a minute."""
        sentence = self._read("sentence", sealed, SENTENCE_S)
        return None if sentence is None else str(sentence)

    def hand_over(self, key: str, *, of: str, to: Session) -> None:
        """Give the browser a new key of that user, or of an operator if ``of`` is empty, for the
        page that follows, in a cookie that it does not store: a reload creates no other key, and
        the key is in no address."""
        text = self._signer("key").dumps([to.form_token, of, key])

        @after_this_request
        def give(response: Response) -> Response:
            response.set_cookie(
                KEY_COOKIE, text, path=_key_path(of), secure=request.is_secure, **FOR_THIS_SITE
            )
            return response

    def handed_over(self, *, of: str, to: Session) -> str | None:
        """Return the new key of that user, for a minute after it was created in that session, and
        remove its cookie with the page that shows it."""
        key = self._read("key", request.cookies.get(KEY_COOKIE, ""), KEY_S)
        if key is None or key[:2] != [to.form_token, of]:
            return None

        @after_this_request
        def take_back(response: Response) -> Response:
            if response.status_code == 200:  # no error page has shown it
                response.delete_cookie(KEY_COOKIE, path=_key_path(of), **FOR_THIS_SITE)
            return response

        return str(key[2])

    def _signer(self, salt: str) -> URLSafeTimedSerializer:
        return URLSafeTimedSerializer(self._key, salt=salt)

    def _read(self, salt: str, text: str, longest_s: int) -> Any:
        try:
            return self._signer(salt).loads(text, max_age=longest_s)
        except BadData:
            return None


def _key_path(of: str) -> str:
    return f"{PATH}/user" if of else f"{PATH}/operators"


#: The sessions of a token, whose key is made once in a process.
sessions_with: Final = cache(Sessions)
