"""Text files of any program: which Unicode form a file has, and what to do about one that has none.

A byte order mark, or the zero bytes that every second letter of UTF-16 has, say for certain how a file is to be read.
Code pages of Windows say nothing of themselves; so such a file is not read, but its likely code page is named.
"""

import codecs
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"), (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"),
)  # fmt: skip
_SAMPLE_BYTES = 65_536
_HIGH = re.compile(rb"[\x80-\xff]+")
# Python's name of a code page, what `iconv` calls it, the letters that it is made for, and their least share.
_CODE_PAGES = (
    ("cp932", "CP932", "[\u3040-\u30ff]", 0.2),
    ("cp949", "CP949", "[\uac00-\ud7a3]", 0.95),
    ("gb18030", "GB18030", "[\u4e00-\u9fff]", 0.7),
    ("big5", "BIG5", "[\u4e00-\u9fff]", 0.7),
    ("cp1251", "CP1251", "[\u0400-\u04ff]", 0.7),
)


def text_encoding(path: Path) -> str:
    """Return what a text file is to be decoded with: UTF-8 unless its bytes say otherwise."""
    with path.open("rb") as file:
        start = file.read(_SAMPLE_BYTES)
    marked = next((name for mark, name in _MARKS if start.startswith(mark)), None)
    if marked is not None or len(start) < 4:
        return marked or "utf-8"
    half = len(start) // 2
    zeros_first, zeros_second = start[0::2].count(0) / half, start[1::2].count(0) / half
    if zeros_second > 0.3 and zeros_first < 0.05:
        return "utf-16-le"
    if zeros_first > 0.3 and zeros_second < 0.05:
        return "utf-16-be"
    return "utf-8"


def text_lines(path: Path, encoding: str | None = None) -> Iterator[str]:
    """Yield the lines of a text file with their ends as they are, without byte order marks, however many.

    Raises:
        ValueError: it is not Unicode; the message says what to do.
    """
    try:
        with path.open(encoding=encoding or text_encoding(path), newline="") as file:
            for number, line in enumerate(file):
                yield line if number else line.lstrip("\ufeff")
    except UnicodeDecodeError as error:
        raise _not_unicode(path, error) from None


def _not_unicode(path: Path, error: UnicodeDecodeError) -> ValueError:
    if error.encoding.lower().startswith("utf-16") or error.encoding.lower().startswith("utf-32"):
        return ValueError(
            f"`{path}` begins as {error.encoding.upper()} text and does not go on as such (at byte {error.start:,}). "
            "It is cut off or joined from two files: write it again, as UTF-8."
        )
    byte = error.object[error.start]
    with path.open("rb") as file:  # a stretch around the first letter in question says more than the head of the file
        page = code_page(file.read(16 * _SAMPLE_BYTES))
    target = path.with_name(f"utf8_{path.name}")
    command = f"iconv -f {page} -t UTF-8 {shlex.quote(str(path))} > {shlex.quote(str(target))}"
    return ValueError(
        f"`{path}` is not UTF-8 text: it holds the byte 0x{byte:02x}, as the code page {page} does. Save it as UTF-8 "
        f"(in Excel: `CSV UTF-8`), or convert it with `{command}`, look at its letters, and give `{target.name}`."
    )


def code_page(content: bytes) -> str:
    """Return the code page that a text is probably written in, as `iconv` calls it.

    Western letters stand alone between others; those of other scripts stand together, and are told by what they are.
    """
    high = _HIGH.findall(content)
    if sum(map(len, high)) > 1.8 * len(high):
        for page, name, letters, share in _CODE_PAGES:
            text = "".join(re.findall("[^\x00-\x7f]", content.decode(page, errors="ignore")))
            is_valid = content.decode(page, errors="replace").count("\ufffd") <= 1  # the sample may end in a letter
            if is_valid and len(re.findall(letters, text)) > share * len(text):
                return name
    for page in ("CP1252", "CP1250"):
        if "\ufffd" not in content.decode(page, errors="replace"):
            return page
    return "ISO-8859-1"
