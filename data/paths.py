"""Paths in the cells of a table → files: found under the spelling of another system, and never outside of the roots.

Windows writes `images\\0001.png` and takes `.PNG` for `.png`, a Mac takes `ü` apart into two letters, and browsers
write `%20` for a space. A cell is first taken as it stands; only where no such file is there, other spellings are
tried, and one is taken if it fits one file alone.
"""

import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

_DRIVE = re.compile(r"[A-Za-z]:[\\/]|\\\\[^\\]+\\")
_FILE_URL = re.compile(r"file:(?://(?P<host>[^/]*))?(?P<path>/.*)", re.IGNORECASE | re.DOTALL)
_BASE64 = re.compile(r"[A-Za-z0-9+/_\s-]{64,}={0,2}\s*")
# How files begin whose bytes are written as base64: PNG, JPEG, GIF, WebP and WAV, BMP, TIFF, FLAC, Ogg, MP3, MP4.
_BASE64_STARTS = (
    "iVBORw0KGg", "/9j/", "R0lGOD", "UklGR", "Qk", "SUkq", "TU0AK", "ZkxhQ", "T2dnUw", "SUQz", "//uQ", "//uS", "//tQ",
    "//vQ", "AAAAGGZ0eX", "AAAAHGZ0eX", "AAAAIGZ0eX",
)  # fmt: skip
_EMPTY_WORDS = frozenset(["nan", "none", "null", "na", "n/a", "<na>", "nat"])
_AS_FILES = "Write the files beside the table and their paths in it, or their bytes in a Parquet file"


def checked_path(value: str, root: Path | None, extra_roots: Sequence[Path] = (), allow_outside: bool = False) -> Path:
    """Return the file that a cell names, links followed; where none is there, the path as it is written.

    Args:
        value: what stands in the cell.
        root: folder that it is relative to, resolved; None: there is none.
        extra_roots: folders that it may lie in, too.
        allow_outside: whether it may lie anywhere.

    Raises:
        ValueError: it is a URL or no path, or leads out of these folders.
    """
    _refuse_content(value)
    value = _without_scheme(value)
    if root is None and not extra_roots:
        raise ValueError(
            f"{value!r:.200} is a path, and the table does not lie here. Write the table with its media in it, as "
            "bytes, or download both."
        )
    try:
        found = _existing(value, root or Path(), allow_outside)
        path = found or ((root or Path()) / value).resolve()
    except (OSError, ValueError, RuntimeError) as error:  # too long, a zero byte, a loop of links
        raise ValueError(f"{value!r:.200} is not a path ({error}).") from None
    if found is None:
        _refuse_foreign(value)
    roots = (*(() if root is None else (root,)), *extra_roots)
    if not allow_outside and not any(path.is_relative_to(folder) for folder in roots):
        raise ValueError(
            f"{value!r:.200} leads to `{path}`, outside of `{roots[0]}`. Move the file into that folder, or allow "
            "paths outside of it (`--allow_outside_paths`)."
        )
    return path


def _refuse_content(value: str) -> None:
    """Refuse what is a file itself, or what a program printed of one, where its path is expected."""
    start = value[:80].lstrip()
    if start[:5].lower() == "data:":
        raise ValueError(f"{value!r:.60} is a data: URI, base64 text where a path is expected. {_AS_FILES}.")
    if start.startswith(_BASE64_STARTS) and len(value) > 200 and _BASE64.fullmatch(value[:400].rstrip("=")):
        raise ValueError(
            f"{value!r:.60} is base64 text ({len(value):,} letters) where a path is expected. {_AS_FILES} "
            "(`base64.b64decode`)."
        )
    if start.startswith(("b'", 'b"', "{'bytes'", "{'path'", '{"bytes"', '{"path"')):
        raise ValueError(f"{value!r:.60} is a cell of Python written as text where a path is expected. {_AS_FILES}.")
    if start.startswith(("<PIL.", "<_io.", "array(", "tensor(", "[[", "[ ")):
        raise ValueError(f"{value!r:.60} is what Python prints of a picture or an array, not a path. {_AS_FILES}.")


def _without_scheme(value: str) -> str:
    """Return the path of a file URL of this machine; other text as it is.

    Raises:
        ValueError: it is a URL of another machine.
    """
    url = _FILE_URL.fullmatch(value)
    if url is not None and (url["host"] or "").lower() in ("", "localhost"):
        path = unquote(url["path"])
        return path[1:] if _DRIVE.match(path[1:]) else path
    if "://" in value:
        raise ValueError(f"{value!r:.200} is a URL; URLs are never fetched. Download the file and write its path.")
    return value


def _refuse_foreign(value: str) -> None:
    """Refuse a path that cannot be meant here, with what differs."""
    if _DRIVE.match(value):
        raise ValueError(
            f"{value!r:.200} is a path of a Windows machine, with its drive. Write it relative to the folder of the "
            "table, as in `images/0001.png`."
        )
    if value.startswith("~"):
        raise ValueError(
            f"{value!r:.200} begins with the home folder of somebody, which is not looked up. Write the path relative "
            "to the folder of the table, or in full."
        )
    if value.casefold() in _EMPTY_WORDS:
        raise ValueError(f"{value!r} is not a file, but a word for an empty cell. Leave the cell empty.")


def _existing(value: str, root: Path, allow_outside: bool) -> Path | None:
    """Return the file under the spelling of the cell, or under the only other spelling that fits; None: no file."""
    if os.path.lexists(root / value):
        return (root / value).resolve()
    for spelling in _spellings(value, allow_outside):
        if os.path.lexists(root / spelling):
            return (root / spelling).resolve()
        if (found := _named_alike(root, spelling)) is not None:
            return found.resolve()
    return None


def _spellings(value: str, allow_outside: bool) -> Iterator[str]:
    slashes = value.replace("\\", "/")
    yield from dict.fromkeys([value, slashes, unquote(value), unquote(slashes)])
    if allow_outside and value.startswith("~/"):
        yield str(Path(value).expanduser())


def _named_alike(root: Path, spelling: str) -> Path | None:
    """Return the only file below `root` whose path differs in case or in how letters are put together."""
    path = PurePosixPath(spelling)
    if path.is_absolute():
        if not path.is_relative_to(root):
            return None
        path = path.relative_to(root)
    found = root
    for part in path.parts:
        if part == ".." or "\0" in part or not found.is_dir():
            return None
        if not os.path.lexists(found / part):
            alike = _listing(found, found.stat().st_mtime_ns).get(_key(part), ())
            if len(alike) != 1:
                return None
            part = alike[0]
        found = found / part
    return found


@lru_cache(maxsize=256)
def _listing(folder: Path, changed: int) -> dict[str, list[str]]:
    """Return the names in a folder by how they are alike; read again when the folder has changed."""
    names: dict[str, list[str]] = {}
    for name in os.listdir(folder):
        names.setdefault(_key(name), []).append(name)
    return names


def _key(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
