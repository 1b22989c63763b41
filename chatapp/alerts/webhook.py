"""The webhook of alerts: signed as Standard Webhooks says, and sent again until it has arrived.

https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import logging
import time
from collections.abc import Mapping
from typing import Final, NamedTuple
from urllib.parse import urlsplit

from chatapp.alerts.alert import Alert
from chatapp.background import BackgroundSender, Patience

log = logging.getLogger(__name__)

TIMEOUT_S: Final = 5.0
#: Statuses below 500 that may pass.
RETRYABLE: Final = (408, 429)
LONGEST_RETRY_AFTER_S: Final = 300
#: What is quoted of an answer.
SHOWN_BYTES: Final = 200
MOST_WAITING: Final = 1_000
PATIENCE: Final = Patience(first_s=1.0, longest_s=60.0, whole_s=3600.0)


class Answer(NamedTuple):
    """What a receiver answered: its status, the beginning of the body, and its Retry-After."""

    status: int
    text: str
    retry_after_s: int

    @property
    def has_arrived(self) -> bool:
        return 200 <= self.status < 300


class UnreachableError(Exception):
    """There was no answer; the message says why, without the URL."""


class Webhook:
    """A receiver of alerts. Its URL may be a secret, as Slack's are: only ``host`` is logged."""

    def __init__(self, url: str, key: bytes) -> None:
        self._url = url
        self._key = key
        self.host = urlsplit(url).hostname or ""

    def __repr__(self) -> str:
        return f"Webhook({self.host!r})"

    def post(self, alert: Alert) -> Answer:
        """Send the alert once. Raises UnreachableError."""
        import httpx2  # noqa: PLC0415 - takes long to load, and only senders need it

        body, sent_at = alert.body(), int(time.time())
        headers = {
            "content-type": "application/json",
            "user-agent": "chatapp-alerts",
            "webhook-id": alert.id,
            "webhook-timestamp": str(sent_at),
            "webhook-signature": signature(self._key, alert.id, sent_at, body),
        }
        # No redirect, and no proxy or .netrc of the environment: alerts go where the setting says.
        client = httpx2.Client(timeout=TIMEOUT_S, follow_redirects=False, trust_env=False)
        try:
            with client, client.stream("POST", self._url, content=body, headers=headers) as answer:
                wait, text = answer.headers.get("retry-after", ""), b""
                if not answer.is_success:
                    with contextlib.suppress(httpx2.HTTPError):  # the status is known
                        text = next(answer.iter_bytes(SHOWN_BYTES), b"")
                wait_s = int(wait) if wait.isascii() and wait.isdigit() else 0
                wait_s = min(wait_s, LONGEST_RETRY_AFTER_S)
                return Answer(answer.status_code, text.decode(errors="replace"), wait_s)
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError) as error:
            reason = str(error) or type(error).__name__
            raise UnreachableError(reason.replace(self._url, self.host)) from error


class Deliveries:
    """The alerts of one process on their way to the receiver, from a thread of its own.

    One that cannot be delivered goes to the log with its content, at ERROR.
    """

    def __init__(self, webhook: Webhook, *, patience: Patience = PATIENCE) -> None:
        self._webhook = webhook
        self._not_before = 0.0
        self._is_down = False
        self._sender: BackgroundSender[str, Alert] = BackgroundSender(
            "alert-webhook",
            self._send,
            merge=lambda alert, _same: alert,
            lose=self._lose,
            batch=1,
            most=MOST_WAITING,
            linger_s=0.0,
            patience=patience,
        )
        self.flush, self.close = self._sender.flush, self._sender.close

    def put(self, alert: Alert) -> None:
        """Have it sent soon. Never waits."""
        self._sender.put(alert.id, alert)

    def _send(self, batch: Mapping[str, Alert]) -> bool:
        """Send one alert; False to have it sent again."""
        (alert,) = batch.values()
        if time.monotonic() < self._not_before:
            return False
        try:
            answer = self._webhook.post(alert)
        except UnreachableError as error:
            return self._failed(str(error))
        self._not_before = time.monotonic() + answer.retry_after_s
        if answer.status in RETRYABLE or answer.status >= 500:
            return self._failed(f"answered {answer.status}")
        self._is_down = False
        if not answer.has_arrived:
            log.error(
                "The alerts' webhook at %s refused an alert with %d (%s); it is only here: %s",
                *(self._webhook.host, answer.status, ascii(answer.text), alert.body()),
            )
        return True

    def _failed(self, reason: str) -> bool:
        """Log the first of several failures."""
        if not self._is_down:
            log.warning("The alerts' webhook at %s fails: %s", self._webhook.host, reason)
        self._is_down = True
        return False

    def _lose(self, _id: str, alert: Alert) -> None:
        log.error(
            "The alerts' webhook at %s did not accept an alert in time; it is only here: %s",
            *(self._webhook.host, alert.body()),
        )


def signature(key: bytes, id_: str, sent_at: int, body: str) -> str:
    digest = hmac.digest(key, f"{id_}.{sent_at}.{body}".encode(), hashlib.sha256)
    return f"v1,{base64.b64encode(digest).decode()}"
