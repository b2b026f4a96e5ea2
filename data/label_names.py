"""Names of labels: one spelling for each, numbers for those that have none, and labels that say nothing."""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from data.label_cells import as_float, plain_name

if TYPE_CHECKING:
    from data.table import Table

MAX_LISTED = 30
BOOLEANS = {"true", "false"}
_WHOLE = re.compile(r"-?\d+(\.0+)?")


def listed(names: Sequence[str]) -> str:
    """Names as a message shows them, of many the first."""
    more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    return ", ".join(names[:MAX_LISTED]) + more


def label_name(value: Any) -> str:
    """Return the label as text; a whole number in a float column is that number."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, (bytes, Mapping, list)):
        raise ValueError(f"{value!r:.80} is no label. Allowed are text, whole numbers and lists of these.")
    return plain_name(str(value))


def label_number(value: Any) -> float:
    """Return the number that a cell says.

    Raises:
        ValueError: the cell is empty, or is not a finite number.
    """
    number = as_float(value)
    if number is None or isinstance(value, bool):
        is_missing = value is None or not str(value).strip()
        what = "the value is missing" if is_missing else f"{value!r:.80} is not a number (such as 3.5)"
        raise ValueError(f"{what}. Fill the cell or remove the row.")
    if not math.isfinite(number):
        raise ValueError(f"{value!r} is not a finite number. Correct the cell or remove the row.")
    return number


def one_spelling(names: set[str]) -> set[str]:
    """Return the names with "1" in place of "1.0" and "True" in place of "TRUE", where a column is of such alone."""
    if names and {name.casefold() for name in names} <= BOOLEANS:
        return {name.capitalize() for name in names}
    if all(_WHOLE.fullmatch(name) for name in names):
        return {name.split(".")[0] if "." in name else name for name in names}
    return names


def sorted_names(names: set[str]) -> tuple[str, ...]:
    """Return whole numbers sorted as numbers, other names as text."""
    if all(name.removeprefix("-").isdecimal() for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))


@lru_cache(maxsize=64)
def known_names(names: tuple[str, ...]) -> dict[str, int]:
    """Return the number of each label, by its name in one spelling."""
    known: dict[str, int] = {}
    for index, name in enumerate(names):
        known.setdefault(plain_name(name), index)
    return known


def numbered_names(column: str, size: int) -> tuple[str, ...]:
    """Names of the targets of a regression; a list whose length is not declared (-1) cannot be named."""
    if size < 1:
        raise ValueError(
            f"The column `{column}` declares lists of any length: how many targets it has is not known before all "
            "rows are read. Push it with a fixed length (`push_to_hub.py --dataset` does), or do not stream it."
        )
    return (column,) if size == 1 else tuple(f"{column}_{index}" for index in range(size))


def constant_labels(table: "Table", names: Sequence[str], said: Sequence[Sequence[str]]) -> str:
    """Return a sentence on labels that every row has, or none; empty where there are none of both.

    Args:
        table: The rows.
        names: Of all labels.
        said: For each row the names of its labels.

    Raises:
        ValueError: all labels are the same in every row: nothing can be learnt, and nothing can be measured.
    """
    counts = Counter(name for row in said for name in set(row))
    always = [name for name in names if counts[name] == len(said)]
    never = [name for name in names if counts[name] == 0]
    if len(said) > 1 and len(always) + len(never) == len(names):
        has = f"has {listed(tuple(always))}" if always else "has none of the labels"
        raise ValueError(
            f"`{table.name}`: every row {has} in the column `{table.columns['label']}`, and no row anything else: "
            "there is nothing to tell apart. Correct the labels, or add rows with others."
        )
    parts = [f"every row has {listed(tuple(always))}"] if always and len(said) > 1 else []
    parts += [f"no row has {listed(tuple(never))}"] if never else []
    return f"in `{table.name}`, {' and '.join(parts)}: what is right there says nothing of a model" if parts else ""
