"""A table that a trained model can read: its modalities kept, every cell opened once before the work begins."""

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
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
    from data import check_table, read_table

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
