"""A small OpenID provider on this machine, with real keys, against which sign-in is tested.

It checks what chatapp sends (client, redirect, PKCE), and a test says what it answers.
"""

from __future__ import annotations

import base64
import json
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from typing import Any
from urllib.parse import urlencode

import jwt
from cryptography.hazmat.primitives.asymmetric import rsa
from flask import Flask, Response, redirect, request
from flask.typing import ResponseReturnValue

from tests.served import serving

CLIENT_ID = "chat app"
CLIENT_SECRET = "a client's secret: 100%"
CALLBACK = "http://localhost/oauth/callback"
CODE = "code-of-the-provider"
REFRESH = "refresh-token-of-the-provider"
ACCESS = "access-token-of-the-provider"


class IdentityProvider:
    """A provider that signs in one person; `claims` are theirs, `is_away` makes it fail.

    ``id_claims`` replaces claims of ID tokens alone, ``algorithm`` their signature's. ``removed``:
    the person has no access any more. ``seen`` has every secret that it gave out or was sent.
    ``keys_text`` is published instead of its keys.
    """

    def __init__(self) -> None:
        self.url = ""
        self.callback = CALLBACK
        self.key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self.published = self.key
        self.claims: dict[str, Any] = {
            "sub": "1234",
            "email": "alice@example.com",
            "email_verified": True,
            "groups": ["everyone", "ml"],
        }
        self.id_claims: dict[str, Any] = {}
        self.keys_text: str | None = None
        self.metadata: dict[str, Any] = {}
        self.of_userinfo: dict[str, Any] | None = None
        self.algorithm = "RS256"
        self.removed = self.is_away = False
        self.refreshes_with_id_token = True
        self.codes: dict[str, dict[str, str]] = {}
        self.refresh_tokens: set[str] = set()
        self.seen: set[str] = set()
        self.asked: list[str] = []

    @property
    def settings(self) -> dict[str, str]:
        """chatapp's, with this provider."""
        return {
            "CHATAPP_SIGN_IN_ISSUER": self.url,
            "CHATAPP_SIGN_IN_CLIENT_ID": CLIENT_ID,
            "CHATAPP_SIGN_IN_CLIENT_SECRET": CLIENT_SECRET,
            "CHATAPP_SIGN_IN_URL": self.callback.removesuffix("/oauth/callback"),
            "CHATAPP_SIGN_IN_GROUPS": '{"ml": "pro/research", "everyone": "starter"}',
        }

    def secret(self, prefix: str) -> str:
        made = f"{prefix}-{secrets.token_hex(8)}"
        self.seen.add(made)
        return made

    def discovery(self) -> ResponseReturnValue:
        found = {
            "issuer": self.url,
            "authorization_endpoint": f"{self.url}/authorize?tenant=1",
            "token_endpoint": f"{self.url}/token",
            "userinfo_endpoint": f"{self.url}/userinfo",
            "jwks_uri": f"{self.url}/keys",
            **self.metadata,
        }
        return {name: value for name, value in found.items() if value is not None}

    def keys(self) -> ResponseReturnValue:
        if self.keys_text is not None:
            return self.keys_text
        public = jwt.algorithms.RSAAlgorithm.to_jwk(self.published.public_key(), as_dict=True)
        return {"keys": [{**public, "kid": "1", "use": "sig", "alg": "RS256"}]}

    def authorize(self) -> ResponseReturnValue:
        """The person is signed in already, and the browser returns at once."""
        asked = request.args.to_dict()
        assert asked["response_type"] == "code"
        assert asked["client_id"] == CLIENT_ID
        assert asked["redirect_uri"] == self.callback
        assert asked["code_challenge_method"] == "S256"
        assert "openid" in asked["scope"].split()
        code = self.secret(CODE)
        self.codes[code] = asked
        return redirect(f"{self.callback}?{urlencode({'code': code, 'state': asked['state']})}")

    def token(self) -> ResponseReturnValue:
        form = request.form.to_dict()
        self.asked.append(form["grant_type"])
        if self.is_away:
            return Response("<html>", status=502)
        sent = request.authorization
        assert sent is not None
        expected = (urlencode({"": CLIENT_ID})[1:], urlencode({"": CLIENT_SECRET})[1:])
        if (sent.username, sent.password) != expected:
            return {"error": "invalid_client"}, 401
        if form["grant_type"] == "refresh_token":
            if self.removed or form["refresh_token"] not in self.refresh_tokens:
                return {"error": "invalid_grant"}, 400
            self.refresh_tokens.remove(form["refresh_token"])
            return self.tokens({} if self.refreshes_with_id_token else None)
        asked = self.codes.pop(form["code"], None)
        challenge = sha256(form["code_verifier"].encode()).digest()
        if (
            asked is None
            or form["redirect_uri"] != asked["redirect_uri"]
            or base64.urlsafe_b64encode(challenge).decode().rstrip("=") != asked["code_challenge"]
        ):
            return {"error": "invalid_grant"}, 400
        self.seen.add(form["code_verifier"])
        return self.tokens({"nonce": asked["nonce"]})

    def tokens(self, more: dict[str, Any] | None) -> ResponseReturnValue:
        now = int(time.time())
        refresh_token = self.secret(REFRESH)
        self.refresh_tokens.add(refresh_token)
        tokens = {"access_token": self.secret(ACCESS), "refresh_token": refresh_token}
        if more is not None:
            claims = {"iss": self.url, "aud": CLIENT_ID, "iat": now, "exp": now + 300}
            claims |= {**self.claims, **more, **self.id_claims}
            claims = {name: value for name, value in claims.items() if value is not None}
            key = self.key if self.algorithm == "RS256" else CLIENT_SECRET.ljust(64)
            key = None if self.algorithm == "none" else key
            headers = {"kid": "1"}
            tokens["id_token"] = jwt.encode(claims, key, self.algorithm, headers=headers)
            self.seen.add(tokens["id_token"])
        return {**tokens, "token_type": "Bearer", "expires_in": 300}

    def userinfo(self) -> ResponseReturnValue:
        self.asked.append("userinfo")
        assert request.headers["Authorization"].removeprefix("Bearer ") in self.seen
        found = self.claims if self.of_userinfo is None else self.of_userinfo
        return Response(json.dumps(found), content_type="application/json")


@contextmanager
def running() -> Iterator[IdentityProvider]:
    provider, app = IdentityProvider(), Flask("identity provider")
    app.add_url_rule("/.well-known/openid-configuration", "discovery", provider.discovery)
    app.add_url_rule("/keys", "keys", provider.keys)
    app.add_url_rule("/authorize", "authorize", provider.authorize)
    app.add_url_rule("/token", "token", provider.token, methods=["POST"])
    app.add_url_rule("/userinfo", "userinfo", provider.userinfo)
    with serving(app) as url:
        provider.url = url
        yield provider
