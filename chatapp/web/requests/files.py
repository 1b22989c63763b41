"""The files of a message to POST /chat: images and PDF files, as data URLs."""

from __future__ import annotations

import binascii
import re
from typing import Annotated, Final

from pydantic import AfterValidator, BaseModel, ConfigDict, FailFast, Field
from pydantic_core import PydanticCustomError

from chatapp.upstreams import File

#: Anthropic takes 5 MB of base64 for an image.
FILE_MAX_BYTES: Final = 3_750_000
#: In all messages of a conversation together.
FILES_MOST: Final = 20
NAME_MAX_CHARACTERS: Final = 200
#: What files of these types begin with. A PDF file may have something before it.
BEGINNINGS: Final = {
    "image/png": re.compile(rb"\x89PNG\r\n\x1a\n.{4}IHDR", re.DOTALL),
    "image/jpeg": re.compile(rb"\xff\xd8\xff"),
    "image/gif": re.compile(rb"GIF8[79]a"),
    "image/webp": re.compile(rb"RIFF.{4}WEBP", re.DOTALL),
    "application/pdf": re.compile(rb".{0,1000}?%PDF-", re.DOTALL),
}
TYPES: Final = ", ".join(BEGINNINGS)
TOO_LARGE: Final = "file_too_large"
DATA_URL: Final = re.compile(r"data:([a-z0-9.+/-]{1,100});base64,", re.IGNORECASE)


def _data(url: str) -> str:
    match = DATA_URL.match(url)
    if match is None:
        raise ValueError(
            f'is not a data URL; send "data:TYPE;base64,…" with one of the types {TYPES}'
        )
    media_type = match[1].lower()
    if media_type not in BEGINNINGS:
        raise ValueError(f"has the type {media_type}; allowed: {TYPES}")
    size = (len(url) - match.end()) * 3 // 4
    if size > FILE_MAX_BYTES:
        raise PydanticCustomError(
            TOO_LARGE,
            "has {size} bytes (at most {most}): send a smaller file",
            {"size": size, "most": FILE_MAX_BYTES},
        )
    try:
        content = binascii.a2b_base64(url[match.end() :], strict_mode=True)
    except ValueError:  # also for a text that is not ASCII
        raise ValueError("is not valid base64; encode the file again") from None
    if not BEGINNINGS[media_type].match(content):
        raise ValueError(f"does not begin like a file of the type {media_type}; send its real type")
    return url


def _name(name: str) -> str:
    if len(name) > NAME_MAX_CHARACTERS or not name.isprintable() or not name.strip():
        raise ValueError(
            f"is blank, not printable or has more than {NAME_MAX_CHARACTERS} characters; send a "
            "plain name"
        )
    return name


class SentFile(BaseModel):
    """An image or a PDF file, as a data URL in base64."""

    model_config = ConfigDict(strict=True, extra="forbid")

    data: Annotated[
        str,
        AfterValidator(_data),
        Field(description=f"data:TYPE;base64,…; one of {TYPES}; at most {FILE_MAX_BYTES} bytes."),
    ]
    name: Annotated[str, AfterValidator(_name)] | None = None

    @property
    def file(self) -> File:
        head, _, data = self.data.partition(",")
        media_type = head[len("data:") : -len(";base64")].lower()
        ending = media_type.rpartition("/")[2]
        return File(media_type, data, self.name or f"file.{ending}")


def files_of(sent: list[SentFile]) -> tuple[File, ...]:
    return tuple([part.file for part in sent])


def checked_count(count: int) -> None:
    if count > FILES_MOST:
        raise ValueError(f"has {count} files (at most {FILES_MOST}): leave out the oldest ones")


def _few(files: list[SentFile]) -> list[SentFile]:
    checked_count(len(files))
    return files


Files = Annotated[list[SentFile], FailFast(), AfterValidator(_few)]
