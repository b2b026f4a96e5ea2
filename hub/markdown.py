"""Strangers' words inside Markdown: names of labels, tables and models may hold anything, and must stay words."""

import html
import re
import unicodedata
from collections.abc import Sequence

MAX_NAME_LENGTH = 80
_PUNCTUATION = re.compile(r"([\\`*_{}\[\]()#|~$!^])")


def _one_line(text: object) -> str:
    """Drop what draws nothing (and could turn the writing direction round), and cut what is no name but a document."""
    line = " ".join(str(text).split())
    kept = "".join(c for c in line if unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Co"))
    return kept if len(kept) <= MAX_NAME_LENGTH else kept[: MAX_NAME_LENGTH - 1].rstrip() + "…"


def escaped(text: object) -> str:
    """Give text that Markdown and HTML show as it is, on one line, in a sentence or in the cell of a table."""
    kept = _one_line(text)
    shown = _PUNCTUATION.sub(r"\\\1", html.escape(kept, quote=False))
    # Two things make a link without any brackets.
    return shown.replace("://", "&colon;//").replace("www.", "www&period;")


def count(value: object) -> str:
    """Give a count for people, `1,234`; what is no number, as it is."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return f"{value:,}" if is_number else escaped(value)


def code_span(text: object) -> str:
    """Give code inside a sentence or the cell of a table."""
    line = _one_line(text).replace("|", "\\|")
    fence = "`" * (_longest_run(line) + 1)
    return f"{fence} {line} {fence}" if "`" in line else f"{fence}{line}{fence}"


def code_block(text: str, language: str = "") -> str:
    """Give a fenced block whose fence is longer than any run of backticks in it."""
    lines = "\n".join(text.splitlines())  # one kind of line end, or the card's own would change with it
    fence = "`" * max(3, _longest_run(lines) + 1)
    return f"{fence}{language}\n{lines}\n{fence}"


def _longest_run(text: str) -> int:
    return max((len(run) for run in re.findall(r"`+", text)), default=0)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Give a Markdown table of cells that are Markdown already; every column but the first is right-aligned."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
