"""The Dockerfile's steps without Docker, and chatapp behind a real nginx with the settings of
docs/operate/recipes. tests/docs/test_recipes.py compares the other files with the application."""

import hashlib
import http.client
import json
import os
import re
import shutil
import ssl
import subprocess
import sys
import venv
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.parse import urlencode

import pytest

from tests.chatapp.upstream_server import Stream, UpstreamServer, Wait, openai_chunks
from tests.gunicorn_master import ROOT, gunicorn, served
from tests.served import answering
from tests.servers import eventually, free_port

RECIPES = ROOT / "docs" / "operate" / "recipes"
SIGN_ON = {
    "CHATAPP_ADMIN_TOKEN": "a token of some length",
    "CHATAPP_ADMIN_SIGN_ON_HEADER": "X-Auth-Request-Email",
    "CHATAPP_ADMIN_SIGN_ON_FROM": "127.0.0.1",
    "CHATAPP_ADMIN_SIGN_ON": '{"olga@example.com": "all", "*@example.com": "read"}',
}
NGINX = os.environ.get("RATELIMIT_TEST_NGINX") or shutil.which("nginx")
HOST = "chat.example.com"
CONTENT = {"Content-Type": "application/json", "Host": HOST}
#: What the limit of an address has left after its first call.
OF_A_NEW_ADDRESS = 19
#: Around the recipe: one process, in the foreground, that writes only into its directory.
MAIN = """\
daemon off;
master_process off;
pid nginx.pid;
events {{}}
http {{
    access_log off;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
{recipe}}}
"""


# -- the image -----------------------------------------------------------------------------------


def instructions() -> list[tuple[str, str]]:
    """Those of the Dockerfile, in order, with their arguments."""
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
    return re.findall(r"^([A-Z]+) +(.+)$", text, re.MULTILINE)


def argument(instruction: str, containing: str = "") -> str:
    [found] = [text for name, text in instructions() if name == instruction and containing in text]
    return found


def copy_into(app: Path) -> None:
    """Do what COPY does."""
    app.mkdir()
    for name, text in instructions():
        if name == "COPY":
            _mode, *sources, target = text.split()
            for source in sources:
                if (ROOT / source).is_dir():
                    ignored = shutil.ignore_patterns("__pycache__")
                    shutil.copytree(ROOT / source, app / target, ignore=ignored)
                else:
                    shutil.copy(ROOT / source, app / target)


@pytest.mark.parametrize(
    "installed",
    [
        pytest.param(False, id="the tests' environment"),
        pytest.param(
            True,
            id="the locked wheels alone",
            marks=[
                pytest.mark.slow,
                pytest.mark.skipif(
                    os.environ.get("RATELIMIT_IMAGE") != "1",
                    reason="RATELIMIT_IMAGE=1 installs the lock in a new environment",
                ),
            ],
        ),
    ],
)
def test_the_image_serves(installed: bool, tmp_path: Path) -> None:
    """The Dockerfile's command serves from what the Dockerfile copies and installs; its health
    check notices when that ends; keys can be created beside it."""
    app = tmp_path / "app"
    copy_into(app)
    python = Path(sys.executable)
    if installed:
        venv.create(tmp_path / "venv", with_pip=True, symlinks=True)
        python = tmp_path / "venv" / "bin" / "python"
        pip = argument("RUN", "pip install").removeprefix("pip ").split()
        subprocess.run([python, "-m", "pip", *pip, "--quiet"], cwd=app, check=True, timeout=900)
    port = free_port()
    variables = {
        **dict(each.split("=") for each in argument("ENV").split()),
        "PORT": str(port),
        "GUNICORN_HOST": "127.0.0.1",
        "WEB_CONCURRENCY": "1",
        "DATABASE_URL": "",  # SQLite in the volume
    }
    environment = {**os.environ, **variables}
    probe = json.loads(re.sub(r"^.* CMD ", "", argument("HEALTHCHECK")))
    assert probe[0] == "python"

    def run(*arguments: str) -> str:
        return subprocess.run(
            [python, *arguments],
            cwd=app,
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        ).stdout

    command = json.loads(argument("CMD"))
    with served(
        command, port=port, log=tmp_path / "log", variables=variables, directory=app, python=python
    ) as master:
        run(*probe[1:])
        answer = master.request("/chat", {"message": "hello", "user_id": "alice"})
        assert answer.status == 200
        assert "ratelimit-policy" in answer.headers
        key = run("-m", "flask", "--app", "wsgi", "chat", "keys", "create", "--user", "alice")
        assert key.startswith("sk-chat-")
    assert {each.name for each in (app / "instance").iterdir()} >= {"chatapp.db", "ratelimit"}
    with pytest.raises(subprocess.CalledProcessError):
        run(*probe[1:])


@pytest.mark.slow
@pytest.mark.skipif(
    os.environ.get("RATELIMIT_IMAGE") != "1",
    reason="RATELIMIT_IMAGE=1 installs the lock in new environments",
)
def test_the_image_is_reproducible(tmp_path: Path) -> None:
    """Its base has a digest, and its steps, done twice, make the same files to the byte."""
    assert re.search(r"@sha256:[0-9a-f]{64}$", argument("FROM"))
    made = tmp_path / "made"
    installing = argument("RUN", "pip install").removeprefix("pip ").split()
    compiling = [text for name, text in instructions() if name == "RUN" and "compileall" in text]

    def digests() -> dict[str, str]:
        shutil.rmtree(made, ignore_errors=True)
        app, environment = made / "app", made / "venv"
        made.mkdir()
        copy_into(app)
        venv.create(environment, symlinks=True)
        [libraries] = environment.glob("lib/python3.*/site-packages")
        pip = [sys.executable, "-m", "pip", "--python", str(environment)]
        subprocess.run([*pip, *installing, "--quiet"], cwd=app, check=True, timeout=900)
        for command in compiling:
            python, *words = command.split()
            assert python == "python"
            words = [str(libraries) if "site-packages" in word else word for word in words]
            subprocess.run([sys.executable, *words], cwd=app, check=True, timeout=600)
        return {
            path.relative_to(made).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(made.rglob("*"))
            if path.is_file()
        }

    first, second = digests(), digests()
    assert len([name for name in first if name.endswith(".pyc")]) > 1000
    assert [name for name in first | second if first.get(name) != second.get(name)] == []


# -- nginx ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Proxy:
    """A running nginx; `authority` is the file of its certificate."""

    http_port: int
    https_port: int
    authority: Path

    def connection(self, address: str = "") -> http.client.HTTPSConnection:
        """Return a connection, from another address than other tests have if one is given: fast
        tests would use up the limit of the one that they share."""
        trusting = ssl.create_default_context(cafile=str(self.authority))
        source = (address, 0) if address else None
        return http.client.HTTPSConnection(
            "127.0.0.1", self.https_port, timeout=20, context=trusting, source_address=source
        )

    def post(self, path: str, payload: object, **headers: str) -> tuple[int, dict[str, str], bytes]:
        with closing(self.connection()) as connection:
            sent = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request("POST", path, json.dumps(payload), {**CONTENT, **sent})
            response = connection.getresponse()
            received = {name.lower(): value for name, value in response.getheaders()}
            return response.status, received, response.read()

    def is_serving(self) -> bool:
        try:
            with closing(self.connection()) as connection:
                connection.request("GET", "/healthz", headers={"Host": HOST})
                return connection.getresponse().status == 200
        except OSError:
            return False


@pytest.fixture(scope="module")
def provider() -> Iterator[UpstreamServer]:
    with UpstreamServer.running() as server:
        yield server


@pytest.fixture(scope="module")
def signing_on() -> Iterator[int]:
    """What nginx asks of oauth2-proxy: who a cookie's session is, and a page to sign in."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            email = re.search(r"session=([^;]+)", self.headers.get("Cookie", ""))
            status, body = (202, b"") if email else (401, b"")
            if self.path != "/oauth2/auth":
                status, body = 403, b"Sign in with Example"
            self.send_response(status)
            if email and status == 202:
                self.send_header("X-Auth-Request-Email", email[1])
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET  # noqa: N815 - the name that the server calls

    with answering(Handler) as port:
        yield port


@pytest.fixture(scope="module")
def proxy(
    provider: UpstreamServer, signing_on: int, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Proxy]:
    """nginx with the recipes' settings, on other ports and with a certificate of its own, in front
    of chatapp."""
    if NGINX is None or shutil.which("openssl") is None:
        pytest.skip("there is no nginx, or no openssl; RATELIMIT_TEST_NGINX names one")
    directory = tmp_path_factory.mktemp("nginx")
    key, certificate = directory / "privkey.pem", directory / "fullchain.pem"
    names = f"subjectAltName=DNS:{HOST},IP:127.0.0.1"
    request = f"req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN={HOST} -addext {names}"
    openssl = ["openssl", *request.split(), "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(openssl, check=True, capture_output=True)
    with gunicorn(
        "wsgi:app",
        directory,
        workers=1,
        CHATAPP_TRUSTED_HOPS="1",
        CHATAPP_TRUSTED_HOSTS=HOST,
        **provider.variables,
        **SIGN_ON,
    ) as master:
        running = Proxy(free_port(), free_port(), certificate)
        recipe = (RECIPES / "nginx.conf").read_text()
        sign_on = (RECIPES / "nginx-sign-on.conf").read_text()
        assert "127.0.0.1:4180" in sign_on
        sign_on = sign_on.replace("127.0.0.1:4180", f"127.0.0.1:{signing_on}")
        (directory / "sign-on.conf").write_text(sign_on)
        for standard, here in {
            "listen 80;": f"listen 127.0.0.1:{running.http_port};",
            "listen 443 ssl;": f"listen 127.0.0.1:{running.https_port} ssl;",
            "listen [::]:80;": "",
            "listen [::]:443 ssl;": "",
            "server 127.0.0.1:8000;": f"server 127.0.0.1:{master.port};",
            "/etc/ssl/chatapp": str(directory),
            "# include /etc/nginx/chatapp-sign-on.conf": f"include {directory}/sign-on.conf",
        }.items():
            assert standard in recipe
            recipe = recipe.replace(standard, here)
        (directory / "nginx.conf").write_text(MAIN.format(recipe=recipe))
        command = [NGINX, "-p", f"{directory}/", "-e", "error.log", "-c", "nginx.conf"]
        checked = subprocess.run([*command, "-t"], capture_output=True, text=True, check=False)
        assert checked.returncode == 0, checked.stderr
        assert "[warn]" not in checked.stderr
        process = subprocess.Popen(command)
        try:
            eventually(running.is_serving)
            yield running
        finally:
            process.terminate()
            process.wait(60)


def test_a_stream_is_not_held_back(proxy: Proxy, provider: UpstreamServer) -> None:
    """The first word arrives before the second is generated."""
    pieces = openai_chunks()
    provider.script(Stream([*pieces[:2], Wait(), *pieces[2:]]))
    asked = {"message": "ping", "model": "gpt-5.4-mini", "stream": True}
    with closing(proxy.connection()) as connection:
        connection.request("POST", "/chat", json.dumps(asked), CONTENT)
        response = connection.getresponse()
        assert response.readline() == b"event: delta\n"
        assert provider.waiting.wait(60)
        provider.go_on()
        assert b"event: done" in response.read()


def test_the_address_is_the_clients(proxy: Proxy) -> None:
    """nginx appends it, so what a client claims to be has no effect: all calls count for one."""

    def remaining(number: int) -> int:
        asked = {"message": "ping", "model": "offline", "user_id": f"user-{number}"}
        status, headers, _ = proxy.post("/chat", asked, X_Forwarded_For=f"203.0.113.{number}")
        assert status == 200
        return int(*re.findall(r'"ip";r=(\d+)', headers["ratelimit"]))

    with ThreadPoolExecutor(8) as pool:
        assert min(pool.map(remaining, range(8))) < OF_A_NEW_ADDRESS


def test_what_is_too_large_is_said_by_chatapp(proxy: Proxy) -> None:
    """As JSON, not as nginx's page."""
    status, headers, body = proxy.post("/chat", {"message": "x" * 2_000_000})
    assert status == 413
    assert headers["content-type"] == "application/json"
    assert json.loads(body)["code"]


def test_http_is_redirected(proxy: Proxy) -> None:
    """To the same path by https, with the method kept."""
    with closing(http.client.HTTPConnection("127.0.0.1", proxy.http_port)) as connection:
        connection.request("POST", "/chat?x=1", "{}", CONTENT)
        response = connection.getresponse()
        assert response.status == 308
        assert response.headers["Location"] == f"https://{HOST}/chat?x=1"


def test_the_page_arrives_compressed_and_a_stream_does_not(proxy: Proxy) -> None:
    """As chatapp sends them, with what a browser accepts."""
    asked = {"message": "ping", "model": "offline", "stream": True}
    accepts = {"Accept-Encoding": "gzip, br"}
    for method, path, body, encoding in (
        ("GET", "/", None, "gzip"),
        ("GET", "/static/chat.js", None, "gzip"),
        ("GET", "/healthz", None, None),
        ("POST", "/chat", json.dumps(asked), None),
    ):
        with closing(proxy.connection()) as connection:
            connection.request(method, path, body, {**CONTENT, **accepts})
            response = connection.getresponse()
            assert response.status == 200
            assert response.headers["Content-Encoding"] == encoding
            response.read()


def test_operators_sign_on_at_oauth2_proxy(proxy: Proxy) -> None:
    """Who is not signed in gets its page. The header is oauth2-proxy's, whatever a client sends,
    and is in the log of changes; its scopes count, too."""

    def ask(path: str, who: str = "", form: dict[str, str] | None = None) -> tuple[int, str]:
        headers = {"Host": HOST, "X-Auth-Request-Email": "olga@example.com"}
        headers |= {"Cookie": f"session={who}"} if who else {}
        body = None if form is None else urlencode(form)
        if body is not None:
            headers["Content-Type"] = "application/x-www-form-urlencoded"
        with closing(proxy.connection("127.0.0.2")) as connection:
            connection.request("GET" if form is None else "POST", path, body, headers)
            response = connection.getresponse()
            return response.status, response.read().decode()

    for path in ("/admin", "/admin/users", "//admin/users", "/%61dmin/users", "/x/../admin/users"):
        assert ask(path) == (403, "Sign in with Example"), path
    status, page = ask("/admin/users", "olga@example.com")
    assert (status, "/admin/act/put_team" in page) == (200, True)
    [token] = set(re.findall(r'name="form_token" value="(\w+)"', page))
    form = {"form_token": token, "verb": "create", "team": "research", "reason": "new"}
    assert ask("/admin/act/put_team", "olga@example.com", form)[0] == 303
    assert "olga@example.com (single sign-on)" in ask("/admin/changes", "olga@example.com")[1]
    status, page = ask("/admin/users", "eve@example.com")
    assert (status, "/admin/act/put_team" in page) == (200, False)
    assert ask("/admin/act/put_team", "eve@example.com", form)[0] == 403
    status, page = ask("/admin/users", "someone@other.example")
    assert (status, "CHATAPP_ADMIN_TOKEN" in page or "token" in page) == (401, True)


def test_the_management_api_takes_keys_through_the_proxy(proxy: Proxy) -> None:
    """Without a sign-on; and a header of the client's, or a session, opens nothing there."""
    named = {"Host": HOST, "X-Auth-Request-Email": "olga@example.com"}
    token = {"Authorization": f"Bearer {SIGN_ON['CHATAPP_ADMIN_TOKEN']}"}
    for headers, status in (
        *((named, 401), ({**named, "Cookie": "session=olga@example.com"}, 401)),
        ({**named, **token}, 200),
    ):
        with closing(proxy.connection("127.0.0.3")) as connection:
            connection.request("GET", "/admin/api/v1/users", headers=headers)
            response = connection.getresponse()
            assert response.status == status
            assert "json" in response.headers["Content-Type"]
            response.read()
