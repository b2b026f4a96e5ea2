"""A table with what a model says of its rows: the columns that are added, and files that hold it.

Unusual: CSV is written so that no cell can be run by a spreadsheet, whoever wrote the cell. All files are written in
pieces, so that a long table need not be in memory.
"""

import csv
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

# What a spreadsheet may take for a formula (full-width signs too); a plain number such as -0.5 is not one.
FORMULA = re.compile(r"[\t\r\n]|\s*[=+\-@＝＋－＠]")
NUMBER = re.compile(r"[+-]?\d+(\.\d*)?([eE][+-]?\d+)?")
DEFAULT_THRESHOLD = 0.5  # see `predicted_labels`

Write = Callable[["pa.Table"], None]


def label_thresholds(config) -> dict[str, float] | None:
    """Give label -> threshold, as a multi-label model's config has them; None: 0.5 for each."""
    thresholds = getattr(config, "thresholds", None)  # the config of an older model has no such
    return None if thresholds is None else {config.id2label[i]: value for i, value in enumerate(thresholds)}


def predicted_labels(scores: Mapping[str, float], thresholds: Mapping[str, float] | None = None) -> list[str]:
    """Give the labels that a multi-label model predicts, in the order of `scores`, as its metrics count them.

    Args:
        scores: label -> probability.
        thresholds: from `label_thresholds`: from which probability on each label counts as predicted.
    """
    thresholds = dict.fromkeys(scores, DEFAULT_THRESHOLD) if thresholds is None else thresholds
    return [label for label, score in scores.items() if score >= thresholds[label]]


def prediction_columns(
    problem: str,
    id2label: dict[int, str],
    scores: "np.ndarray | None",
    thresholds: Mapping[str, float] | None = None,
) -> dict[str, list]:
    """Give column name -> values.

    Single-label: `prediction`, `score` (its probability) and `probability_…` for each label. Multi-label: `prediction`
    (a list) and the probabilities. Regression: `prediction`, or `prediction_…` for each of several targets.

    Args:
        problem: problem type of the model.
        id2label: names of the labels.
        scores: (rows, labels) probabilities or numbers; None: only the names are wanted, the values are empty.
        thresholds: as for `predicted_labels`.
    """
    import numpy as np

    names = [id2label[index] for index in range(len(id2label))]
    scores = np.empty((0, len(names))) if scores is None else scores
    if problem == "regression":
        titles = ["prediction"] if len(names) == 1 else [f"prediction_{name}" for name in names]
        return dict(zip(titles, scores.T.tolist(), strict=True))
    columns = {f"probability_{name}": scores[:, index].tolist() for index, name in enumerate(names)}
    if problem == "multi_label_classification":
        chosen = [predicted_labels(dict(zip(names, row, strict=True)), thresholds) for row in scores.tolist()]
        return {"prediction": chosen, **columns}
    best = scores.argmax(axis=1).tolist() if len(scores) else []
    return {"prediction": [names[i] for i in best], "score": scores.max(axis=1, initial=0).tolist(), **columns}


def refuse_taken_names(source: str, present: Sequence[str], new_names: Sequence[str]) -> None:
    """Refuse a table that has a column of a name that is written here."""
    if taken := [name for name in new_names if name in present]:
        listed = ", ".join(f"`{name}`" for name in taken)
        raise ValueError(f"`{source}` already has the column(s) {listed}, which are written here: rename them first.")


def holds_media(kind: "pa.DataType") -> bool:
    """Say whether a column of this type holds files or arrays, as {"bytes", "path"}, {"array", …} or bare bytes."""
    import pyarrow.types as types

    if types.is_struct(kind):
        return bool({"bytes", "array"} & {field.name for field in kind})
    return types.is_binary(kind) or types.is_large_binary(kind)


# -- writing ----------------------------------------------------------------------------------------------------------


@contextmanager
def csv_writer(path: Path) -> Iterator[Write]:
    """Write CSV that a spreadsheet cannot be made to run: see `without_formula`."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)

        def write(table: "pa.Table") -> None:
            if file.tell() == 0:
                writer.writerow([without_formula(name) for name in table.column_names])
            for row in table.to_pylist():
                writer.writerow([without_formula(value) for value in row.values()])

        yield write


def without_formula(value):
    """Put an apostrophe before a text that a spreadsheet would take for a formula; lists are joined by semicolons."""
    if isinstance(value, list):
        value = ";".join(map(str, value))
    is_formula = isinstance(value, str) and FORMULA.match(value) and not NUMBER.fullmatch(value)
    return f"'{value}" if is_formula else value


@contextmanager
def json_lines_writer(path: Path) -> Iterator[Write]:
    """Write one JSON object a row; what JSON does not know (a date) goes as text."""
    with path.open("w", encoding="utf-8") as file:

        def write(table: "pa.Table") -> None:
            for row in table.to_pylist():
                file.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")

        yield write


@contextmanager
def parquet_writer(path: Path) -> Iterator[Write]:
    """Write Parquet; every column keeps its type. All pieces have the schema of the first."""
    import pyarrow.parquet as pq

    writer = None

    def write(table: "pa.Table") -> None:
        nonlocal writer
        writer = writer or pq.ParquetWriter(path, table.schema)
        writer.write_table(table)

    try:
        yield write
    finally:
        if writer is not None:
            writer.close()


WRITERS: dict[str, Callable[[Path], AbstractContextManager[Write]]] = {
    ".csv": csv_writer, ".jsonl": json_lines_writer, ".parquet": parquet_writer
}  # fmt: skip
