"""What went wrong, in the words of all providers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from chatapp.providers import ErrorKind, ProviderError
from chatapp.providers.anthropic.quotas import quotas
from chatapp.redaction import without_key
from chatapp.retry_after import retry_after_s
from chatapp.upstream_response import passed_headers, unread

if TYPE_CHECKING:
    import anthropic
    import httpx2

NAME: Final = "anthropic"
REQUEST_ID: Final = "request-id"
KINDS: Final[dict[int, ErrorKind]] = {
    401: "auth",
    402: "quota",
    403: "auth",
    404: "unknown_model",
    408: "timeout",
    429: "rate_limited",
    503: "overloaded",
    504: "timeout",
    529: "overloaded",
}


@contextmanager
def told() -> Iterator[None]:
    """Turn the SDK's errors, and those of reading an answer, into ProviderError."""
    import anthropic  # noqa: PLC0415
    import httpx2  # noqa: PLC0415

    try:
        yield
    except anthropic.APITimeoutError as error:
        # Where there was no connection, nobody has read the prompt, and it may be asked again.
        late = not isinstance(error.__cause__, httpx2.ConnectTimeout)
        kind: ErrorKind = "timeout" if late else "unavailable"
        raise ProviderError(NAME, kind, message=error.message) from error
    except anthropic.APIStatusError as error:
        raise _refusal(error) from error
    except anthropic.AnthropicError as error:
        raise ProviderError(NAME, "unavailable", message=str(error)) from error
    except httpx2.HTTPError as error:
        raise _unread(error) from error
    except (ValueError, RecursionError) as error:  # a body that is not what it claims to be
        raise ProviderError(NAME, "malformed", message=str(error), status=200) from error


def says_spend_cap(error_code: str | None) -> bool:
    """Whether an error that may look like a rate limit is a cap that no waiting mends."""
    return "spend_limit_reached" in (error_code or "")


def _unread(error: httpx2.HTTPError) -> ProviderError:
    """The refusal of a stream of which no more than status and headers could be read."""
    response = unread(error)
    if response is None:
        return ProviderError(NAME, "timeout", message=str(error))  # what was billed nobody knows
    return ProviderError(
        NAME,
        KINDS.get(response.status_code, "unavailable"),
        message=str(error),
        status=response.status_code,
        retry_after_s=retry_after_s(response.headers),
        quotas=quotas(response.headers),
        request_id=passed_headers(response, (REQUEST_ID,)).get(REQUEST_ID),
    )


def _refusal(error: anthropic.APIStatusError) -> ProviderError:
    kind = KINDS.get(error.status_code)
    if error.type == "billing_error" or says_spend_cap(error.error_code):
        kind = "quota"
    elif error.type == "overloaded_error":
        kind = "overloaded"
    if kind is None:
        elsewhere = error.status_code < 400 or error.status_code >= 500  # a redirect is no answer
        kind = "unavailable" if elsewhere else "bad_request"
    sent = error.request.headers
    return ProviderError(
        NAME,
        kind,
        message=without_key(error.message, sent),
        status=error.status_code,
        retry_after_s=retry_after_s(error.response.headers),
        raw=without_key(error.response.text, sent).encode(),
        quotas=quotas(error.response.headers),
        request_id=passed_headers(error.response, (REQUEST_ID,)).get(REQUEST_ID),
    )
