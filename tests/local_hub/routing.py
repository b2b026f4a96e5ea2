"""The shapes of the Hub's paths: kinds of repositories, and segments that arrive quoted and are wanted plain."""

from typing import Annotated
from urllib.parse import unquote

from fastapi import Depends
from starlette.convertors import Convertor, register_url_convertor

from .accounts import readable, writable
from .storage import Repository

Readable = Annotated[Repository, Depends(readable)]
Writable = Annotated[Repository, Depends(writable)]


class KindConvertor(Convertor[str]):
    """`models`, `datasets` or `spaces`, without the plural."""

    regex = "models|datasets|spaces"

    def convert(self, value: str) -> str:
        return value.removesuffix("s")

    def to_string(self, value: str) -> str:
        return f"{value}s"


class SpaceConvertor(KindConvertor):
    """`spaces` alone, for what only a Space has."""

    regex = "spaces"


class SettingsConvertor(Convertor[str]):
    """The two kinds of settings that a Space's program sees."""

    regex = "variables|secrets"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


class QuotedConvertor(Convertor[str]):
    """One segment in which slashes are quoted: a revision, a branch, a tag."""

    regex = "[^/]+"

    def convert(self, value: str) -> str:
        return unquote(value)

    def to_string(self, value: str) -> str:
        return value


class RestConvertor(QuotedConvertor):
    """Everything that is left of the path."""

    regex = ".*"


register_url_convertor("kind", KindConvertor())
register_url_convertor("space", SpaceConvertor())
register_url_convertor("settings", SettingsConvertor())
register_url_convertor("quoted", QuotedConvertor())
register_url_convertor("rest", RestConvertor())

SPACE = "/api/{kind:space}/{owner}/{name}"
REPOSITORY = "/api/{kind:kind}/{owner}/{name}"


def is_true(value: str | None) -> bool:
    return str(value).lower() in ("1", "true", "yes")
