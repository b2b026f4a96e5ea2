"""A query becomes ranked rows: one sample, or every row of a table."""

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from cli.files import replacing
from cli.scored import WRITERS, refuse_taken_names
from searching import store
from searching.build import batches_of, open_rows
from searching.nearest import nearest
from searching.reader import Reader, reader_of, warn_of_untrained

if TYPE_CHECKING:
    import numpy as np

NEW_COLUMNS = ("query_row", "match_rank", "match_score", "match_row")
QUERIES_AT_ONCE = 1_000  # whose answers are written at once


def answer_sample(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Give the rows nearest to one sample, best first; `args` as `search.py query` reads them.

    Returns:
        Of each row `rank` (from 1), `score` (cosine), `row` (from 1), `file` and `cells`, its own columns.
    """
    index = store.open_index(args.index_dir)
    view = index.view(args.by)
    reader = open_reader(args, index)
    sample = {name: value for name in ("text", "image", "audio") if (value := getattr(args, name)) is not None}
    subset = tuple(name for name in reader.modalities if name in sample)
    (query,) = reader.embed(sample, [subset or reader.modalities])
    warn_across(index, view, set(subset))
    scores, places = nearest(view, query, args.top_k, approximate=args.approximate)
    return ranked(index, view, scores[0], places[0])


def open_reader(args: argparse.Namespace, index: store.Index) -> Reader:
    return reader_of(index, model=args.model, revision=args.revision, device=args.device)


def warn_across(index: store.Index, view: store.View, given: set[str]):
    """Warn where modalities are compared that no training has drawn together."""
    compared = set(index.model["modalities"] if view.name == store.FUSED else view.name.split("+"))
    if given != compared:
        warn_of_untrained(index.model["contrastive_weight"], index.model["name"])


def ranked(
    index: store.Index, view: store.View, scores: "np.ndarray", places: "np.ndarray"
) -> list[dict[str, Any]]:
    """Give the rows that were found, with their ranks and scores."""
    rows = index.rows(view.positions[places])
    return [
        {"rank": rank, "score": float(score), **{key: row[key] for key in ("row", "file", "cells")}}
        for rank, (score, row) in enumerate(zip(scores, rows, strict=True), 1)
    ]


def describe(answers: list[dict[str, Any]]) -> str:
    """Lay ranked rows out for people, one a line; long cells are cut."""
    lines = []
    for answer in answers:
        cells = "  ".join(f"{name}={_short(value)}" for name, value in (answer["cells"] or {}).items())
        lines.append(f"{answer['rank']:>4}  {answer['score']:+.4f}  row {answer['row']:>6}  {cells}".rstrip())
    return "\n".join(lines)


def _short(value: Any, limit: int = 48) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


# -- a table of queries -----------------------------------------------------------------------------------------------


def answer_table(args: argparse.Namespace) -> int:
    """Write the rows nearest to each row of a table, and give how many queries there were."""
    if args.output_file.exists() and not args.overwrite:
        raise ValueError(f"`{args.output_file}` exists: give another `--output_file`, or `--overwrite` to replace it.")
    index = store.open_index(args.index_dir)
    view = index.view(args.by)
    refuse_taken_names(f"the index {args.index_dir}", list(index.rows([0])[0]["cells"]), NEW_COLUMNS)
    reader = open_reader(args, index)
    table = open_rows(args, reader)
    warn_across(index, view, set(table.modalities))
    with replacing(args.output_file) as path, WRITERS[args.output_file.suffix.lower()](path) as write:
        for first, scores, places in found_in_table(args, reader, table, view):
            write(answer_columns(index, view, table, first, scores, places))
    return len(table)


def found_in_table(
    args: argparse.Namespace, reader: Reader, table, view: store.View
) -> Iterator[tuple[int, "np.ndarray", "np.ndarray"]]:
    """Yield (place of the first query, scores (Q, K), places in the view (Q, K)), some queries at a time."""
    from metrics.vectors import embed_rows

    for first in range(0, len(table), QUERIES_AT_ONCE):
        some = table.select(range(first, min(first + QUERIES_AT_ONCE, len(table))))
        embedded = embed_rows(reader.model, batches_of(args, reader, some), [reader.modalities])
        (queries,) = embedded.vectors.values()
        yield first, *nearest(view, queries, args.top_k, approximate=args.approximate)


def answer_columns(
    index: store.Index, view: store.View, table, first: int, scores: "np.ndarray", places: "np.ndarray"
):
    """Give one line for each query and rank: our columns, then those of the row that was found."""
    import numpy as np
    import pyarrow as pa

    num_queries, top_k = places.shape
    cells = index.cells(view.positions[places.ravel()])
    numbers = [table.row_number(first + query) for query in range(num_queries)]
    ours = {
        "query_row": np.repeat(numbers, top_k),
        "match_rank": np.tile(np.arange(1, top_k + 1), num_queries),
        "match_score": scores.ravel(),
        "match_row": cells.column("row"),
    }
    answers = pa.table(ours)
    for name in cells.column_names[1:]:
        answers = answers.append_column(name, cells.column(name))
    return answers
