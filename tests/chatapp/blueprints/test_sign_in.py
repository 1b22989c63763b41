"""Claude Code signs in: device flow, browser and a real OpenID provider, on loopback."""

from __future__ import annotations

import gzip
import http.client
import json
import logging
import re
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx2
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from flask import Flask, Response, redirect
from flask.testing import FlaskClient
from sqlalchemy import update
from sqlalchemy.exc import OperationalError
from werkzeug.test import TestResponse

from chatapp import MISTAKES
from chatapp.accounts import sign_ins
from chatapp.accounts.api_key import public_id_of
from chatapp.accounts.openid import (
    ANSWER_MAX_BYTES,
    Keys,
    OpenIdError,
    OpenIdProvider,
    Person,
    RefusedSignInError,
    answer_of,
)
from chatapp.accounts.store import Accounts, RefusedChangeError
from chatapp.actions.accounts import Rotation, rotate_key
from chatapp.actions.action import Call
from chatapp.operators import users
from chatapp.operators.rights import Operator
from chatapp.services import services_of
from chatapp.validation import SAFE_URL
from ratelimit_ext import StorageUnavailable
from tests.chatapp.conftest import AppMaker, json_of
from tests.chatapp.identity_provider import CALLBACK, CLIENT_SECRET, IdentityProvider, running
from tests.served import serving

ALICE = "alice@example.com"
DEVICE_GRANT = "urn:ietf:params:oauth:grant-type:device_code"
ORIGIN = {"Origin": "http://localhost"}


@pytest.fixture
def idp() -> Iterator[IdentityProvider]:
    with running() as provider:
        yield provider


@pytest.fixture
def app(make_app: AppMaker, idp: IdentityProvider, accounts: Accounts) -> Flask:
    """With sign-in, and the team that a group gives."""
    accounts.create_team("research")
    return make_app(**idp.settings)


@pytest.fixture
def client(app: Flask, stopped_clock: None) -> FlaskClient:
    return app.test_client()


def begin(client: FlaskClient) -> dict[str, Any]:
    """What Claude Code sends: this field alone, and no client id."""
    return json_of(client.post("/oauth/device_authorization", data={"surface": "claude_code"}))


def poll(client: FlaskClient, device: str) -> TestResponse:
    return client.post("/oauth/token", data={"grant_type": DEVICE_GRANT, "device_code": device})


def refresh(client: FlaskClient, token: str) -> TestResponse:
    form = {"grant_type": "refresh_token", "refresh_token": token}
    return client.post("/oauth/token", data=form)


def approve(client: FlaskClient, user_code: str, **changed: str) -> TestResponse:
    """The person continues on the page, and the provider sends the browser back."""
    sent = client.post("/device", data={"user_code": user_code}, headers=ORIGIN)
    assert sent.status_code == 303, sent.text
    return returned(client, sent.headers["Location"], **changed)


def returned(client: FlaskClient, address: str, **changed: str) -> TestResponse:
    browser = http.client.HTTPConnection(urlsplit(address).netloc, timeout=10)
    browser.request("GET", address)
    answer = browser.getresponse()
    assert answer.status == 302, answer.read()
    location = answer.headers["Location"]
    assert location.startswith(CALLBACK)
    query = {name: values[0] for name, values in parse_qs(urlsplit(location).query).items()}
    return client.get("/oauth/callback", query_string={**query, **changed})


def signed_in(client: FlaskClient) -> dict[str, Any]:
    """The tokens of a whole sign-in."""
    begun = begin(client)
    assert approve(client, begun["user_code"]).status_code == 200
    answer = poll(client, begun["device_code"])
    assert answer.status_code == 200, answer.text
    return json_of(answer)


def called(client: FlaskClient, key: str) -> TestResponse:
    body = {"model": "offline", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]}
    return client.post("/v1/messages", json=body, headers={"Authorization": f"Bearer {key}"})


def error_of(answer: TestResponse) -> str:
    assert answer.headers["Cache-Control"] == "no-store"
    return str(json_of(answer)["error"])


def test_a_person_signs_in_and_calls(
    client: FlaskClient, accounts: Accounts, idp: IdentityProvider
) -> None:
    """From the metadata to a call: the plan and team are those of the first group of the table."""
    metadata = json_of(client.get("/.well-known/oauth-authorization-server"))
    assert (
        metadata["device_authorization_endpoint"] == "http://localhost/oauth/device_authorization"
    )
    assert metadata["token_endpoint"] == "http://localhost/oauth/token"
    begun = begin(client)
    assert begun["verification_uri_complete"].endswith(f"/device?user_code={begun['user_code']}")
    assert len(begun["device_code"]) >= 43
    assert (begun["interval"], begun["expires_in"]) == (5, 600)
    page = client.get(begun["verification_uri_complete"])
    assert begun["user_code"] in page.text
    assert "frame-ancestors 'none'" in page.headers["Content-Security-Policy"]
    assert error_of(poll(client, begun["device_code"])) == "authorization_pending"
    shown = approve(client, begun["user_code"].lower().replace("-", " "))
    assert ALICE in shown.text
    tokens = json_of(poll(client, begun["device_code"]))
    assert tokens["token_type"] == "Bearer"
    assert (tokens["email"], tokens["expires_in"]) == (ALICE, 3600)
    assert called(client, tokens["access_token"]).status_code == 200
    user = accounts.user(ALICE)
    assert user is not None
    assert (user.plan, user.team_name) == ("pro", "research")
    (key,) = accounts.all_keys(ALICE)
    assert key.name == "sign-in"
    assert key.expires_at is not None
    assert timedelta(minutes=59) < key.expires_at - datetime.now(UTC) <= timedelta(hours=1)


def test_without_settings_there_is_no_route(make_app: AppMaker) -> None:
    """Neither in the table of routes, nor as an answer."""
    app = make_app()
    assert not [rule for rule in app.url_map.iter_rules() if rule.endpoint.startswith("sign_in")]
    assert app.test_client().get("/.well-known/oauth-authorization-server").status_code == 404


def test_a_refresh_asks_the_provider_again(
    client: FlaskClient, accounts: Accounts, idp: IdentityProvider
) -> None:
    """The key lasts longer, also if it has expired, with the plan and team of today's groups."""
    tokens = signed_in(client)
    (key,) = accounts.all_keys(ALICE)
    accounts.change("key", key.public_id, expires_at=datetime.now(UTC) - timedelta(hours=9))
    assert called(client, tokens["access_token"]).status_code == 401
    idp.claims["groups"] = "everyone"
    answer = json_of(refresh(client, tokens["refresh_token"]))
    assert answer["access_token"] == tokens["access_token"]
    assert answer["refresh_token"] != tokens["refresh_token"]
    (key,) = accounts.all_keys(ALICE)
    assert not key.has_expired
    user = accounts.user(ALICE)
    assert user is not None
    assert (user.plan, user.team_name) == ("starter", None)
    assert refresh(client, answer["refresh_token"]).status_code == 200


def test_a_refresh_without_an_id_token_reads_the_userinfo(
    client: FlaskClient, idp: IdentityProvider
) -> None:
    """As OpenID Connect allows."""
    tokens = signed_in(client)
    idp.refreshes_with_id_token = False
    assert refresh(client, tokens["refresh_token"]).status_code == 200
    assert idp.asked[-2:] == ["refresh_token", "userinfo"]


@pytest.mark.parametrize("how", ["removed", "no group", "other name", "deactivated", "revoked"])
def test_a_person_without_access_gets_no_longer_key(
    app: Flask, client: FlaskClient, accounts: Accounts, idp: IdentityProvider, how: str
) -> None:
    """The provider has removed them, or their groups; or an operator has ended it here."""
    tokens = signed_in(client)
    (before,) = accounts.all_keys(ALICE)
    if how == "removed":
        idp.removed = True
    elif how == "no group":
        idp.claims["groups"] = ["guests"]
    elif how == "other name":
        idp.claims["email"] = "mallory@example.com"
    elif how == "deactivated":
        with app.app_context():
            users.deactivate(ALICE, reason="", by="test")
    else:
        accounts.revoke(before.public_id)
    answer = refresh(client, tokens["refresh_token"])
    assert (answer.status_code, error_of(answer)) == (401, "invalid_grant")
    (after,) = accounts.all_keys(ALICE)
    assert after.expires_at == before.expires_at
    assert accounts.user("mallory@example.com") is None


def test_a_user_who_is_deleted_during_a_refresh_does_not_come_back(
    client: FlaskClient, accounts: Accounts, idp: IdentityProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The provider takes its time, and knows the person still."""
    tokens = signed_in(client)
    accounts.create_key("olga", plan=None, default_plan="starter")
    ask = OpenIdProvider.refresh

    def slow(provider: OpenIdProvider, refresh_token: str) -> Person:
        accounts.delete_user(ALICE)
        return ask(provider, refresh_token)

    monkeypatch.setattr(OpenIdProvider, "refresh", slow)
    answer = refresh(client, tokens["refresh_token"])
    assert (answer.status_code, error_of(answer)) == (401, "invalid_grant")
    assert accounts.user(ALICE) is None


def test_a_provider_that_is_away_ends_nothing(client: FlaskClient, idp: IdentityProvider) -> None:
    """Claude Code tries again after a 503; the refresh token is still good."""
    tokens = signed_in(client)
    idp.is_away = True
    answer = refresh(client, tokens["refresh_token"])
    assert (answer.status_code, error_of(answer)) == (503, "temporarily_unavailable")
    assert answer.headers["Retry-After"]
    idp.is_away = False
    assert refresh(client, tokens["refresh_token"]).status_code == 200


@pytest.mark.parametrize("published", ["<html>", "[]", '{"keys": []}', "cut"])
def test_keys_that_cannot_be_read_end_nothing(
    client: FlaskClient, idp: IdentityProvider, monkeypatch: pytest.MonkeyPatch, published: str
) -> None:
    """It is the provider's mistake, and Claude Code would forget a token that it names invalid.
    They are read before the provider ends the token, so it is still good."""
    tokens = signed_in(client)
    idp.keys_text = published
    with monkeypatch.context() as patch:
        patch.setattr("jwt.jwks_client.JWKSetCache.get", lambda _: None)
        if published == "cut":

            def cut(_: object) -> None:
                raise httpx2.ReadError("")

            patch.setattr(httpx2.Response, "iter_raw", cut)
        answer = refresh(client, tokens["refresh_token"])
    assert (answer.status_code, error_of(answer)) == (503, "temporarily_unavailable")
    assert idp.asked == ["authorization_code"]
    assert refresh(client, tokens["refresh_token"]).status_code == 200


@pytest.mark.parametrize("away", ["keys", "userinfo", "database"])
@pytest.mark.parametrize("has_expired", [False, True])
def test_a_new_refresh_token_is_not_lost(
    client: FlaskClient,
    accounts: Accounts,
    idp: IdentityProvider,
    monkeypatch: pytest.MonkeyPatch,
    away: str,
    has_expired: bool,
) -> None:
    """The provider ends the old one, and then something else fails: the key does not last longer,
    but the next refresh works."""
    tokens = signed_in(client)
    (before,) = accounts.all_keys(ALICE)
    if has_expired:
        past = datetime.now(UTC) - timedelta(hours=9)
        accounts.change("key", before.public_id, expires_at=past)
        (before,) = accounts.all_keys(ALICE)
    with monkeypatch.context() as patch:
        if away == "keys":
            monkeypatch.setattr("jwt.jwks_client.JWKSetCache.get", lambda _: None)
            idp.keys_text = json.dumps(idp.keys()).replace('"kid": "1"', '"kid": "2"')
        elif away == "userinfo":
            patch.setattr(idp, "of_userinfo", [])
            patch.setattr(idp, "refreshes_with_id_token", False)
        else:
            patch.setattr("chatapp.operators.sign_in.extend", fail)
        answer = refresh(client, tokens["refresh_token"])
    idp.keys_text = None
    kept = json_of(answer)
    assert answer.status_code == 200
    assert kept["access_token"] == tokens["access_token"]
    assert kept["refresh_token"] != tokens["refresh_token"]
    assert (kept["expires_in"] == 0) == has_expired
    assert kept["expires_in"] <= 3600
    (after,) = accounts.all_keys(ALICE)
    assert after.expires_at == before.expires_at
    assert refresh(client, tokens["refresh_token"]).status_code == 401
    answer = refresh(client, kept["refresh_token"])
    assert (answer.status_code, json_of(answer)["expires_in"]) == (200, 3600)


def fail(*_: object) -> None:
    raise OperationalError("UPDATE", {}, Exception("away"))


@pytest.mark.parametrize("address", ["/keys", "/userinfo", "/.well-known/openid-configuration"])
def test_only_the_token_endpoint_can_end_a_sign_in(address: str) -> None:
    """A proxy's "access denied" about another address is a bad minute of the provider's."""
    with pytest.raises(OpenIdError), refusing() as url:
        answer_of("GET", f"{url}{address}")
    with pytest.raises(RefusedSignInError), refusing() as url:
        answer_of("POST", f"{url}/token", data={})


@contextmanager
def refusing() -> Iterator[str]:
    app = Flask("proxy")
    body = {"error": "access_denied"}
    app.add_url_rule("/<path:_>", "any", lambda _: (body, 403), methods=["GET", "POST"])
    with serving(app) as url:
        yield url


@pytest.mark.parametrize("sent", ["large", "compressed", "slow", "elsewhere"])
def test_an_answer_of_the_provider_is_bounded(sent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In memory and time, whatever it sends; and no redirect is followed."""
    app, followed = Flask("hostile"), []
    if sent == "slow":
        monkeypatch.setattr("chatapp.accounts.openid.ANSWER_MAX_S", 0.0)

    @app.get("/<path:path>")
    def answer(path: str) -> Response:
        followed.append(path)
        if sent == "large":
            return Response(b" " * ANSWER_MAX_BYTES + b"{}")
        if sent == "compressed":
            packed = gzip.compress(b" " * 50_000_000 + b"{}")
            return Response(packed, headers={"Content-Encoding": "gzip"})
        return Response("{}") if sent == "slow" else redirect("/other")

    with serving(app) as url, pytest.raises(OpenIdError):
        answer_of("GET", f"{url}/keys")
    assert followed == ["keys"]
    provider = "chatapp.accounts.openid.answer_of"
    monkeypatch.setattr(provider, lambda *asked: {"asked": asked})
    assert Keys("https://idp.example/keys").fetch_data() == {
        "asked": ("GET", "https://idp.example/keys")
    }


def test_sign_ins_that_wait_are_bounded(
    client: FlaskClient, accounts: Accounts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From all addresses together. Those that wait go on, and expired ones make room."""
    assert sign_ins.MOST == 10_000
    monkeypatch.setattr(sign_ins, "MOST", 2)
    begun = begin(client)
    begin(client)
    answer = client.post("/oauth/device_authorization")
    assert (answer.status_code, error_of(answer)) == (503, "temporarily_unavailable")
    assert 590 <= int(answer.headers["Retry-After"]) <= 600
    assert approve(client, begun["user_code"]).status_code == 200
    later(accounts)
    begin(client)
    with accounts._database.reading() as connection:
        assert len(connection.execute(sign_ins.SIGN_INS.select()).all()) == 1


@pytest.mark.parametrize("part", ["key", "provider", "nothing"])
def test_half_a_refresh_token_is_none(
    client: FlaskClient, idp: IdentityProvider, part: str
) -> None:
    """Neither the key alone nor the provider's token alone."""
    tokens = signed_in(client)
    key, _, of_provider = tokens["refresh_token"].partition(".")
    sent = {"key": f"{key}.", "provider": f".{of_provider}", "nothing": ""}[part]
    answer = refresh(client, sent)
    assert (answer.status_code, error_of(answer)) == (401, "invalid_grant")
    assert idp.asked == ["authorization_code"]


def test_another_key_cannot_be_refreshed(client: FlaskClient, accounts: Accounts) -> None:
    """A key that an operator has made is no sign-in."""
    tokens = signed_in(client)
    made = accounts.create_key(ALICE, plan=None, default_plan="starter", name="laptop")
    of_provider = tokens["refresh_token"].partition(".")[2]
    assert refresh(client, f"{made.text}.{of_provider}").status_code == 401


def test_a_key_of_a_sign_in_is_not_rotated(app: Flask, client: FlaskClient) -> None:
    """Someone who has the old key could still refresh it."""
    key = signed_in(client)["access_token"]
    call = Call(Operator("test"), None, Rotation(overlap="0s", reason="leaked"))
    with app.app_context(), pytest.raises(RefusedChangeError, match="revoke it instead"):
        rotate_key(call, public_id_of(key))
    assert called(client, key).status_code == 200


def test_denied_on_the_page(client: FlaskClient, idp: IdentityProvider) -> None:
    """The provider is not asked, and nothing can be approved after it."""
    begun = begin(client)
    form = {"user_code": begun["user_code"], "deny": "1"}
    assert client.post("/device", data=form, headers=ORIGIN).status_code == 200
    again = client.post("/device", data={"user_code": begun["user_code"]}, headers=ORIGIN)
    assert again.status_code == 400
    assert error_of(poll(client, begun["device_code"])) == "access_denied"
    assert error_of(poll(client, begun["device_code"])) == "expired_token"
    assert idp.asked == []


def test_denied_by_the_provider(client: FlaskClient, idp: IdentityProvider) -> None:
    """Its error comes back with the state, and without a code."""
    begun = begin(client)
    shown = approve(client, begun["user_code"], code="", error="access_denied")
    assert shown.status_code == 403
    assert error_of(poll(client, begun["device_code"])) == "access_denied"
    assert idp.asked == []


@pytest.mark.parametrize("how", ["no group", "no team", "deactivated"])
def test_who_may_not_sign_in_learns_why(
    app: Flask, client: FlaskClient, accounts: Accounts, idp: IdentityProvider, how: str
) -> None:
    """On the page. The device is denied, and there is no key."""
    if how == "no group":
        idp.claims["groups"] = ["guests"]
    elif how == "no team":
        idp.claims["groups"] = ["ml"]
        with accounts._database.writing() as connection:
            connection.exec_driver_sql("DELETE FROM teams")
    else:
        accounts.create_key(ALICE, plan=None, default_plan="starter")
        accounts.set_active(ALICE, active=False)
    keys = len(accounts.all_keys())
    begun = begin(client)
    shown = approve(client, begun["user_code"])
    sentence = {
        "no group": f"no group of {ALICE} is allowed to",
        "no team": "the team research does not exist here",
        "deactivated": f"the account of {ALICE} is deactivated",
    }
    assert shown.status_code == 403
    assert sentence[how] in shown.text
    assert error_of(poll(client, begun["device_code"])) == "access_denied"
    assert len(accounts.all_keys()) == keys


@pytest.mark.parametrize("how", ["deactivated", "deleted"])
def test_a_user_who_is_deactivated_before_the_poll_gets_no_key(
    client: FlaskClient, accounts: Accounts, how: str
) -> None:
    """Between the browser and Claude Code. A deleted one does not come back with another plan."""
    begun = begin(client)
    approve(client, begun["user_code"])
    if how == "deactivated":
        accounts.set_active(ALICE, active=False)
    else:
        accounts.delete_user(ALICE)
    assert error_of(poll(client, begun["device_code"])) == "access_denied"
    assert accounts.all_keys(ALICE) == []
    assert (accounts.user(ALICE) is None) == (how == "deleted")


def later(accounts: Accounts) -> None:
    """Let all sign-ins expire."""
    with accounts._database.writing() as connection:
        connection.execute(update(sign_ins.SIGN_INS).values(expires_at=datetime.now(UTC)))


@pytest.mark.parametrize("when", ["before the page", "at the provider", "approved"])
def test_an_expired_sign_in_gives_nothing(
    client: FlaskClient, accounts: Accounts, idp: IdentityProvider, when: str
) -> None:
    """Wherever it is. The next sign-in removes it."""
    begun = begin(client)
    form = {"user_code": begun["user_code"]}
    if when == "before the page":
        later(accounts)
        assert client.post("/device", data=form, headers=ORIGIN).status_code == 400
    elif when == "at the provider":
        sent = client.post("/device", data=form, headers=ORIGIN)
        later(accounts)
        assert returned(client, sent.headers["Location"]).status_code == 400
        assert idp.asked == []
    else:
        approve(client, begun["user_code"])
        later(accounts)
    assert error_of(poll(client, begun["device_code"])) == "expired_token"
    begin(client)
    with accounts._database.reading() as connection:
        assert len(connection.execute(sign_ins.SIGN_INS.select()).all()) == 1


def test_a_code_gives_one_key(client: FlaskClient, accounts: Accounts) -> None:
    """A device code that was used is as unknown as an invented one."""
    begun = begin(client)
    approve(client, begun["user_code"])
    assert poll(client, begun["device_code"]).status_code == 200
    for code in (begun["device_code"], "invented", "\ufffd", ""):
        assert error_of(poll(client, code)) == "expired_token"
    assert len(accounts.all_keys(ALICE)) == 1


def test_a_callback_is_used_once(client: FlaskClient, idp: IdentityProvider) -> None:
    """Also if the browser still had its cookie: the provider is not asked again."""
    begun = begin(client)
    sent = client.post("/device", data={"user_code": begun["user_code"]}, headers=ORIGIN)
    cookie = client.get_cookie("chatapp_sign_in")
    assert cookie is not None
    assert (cookie.http_only, cookie.same_site) == (True, "Lax")
    assert returned(client, sent.headers["Location"]).status_code == 200
    client.set_cookie("chatapp_sign_in", cookie.value)
    assert returned(client, sent.headers["Location"]).status_code == 400
    assert idp.asked == ["authorization_code"]


@pytest.mark.parametrize("state", ["", "x", "\u00e9", "another"])
def test_a_wrong_state_asks_nobody(client: FlaskClient, idp: IdentityProvider, state: str) -> None:
    """A link of someone else does not sign their person in here."""
    begun = begin(client)
    assert approve(client, begun["user_code"], state=state).status_code == 400
    assert idp.asked == []
    assert error_of(poll(client, begun["device_code"])) == "authorization_pending"


def test_another_browser_cannot_finish(app: Flask, idp: IdentityProvider) -> None:
    """The callback needs the cookie of the browser that has continued."""
    client, other = app.test_client(), app.test_client()
    begun = begin(client)
    sent = client.post("/device", data={"user_code": begun["user_code"]}, headers=ORIGIN)
    assert returned(other, sent.headers["Location"]).status_code == 400
    assert idp.asked == []


def test_another_host_of_the_domain_cannot_set_the_cookie(
    make_app: AppMaker, idp: IdentityProvider
) -> None:
    """It would send a person on with its own secret, and they would approve its device."""
    client = make_app(
        **{**idp.settings, "CHATAPP_SIGN_IN_URL": "https://localhost/ai"}
    ).test_client()
    form, origin = {"user_code": begin(client)["user_code"]}, {"Origin": "https://localhost"}
    sent = client.post("/device", data=form, headers=origin)
    cookie = sent.headers["Set-Cookie"]
    # What browsers require of this prefix: https, every path, and no domain.
    assert cookie.startswith("__Host-chatapp_sign_in=")
    assert {"Secure", "HttpOnly", "Path=/", "SameSite=Lax"} <= set(cookie.split("; "))
    assert "Domain" not in cookie
    secret = cookie.partition("=")[2].partition(";")[0]
    state = parse_qs(urlsplit(sent.headers["Location"]).query)["state"][0]
    address, https = f"/oauth/callback?state={state}", "https://localhost"
    other = client.application.test_client()
    other.set_cookie("chatapp_sign_in", secret, domain="localhost")
    assert other.get(address, base_url=https).status_code == 400
    other.set_cookie("__Host-chatapp_sign_in", secret, domain="localhost", secure=True)
    answer = other.get(address, base_url=https)
    assert answer.status_code == 403  # the provider has sent no code
    assert "__Host-chatapp_sign_in=;" in answer.headers["Set-Cookie"]


@pytest.mark.parametrize("origin", [None, "null", "http://evil.example", "http://localhost:81"])
def test_a_form_of_another_site_is_refused(client: FlaskClient, origin: str | None) -> None:
    """It would approve its sender's device in the name of a person who is signed in."""
    begun = begin(client)
    headers = {} if origin is None else {"Origin": origin}
    sent = client.post("/device", data={"user_code": begun["user_code"]}, headers=headers)
    assert sent.status_code == 403
    assert "Set-Cookie" not in sent.headers


WRONG: dict[str, dict[str, Any]] = {
    "nonce": {"nonce": "of another sign-in"},
    "no nonce": {"nonce": None},
    "audience": {"aud": "another client"},
    "audiences": {"aud": ["chat app", "another client"]},
    "authorized party": {"azp": "another client"},
    "issuer": {"iss": "http://127.0.0.1:1"},
    "expired": {"exp": 1},
    "future": {"iat": 4_000_000_000},
    "no expiry": {"exp": None},
    "no subject": {"sub": None},
    "unverified": {"email_verified": False},
    "not verified": {"email_verified": None},
    "no name": {"email": ""},
    "reserved name": {"email": "user:alice"},
}


@pytest.mark.parametrize("what", [*WRONG, "key", "none", "HS256"])
def test_a_wrong_id_token_signs_nobody_in(
    client: FlaskClient, accounts: Accounts, idp: IdentityProvider, what: str
) -> None:
    """Of another sign-in, client, provider, time or key; or without a name that is confirmed."""
    idp.id_claims = WRONG.get(what, {})
    if what == "key":
        idp.key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    elif what in {"none", "HS256"}:
        idp.algorithm = what
    begun = begin(client)
    idp.of_userinfo = {"sub": "1234"}
    shown = approve(client, begun["user_code"])
    assert shown.status_code == 403
    assert "You cannot sign in: " in shown.text
    assert error_of(poll(client, begun["device_code"])) == "access_denied"
    assert accounts.users() == []


def test_userinfo_of_another_person_is_refused(client: FlaskClient, idp: IdentityProvider) -> None:
    """It may have what the ID token lacks, about the same person only."""
    idp.id_claims = {"email": None, "groups": None}
    idp.of_userinfo = {**idp.claims, "sub": "another"}
    begun = begin(client)
    assert approve(client, begun["user_code"]).status_code == 403
    idp.of_userinfo = None
    assert signed_in(client)["email"] == ALICE


def test_userinfo_verifies_no_other_address(client: FlaskClient, idp: IdentityProvider) -> None:
    """That of the ID token may be one that its person has written."""
    idp.id_claims = {"email": ALICE, "email_verified": None}
    idp.claims = {**idp.claims, "groups": None}
    idp.of_userinfo = {"sub": "1234", "groups": ["ml"], "email_verified": True}
    for of_userinfo in ({}, {"email": "mallory@example.com"}):
        idp.of_userinfo |= of_userinfo
        shown = approve(client, begin(client)["user_code"])
        assert "the email address is not verified" in shown.text
    idp.of_userinfo |= {"email": ALICE}
    assert signed_in(client)["email"] == ALICE


def test_a_provider_without_userinfo(client: FlaskClient, idp: IdentityProvider) -> None:
    """It need not have one. A person without groups has those of everyone alone."""
    idp.metadata = {"userinfo_endpoint": None}
    idp.id_claims = {"groups": None}
    begun = begin(client)
    assert f"no group of {ALICE}" in approve(client, begun["user_code"]).text
    idp.id_claims = {"groups": "ml"}
    assert signed_in(client)["email"] == ALICE
    assert "userinfo" not in idp.asked


@pytest.mark.parametrize("groups", [5, {"ml": 1}, [["ml"]], "\ud800", None])
def test_odd_claims_are_no_500(client: FlaskClient, idp: IdentityProvider, groups: object) -> None:
    """They are no groups of the table."""
    idp.id_claims = {"groups": groups}
    idp.of_userinfo = {"sub": "1234", "groups": groups}
    assert approve(client, begin(client)["user_code"]).status_code == 403


def test_a_wrong_secret_is_the_operators(
    make_app: AppMaker, idp: IdentityProvider, caplog: pytest.LogCaptureFixture
) -> None:
    """The person reads that the provider cannot be used, and the log says why."""
    client = make_app(
        **{**idp.settings, "CHATAPP_SIGN_IN_CLIENT_SECRET": "wrong-secret"}
    ).test_client()
    shown = approve(client, begin(client)["user_code"])
    assert shown.status_code == 403
    assert "cannot be reached" in shown.text
    assert "answered 401, error 'invalid_client'" in caplog.text
    assert "wrong-secret" not in caplog.text


@pytest.mark.parametrize(
    "metadata",
    [
        {"issuer": "http://127.0.0.1:1"},
        {"token_endpoint": "http://idp.example/token"},
        {"jwks_uri": "file:///etc/passwd"},
        {"authorization_endpoint": None},
    ],
)
def test_a_wrong_discovery_is_not_used(
    client: FlaskClient, idp: IdentityProvider, metadata: dict[str, Any]
) -> None:
    """Another issuer, or an endpoint that others could read."""
    idp.metadata = metadata
    form = {"user_code": begin(client)["user_code"]}
    shown = client.post("/device", data=form, headers=ORIGIN)
    assert shown.status_code == 503
    assert "cannot be reached" in shown.text
    denied = client.post("/device", data={**form, "deny": "1"}, headers=ORIGIN)
    assert denied.status_code == 200


def test_polling_too_fast(client: FlaskClient, accounts: Accounts) -> None:
    """A second poll within four seconds is slow_down, whichever worker it reaches; a result is not
    delayed."""
    begun = begin(client)
    assert error_of(poll(client, begun["device_code"])) == "authorization_pending"
    answer = poll(client, begun["device_code"])
    assert (answer.status_code, error_of(answer)) == (400, "slow_down")
    with accounts._database.writing() as connection:
        earlier = datetime.now(UTC) - timedelta(seconds=4.1)
        connection.execute(update(sign_ins.SIGN_INS).values(polled_at=earlier))
    assert error_of(poll(client, begun["device_code"])) == "authorization_pending"
    approve(client, begun["user_code"])
    assert poll(client, begun["device_code"]).status_code == 200


def test_attempts_are_limited_by_address(client: FlaskClient) -> None:
    """Of a device, as an error that Claude Code knows; of a person, on the page."""
    for _ in range(300):
        begin(client)
        client.post("/device", data={"user_code": "BBBBBBBB"}, headers=ORIGIN)
    device = client.post("/oauth/device_authorization")
    assert (device.status_code, error_of(device)) == (429, "slow_down")
    assert int(device.headers["Retry-After"]) > 0
    page = client.post("/device", data={"user_code": "BBBBBBBB"}, headers=ORIGIN)
    assert page.status_code == 429
    assert page.mimetype == "text/html"
    assert int(page.headers["Retry-After"]) > 0


def test_an_office_signs_in_from_one_address(client: FlaskClient) -> None:
    """At nine, 100 people whose devices poll."""
    statuses = set()
    for _ in range(100):
        begun = begin(client)
        form = {"user_code": begun["user_code"]}
        statuses.add(client.post("/device", data=form, headers=ORIGIN).status_code)
        statuses |= {poll(client, begun["device_code"]).status_code for _ in range(12)}
    assert statuses == {303, 400}  # to the provider, and not yet


def test_sign_out_ends_the_key(client: FlaskClient, accounts: Accounts) -> None:
    """By either token, and at once. An unknown token gets the same answer."""
    tokens = signed_in(client)
    assert client.post("/oauth/revoke", data={"token": "unknown"}).status_code == 200
    assert called(client, tokens["access_token"]).status_code == 200
    form = {"token": tokens["refresh_token"], "token_type_hint": "refresh_token"}
    assert client.post("/oauth/revoke", data=form).status_code == 200
    assert accounts.all_keys(ALICE)[0].revoked_at is not None
    assert refresh(client, tokens["refresh_token"]).status_code == 401


def test_no_secret_is_logged_or_stored(
    client: FlaskClient,
    accounts: Accounts,
    idp: IdentityProvider,
    database_url: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Not by a sign-in that waits, ends, goes on or fails: neither a token nor a code, key, state
    or secret is in the log or in the database's files."""
    caplog.set_level(logging.DEBUG)
    logging.getLogger("httpcore2").setLevel(logging.DEBUG)
    begun = begin(client)
    sent = client.post("/device", data={"user_code": begun["user_code"]}, headers=ORIGIN)
    cookie = client.get_cookie("chatapp_sign_in")
    assert cookie is not None
    query = parse_qs(urlsplit(sent.headers["Location"]).query)
    returned(client, sent.headers["Location"])
    stored = [stored_in(database_url)]
    tokens = json_of(poll(client, begun["device_code"]))
    tokens = json_of(refresh(client, tokens["refresh_token"]))
    idp.removed = True
    refresh(client, tokens["refresh_token"])
    idp.id_claims = {"nonce": "wrong"}
    approve(client, begin(client)["user_code"])
    idp.is_away = True
    refresh(client, tokens["refresh_token"])
    stored.append(stored_in(database_url))
    secrets = {
        *idp.seen,
        *(CLIENT_SECRET, begun["device_code"], cookie.value, query["state"][0]),
        *(tokens["access_token"], tokens["refresh_token"]),
    }
    assert len(secrets) > 12
    records = "\n".join(f"{record.getMessage()} {record.args}" for record in caplog.records)
    assert ALICE in records
    for secret in secrets:
        assert secret not in records
        assert not [True for text in stored if secret.encode() in text]


def stored_in(database_url: str) -> bytes:
    """All files of the database, with its journal."""
    file = Path(database_url.removeprefix("sqlite:///"))
    sqlite3.connect(file).close()
    return b"".join(path.read_bytes() for path in file.parent.glob(f"{file.name}*"))


@pytest.mark.parametrize(
    "error", [OperationalError("SELECT", {}, Exception("away")), StorageUnavailable("away")]
)
def test_what_is_away_is_no_500(
    client: FlaskClient, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """It is a 503, which Claude Code shows; or a page that says so."""

    def away(*_: object, **__: object) -> None:
        raise error

    begun = begin(client)
    monkeypatch.setattr(users, "put", away)
    assert approve(client, begun["user_code"]).status_code == 503
    monkeypatch.setattr(sign_ins, "begin", away)
    answer = client.post("/oauth/device_authorization")
    assert (answer.status_code, error_of(answer)) == (503, "temporarily_unavailable")


@pytest.mark.parametrize("path", ["/device", "/oauth/callback", "/oauth/token", "/oauth/revoke"])
def test_odd_bytes_are_no_500(client: FlaskClient, path: str) -> None:
    """Neither in a query nor in a form."""
    method = client.get if path in {"/device", "/oauth/callback"} else client.post
    assert method(f"{path}?user_code=%ff&state=%ff&code=%ff").status_code < 500
    raw = {"QUERY_STRING": "user_code=\xff&state=\xff&code=\xff"}
    assert method(path, environ_overrides=raw).status_code < 500
    headers = {**ORIGIN, "Content-Type": "application/x-www-form-urlencoded"}
    names = ("user_code", "grant_type", "token", "device_code", "refresh_token")
    form = b"&".join(b"%s=%%ff\x00\xff" % name.encode() for name in names)
    assert client.post(path, data=form, headers=headers).status_code < 500


def test_an_unknown_plan_of_a_group_stops_the_start(
    make_app: AppMaker, idp: IdentityProvider
) -> None:
    """Instead of a sign-in with the default plan."""
    groups = {"CHATAPP_SIGN_IN_GROUPS": '{"ml": "gold/research"}'}
    with pytest.raises(MISTAKES, match="SIGN_IN_GROUPS: unknown plan 'gold' of the group 'ml'"):
        make_app(**{**idp.settings, **groups})


@pytest.mark.parametrize(
    ("url", "is_safe"),
    [
        ("https://login.example.com/tenant", True),
        ("http://127.0.0.1:8080", True),
        ("http://[::1]/x", True),
        ("http://localhost:80@evil.example/", False),
        ("http://localhost.evil.example/", False),
        ("https://login.example.com\n", False),
        ("https://", False),
        ("file:///etc/passwd", False),
    ],
)
def test_secrets_go_only_to_safe_addresses(url: str, *, is_safe: bool) -> None:
    """With TLS, or on this machine."""
    assert bool(re.fullmatch(SAFE_URL, url)) is is_safe


def test_services_know_the_settings(app: Flask) -> None:
    """No message shows the client's secret."""
    assert CLIENT_SECRET not in repr(services_of(app).settings)
