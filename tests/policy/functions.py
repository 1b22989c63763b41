"""Functions that policies in tests name."""

from __future__ import annotations

NOT_A_FUNCTION = 1


def tenant() -> str:
    return "tenant-1"


def takes_response(response: object) -> bool:
    return response is not None


async def asynchronous() -> str:
    return "late"


class Keys:
    @staticmethod
    def project() -> str:
        return "project-1"
