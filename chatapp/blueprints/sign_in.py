"""Claude Code signs in: its device flow (RFC 8628), approved at an OpenID provider in a browser.

The browser has one secret, in a cookie. State, nonce and PKCE verifier are derived from it.
"""

from __future__ import annotations

import base64
import hmac
import json
import logging
import math
import secrets
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from hashlib import sha256
from typing import Any, Final, cast
from urllib.parse import urlsplit

from cryptography.fernet import Fernet, InvalidToken
from flask import Blueprint, Response, make_response, redirect, render_template, request
from flask_limiter import ExemptionScope
from jwt.utils import base64url_encode
from sqlalchemy.exc import SQLAlchemyError
from werkzeug.exceptions import HTTPException

from chatapp.accounts import sign_ins
from chatapp.accounts.openid import (
    OpenIdError,
    OpenIdProvider,
    RefusedSignInError,
    UnconfirmedError,
)
from chatapp.accounts.store import RefusedChangeError, UnknownUserError
from chatapp.operators import keys, sign_in
from chatapp.services import current_services
from chatapp.settings import Settings
from chatapp.web.errors import ApiError, current_query, report_of, unavailable
from ratelimit_ext import Limiter, RateLimitExceeded, StorageUnavailable, client_ip

log = logging.getLogger(__name__)

COOKIE: Final = "chatapp_sign_in"
CALLBACK: Final = "/oauth/callback"
GRANTS: Final = ("urn:ietf:params:oauth:grant-type:device_code", "refresh_token")
#: The names of errors for clients, if they have another one here.
ERRORS: Final = {429: "slow_down", 503: "temporarily_unavailable"}
#: No form-action: browsers apply it to the redirect to the provider, and to the provider's own. A
#: form has no Origin with the stricter Referrer-Policy.
HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; img-src 'self'; "
    "base-uri 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
}
EXPIRED: Final = "This sign-in has expired, or began in another browser. Start again."
FULL: Final = "Too many people are signing in. Try again later."
UNAVAILABLE: Final = "The identity provider cannot be reached at the moment."


def blueprint(limiter: Limiter, settings: Settings) -> Blueprint:
    """Return the routes, each with a limit by address. An office of 200 people shares one, and
    each device polls twelve times a minute, so the policy's limits at the edge are too low here."""
    bp, views = Blueprint("sign_in", __name__), SignIn(settings)
    limiter.exempt(bp, flags=ExemptionScope.APPLICATION)

    def add(method: str, rule: str, view: Callable[[], Response], limit: str) -> None:
        limited = limiter.limit(limit, name=f"sign-in-{view.__name__}")(view)
        bp.add_url_rule(rule, view.__name__, limited, methods=[method])

    add("GET", "/.well-known/oauth-authorization-server", views.metadata, "600/minute")
    add("POST", "/oauth/device_authorization", views.begin, "300/10 minutes")
    add("GET", "/device", views.page, "600/minute")
    add("POST", "/device", views.decide, "300/10 minutes")
    add("GET", CALLBACK, views.callback, "300/10 minutes")
    add("POST", "/oauth/token", views.token, "2400/minute")
    add("POST", "/oauth/revoke", views.revoke, "600/minute")
    kinds = (HTTPException, RateLimitExceeded, SQLAlchemyError, StorageUnavailable, OpenIdError)
    for kind in kinds:
        bp.register_error_handler(kind, failed)
    return bp


class SignIn:
    """The views."""

    def __init__(self, settings: Settings) -> None:
        self._url = (settings.sign_in_url or "").rstrip("/")
        parts = urlsplit(self._url)
        self._origin = f"{parts.scheme}://{parts.netloc}".lower()
        # Lax: the provider's redirect brings it, the form of another site does not.
        self._cookie: Any = {"httponly": True, "samesite": "Lax", "secure": parts.scheme == "https"}
        # Or another host of the domain could set it, and have a person approve its device.
        self._cookie["key"] = f"__Host-{COOKIE}" if self._cookie["secure"] else COOKIE
        names = ("issuer", "client_id", "client_secret", "scope", "user_claim", "groups_claim")
        values = {name: getattr(settings, f"sign_in_{name}") for name in names}
        self._provider = OpenIdProvider(**values, callback=f"{self._url}{CALLBACK}")
        digest = sha256(f"chatapp sign-in {settings.sign_in_client_secret}".encode()).digest()
        self._box = Fernet(base64.urlsafe_b64encode(digest))

    def metadata(self) -> Response:
        """RFC 8414, as Claude Code reads it."""
        return private(
            issuer=self._url,
            device_authorization_endpoint=f"{self._url}/oauth/device_authorization",
            token_endpoint=f"{self._url}/oauth/token",
            revocation_endpoint=f"{self._url}/oauth/revoke",
            grant_types_supported=GRANTS,
            response_types_supported=[],
            token_endpoint_auth_methods_supported=["none"],
        )

    def begin(self) -> Response:
        """Begin the sign-in of a device."""
        try:
            device, code = sign_ins.begin(current_services().database)
        except sign_ins.FullError as error:
            wait = {"Retry-After": str(max(1, math.ceil(error.wait_s)))}
            raise ApiError(503, "too_many_sign_ins", FULL, headers=wait) from error
        return private(
            device_code=device,
            user_code=code,
            verification_uri=f"{self._url}/device",
            verification_uri_complete=f"{self._url}/device?user_code={code}",
            expires_in=sign_ins.LENGTH_S,
            interval=sign_ins.INTERVAL_S,
        )

    def page(self) -> Response:
        """Ask for the code. It looks nothing up, so codes cannot be tried here."""
        return shown(code=current_query().get("user_code", "")[:20])

    def decide(self) -> Response:
        """Send the browser to the provider, or deny the sign-in."""
        if request.headers.get("Origin", "").lower() != self._origin:
            raise ApiError(403, "other_site", "Another site has sent this form. Open the link.")
        sent, browser = request.form.get("user_code", ""), secrets.token_urlsafe(32)
        code, is_denied = "".join(filter(str.isalpha, sent.upper())), "deny" in request.form
        bound = {"browser_sha256": sign_ins.digest(browser)}
        change = {"result": sign_ins.DENIED} if is_denied else bound
        if not sign_ins.change(current_services().database, "user_code", code, **change):
            return shown(400, problem="The code is unknown or has expired.", code=sent[:20])
        if is_denied:
            return shown(done="The sign-in is denied. You can close this page.")
        derive = partial(derived, browser)
        challenge = base64url_encode(sha256(derive("verifier").encode()).digest()).decode()
        address = self._provider.address(derive("state"), derive("nonce"), challenge)
        response = cast(Response, redirect(address, 303))
        response.headers.update(HEADERS)
        response.set_cookie(value=browser, max_age=sign_ins.LENGTH_S, **self._cookie)
        return response

    def callback(self) -> Response:
        """Finish the sign-in of this browser with what the provider says."""
        browser, query = request.cookies.get(self._cookie["key"], ""), current_query()
        code, state = query.get("code", ""), query.get("state", "").encode("utf-8", "replace")
        derive, claimed = partial(derived, browser), sign_ins.digest(derived(browser, "claimed"))
        change = partial(sign_ins.change, current_services().database, "browser_sha256")
        is_ours = hmac.compare_digest(state, derive("state").encode())
        if not (is_ours and change(sign_ins.digest(browser), browser_sha256=claimed)):
            return shown(400, problem=EXPIRED)
        result, done, problem = sign_ins.DENIED, "", "The sign-in was denied."
        try:
            if code:
                person = self._provider.sign_in(code, derive("nonce"), derive("verifier"))
                sign_in.admit(person)
                sealed = self._box.encrypt(json.dumps([person.name, person.refresh_token]).encode())
                result, problem = sealed.decode(), ""
                done = f"You are signed in as {person.name}. Return to Claude Code."
                log.warning("%s signs in, from %s", person.name, client_ip())
        except (OpenIdError, RefusedSignInError) as error:
            problem = sentence_of(error)
        if not change(claimed, result=result):
            done, problem = "", EXPIRED
        response = shown(200 if done else 403, done=done, problem=problem)
        response.delete_cookie(**self._cookie)
        return response

    def token(self) -> Response:
        """Return the key of a sign-in, or let it end later."""
        grant, database = request.form.get("grant_type"), current_services().database
        if grant == GRANTS[1]:
            return self._refreshed(request.form.get("refresh_token", ""))
        if grant != GRANTS[0]:
            raise ApiError(400, "unsupported_grant_type", f"Allowed: {' or '.join(GRANTS)}.")
        try:
            sealed = sign_ins.poll(database, request.form.get("device_code", ""))
            user, refresh_token = json.loads(self._box.decrypt(sealed))
            return granted(sign_in.make_key(user), user, refresh_token)
        except sign_ins.PollError as error:
            raise ApiError(400, str(error), "There is no key for this device.") from error
        except (InvalidToken, RefusedChangeError, UnknownUserError) as error:
            # Of another secret; the user is deactivated or deleted.
            raise ApiError(400, "access_denied", "The sign-in has ended.") from error

    def _refreshed(self, sent: str) -> Response:
        """Ask the provider about the person of the key again. It is half of the token, so that the
        key and its user are known, and a revoked key has no successor."""
        text, _, refresh_token = sent.partition(".")
        key = sign_in.key_of(text)
        if key is None or not refresh_token:
            raise ApiError(401, "invalid_grant", "This sign-in has ended. Sign in again.")
        new = refresh_token
        try:
            person = self._provider.refresh(refresh_token)
            new = person.refresh_token
            sign_in.extend(key, person)
        except RefusedSignInError as error:
            raise ApiError(401, "invalid_grant", sentence_of(error)) from error
        except (UnconfirmedError, SQLAlchemyError, StorageUnavailable) as error:
            new = getattr(error, "refresh_token", new)
            if new == refresh_token or key.expires_at is None:
                raise  # Claude Code tries again with the same token
            # The provider has ended the one that was sent. The key does not last longer.
            why = error if isinstance(error, OpenIdError) else type(error).__name__
            log.warning("The sign-in of %s is not confirmed: %s", key.user, why)
            left_s = (key.expires_at - datetime.now(UTC)).total_seconds()
            return granted(text, key.user, new, expires_in=max(0, int(left_s)))
        return granted(text, key.user, new)

    def revoke(self) -> Response:
        """RFC 7009: end a sign-in. It answers the same for an unknown one."""
        if key := sign_in.key_of(request.form.get("token", "").partition(".")[0]):
            keys.revoke_key(key.public_id, reason=f"{key.user} signs out", by=keys.SIGN_IN)
        return private()


def sentence_of(error: Exception) -> str:
    """Log why there is no sign-in, and return what its person reads."""
    log.warning("A sign-in from %s failed: %s", client_ip(), error)
    return UNAVAILABLE if isinstance(error, OpenIdError) else str(error)


def failed(error: Exception) -> Response:
    """Answer an error: as OAuth does, or on the page."""
    if isinstance(error, OpenIdError):
        error = unavailable("provider", sentence_of(error))
    elif not isinstance(error, HTTPException):
        log.error("Sign-in: accounts or limits cannot be changed: %s", type(error).__name__)
        error = unavailable("database", "Sign-ins cannot be stored at the moment.")
    report = report_of(error)
    if request.endpoint in {"sign_in.page", "sign_in.decide", "sign_in.callback"}:
        return shown(report.status, problem=report.message)
    name = ERRORS.get(report.status, report.code)
    response = private(error=name, error_description=report.message)
    response.status_code = report.status
    if wait := dict(error.get_headers()).get("Retry-After"):
        response.headers["Retry-After"] = wait
    return response


def derived(browser: str, what: str) -> str:
    """Return a secret of this browser for one use, from which no other one can be computed."""
    digest = hmac.digest(browser.encode("utf-8", "replace"), what.encode(), "sha256")
    return base64url_encode(digest).decode()


def granted(key: str, user: str, refresh_token: str, expires_in: int | None = None) -> Response:
    """Answer with both tokens; ``expires_in`` if the key has not just begun."""
    tokens = {"access_token": key, "token_type": "Bearer", "email": user}
    if refresh_token:
        tokens["refresh_token"] = f"{key}.{refresh_token}"
    if expires_in is None:
        expires_in = int(current_services().settings.sign_in_hours * 3600)
    return private(**tokens, expires_in=expires_in)


def private(**fields: object) -> Response:
    return Response(json.dumps(fields), headers=HEADERS, content_type="application/json")


def shown(status: int = 200, **facts: str) -> Response:
    return make_response(render_template("sign_in.html", **facts), status, HEADERS)
