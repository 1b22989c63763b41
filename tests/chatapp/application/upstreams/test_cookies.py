"""A provider's cookies are dropped, because one HTTP client serves every caller."""

import pytest

from tests.chatapp.application.bad_input.test_bad_input import ANTHROPIC_PATH, BODIES, PATHS
from tests.chatapp.conftest import AppMaker
from tests.chatapp.upstream_server import Answer, UpstreamServer, success

COOKIES = ["session=ada; Path=/", "caf\u00e9=\u00fc; Path=/", "a=b; Domain=127.0.0.1; Max-Age=9"]


@pytest.mark.parametrize("status", [200, 400])
@pytest.mark.parametrize("cookie", COOKIES)
@pytest.mark.parametrize("path", PATHS)
def test_a_cookie_is_not_sent_with_the_next_call(
    provider: UpstreamServer, make_app: AppMaker, path: str, cookie: str, status: int
) -> None:
    """A cookie that is not ASCII does not break later calls."""
    client = make_app(CHATAPP_PROVIDER_ATTEMPTS=1).test_client()
    asked = "/v1/messages" if path == ANTHROPIC_PATH else "/v1/chat/completions"
    plain = success(asked, BODIES[path])
    assert isinstance(plain, Answer)
    provider.script(Answer(status, plain.body, {"Set-Cookie": cookie}))
    client.post(path, json=BODIES[path])
    assert client.post(path, json=BODIES[path]).status_code == 200
    assert len(provider.calls) == 2
    assert "cookie" not in provider.calls[1].headers
