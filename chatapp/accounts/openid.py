"""The OpenID provider with which people sign in, and which says whether they still may.

https://openid.net/specs/openid-connect-core-1_0.html. PyJWT verifies its tokens.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final
from urllib.parse import quote_plus, urlencode

import httpx2
import jwt

from chatapp.accounts.people import InvalidNameError, person_in
from chatapp.validation import SAFE_URL

TIMEOUT_S: Final = 5.0
#: Of an answer, and how long it may take to arrive.
ANSWER_MAX_BYTES: Final = 1_000_000
ANSWER_MAX_S: Final = 10.0
DISCOVERY_HOLDS_S: Final = 3600.0
#: How far the provider's clock may be off.
LEEWAY_S: Final = 60
#: With a public key of the provider: no HS256, whose key would be the client's secret, and no none.
ALGORITHMS: Final = ("RS256", "RS384", "RS512", "PS256", "ES256", "ES384", "ES512", "EdDSA")
ENDPOINTS: Final = ("authorization_endpoint", "token_endpoint", "jwks_uri")
#: Errors of a token endpoint that concern a person; others are the operator's or the provider's.
OF_PERSON: Final = {"invalid_grant", "access_denied", "login_required", "interaction_required"}


class OpenIdError(Exception):
    """The provider cannot be asked, or answers wrongly; the message has no secret."""


class UnconfirmedError(OpenIdError):
    """The provider has replaced the refresh token, and then could not be asked about its person."""

    def __init__(self, why: OpenIdError, refresh_token: str) -> None:
        super().__init__(str(why))
        self.refresh_token = refresh_token


class RefusedSignInError(Exception):
    """This person may not sign in; the message is for them, and has no secret."""

    def __init__(self, why: str) -> None:
        super().__init__(f"You cannot sign in: {why}.")


@dataclass(frozen=True, slots=True)
class Person:
    """Who has signed in. With ``refresh_token`` the provider is asked again, if it is not empty."""

    name: str
    groups: frozenset[str]
    refresh_token: str = field(repr=False)


@dataclass(slots=True, kw_only=True)
class OpenIdProvider:
    """A provider, and the client that chatapp is there. Its methods raise OpenIdError, those that
    return a person also RefusedSignInError. Safe from any thread."""

    issuer: str
    client_id: str
    client_secret: str = field(repr=False)
    callback: str
    scope: str
    user_claim: str
    groups_claim: str
    _discovered: tuple[Mapping[str, Any], Keys, float] | None = None

    def address(self, state: str, nonce: str, challenge: str) -> str:
        """Return where a browser signs in; ``challenge`` is the SHA-256 of the PKCE verifier."""
        query = {"response_type": "code", "client_id": self.client_id, "scope": self.scope}
        query |= {"redirect_uri": self.callback, "state": state, "nonce": nonce}
        query |= {"code_challenge": challenge, "code_challenge_method": "S256"}
        endpoint: str = self._metadata()[0]["authorization_endpoint"]
        return f"{endpoint}{'&' if '?' in endpoint else '?'}{urlencode(query)}"

    def sign_in(self, code: str, nonce: str, verifier: str) -> Person:
        """Return the person whose browser has brought the code."""
        grant = {"grant_type": "authorization_code", "code": code, "code_verifier": verifier}
        tokens = self._tokens({**grant, "redirect_uri": self.callback})
        claims = self._verified(str(tokens.get("id_token")))
        if claims.get("nonce") != nonce:
            raise RefusedSignInError("the ID token is for another sign-in")
        return self._person(tokens, claims)

    def refresh(self, refresh_token: str) -> Person:
        """Return the person of the token, who may still sign in. UnconfirmedError also."""
        with readable_keys():  # before the provider ends this token
            self._metadata()[1].get_jwk_set()
        tokens = self._tokens({"grant_type": "refresh_token", "refresh_token": refresh_token})
        tokens = {"refresh_token": refresh_token, **tokens}
        try:
            # A provider need not send an ID token again.
            claims = self._verified(str(tokens["id_token"])) if "id_token" in tokens else {}
            return self._person(tokens, claims)
        except OpenIdError as error:
            raise UnconfirmedError(error, str(tokens["refresh_token"])) from error

    def _person(self, tokens: Mapping[str, Any], claims: Mapping[str, Any]) -> Person:
        claim, endpoint = self.user_claim, self._metadata()[0].get("userinfo_endpoint")
        if endpoint and not {claim, self.groups_claim} <= claims.keys():
            bearer = {"Authorization": f"Bearer {tokens.get('access_token')}"}
            more = answer_of("GET", endpoint, headers=bearer)
            if more.get("sub") != claims.get("sub", more.get("sub")):
                raise RefusedSignInError("the identity provider's answers name different people")
            # It verifies no other address than its own.
            is_other = claims.get("email") not in (None, more.get("email"))
            claims = {**more, **({"email_verified": None} if is_other else {}), **claims}
        if claim == "email" and claims.get("email_verified") not in (True, "true"):
            raise RefusedSignInError("the email address is not verified")
        name, groups = None, claims.get(self.groups_claim) or []
        with suppress(InvalidNameError):
            name = person_in(str(claims.get(claim) or ""))
        if name is None:
            raise RefusedSignInError(f"the claim {claim} has no name that is allowed here")
        groups = frozenset(map(str, groups if isinstance(groups, list) else [groups]))
        return Person(name, groups, str(tokens.get("refresh_token") or ""))

    def _verified(self, token: str) -> Mapping[str, Any]:
        """Return the claims of an ID token: signed by the provider, for this client, and valid."""
        _, keys, _ = self._metadata()
        try:
            with readable_keys():
                key = keys.get_signing_key_from_jwt(token)
            claims = jwt.decode(
                token,
                key,
                algorithms=ALGORITHMS,
                audience=self.client_id,
                issuer=self.issuer,
                leeway=LEEWAY_S,
                options={"require": ["iss", "sub", "aud", "exp", "iat"]},
            )
        except jwt.PyJWTError as error:
            raise RefusedSignInError(f"the ID token is invalid: {type(error).__name__}") from error
        others = claims["aud"] not in (self.client_id, [self.client_id])
        if claims.get("azp", "" if others else self.client_id) != self.client_id:
            raise RefusedSignInError("the ID token is for another client")
        return claims

    def _tokens(self, grant: Mapping[str, str]) -> Mapping[str, Any]:
        client = (quote_plus(self.client_id), quote_plus(self.client_secret))
        return answer_of("POST", self._metadata()[0]["token_endpoint"], data=grant, auth=client)

    def _metadata(self) -> tuple[Mapping[str, Any], Keys, float]:
        """Return what the provider publishes, its keys, and when that was read: once an hour."""
        if self._discovered and time.monotonic() - self._discovered[2] < DISCOVERY_HOLDS_S:
            return self._discovered
        url = f"{self.issuer.rstrip('/')}/.well-known/openid-configuration"
        found = answer_of("GET", url)
        urls = [*(found.get(name) for name in ENDPOINTS), found.get("userinfo_endpoint", url)]
        are_safe = all(re.fullmatch(SAFE_URL, str(each)) for each in urls)
        if found.get("issuer") != self.issuer or not are_safe:
            raise OpenIdError(f"{url} has another issuer, or an endpoint without https")
        keys = Keys(found["jwks_uri"])
        self._discovered = (found, keys, time.monotonic())
        return self._discovered


class Keys(jwt.PyJWKClient):
    """The provider's keys, read with the same bounds as its other answers."""

    def fetch_data(self) -> Any:
        return answer_of("GET", self.uri)


@contextmanager
def readable_keys() -> Iterator[None]:
    try:
        yield
    except (jwt.PyJWKClientError, jwt.PyJWKSetError, ValueError) as error:
        raise OpenIdError(f"its keys cannot be read: {type(error).__name__}") from error


def answer_of(
    method: str, url: str, *, headers: Mapping[str, str] = MappingProxyType({}), **options: Any
) -> Mapping[str, Any]:
    """Return the provider's JSON object, of a bounded size and in a bounded time. It is not sent
    compressed, because a few bytes could become gigabytes, and no redirect is followed."""
    headers, began, body = {**headers, "Accept-Encoding": "identity"}, time.monotonic(), bytearray()
    try:
        with httpx2.stream(
            method, url, headers=headers, timeout=TIMEOUT_S, follow_redirects=False, **options
        ) as answer:
            for piece in answer.iter_raw():
                body += piece
                if len(body) > ANSWER_MAX_BYTES or time.monotonic() - began > ANSWER_MAX_S:
                    raise OpenIdError(f"{url}: the answer is too large or too slow")
        found = json.loads(body)
    except (httpx2.HTTPError, httpx2.InvalidURL, ValueError, RecursionError) as error:
        raise OpenIdError(f"{url}: {type(error).__name__}") from error
    if isinstance(found, dict) and answer.is_success:
        return found
    name = str(found.get("error"))[:50] if isinstance(found, dict) else ""
    if method == "POST" and name in OF_PERSON:
        raise RefusedSignInError(f"the identity provider answered {name}")
    raise OpenIdError(f"{url} answered {answer.status_code}, error {name!a}")
