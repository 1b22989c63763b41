"""Settings: typed, checked at the start, and never silently ignored."""

import json
import logging

import pytest

from chatapp import settings
from chatapp.settings import Settings, SettingsError


def read(**environment: str) -> Settings:
    return settings.from_config(settings.from_environment(environment))


def test_the_defaults_trust_no_proxy() -> None:
    """Without settings no proxy is trusted, and no user has a special plan."""
    assert read() == Settings()
    assert read().trusted_hops == 0
    assert read().plans == {}


def test_every_setting_can_come_from_the_environment() -> None:
    """Strings become the type of the setting."""
    assert read(
        CHATAPP_DEFAULT_MODEL="gpt-4o",
        CHATAPP_PLANS='{"alice": "pro"}',
        CHATAPP_TRUSTED_HOPS="2",
        CHATAPP_TRUSTED_HOSTS="Chat.example, .b.example,",
        CHATAPP_MAX_TOKENS="100",
        CHATAPP_PROVIDER_CONNECT_TIMEOUT_S="1.5",
        CHATAPP_PROVIDER_TIMEOUT_S="30",
    ) == Settings(
        default_model="gpt-4o",
        plans={"alice": "pro"},
        trusted_hops=2,
        trusted_hosts=("chat.example", ".b.example"),
        max_tokens=100,
        provider_connect_timeout_s=1.5,
        provider_timeout_s=30.0,
    )


def test_an_empty_variable_is_not_set() -> None:
    """`CHATAPP_TRUSTED_HOPS=` in a compose file means the default."""
    assert read(CHATAPP_TRUSTED_HOPS="", RATELIMIT_STORAGE_URI=" ") == Settings()
    assert settings.from_environment({"RATELIMIT_STORAGE_URI": ""}) == {}


def test_the_database_has_two_names() -> None:
    """DATABASE_URL counts; CHATAPP_DATABASE_URL takes precedence."""
    assert read().database_url is None
    assert read(DATABASE_URL="sqlite:////a").database_url == "sqlite:////a"
    both = read(DATABASE_URL="sqlite:////a", CHATAPP_DATABASE_URL="sqlite:////b")
    assert both.database_url == "sqlite:////b"
    assert read(DATABASE_URL=" ").database_url is None


SIGNING = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
LOCAL = "http://127.0.0.1:9000/a-secret-path"
URL, SECRET = "CHATAPP_ALERT_WEBHOOK_URL", "CHATAPP_ALERT_WEBHOOK_SECRET"


@pytest.mark.parametrize(
    ("url", "secret", "says"),
    [
        ("http://hooks.example/a-secret-path", SIGNING, "found scheme 'http' and host 'hooks.ex"),
        ("hooks.example/a-secret-path", SIGNING, "found scheme '' and host ''"),
        ("https:///a-secret-path", SIGNING, "found scheme 'https' and host ''"),
        ("https://hooks.example:x/a-secret-path", SIGNING, "found scheme '' and host ''"),
        ("https://hooks.example/\na-secret-path", SIGNING, "allowed: a URL that begins with"),
        ("ftp://127.0.0.1/a-secret-path", SIGNING, "allowed: a URL that begins with https://"),
        (None, SIGNING, "found nothing; allowed: a URL"),
        (LOCAL, None, "found nothing; allowed: whsec_ and 24 to 64 bytes in base64"),
        (LOCAL, "whsec_c2hvcnQ=", "found a text of length 14 in another form; allowed: whsec_"),
        (LOCAL, SIGNING.partition("_")[2], "found a text of length 32 in another form"),
        (LOCAL, f"{SIGNING}!", "found a text of length 39 in another form"),
    ],
)
def test_a_webhook_needs_a_safe_url_and_a_secret(
    url: str | None, secret: str | None, says: str
) -> None:
    """Both or neither. No message quotes them: the path of the URL may be a secret, too."""
    given = {name: value for name, value in ((URL, url), (SECRET, secret)) if value is not None}
    with pytest.raises(SettingsError) as caught:
        read(**given)
    said = str(caught.value)
    assert says in said
    assert said.startswith(SECRET if url == LOCAL else URL)
    assert "secret-path" not in said
    assert secret is None or secret not in said


@pytest.mark.parametrize(
    "url", [LOCAL, "http://[::1]/x", "http://localhost/x", "https://hooks.example/a-secret-path"]
)
def test_a_webhook_may_be_https_or_on_this_machine(url: str) -> None:
    """The settings show neither the URL nor the secret."""
    found = read(**{URL: url, SECRET: SIGNING})
    assert found.alert_webhook_url == url
    assert "alert_webhook" not in repr(found)


@pytest.mark.parametrize(
    ("text", "at"),
    [("90", (90,)), ("80, 50,100,50", (50, 80, 100)), ("off", ()), (" Off ", ()), ("0", ())],
)
def test_thresholds_are_a_list(text: str, at: tuple[int, ...]) -> None:
    """In order; `off` or 0 for none."""
    assert read(CHATAPP_ALERT_AT=text).alert_at == at
    assert settings.from_config({"CHATAPP_ALERT_AT": at}).alert_at == at
    assert read(CHATAPP_ALERT_AT="").alert_at == (50, 80, 100)


def test_every_mistake_is_reported() -> None:
    """One line each, so that one start finds them all."""
    with pytest.raises(SettingsError) as caught:
        read(CHATAPP_MAX_TOKENS="0", CHATAPP_PLANS='{"a": 1, "b": 2}')
    lines = str(caught.value).splitlines()
    assert [line.partition(":")[0] for line in lines] == ["CHATAPP_PLANS", "CHATAPP_MAX_TOKENS"]


def test_the_limiter_gets_its_variables_with_their_types() -> None:
    """`false` in the environment is false, not a true string."""
    assert settings.from_environment(
        {
            "RATELIMIT_ENABLED": "False",
            "RATELIMIT_HEADERS_ENABLED": "1",
            "RATELIMIT_STORAGE_URI": "redis://localhost",
            "RATELIMIT_STORAGE_OPTIONS": '{"socket_timeout": 1}',
            "RATELIMIT_LEASE_SECONDS": "90",
            "RATELIMIT_APPLICATION_COST": "2",
            "PATH": "/bin",
        }
    ) == {
        "RATELIMIT_ENABLED": False,
        "RATELIMIT_HEADERS_ENABLED": True,
        "RATELIMIT_STORAGE_URI": "redis://localhost",
        "RATELIMIT_STORAGE_OPTIONS": {"socket_timeout": 1},
        "RATELIMIT_LEASE_SECONDS": 90.0,
        "RATELIMIT_APPLICATION_COST": 2,
    }


def test_a_misspelt_setting_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """A typo in CHATAPP_TRUSTED_HOPS is found before an attack."""
    with caplog.at_level(logging.WARNING):
        settings.from_environment({"CHATAPP_TRUSTED_HOP": "1"})
        settings.from_environment({"GUNICORN_THREAD": "9", "GUNICORN_HOST": "::"})
    assert "did you mean CHATAPP_TRUSTED_HOPS?" in caplog.text
    assert "GUNICORN_THREAD: did you mean GUNICORN_THREADS?" in caplog.text
    assert "GUNICORN_HOST:" not in caplog.text
    caplog.clear()
    settings.from_environment({"CHATAPP_FOO": "1"})
    assert "did you mean" not in caplog.text  # the prefix alone is no likeness


ODD = ("1", "-1", "[]", "null,", "x\ny", "é\U0001f600", "9" * 400, "1e400,", "a" * 5000 + ",")
SIGN_ON = {
    "CHATAPP_ADMIN_TOKEN": "t" * 20,
    "CHATAPP_ADMIN_SIGN_ON_HEADER": "X-User",
    "CHATAPP_ADMIN_SIGN_ON_FROM": "10.0.0.5",
    "CHATAPP_ADMIN_SIGN_ON": '{"*": "read"}',
}


@pytest.mark.parametrize("found", ODD, ids=range(len(ODD)))
@pytest.mark.parametrize(
    ("name", "allowed"),
    [
        ("ADMIN_SIGN_ON_HEADER", "a string (name of the header, with letters, digits and `-`, "),
        ("ADMIN_SIGN_ON_FROM", "a list, separated by commas (addresses or networks of that proxy"),
        ("ADMIN_SIGN_ON", "a JSON object of strings (who may do what then, as "),
        ("OPEN_TOOLS", "a list, separated by commas (`mcp`, `web_fetch`: tools"),
        ("FALLBACK_MODELS", "a JSON object of strings (model to use when another is"),
    ],
)
def test_an_odd_value_is_refused_with_what_is_allowed(name: str, allowed: str, found: str) -> None:
    """A long one is not repeated. Nothing odd is taken for the default."""
    with pytest.raises(SettingsError) as caught:
        read(**{**SIGN_ON, f"CHATAPP_{name}": found})
    shown = repr(found) if len(found) <= 300 else f"a text of length {len(found)}"
    assert str(caught.value).startswith(f"CHATAPP_{name}: found {shown}; allowed: {allowed}")


@pytest.mark.parametrize("rights", ["root", "all root", "ALL", "team", "read,users"])
def test_an_unknown_right_is_refused_with_all_rights(rights: str) -> None:
    """Also beside known ones."""
    with pytest.raises(SettingsError, match=", ".join(settings.SCOPES)):
        read(**{**SIGN_ON, "CHATAPP_ADMIN_SIGN_ON": json.dumps({"*": rights})})
