"""A query becomes ranked rows: one sample, or every row of a table."""

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from cli.environment import require_writable
from cli.files import replacing
from cli.scored import WRITERS, refuse_taken_names
from metrics.vectors import embed_rows
from searching.build import batches_of, open_rows
from searching.nearest import nearest, ranked
from searching.reader import Reader, reader_of, warn_of_untrained
from searching.store import FUSED, Index, View, open_index

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from data import Table

NEW_COLUMNS = ("query_row", "match_rank", "match_score", "match_row")
QUERIES_AT_ONCE = 1_000  # whose answers are written at once


def answer_sample(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Give the rows nearest to one sample, best first; `args` as `search.py query` reads them.

    Returns:
        Of each row `rank` (from 1), `score` (cosine), `row` (from 1), `file` and `cells`, its own columns.
    """
    index = open_index(args.index_dir)
    view = index.view(args.by)
    reader = open_reader(args, index)
    sample = {name: value for name in ("text", "image", "audio") if (value := getattr(args, name)) is not None}
    subset = tuple(name for name in reader.modalities if name in sample)
    (query,) = reader.embed(sample, [subset or reader.modalities])
    if not query.any():
        raise ValueError(
            f"the sample holds nothing that the model reads: give at least one of {', '.join(reader.modalities)}."
        )
    warn_across(index, view, set(subset))
    scores, places = nearest(view, query, args.top_k, approximate=args.approximate)
    return ranked(index, view, scores[0], places[0])


def open_reader(args: argparse.Namespace, index: Index) -> Reader:
    return reader_of(index, model=args.model, revision=args.revision, device=args.device)


def warn_across(index: Index, view: View, given: set[str]):
    """Warn where modalities are compared that no training has drawn together."""
    compared = set(index.model["modalities"] if view.name == FUSED else view.name.split("+"))
    if given != compared:
        warn_of_untrained(index.model["contrastive_weight"], index.model["name"])


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
    require_writable(args.output_file, "--output_file")
    index = open_index(args.index_dir)
    view = index.view(args.by)
    refuse_taken_names(f"the index {args.index_dir}", list(index.rows([0])[0]["cells"] or ()), NEW_COLUMNS)
    reader = open_reader(args, index)
    table = open_rows(args, reader)
    warn_across(index, view, set(table.modalities))
    with replacing(args.output_file) as path, WRITERS[args.output_file.suffix.lower()](path) as write:
        for numbers, scores, places in found_in_table(args, reader, table, view):
            write(answer_columns(index, view.positions[places], numbers, scores))
    return len(table)


def found_in_table(
    args: argparse.Namespace, reader: Reader, table: "Table", view: View
) -> Iterator[tuple[list[int], "np.ndarray", "np.ndarray"]]:
    """Yield (numbers of the queries' rows, scores (Q, K), places in the view (Q, K)), some queries at a time."""
    import numpy as np

    for first in range(0, len(table), QUERIES_AT_ONCE):
        some = table.select(range(first, min(first + QUERIES_AT_ONCE, len(table))))
        embedded = embed_rows(reader.model, batches_of(args, reader, some), [reader.modalities])
        (queries,) = embedded.vectors.values()
        has = np.flatnonzero(queries.any(axis=1))  # a text without a token has no vector, hence no answer
        if len(has):
            numbers = [some.row_number(query) for query in has]
            yield numbers, *nearest(view, queries[has], args.top_k, approximate=args.approximate)


def answer_columns(index: Index, positions: "np.ndarray", numbers: list[int], scores: "np.ndarray") -> "pa.Table":
    """Give one line for each query and rank: our columns, then those of the row that was found."""
    import numpy as np
    import pyarrow as pa

    num_queries, top_k = scores.shape
    rows, cells = index.columns(positions.ravel())
    ours = (np.repeat(numbers, top_k), np.tile(np.arange(1, top_k + 1), num_queries), scores.ravel(), rows)
    answers = pa.table(dict(zip(NEW_COLUMNS, ours, strict=True)))
    for name in [] if cells is None else cells.column_names:
        answers = answers.append_column(name, cells.column(name))
    return answers
