"""Label cells of any writing → text, numbers and lists.

Several labels stand in a cell as a list of names, as a vector of 0 and 1, or as one of these written as text: by
pandas ("['a', 'b']"), by NumPy ("[0 1 0]"), as JSON, or with a delimiter. Numbers may have a decimal comma. What a
column means is asked of all of its cells at once, since one cell alone may be ambiguous: "[0, 1]" are two classes or
a vector, "1,234" is a thousand or a fraction.
"""

import ast
import json
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from decimal import Decimal
from functools import lru_cache
from typing import Any

import numpy as np

# At the ends of a label nobody sees them; inside, some of them belong to a script or to an emoji.
_INVISIBLE = "\u200b\u200c\u200d\u2060\ufeff\u00ad\u200e\u200f"
_WRAPPED = re.compile(r"(?:np\.|numpy\.|torch\.)?(?:array|tensor|set|list|tuple)\((.*)\)", re.DOTALL)
_ARRAY_OPTIONS = re.compile(r",\s*(?:dtype|device|requires_grad)\s*=[^\]]*$")
_BRACKETS = {"[": "]", "(": ")", "{": "}"}
_QUOTES = "'\"`“”‘’"
_ITEMS = re.compile(r"'([^']*)'|\"([^\"]*)\"|([^\s'\"]+)")
_BITS_AS_TEXT = re.compile(r"[01]((?:\s*[,;|/]\s*|\s+)[01])+")
_BIT_OF_TEXT = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "0.": 0, "1.": 1, "false": 0, "true": 1}
_GAPS = "'’ \u00a0\u202f\u2009"  # between thousands in some countries
_POINT = re.compile(rf"[+-]?(?:[1-9]\d{{0,2}}(?:[,{_GAPS}]\d{{3}})+|\d+)?(?:\.\d*)?(?:[eE][+-]?\d+)?")
_COMMA = re.compile(rf"[+-]?(?:[1-9]\d{{0,2}}(?:[.{_GAPS}]\d{{3}})+|\d+)?(?:,\d*)?(?:[eE][+-]?\d+)?")


def plain_value(value: Any) -> Any:
    """Return a cell as None, text, a number, a boolean or a list of these; a NaN is an empty cell."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, Decimal):
        value = int(value) if value.is_finite() and value == value.to_integral_value() else float(value)
    if isinstance(value, float) and math.isnan(value):
        return None
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain_value(item) for item in value]
    return value


@lru_cache(maxsize=100_000)
def plain_name(text: str) -> str:
    """Return a label as text that is written in one way only.

    Letters are composed (NFC), white space of any kind is one space, and invisible characters at the ends go.
    """
    return " ".join(unicodedata.normalize("NFC", text).strip(_INVISIBLE + " \t\r\n").split()).strip(_INVISIBLE)


def look_alikes(names: Sequence[str]) -> tuple[str, str] | None:
    """Return two names that differ in invisible characters alone; None where all can be told apart."""
    seen: dict[str, str] = {}
    for name in names:
        key = "".join(c for c in name if unicodedata.category(c) != "Cf" and c not in "\ufe0e\ufe0f")
        if seen.setdefault(key, name) != name:
            return seen[key], name
    return None


# --- Lists that are written as text


def text_as_list(text: str) -> list[Any] | None:
    """Return the list that a text such as "['a', 'b']" or "[0 1 0]" writes out; None where it is not one."""
    text = text.strip()
    if (wrapped := _WRAPPED.fullmatch(text)) is not None:
        text = _ARRAY_OPTIONS.sub("", wrapped[1]).strip()
    if len(text) < 2 or _BRACKETS.get(text[0]) != text[-1] or len(text) > 1_000_000:
        return None
    for read in (json.loads, _numpy_items, ast.literal_eval):  # Python would join two texts without a comma
        try:
            found = read(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(found, (list, tuple, set)):
            items = sorted(found, key=str) if isinstance(found, set) else found
            return [plain_value(item) for item in items]
    return None


def _numpy_items(text: str) -> list[Any] | None:
    """Return the items of an array as NumPy prints it, "[0 1 0]" or "['a' 'b']"."""
    inner = text[1:-1].strip()
    if "," in inner or text[0] != "[":
        return None
    quoted = [single or double for single, double, bare in _ITEMS.findall(inner) if not bare]
    bare = [bare for *_, bare in _ITEMS.findall(inner) if bare]
    if quoted and bare:
        return None
    words = {"True": True, "False": False}
    return quoted or [words[item] if item in words else float(item) for item in bare]


def divided(text: str, delimiter: str) -> list[str]:
    """Return the labels of a text; brackets around all and quotes around each do not belong to them."""
    text = text.strip()
    if len(text) > 1 and _BRACKETS.get(text[0]) == text[-1] and not set(text[1:-1]) & {text[0], text[-1]}:
        text = text[1:-1]
    items = [item.strip() for item in text.split(delimiter)]
    return [item[1:-1] if len(item) > 1 and item[0] in _QUOTES and item[-1] in _QUOTES else item for item in items]


def read_cells(values: Sequence[Any], problem_type: str | None, delimiter: str | None) -> list[Any]:
    """Return all cells of a column as `plain_value` does, with lists and numbers in place of their text.

    Raises:
        ValueError: what the texts of the column mean cannot be known; the message has no row yet.
    """
    cells = [plain_value(value) for value in values]
    texts = [cell for cell in cells if isinstance(cell, str) and cell.strip()]
    if not texts:
        return cells
    lists = {text: text_as_list(text) for text in set(texts)}
    is_said = problem_type == "single_label_classification"
    if any(found is not None for found in lists.values()) and not (is_said and None in lists.values()):
        cells = [lists[cell] if lists.get(cell) is not None else cell for cell in cells]
    if delimiter is not None:
        return [divided(cell, delimiter) if isinstance(cell, str) else cell for cell in cells]
    if problem_type is None:
        _refuse_undivided([cell for cell in cells if isinstance(cell, str) and cell.strip()])
    if problem_type in (None, "regression"):
        return _with_numbers(cells, problem_type)
    return cells


def _refuse_undivided(texts: list[str]) -> None:
    """Refuse texts that are lists for a person, and classes of their own for a program."""
    if texts and all(_BITS_AS_TEXT.fullmatch(text.strip()) for text in texts):
        mark = re.search(r"[,;|/]|\s", texts[0].strip())[0]
        other = "" if mark != "," else ", or, if these are numbers with a decimal comma, `--problem_type regression`"
        raise ValueError(
            f"every cell is a vector of 0 and 1 written as text, such as {texts[0]!r:.80}. Give `--label_delimiter "
            f"'{mark}'`{other}."
        )
    if texts and all(len(text.strip()) > 2 and _BRACKETS.get(text.strip()[0]) == text.strip()[-1] for text in texts):
        marks = Counter(mark for text in texts for mark in ",;|" if mark in text)
        if marks:
            text = next(text for text in texts if marks.most_common(1)[0][0] in text)
            raise ValueError(
                f"every cell is a list in brackets, such as {text!r:.80}. Give `--label_delimiter "
                f"'{marks.most_common(1)[0][0]}'`, or, if each is the name of one class, `--problem_type "
                "single_label_classification`."
            )


# --- Numbers


def _with_numbers(cells: list[Any], problem_type: str | None) -> list[Any]:
    """Return the cells with numbers in place of texts such as "3,5" and "1.234,5"; others stay as they are."""
    texts = {cell.strip() for cell in cells if isinstance(cell, str) and cell.strip()}
    if any(isinstance(cell, list) for cell in cells) or all(as_float(text) is not None for text in texts):
        return cells
    mark = decimal_mark(texts)
    if mark is None:
        return cells
    if mark == "?":
        text = next(text for text in texts if as_float(text) is None)
        raise ValueError(
            f"{text!r:.80} may be {as_float(unmarked(text, ',')):g} or {as_float(unmarked(text, '.')):,.0f}. Write "
            "numbers with a decimal point and nothing between thousands, or, if they are names of classes, give "
            "`--problem_type single_label_classification`."
        )
    numbers = {text: float(unmarked(text, mark)) for text in texts}
    if problem_type is None and mark == "." and all(number.is_integer() for number in numbers.values()):
        return cells
    return [numbers.get(cell.strip(), cell) if isinstance(cell, str) else cell for cell in cells]


def decimal_mark(texts: set[str]) -> str | None:
    """Return "." or "," where all texts are numbers with this mark, "?" where both are possible, else None."""
    odd = [text for text in texts if as_float(text) is None]
    if not all(any(letter.isdigit() for letter in text) for text in texts):
        return None
    point = all(_POINT.fullmatch(text) for text in texts)
    comma = all(_COMMA.fullmatch(text) for text in texts)
    if point and comma:
        return "?" if any("," in text for text in odd) else "."
    return "." if point else "," if comma else None


def unmarked(text: str, mark: str) -> str:
    """Return a number as Python writes it; `mark` is what stands before its fraction."""
    return re.sub(rf"[{_GAPS}{',' if mark == '.' else '.'}]", "", text).replace(",", ".")


def as_float(value: Any) -> float | None:
    """Return the number that a value or a text says; None where it says none."""
    if isinstance(value, str) and "_" in value:  # Python's own way of grouping digits, nobody else's
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


# --- Vectors of 0 and 1


def as_bit(item: Any) -> int | None:
    """Return 0 or 1 for what says so: a number, a boolean, or a text of one of these; else None."""
    if isinstance(item, str):
        return _BIT_OF_TEXT.get(item.strip().casefold())
    return int(item) if isinstance(item, (bool, int, float)) and item in (0, 1) else None


def is_bits(items: list[Any]) -> bool:
    """Return whether there are only zeros and ones, at least one."""
    return bool(items) and all(as_bit(item) is not None for item in items)


def vector_size(cells: Sequence[Any]) -> int | None:
    """Return the length of the vectors of 0 and 1 that a column holds; None where its lists hold names or classes.

    A list of classes names none of them twice, so a list such as [0, 1, 0] is a vector, and one such as [-1, 1, -1] is
    meant as one. Where no list has anything twice, the lists are vectors if they are all of one length: as classes,
    each row would have all of them.
    """
    lists = [cell for cell in cells if isinstance(cell, list) and cell]
    vectors = [cell for cell in lists if is_bits(cell) or _has_number_twice(cell)]
    if not lists or 2 * len(vectors) < len(lists):
        return None
    sizes = Counter(map(len, vectors))
    has_twice = any(len(cell) > len({as_bit(item) for item in cell}) for cell in vectors)
    is_one_length = len(sizes) == 1 and len(vectors) == len(lists)
    if has_twice or (is_one_length and (len(lists[0]) > 1 or _holds_only(lists, (bool, float)))):
        return sizes.most_common(1)[0][0]
    return None


def _has_number_twice(items: list[Any]) -> bool:
    is_whole = all(isinstance(item, (int, float)) and float(item).is_integer() for item in items)
    return is_whole and len(set(items)) < len(items)


def _holds_only(lists: list[list[Any]], kinds: tuple[type, ...]) -> bool:
    return all(isinstance(item, kinds) for cell in lists for item in cell)


def bits(cell: Any, size: int) -> list[int]:
    """Return a vector of 0 and 1.

    Raises:
        ValueError: the cell is not a vector of this length, or holds something else.
    """
    if cell is None:
        raise ValueError("the labels are missing. Fill the cell (a vector of zeros means: none of them).")
    if not isinstance(cell, list):
        raise ValueError(f"{cell!r:.80} is not a vector of {size} numbers 0 or 1, as in other rows. Correct the cell.")
    if len(cell) != size:
        raise ValueError(
            f"the vector {cell!r:.80} is of length {len(cell)}, where {size} is expected: one 0 or 1 for each label. "
            "Correct the cell."
        )
    numbers = [as_bit(item) for item in cell]
    if None in numbers:
        wrong = cell[numbers.index(None)]
        raise ValueError(
            f"the vector {cell!r:.80} holds {wrong!r:.40}; allowed are 0 and 1, for each label whether it holds. "
            "Correct the cell."
        )
    return numbers
