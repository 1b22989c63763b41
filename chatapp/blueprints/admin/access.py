"""Who may use /admin: the login, the session of each request, the headers and the errors."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from inspect import unwrap
from ipaddress import ip_address
from typing import Final, cast
from urllib.parse import urlencode

from flask import Blueprint, Response, current_app, g, redirect, render_template, request, url_for
from flask.typing import ResponseReturnValue
from werkzeug.exceptions import HTTPException, NotFound

from chatapp.blueprints.admin.session import PATH, Session, Sessions, sessions_with
from chatapp.blueprints.page import CONTENT_SECURITY_POLICY
from chatapp.operators import arguments, errors
from chatapp.operators.errors import REPORTED, operator_error
from chatapp.operators.rights import operator_named, operator_with
from chatapp.services import current_services
from chatapp.settings import SCOPES, Scope
from chatapp.web.errors import ApiError
from chatapp.web.middleware import begins_with
from ratelimit_ext import OperatorError, client_ip

log = logging.getLogger(__name__)

#: Registered only if there is a token.
bp = Blueprint("admin", __name__, url_prefix=PATH)

HEADERS: Final = {
    # The page's policy, but forms are sent to this server.
    "Content-Security-Policy": CONTENT_SECURITY_POLICY.replace(
        "form-action 'none'", "form-action 'self'"
    ),
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
}
#: Browsers mark a form that another site, or another host of the domain, has sent. It could log an
#: operator in with its author's key.
OTHER_SITES: Final = frozenset({"cross-site", "same-site"})
#: The argument that names the table to download.
CSV: Final = "csv"
#: Who may use an endpoint: one of these scopes, and whether a team's administrator may.
RIGHTS: Final[dict[str, tuple[tuple[Scope, ...], bool]]] = {
    **dict.fromkeys(
        ("admin.spending", "admin.user", "admin.team", "admin.call"), (("read",), True)
    ),
    **dict.fromkeys(("admin.logout", "admin.login_address"), (SCOPES, True)),
}
VIEW: Final[tuple[tuple[Scope, ...], bool]] = (("read",), False)
#: Every 401 has a scheme. The standard has no scheme for forms.
SCHEME: Final = {"WWW-Authenticate": 'Form realm="admin"'}


def sessions() -> Sessions:
    token = current_services().settings.admin_token
    assert token is not None
    return sessions_with(token)


@bp.before_request
def check() -> ResponseReturnValue | None:
    """Return the session, and for changes the token of its forms."""
    if not begins_with(request.path):
        raise NotFound
    if request.endpoint == "admin.login":
        return None
    session = signed_on() or sessions().current()
    if session is None:
        wanted = f"{request.path}?{request.query_string.decode('utf-8', 'replace')}"
        return login_page(wanted if request.method == "GET" else "")
    if request.method == "POST" and not session.accepts(request.form.get("form_token", "")):
        raise ApiError(
            403, "invalid_form", "This form is out of date. Reload its page, and send it again."
        )
    g.admin = session
    if not may(request.endpoint or ""):
        scopes, of_team = RIGHTS.get(request.endpoint or "", VIEW)
        session.operator.check(scopes[0], of_team=of_team)
    return None


def signed_on() -> Session | None:
    """Return the session of the operator whom a trusted proxy names in its header. None for other
    connections, for a header that was sent twice, and for a person without rights."""
    settings = current_services().settings
    header = settings.admin_sign_on_header
    identity = request.headers.get(header, "").strip() if header else ""
    if not identity or "," in identity:
        return None
    # The peer of the connection, whom no header can change.
    before = request.environ.get("werkzeug.proxy_fix.orig", request.environ)
    try:
        peer = ip_address(before.get("REMOTE_ADDR") or "")
    except ValueError:
        return None
    # A server that listens on [::] names an IPv4 peer ::ffff:10.0.0.1; either may be configured.
    names = {peer, getattr(peer, "ipv4_mapped", None) or peer}
    if not any(peer in network for peer in names for network in settings.admin_sign_on_from):
        return None
    operator = operator_named(identity)
    return None if operator is None else sessions().of(operator)


def may(endpoint: str) -> bool:
    """Return whether the operator may see that view, or make that change."""
    scopes, of_team = RIGHTS.get(endpoint, VIEW)
    return any(g.admin.operator.may(scope, of_team=of_team) for scope in scopes)


@bp.after_request
def add_headers(response: Response) -> Response:
    response.headers.update(HEADERS)
    return response


@bp.context_processor
def of_session() -> dict[str, object]:
    """Return the token of forms, and the sentence about the last change."""
    session: Session | None = g.get("admin")
    return {
        "form_token": session and session.form_token,
        "done": sessions().sentence(query("done")),
        "may": may,
        "back": address("done"),
        "operator": session and session.operator,
        "failure": g.get("failure", {}),
    }


@bp.errorhandler(HTTPException)
def refuse(error: HTTPException) -> ResponseReturnValue:
    """Return an error as a page, with its status and its headers."""
    response = cast(Response, error.get_response())
    if response.status_code >= 400:
        # The message of a 429 states how long to wait.
        sentence = getattr(error, "message", "") or error.description or response.status
        response.set_data(render_template("admin/problem.html", sentence=sentence))
        response.content_type = "text/html; charset=utf-8"
    return response


def unrouted(error: HTTPException) -> Response | None:
    """Return a page about an address below this one's that it does not have; None for others."""
    if not request.path.startswith(f"{PATH}/"):
        return None
    return add_headers(cast(Response, refuse(error)))


def report(cause: OperatorError) -> ResponseReturnValue:
    """Return what a command would print; a 503 if no operator caused it."""
    status = 503 if cause.code in errors.DOWN else 403 if cause.code == "forbidden" else 400
    page = form_again(cause) if status == 400 and request.endpoint == "admin.act" else ""
    return page or render_template("admin/problem.html", sentence=str(cause)), status


def form_again(error: OperatorError) -> str:
    """Return the page of the form that was sent, with what was written, and the mistake beside its
    field; empty if the page has no such form any more."""
    kind, _, word = error.code.partition("_")
    guesses = [word, "name"] if kind == "unknown" else [word]
    field = getattr(error, "field", next((w for w in guesses if w in request.form), ""))
    written, sentence = request.form.to_dict(flat=False), str(error).removeprefix(f"{field}: ")
    failure = {"act": request.path.rpartition("/")[2], "field": field, "sentence": sentence}
    session, back = g.admin, own_address(request.form.get("back", ""))
    again, page = current_app.test_request_context(back, base_url=request.host_url), ""
    with again, suppress(HTTPException, *REPORTED):
        g.admin, g.failure = session, {**failure, "written": written}
        if (endpoint := request.endpoint or "").startswith(f"{bp.name}.") and may(endpoint):
            page = str(unwrap(current_app.view_functions[endpoint])())
    return page if 'id="form-problem"' in page else ""


@contextmanager
def reported() -> Iterator[list[str]]:
    """Collect what a command would print, for a view that shows the rest. A download fails."""
    problems: list[str] = []
    try:
        yield problems
    except REPORTED as error:
        if query(CSV) or getattr(error, "code", "") == "forbidden":
            raise
        problems.append(str(operator_error(error)))


errors.install(bp, report)


@bp.post("/login")
def login() -> ResponseReturnValue:
    """Begin a session. A wrong token counts against the address, like every request."""
    if request.headers.get("Sec-Fetch-Site") in OTHER_SITES:
        raise ApiError(403, "other_site", "Another site has sent this form. Log in at /admin.")
    next_ = request.form.get("next", "")
    operator = operator_with(request.form.get("token", ""))
    if operator is None:
        log.warning("A wrong token for /admin from %s", client_ip())
        return login_page(next_, problem="That token or key is not valid.")
    name = request.form.get("name", "").strip()
    name = name and arguments.name(name, most=arguments.OPERATOR)
    response = cast(Response, redirect(own_address(next_), 303))
    sessions().begin(response, name=name, key_id=operator.key_id)
    who = operator.by if operator.key_id else name or "no name"
    log.warning("%s signed in to /admin from %s", who, client_ip())
    return response


@bp.get("/")
@bp.get("/login")
def login_address() -> ResponseReturnValue:
    """Return where a browser is after a wrong token, if its user loads the address again."""
    return redirect(url_for("admin.spending"), 303)


@bp.post("/logout")
def logout() -> ResponseReturnValue:
    response = cast(Response, redirect(url_for("admin.spending"), 303))
    sessions().end(response)
    return response


def address(*without: str, **more: str) -> str:
    """Return the address of this page, without these words of its query and with more."""
    words: list[tuple[str, str]] = []
    with suppress(UnicodeDecodeError):
        words = [(name, text) for name, text in request.args.items() if name not in without]
    words += more.items()
    return f"{request.path}?{urlencode(words)}" if words else request.path


def own_address(text: str) -> str:
    """Return an address of these pages; the first page's for any other text, because neither a
    login nor a form may lead elsewhere."""
    is_own = text.startswith((f"{PATH}?", f"{PATH}/")) and text.isprintable()
    return text if is_own else url_for("admin.spending")


def query(name: str, default: str = "") -> str:
    """Return the value in the query; the default without one, and for a query that is not UTF-8."""
    try:
        return request.args.get(name, default)
    except UnicodeDecodeError:
        return default


def login_page(next_: str, *, problem: str = "") -> ResponseReturnValue:
    """Return the form that asks for the token, and then leads to the address."""
    return render_template("admin/login.html", next=next_, problem=problem), 401, SCHEME
