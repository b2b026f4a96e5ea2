"""CSV and TSV, as spreadsheets and programs write them.

The standard library's parser reads them instead of those of pandas and Arrow, for what these do in silence: pandas
fills short rows and turns "NA" into nothing and "007" into 7, Arrow swallows the rest of a file after an unclosed
quote. Here every cell is text, and what is not a table is an error with its line. Excel divides by the semicolon in
half of the world, and by tabs in its "Unicode text": what divides the cells is found in the first rows, and told.
"""

import csv
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from data.arrow_types import as_dataset
from data.encodings import text_encoding, text_lines
from data.source import tell_once

if TYPE_CHECKING:
    from datasets import Dataset

DELIMITERS = {".csv": ",", ".tsv": "\t"}
_NAMES = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
_SEPARATOR_LINE = re.compile(r'"?sep=(.)"?\s*', re.IGNORECASE)  # the first line of a file for Excel
_INVISIBLE = "\ufeff\u200b\u2060"
_SAMPLE_ROWS, _SAMPLE_LINES = 20, 200
_CHUNK_ROWS = 20_000


@dataclass(frozen=True)
class CsvFormat:
    """How a file is written: its encoding, what divides its cells, and lines before the header that are not rows."""

    encoding: str
    delimiter: str
    skipped_lines: int = 0


def csv_format(path: Path) -> CsvFormat:
    """Return how a file is written, by its ending and its first rows."""
    encoding = text_encoding(path)
    lines = list(islice(text_lines(path, encoding), _SAMPLE_LINES))
    if lines and (said := _SEPARATOR_LINE.fullmatch(lines[0])) is not None:
        return CsvFormat(encoding, said[1], 1)
    usual = DELIMITERS[path.suffix.lower()]
    fitting = [mark for mark in (usual, *_NAMES) if _fits(lines, mark)]
    return CsvFormat(encoding, fitting[0] if fitting else usual)


def _fits(lines: list[str], delimiter: str) -> bool:
    """Return whether the first rows all have as many cells as the header, at least two."""
    try:
        rows = [row for row in csv.reader(lines, delimiter=delimiter, strict=True) if row][:_SAMPLE_ROWS]
    except csv.Error:  # a quoted cell that goes on beyond the sample, or a mistake that is told with its line later
        return False
    return bool(rows) and len(rows[0]) > 1 and all(len(row) == len(rows[0]) for row in rows)


def csv_rows(path: Path, form: CsvFormat | None = None) -> Iterator[tuple[int, list[str]]]:
    """Yield (line, cells); the line is the physical one on which the row ends.

    Raises:
        ValueError: the file is not text, or a quoted cell is not closed; the message has the line.
    """
    form = form or csv_format(path)
    lines = islice(text_lines(path, form.encoding), form.skipped_lines, None)
    reader = csv.reader(lines, delimiter=form.delimiter, strict=True)
    try:
        for cells in reader:
            yield reader.line_num + form.skipped_lines, cells
    except csv.Error as error:
        raise ValueError(
            f"`{path}`, line {reader.line_num + form.skipped_lines}: {error}. A quoted cell is not closed, or a quote "
            f'inside of a quoted cell is not doubled (`""`), or a cell has more than {csv.field_size_limit():,} '
            "characters."
        ) from None


def csv_header(path: Path, form: CsvFormat) -> list[str]:
    """Return the names of the columns; columns at the end that have no name are none, as Excel leaves them behind."""
    if form.delimiter != DELIMITERS[path.suffix.lower()]:
        tell_once(f"note: the cells of `{path}` are divided by {_NAMES.get(form.delimiter, repr(form.delimiter))}")
    header = next((cells for _, cells in csv_rows(path, form) if any(map(str.strip, cells))), None)
    if header is None:
        raise ValueError(f"`{path}` holds only blank lines: it has no rows. Give a table with at least one row.")
    names = [name.strip(_INVISIBLE + " \t\r\n\u00a0") for name in header]
    while len(names) > 1 and not names[-1]:
        names.pop()
    if names.count("") > 1:
        names = [name or f"Unnamed: {index}" for index, name in enumerate(names)]
    refuse_duplicates(path, names)
    return names


def refuse_duplicates(path: Path, names: list[str]) -> None:
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice:
        raise ValueError(
            f"`{path}` has more than one column named {', '.join(f'`{name}`' for name in twice)}. Rename one of them."
        )


def load_csv(path: Path, form: CsvFormat, names: list[str], columns: list[str]) -> "Dataset":
    """Return the rows with these columns, all of them text."""
    wanted = [names.index(column) for column in columns]
    schema = pa.schema([(column, pa.large_string()) for column in columns])
    chunks = [
        pa.table([[row[index] for row in chunk] for index in wanted], schema=schema)
        for chunk in _in_chunks(_checked_rows(path, form, len(names)))
    ]
    return as_dataset(pa.concat_tables(chunks) if chunks else schema.empty_table())


def _checked_rows(path: Path, form: CsvFormat, num_columns: int) -> Iterator[list[str]]:
    """Yield the rows below the header, each as long as the header.

    Blank lines are no rows, except in a table of one column, where they are its empty cells; rows of empty cells at
    the end are none either, as Excel writes them where something stood once.
    """
    rows = ((line, cells or [""] * (num_columns == 1)) for line, cells in csv_rows(path, form))
    is_header, empty_rows = True, []
    for line, cells in rows:
        if not cells:
            continue
        if is_header:
            is_header = not any(map(str.strip, cells))
            continue
        while len(cells) > num_columns and not cells[-1].strip():
            cells.pop()
        if len(cells) != num_columns:
            raise ValueError(
                f"`{path}`, line {line}: {len(cells)} cells where the header has {num_columns} columns. Quote cells "
                f"that hold the delimiter {form.delimiter!r}, and write an empty cell for each missing value."
            )
        if num_columns > 1 and not any(cells):
            empty_rows.append(cells)
        else:
            yield from chain(empty_rows, [cells])
            empty_rows = []


def _in_chunks(rows: Iterable[list[str]]) -> Iterator[list[list[str]]]:
    chunk: list[list[str]] = []
    for row in rows:
        chunk.append(row)
        if len(chunk) == _CHUNK_ROWS:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
