"""A table that a trained model can read: its modalities kept, every cell opened once before the work begins."""

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa

    from data import Columns, LabelMap, Table


def open_table(
    source: str,
    model,
    processor,
    *,
    columns: "Columns",
    labels: "LabelMap | None" = None,
    split: str | None = None,
    config_name: str | None = None,
    allow_outside: bool = False,
    max_rows: int | None = None,
    on_bad_cell: str = "error",
) -> "Table":
    """Read a table, keep the modalities that the model reads, and open every cell once.

    Args:
        source: as for `data.read_table`, like `columns`, `split`, `config_name` and `allow_outside`.
        model: whose modalities are kept.
        processor: how sounds are opened.
        labels: what the model knows; every label is read before the slow look at the cells. None: labels are not used.
        max_rows: keep only the first rows, this many; None: all.
        on_bad_cell: one of `data.ON_BAD_CELL`; what was done about bad cells is told on stderr.

    Raises:
        FileNotFoundError: When there is no such table.
        ValueError: When it is no table, or has nothing that the model reads, or cells are bad.
    """
    from data import check_table, label_notes, read_table

    reads = model.config.modalities
    for kind in ("text", "image", "audio"):
        if kind not in reads and getattr(columns, kind) not in (None, "none"):
            raise ValueError(
                f"the column `{getattr(columns, kind)}` is named as {kind}, but the model reads only "
                f"{', '.join(reads)}: leave it out."
            )
    table = read_table(source, columns=columns, split=split, config_name=config_name, allow_outside=allow_outside)
    if not set(table.modalities) & set(reads):
        raise ValueError(
            f"`{source}` has columns for {', '.join(table.modalities)}, but the model reads {', '.join(reads)}: name "
            f"the column of one of these."
        )
    table = table.keep_modalities(reads)
    if max_rows is not None:
        table = table.select(range(min(max_rows, len(table))))
    if labels is not None:
        labels.encode_table(table)
        for note in label_notes(table, labels):
            print(note, file=sys.stderr)
    table, report = check_table(
        table,
        sampling_rate=processor.audio_sampling_rate,
        max_audio_seconds=processor.max_audio_seconds,
        on_bad_cell=on_bad_cell,
        allow_empty_columns=True,  # the model answers without that modality
    )
    if report.problems:
        print(report.describe(), file=sys.stderr)
    return table


def own_columns(
    table: "Table", source: str, *, split: str | None = None, config_name: str | None = None
) -> "pa.Table":
    """Give all columns of the source for the rows of a table, without media that lie in it as bytes or arrays.

    Args:
        table: which rows.
        source: what the table was read from, like `split` and `config_name`.
    """
    import pyarrow as pa

    from cli.scored import holds_media
    from data.reading import open_source
    from data.table import is_label, named_labels

    opened = open_source(source, split=split, config_name=config_name)
    rows = opened.load(opened.column_names).select(table.rows)
    rows = rows.remove_columns([field.name for field in rows.data.schema if holds_media(field.type)])
    kept = rows.with_format("arrow")[:].replace_schema_metadata(None)
    for name, feature in rows.features.items():
        if is_label(feature):  # a person reads names, not numbers
            values = pa.array(named_labels(kept[name].to_pylist(), feature))
            kept = kept.set_column(kept.column_names.index(name), name, values)
    return kept
