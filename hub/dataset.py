"""A table as it will be published: Parquet files with the media in them, and a card.

Unusual: pictures and sounds go in as the bytes of their files, not decoded and not encoded again, and row by row, so
that memory stays flat however large the set. `Dataset.push_to_hub` would need torchcodec for an `Audio` column, and
publishes every column there is; here only text, image, audio and label leave the house, and of a file's path its name.
"""

import io
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datasets import Features

    from data import LabelMap, Table

# What an earlier push may have left in the repository and this one replaces or removes.
REPLACES = ("data/*.parquet", "README.md")
SPLIT_FILES = {"train": "dataset", "validation": "validation_file", "test": "test_file"}
MAX_SHARD_BYTES = 500_000_000
# Row groups are what a reader has in memory at once, and what the viewer of the Hub loads to show a row.
MAX_GROUP_BYTES, MAX_GROUP_ROWS = 30_000_000, 1000


@dataclass
class ExportedSplit:
    """What was written of one table."""

    num_rows: int = 0
    num_bytes: int = 0
    num_file_bytes: int = 0
    num_cells: Counter = field(default_factory=Counter)
    labels: Counter = field(default_factory=Counter)
    formats: dict[str, Counter] = field(default_factory=lambda: {"image": Counter(), "audio": Counter()})
    media_bytes: Counter = field(default_factory=Counter)
    files: list[str] = field(default_factory=list)
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True)
class ExportedDataset:
    """What was written of all tables: the ground on which the card stands."""

    repo_id: str
    splits: dict[str, ExportedSplit]
    features: "Features"
    labels: "LabelMap | None"
    license: str | None = None

    @property
    def modalities(self) -> tuple[str, ...]:
        return tuple(name for name in ("text", "image", "audio") if name in self.features)

    def describe(self) -> str:
        """Lines for people: what will be published, and what will not."""
        lines = []
        for name, split in self.splits.items():
            size = split.num_file_bytes / 1e6
            lines.append(f"{name}: {split.num_rows:,} rows, {len(split.files)} file(s), {size:,.1f} MB")
            if split.left_out:
                lines.append(f"{name}: not published: {', '.join(f'`{column}`' for column in split.left_out)}")
        return "\n".join(lines)


def open_tables(args) -> "tuple[dict[str, Table], LabelMap | None]":
    """Read and check the tables that a command names: `--dataset`, `--validation_file`, `--test_file`.

    Args:
        args: With these three, the flags of `add_column_arguments` and `add_label_arguments`, and `problem_type` where
            the command has it.

    Returns:
        Split name to table, and the labels; None for tables without a label column.

    Raises:
        FileNotFoundError: a table is not there.
        ValueError: a table, a cell or a label cannot be used; the message says which.
    """
    from data import Columns, LabelMap, check_table, read_table

    columns = Columns(args.text_column, args.image_column, args.audio_column, args.label_column)
    tables = {}
    for split, flag in SPLIT_FILES.items():
        if (source := getattr(args, flag)) is not None:
            tables[split] = read_table(
                source,
                columns=columns,
                config_name=args.dataset_config_name if split == "train" else None,
                allow_outside=args.allow_outside_paths,
            )
    labels = None
    if tables["train"].has_labels:
        labels = LabelMap.fit(tables["train"], getattr(args, "problem_type", None), args.label_delimiter)
    for table in tables.values():
        if labels is not None and table.has_labels:
            labels.encode_table(table)  # said now, not after the slow look at the cells
    for split, table in tables.items():
        tables[split], report = check_table(table, on_bad_cell=args.on_bad_cell, allow_empty_columns=split != "train")
        print(report.describe())
    return tables, labels


def export_dataset(
    tables: "dict[str, Table]",
    labels: "LabelMap | None",
    folder: Path,
    *,
    repo_id: str,
    license: str | None = None,
    progress: bool = True,
) -> ExportedDataset:
    """Fill an empty folder with what will be published: `data/{split}-….parquet` and `README.md`.

    Args:
        tables: For each split its rows.
        labels: What their labels mean; None leaves the labels out.
        folder: An empty folder.
        repo_id: Where the data set will be found, for the card.
        license: Identifier of its licence, for the card; None states none.
        progress: Whether a bar is shown on stderr.

    Raises:
        ValueError: a label cannot be encoded, a path may not be followed, or the tables have nothing in common.
        OSError: a file cannot be read or written.
    """
    from hub.dataset_card import render_dataset_card

    features = make_features(tables, labels)
    (folder / "data").mkdir(parents=True, exist_ok=True)
    splits = {}
    for split, table in tables.items():
        splits[split] = write_split(split, table, labels, features, folder / "data", progress)
    exported = ExportedDataset(repo_id, splits, features, labels, license)
    (folder / "README.md").write_text(render_dataset_card(exported), encoding="utf-8")
    return exported


def make_features(tables: "dict[str, Table]", labels: "LabelMap | None") -> "Features":
    """What each column holds, as `datasets` and the viewer of the Hub read it; the same in every split."""
    from datasets import Audio, Features, Image, Value

    media = {"text": Value("string"), "image": Image(), "audio": Audio()}
    found = {name: media[name] for name in media if any(name in table.modalities for table in tables.values())}
    if labels is not None:
        found["label"] = label_feature(labels)
    return Features(found)


def label_feature(labels: "LabelMap"):
    from datasets import ClassLabel, List, Value

    if labels.problem_type == "regression":
        number = Value("float64")
        return number if labels.num_labels == 1 else List(number, length=labels.num_labels)
    classes = ClassLabel(names=list(labels.names))
    return List(classes) if labels.problem_type == "multi_label_classification" else classes


# -- writing ----------------------------------------------------------------------------------------------------------


def write_split(
    split: str, table: "Table", labels: "LabelMap | None", features: "Features", folder: Path, progress: bool
) -> ExportedSplit:
    """Write the files of one split; their number is known, and stands in their names, only at the end."""
    from tqdm import tqdm

    done = ExportedSplit()
    done.left_out = tuple(name for name in table.available_columns if name not in table.columns.values())
    if labels is None and table.has_labels:
        done.left_out += (table.columns["label"],)
    values = labels.encode_table(table) if labels is not None and table.has_labels else None
    rows = (published_row(table, index, labels, values, features, done) for index in range(len(table)))
    rows = tqdm(rows, total=len(table), desc=f"Writing {split}", unit=" rows", disable=not progress)
    parts = write_shards(rows, features.arrow_schema, folder / f".{split}", done)
    for number, part in enumerate(parts):
        name = f"{split}-{number:05d}-of-{len(parts):05d}.parquet"
        os.replace(part, folder / name)
        done.files.append(f"data/{name}")
        done.num_file_bytes += (folder / name).stat().st_size
    return done


def write_shards(rows: Iterator[dict], schema, stem: Path, done: ExportedSplit) -> list[Path]:
    """Write rows to files of at most about `MAX_SHARD_BYTES`, one row group in memory at a time."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    parts, writer, written = [], None, 0
    try:
        for group in row_groups(rows):
            table = pa.Table.from_pylist(group, schema=schema)
            if writer is None or (written and written + table.nbytes > MAX_SHARD_BYTES):
                if writer is not None:
                    writer.close()
                parts.append(stem.with_name(f"{stem.name}-{len(parts)}"))
                # The page index lets the viewer fetch single rows.
                writer, written = pq.ParquetWriter(parts[-1], schema, write_page_index=True), 0
            writer.write_table(table, row_group_size=len(group))
            written += table.nbytes
            done.num_bytes += table.nbytes
            done.num_rows += len(group)
    finally:
        if writer is not None:
            writer.close()
    return parts


def row_groups(rows: Iterator[dict]) -> Iterator[list[dict]]:
    """Bundle rows by their number and by their size."""
    group, size = [], 0
    for row in rows:
        row_size = sum(len(cell["bytes"]) for cell in row.values() if isinstance(cell, dict))
        if group and (size + row_size > MAX_GROUP_BYTES or len(group) == MAX_GROUP_ROWS):
            yield group
            group, size = [], 0
        group.append(row)
        size += row_size
    if group:
        yield group


# -- rows -------------------------------------------------------------------------------------------------------------


def published_row(
    table: "Table",
    index: int,
    labels: "LabelMap | None",
    values: list | None,
    features: "Features",
    done: ExportedSplit,
) -> dict[str, Any]:
    """One row as it is published, counted; `values` are the encoded labels of all rows."""
    row: dict[str, Any] = dict.fromkeys(features)
    for modality in table.modalities:
        if not table.is_present(index, modality):
            continue
        done.num_cells[modality] += 1
        if modality == "text":
            row["text"] = table.cell(index, "text")
        else:
            row[modality] = published_file(table, index, modality, done)
    if values is not None:
        value = values[index]
        if labels.problem_type == "multi_label_classification":
            value = [number for number, holds in enumerate(value) if holds]
        row["label"] = value
        done.labels.update(label_names(labels, value))
    return row


def label_names(labels: "LabelMap", value: Any) -> list[str]:
    if labels.problem_type == "regression":
        return []
    return [labels.names[number] for number in (value if isinstance(value, list) else [value])]


def published_file(table: "Table", index: int, modality: str, done: ExportedSplit) -> dict[str, Any]:
    """The bytes of a picture's or sound's file, with its name; a name is made where there is none."""
    try:
        source = table.media(index, modality)
        if isinstance(source, Path):
            content = source.read_bytes()
        else:
            content = encoded(source, modality) if isinstance(source, dict) else source
        kind = file_format(content, modality)
    except (ValueError, OSError) as error:
        raise ValueError(f"{table.place(index, modality)}: {error}") from error
    done.formats[modality][kind] += 1
    done.media_bytes[modality] += len(content)
    name = table.file_name(index, modality) or f"{modality}_{table.row_number(index):06d}.{kind.lower()}"
    return {"bytes": content, "path": name}


def file_format(content: bytes, modality: str) -> str:
    """What kind of file it is, by its own header: `PNG`, `FLAC` …"""
    import soundfile
    from PIL import Image, UnidentifiedImageError

    try:
        if modality == "image":
            with Image.open(io.BytesIO(content)) as picture:
                return picture.format
        return soundfile.info(io.BytesIO(content)).format
    except (UnidentifiedImageError, soundfile.SoundFileError) as error:
        raise ValueError(f"the {len(content):,} bytes are no {modality} file that is known ({error})") from None


def encoded(source: dict, modality: str) -> bytes:
    """A file for what was no file in the table but an array; without loss."""
    import soundfile

    if modality == "image":
        raise ValueError("a picture given as an array cannot be published: put the bytes of its file into the table")
    buffer = io.BytesIO()
    soundfile.write(buffer, source["array"], source["sampling_rate"], format="WAV", subtype="FLOAT")
    return buffer.getvalue()
