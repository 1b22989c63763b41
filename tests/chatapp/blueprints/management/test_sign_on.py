"""/admin behind a proxy that names its people in a header: whom it may name, and from where. The
proxy is a process of connections, as oauth2-proxy is one: it replaces the header that a client
sends."""

import http.client
import json
import re
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler
from urllib.parse import urlsplit

import pytest
from flask import Flask

from chatapp.accounts.store import Accounts
from chatapp.services import services_of
from chatapp.settings import CONSENT, SettingsError
from tests.chatapp.blueprints.conftest import TOKEN
from tests.chatapp.blueprints.management.test_actions import changes
from tests.chatapp.conftest import AppMaker
from tests.served import answering, serving

HEADER = "X-Auth-Request-Email"
RIGHTS = (
    '{"Olga@example.com": "all", "lead@example.com": "all team:research", "*@example.com": "read"}'
)


@pytest.fixture
def make(make_app: AppMaker, uri: str, accounts: Accounts) -> AppMaker:
    def made(**config: object) -> Flask:
        own = {
            "CHATAPP_ADMIN_TOKEN": TOKEN,
            "CHATAPP_ADMIN_SIGN_ON_HEADER": HEADER,
            "CHATAPP_ADMIN_SIGN_ON_FROM": "127.0.0.1, 10.0.0.0/8, ::ffff:192.0.2.8",
            "CHATAPP_ADMIN_SIGN_ON": RIGHTS,
            "RATELIMIT_STORAGE_URI": uri,
        }
        app = make_app(**{**own, **config})
        services_of(app).limiter.request_filter(lambda: True)
        return app

    return made


@contextmanager
def front(upstream: str, email: str) -> Iterator[int]:
    """A proxy in front of that address, whose people are all signed in as ``email``."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            length = int(self.headers.get("Content-Length", 0))
            headers = {k: v for k, v in self.headers.items() if k.lower() != HEADER.lower()}
            headers |= {HEADER: email, "X-Forwarded-For": "203.0.113.9"}
            with closing(http.client.HTTPConnection(urlsplit(upstream).netloc)) as connection:
                connection.request(self.command, self.path, self.rfile.read(length), headers)
                answer = connection.getresponse()
                body = answer.read()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in {"connection", "date", "server", "transfer-encoding"}:
                    self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET  # noqa: N815 - the name that the server calls

    with answering(Handler) as port:
        yield port


def ask(port: int, path: str, form: str | None = None, **headers: str) -> tuple[int, str]:
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=20)) as connection:
        if form is None:
            connection.request("GET", path, headers=sent)
        else:
            kind = {"Content-Type": "application/x-www-form-urlencoded"}
            connection.request("POST", path, form, {**kind, **sent})
        answer = connection.getresponse()
        return answer.status, answer.read().decode()


@pytest.mark.parametrize("hops", [0, 1])
def test_a_trusted_proxy_names_the_operator(make: AppMaker, hops: int) -> None:
    """Over real connections, with and without X-Forwarded-For trusted: who they are decides what
    they see and change, and is in the log. What a client sends as the header has no effect."""
    app = make(CHATAPP_TRUSTED_HOPS=hops)
    with serving(app) as url:
        with front(url, "olga@example.com") as port:
            status, page = ask(port, "/admin/users", X_Auth_Request_Email="eve@example.com")
            assert status == 200
            found = re.search(r'name="form_token" value="(\w+)"', page)
            assert found is not None
            form = f"form_token={found[1]}&user=alice&plan=pro"
            assert ask(port, "/admin/act/put_user", form)[0] == 303
            assert ask(port, "/admin/act/put_user", "form_token=x&user=alice&plan=pro")[0] == 403
        with front(url, "eve@example.com") as port:
            status, page = ask(port, "/admin/users", X_Auth_Request_Email="olga@example.com")
            assert (status, "form_token" in page.replace("/admin/logout", "")) == (200, True)
            assert 'action="/admin/act/create_key"' not in page
            assert ask(port, "/admin/act/put_user", form)[0] == 403
        with front(url, "lead@example.com") as port:
            assert ask(port, "/admin/team?name=research")[0] == 200
            assert ask(port, "/admin/users")[0] == 403
        with front(url, "someone@other.example") as port:
            assert ask(port, "/admin/users")[0] == 401
            assert ask(port, "/admin/api/v1/users")[0] == 401
    [entry] = changes(app)
    assert (entry.action, entry.by) == ("plan", "olga@example.com (single sign-on)")


def test_a_header_from_elsewhere_names_no_one(make: AppMaker) -> None:
    """By the peer of the connection, whatever X-Forwarded-For says; nor does one that is sent
    twice, or an empty one."""
    for hops in (0, 1):
        client = make(CHATAPP_TRUSTED_HOPS=hops).test_client()
        headers = {HEADER: "olga@example.com", "X-Forwarded-For": "10.1.2.3"}
        for peer, status in (
            *(("10.9.9.9", 200), ("127.0.0.1", 200), ("192.0.2.1", 401), ("::1", 401), ("", 401)),
            # As a server that listens on [::] names its peers.
            *(("::ffff:10.9.9.9", 200), ("::ffff:192.0.2.1", 401), ("::ffff:192.0.2.8", 200)),
        ):
            answer = client.get(
                "/admin/users", headers=headers, environ_overrides={"REMOTE_ADDR": peer}
            )
            assert answer.status_code == status, (hops, peer)
        for identity in ("", "eve@x.example,olga@example.com", "a" * 300):
            answer = client.get("/admin/users", headers={HEADER: identity})
            assert answer.status_code in {400, 401}, identity


def test_a_part_of_single_sign_on_is_a_mistake(make_app: AppMaker) -> None:
    """So is a wrong address or scope; each is named."""
    whole = {
        "CHATAPP_ADMIN_TOKEN": TOKEN,
        "CHATAPP_ADMIN_SIGN_ON_HEADER": HEADER,
        "CHATAPP_ADMIN_SIGN_ON_FROM": "10.0.0.1",
        "CHATAPP_ADMIN_SIGN_ON": RIGHTS,
    }
    for name in whole:
        with pytest.raises(ValueError, match="ADMIN_SIGN_ON"):
            make_app(**{key: value for key, value in whole.items() if key != name})
    for name, value in (
        *(("FROM", "10.0.0.300"), ("FROM", "proxy"), ("HEADER", "X Email")),
        *(("", '{"a": "root"}'), ("", "[]"), ("", '{"a": 1}'), ("HEADER", "X-Email\n")),
        *(("FROM", "10.0.0.5/8"), ("FROM", "10.0.0.5;10.0.0.6"), ("FROM", "10.0.0.0/33")),
    ):
        key = f"CHATAPP_ADMIN_SIGN_ON_{name}".rstrip("_")
        with pytest.raises(ValueError, match=f"{key}: found"):
            make_app(**{**whole, key: value})


@pytest.mark.parametrize(
    "rights",
    [
        *(
            {"olga": ""},
            {"olga": "team:research"},
            {"olga": "all team:"},
            {"olga": "all team:a team:b"},
        ),
        # Whom no header can name, and who would have the rights of two.
        *({"": "all"}, {" olga": "all"}, {"olga,lead": "all"}, {"olga@*": "all"}, {"*@": "all"}),
        *({"*@*": "all"}, {"o*@example.com": "all"}, {"Olga": "all", "olga": "read"}),
    ],
    ids=str,
)
def test_a_right_that_nobody_can_have_is_a_mistake(make: AppMaker, rights: dict[str, str]) -> None:
    """The start is refused, with what is allowed: it would be without an effect, or with one of
    two."""
    allowed = r"SIGN_ON: found .*; allowed: .* each name, domain or `\*` once, with some of read,"
    with pytest.raises(SettingsError, match=allowed):
        make(CHATAPP_ADMIN_SIGN_ON=json.dumps(rights))
    rights = {"Olga Meier": "read keys team:research", "*@example.com": "read", "*": "read"}
    make(CHATAPP_ADMIN_SIGN_ON=json.dumps(rights))


@pytest.mark.parametrize(
    "networks",
    [
        *("0.0.0.0/0", "::/0", "0.0.0.0/1, 128.0.0.0/1", "10.0.0.1, 2000::/3", "::/1"),
        *("128.0.0.0/1", "::ffff:0.0.0.0/96", "64.0.0.0/2, 128.0.0.0/2", "::/80"),
        *("2000::/4", "::ffff:0.0.0.0/97, 0.0.0.0/32"),
    ],
)
def test_everybody_is_no_proxy_without_a_sentence_of_consent(make: AppMaker, networks: str) -> None:
    """Half of all addresses or more, in parts too, refuse the start, which says what is allowed.
    Only the whole sentence is consent."""
    everyone = {"CHATAPP_ADMIN_SIGN_ON_FROM": networks, "CHATAPP_ADMIN_SIGN_ON": '{"*": "all"}'}
    consent = {"CHATAPP_ADMIN_SIGN_ON_CONSENT": CONSENT}
    with pytest.raises(
        SettingsError, match=r"SIGN_ON_FROM: found .*; allowed: your proxy.s addresses"
    ):
        make(**everyone)
    with pytest.raises(SettingsError, match=r"SIGN_ON_CONSENT: found 'yes'; allowed: 'anyone who"):
        make(**everyone, CHATAPP_ADMIN_SIGN_ON_CONSENT="yes")
    assert services_of(make(**everyone, **consent)).settings.admin_sign_on_from


def test_a_large_network_of_ones_own_is_a_proxys(make: AppMaker) -> None:
    """Private networks, and a provider's."""
    networks = "10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16, fc00::/7, 100.64.0.0/10, 2001:db8::/32"
    make(CHATAPP_ADMIN_SIGN_ON_FROM=networks)
