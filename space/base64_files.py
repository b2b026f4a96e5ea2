"""Files in base64 as tools write them: in lines, as a data: URI, in the URL-safe alphabet, without padding.

Design notes: what is no base64 is told by its reason, and only what looks like a path or a URL is called one: nothing
is ever opened or fetched, and somebody who sent base64 is not told so.
"""

import base64
import binascii
import re
from typing import Any
from urllib.parse import unquote

from cells_mmfusion import is_empty
from space.errors import BadInput, shown

_DATA_URI = re.compile(r"data:([^,]*),", re.IGNORECASE)
_URL_SAFE = str.maketrans("-_", "+/")
_FOREIGN = re.compile(r"[^A-Za-z0-9+/]")
# A scheme or drive, a home, a folder, or the end of a file's name.
_LOCATION = re.compile(r"[A-Za-z][\w+.]*:.*|~.*|\.{1,2}[/\\].*|[^\n<>{}]{0,300}\.[A-Za-z0-9]{1,5}", re.DOTALL)
# JPEG and MP3 begin with this letter in base64, but are longer.
_ABSOLUTE_PATH = re.compile(r"/.{0,99}", re.DOTALL)


def file_of_base64(name: str, value: Any) -> bytes | None:
    """Return the bytes of a file that was sent as text; None where there is nothing (null, NaN, blanks).

    Args:
        name: Of the field, for the message.
        value: What stood there in the JSON or the form.

    Raises:
        BadInput: wrong_type, not_a_file.
    """
    if is_empty(value):
        return None
    if not isinstance(value, str):
        raise BadInput("wrong_type", f"`{name}` must be a string, the file in base64, got {json_type(value)}.")
    given = value.strip()
    text = "".join(_payload(name, given).split())  # lines of 64 or 76, and what else is laid out
    text = text.translate(_URL_SAFE).rstrip("=")
    try:
        if _ABSOLUTE_PATH.fullmatch(given) is None:
            return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):  # ValueError: characters beyond ASCII
        pass
    raise BadInput("not_a_file", f"`{name}` {_reason(text, given)}")


def _payload(name: str, text: str) -> str:
    """Return what stands behind the head of a data: URI, and any other text as it is."""
    head = _DATA_URI.match(text)
    if head is None:
        return text
    if head[1].rpartition(";")[2].strip().lower() != "base64":
        told = "is a data: URI that is not in base64: write `data:<type>;base64,` and the file in base64 behind it."
        raise BadInput("not_a_file", f"`{name}` {told}")
    payload = text[head.end() :]
    return unquote(payload) if "%" in payload else payload


def _reason(text: str, given: str) -> str:
    if _LOCATION.fullmatch(given) or _ABSOLUTE_PATH.fullmatch(given):
        return f"must be a file in base64, got {shown(given)}: paths and URLs are never opened."
    if re.match(r"b['\"]", given):
        return "is the text of a Python bytes object (b'...'): send `base64.b64encode(data).decode()`."
    if (foreign := _FOREIGN.search(text)) is None:
        return f"is base64 that was cut off: {len(text):,} characters, one of which is left over; send all of it."
    return (
        f"is not base64: {shown(foreign[0])} (character {foreign.start() + 1:,} of {shown(given)}) does not belong to "
        "it; send the bytes of the file in base64."
    )


def json_type(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")
