"""The providers that answer requests, behind one protocol. They know neither Flask nor limits."""

from __future__ import annotations

from chatapp.providers.protocol import (
    AnswerStream,
    Completion,
    ErrorKind,
    Extras,
    FinishReason,
    Forwarder,
    Message,
    Part,
    Progress,
    Prompt,
    Provider,
    ProviderError,
    Quota,
    QuotaUnit,
    RawAnswer,
    RawRequest,
    Role,
    Timeouts,
    TokenCounter,
    Usage,
)

__all__ = [
    "AnswerStream",
    "Completion",
    "ErrorKind",
    "Extras",
    "FinishReason",
    "Forwarder",
    "Message",
    "Part",
    "Progress",
    "Prompt",
    "Provider",
    "ProviderError",
    "Quota",
    "QuotaUnit",
    "RawAnswer",
    "RawRequest",
    "Role",
    "Timeouts",
    "TokenCounter",
    "Usage",
]
