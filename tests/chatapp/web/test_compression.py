"""What is compressed, and what is not."""

import gzip

from flask.testing import FlaskClient

from tests.chatapp.conftest import AppMaker
from tests.chatapp.web.test_middleware import ASKED, CHAT, HEADERS, V1

GZIP = {"Accept-Encoding": "br;q=1, gzip;q=0.8"}


def test_the_page_and_its_files_are_compressed(client: FlaskClient) -> None:
    """For clients that take it, with the same content; caches between learn of both forms."""
    for path in ("/", "/static/chat.js", "/static/theme.css", "/static/vendor/marked.esm.js"):
        plain, small = client.get(path), client.get(path, headers=GZIP)
        assert gzip.decompress(small.data) == plain.data
        assert len(small.data) < len(plain.data) / 2
        assert small.headers["Content-Encoding"] == "gzip"
        assert "Content-Encoding" not in plain.headers
        assert int(small.headers["Content-Length"]) == len(small.data)
        assert {"Accept-Encoding"} <= {*small.vary} & {*plain.vary}
        refused = client.get(path, headers={"Accept-Encoding": "gzip;q=0, identity"})
        assert refused.data == plain.data


def test_a_file_that_a_browser_has_is_not_sent_again(client: FlaskClient) -> None:
    """Neither form of it; a part of a file is a part of its bytes."""
    for headers in (GZIP, {}):
        first = client.get("/static/chat.js", headers=headers)
        assert first.headers["ETag"].startswith("W/")  # both forms have it
        known = {**headers, "If-None-Match": first.headers["ETag"]}
        again = client.get("/static/chat.js", headers=known)
        assert (again.status_code, again.data) == (304, b"")
        assert again.headers["ETag"] == first.headers["ETag"]
        assert "Accept-Encoding" in again.vary
    part = client.get("/static/chat.js", headers={**GZIP, "Range": "bytes=0-9"})
    assert (part.status_code, part.data) == (206, client.get("/static/chat.js").data[:10])
    head = client.head("/static/chat.js", headers=GZIP)
    assert (head.status_code, head.data) == (200, b"")


def test_nothing_else_is_compressed(make_app: AppMaker) -> None:
    """Neither a stream nor an answer, and no page that has a secret beside what a link chooses."""
    client = make_app(CHATAPP_ADMIN_TOKEN="a token of some length").test_client()
    assert client.post("/admin/login", data={"token": "a token of some length"}).status_code == 303
    answers = [client.get(path, headers=GZIP) for path in ("/admin/users?q=x", "/openapi.json")]
    for path in HEADERS:
        body = ASKED if path == CHAT else V1
        for stream in (False, True):
            with client.post(path, json={**body, "stream": stream}, headers=GZIP) as answer:
                answer.get_data()
            answers.append(answer)
    assert [each.status_code for each in answers] == [200] * len(answers)
    assert [each for each in answers if "Content-Encoding" in each.headers] == []
