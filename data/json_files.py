"""JSON lines: one object a row, or in a `.json` file one list of them.

The standard library's parser reads them, for what Arrow's does in silence: a text such as "2024-01-01" stays a text. A
NaN, which JSON does not know and `json.dumps` writes all the same, is an empty cell.
"""

import json
import math
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from data.arrow_types import as_dataset
from data.csv_files import refuse_duplicates
from data.encodings import text_lines

if TYPE_CHECKING:
    from datasets import Dataset


def read_json(path: Path) -> list[dict[str, Any]]:
    """Return one JSON object per line, or, in a `.json` file, also one list of objects."""
    lines = enumerate(text_lines(path), 1)
    first = next(((number, line) for number, line in lines if line.strip()), None)
    if first is None:
        return []
    if path.suffix.lower() == ".json" and first[1].lstrip().startswith("["):
        records = _parse_json(path, None, "".join([first[1], *(line for _, line in lines)]))
        return [_checked_record(path, f"item {number}", record) for number, record in enumerate(records, 1)]
    return [
        _checked_record(path, f"line {number}", _parse_json(path, number, line))
        for number, line in chain([first], lines)
        if line.strip()
    ]


def _parse_json(path: Path, line: int | None, text: str) -> Any:
    def as_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) < len(pairs):
            refuse_duplicates(path, [key for key, _ in pairs])
        return dict(pairs)

    try:
        return json.loads(text, object_pairs_hook=as_object)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"`{path}`, line {line or error.lineno}: not valid JSON ({error.msg}, column {error.colno}). "
            "Write one JSON object per line."
        ) from None
    except RecursionError:
        raise ValueError(
            f"`{path}`, line {line or 1}: lists or objects are nested too deeply. Write one flat object per line."
        ) from None


def _checked_record(path: Path, place: str, record: Any) -> dict[str, Any]:
    if not isinstance(record, dict):
        raise ValueError(f"`{path}`, {place}: {record!r:.80} is not an object. Write one JSON object per line.")
    return record


def load_records(path: Path, records: list[dict[str, Any]], columns: list[str]) -> "Dataset":
    """Return the rows with these columns, each of one type.

    Raises:
        ValueError: a column holds values of several types.
    """
    arrays = []
    for column in columns:
        values = [_value(record.get(column)) for record in records]
        _refuse_mixed_types(path, column, values)
        try:
            arrays.append(pa.array(values))
        except (pa.ArrowException, OverflowError, UnicodeEncodeError) as error:
            reason = f"`{path}`: the column `{column}` cannot be read as one type ({error})"
            raise ValueError(f"{reason}. Write all of its values in one type, text as valid Unicode.") from None
    return as_dataset(pa.table(arrays, names=columns))


def _value(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value


def _refuse_mixed_types(path: Path, column: str, values: list[Any]) -> None:
    first_row: dict[str, int] = {}
    for row, value in enumerate(values, 1):
        if value is not None:
            kind = "number" if type(value) in (int, float) else type(value).__name__
            first_row.setdefault(kind, row)
    if len(first_row) > 1:
        (kind_a, row_a), (kind_b, row_b) = list(first_row.items())[:2]
        raise ValueError(
            f"`{path}`, column `{column}`: row {row_a} holds a {kind_a} and row {row_b} a {kind_b}. "
            "Write all values of a column in one type."
        )
