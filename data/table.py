"""A table as the rest of the software sees it: rows whose cells are a text, a picture, a sound and a label.

A cell stays what it is in the table (a text, a path, the bytes of a file) until it is needed; nothing is decoded here.
Whether a cell holds something is known for the whole table at once, in `Table.presence`.
"""

import re
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data.hub import HubSet, open_split
from data.paths import checked_path
from data.reading import open_source
from data.source import Shard, Source

if TYPE_CHECKING:
    from datasets import Dataset

MODALITIES = ("text", "image", "audio")
LEAVE_OUT = "none"
LABEL_OF = "label:"  # before the name of a task, where there are several label columns
_HINT = {"text": "text", "image": "paths, bytes or {bytes, path}", "audio": "paths, bytes or {bytes, path}"}


@dataclass(frozen=True)
class Columns:
    """Which column of the user's table holds what.

    Args:
        text, image, audio, label: A column's name; None takes the column that is called `text`, `image`, `audio` or
            `label` where there is one (in a folder also `image_file_name`, `audio_file_name` and `file_name`); "none"
            leaves the modality out even then. Of several tasks `label` maps the name of each to its column.
    """

    text: str | None = None
    image: str | None = None
    audio: str | None = None
    label: str | Mapping[str, str] | None = None

    def resolve(self, source: Source) -> dict[str, str]:
        """Maps `text`, `image`, `audio` and `label` to the source's own names, leaving out what it lacks.

        Of several tasks there is a `label:TASK` for each in place of `label`.

        Raises:
            ValueError: a named column is missing, one column is named twice, or no modality is left.
        """
        asked = {kind: getattr(self, kind) for kind in MODALITIES}
        if isinstance(self.label, Mapping):
            asked |= {f"{LABEL_OF}{task}": name for task, name in self.label.items()}
        else:
            asked["label"] = self.label
        found: dict[str, str] = {}
        for kind, name in asked.items():
            default = source.media_defaults.get(kind, kind.removeprefix(LABEL_OF))
            if name is None and default in source.column_names and default not in asked.values():
                found[kind] = default
            elif name is not None and name != LEAVE_OUT:
                found[kind] = _existing(source, kind, name)
        _refuse_shared_columns(source, found)
        if not set(MODALITIES) & set(found):
            raise ValueError(
                f"`{source.name}` has no column for text, image or audio: it has {_listed(source.column_names)}. "
                "Name at least one of them as the text, image or audio column."
            )
        return found


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _existing(source: Source, kind: str, name: str) -> str:
    if name not in source.column_names:
        raise ValueError(
            f"`{source.name}` has no column `{name}` (asked for as the {kind} column). It has "
            f"{_listed(source.column_names)}; name one of these, or `{LEAVE_OUT}` to leave {kind} out."
        )
    return name


def _refuse_shared_columns(source: Source, found: dict[str, str]) -> None:
    for name in found.values():
        kinds = [kind for kind, other in found.items() if other == name]
        if len(kinds) > 1:
            raise ValueError(
                f"The column `{name}` of `{source.name}` is named as {' and as '.join(kinds)}. Name each column once."
            )


def read_table(
    source: str | Path | HubSet,
    *,
    columns: Columns | None = None,
    split: str | None = None,
    config_name: str | None = None,
    revision: str | None = None,
    allow_outside: bool = False,
) -> "Table":
    """Reads a table: a .csv, .tsv, .jsonl, .json or .parquet file, a folder, a glob of Parquet files, or a Hub name.

    Every CSV cell is text ("NA", "007"); an empty cell, one of white space and null mean that the row has no such
    modality. Media stay undecoded.

    Args:
        source: The file, the folder (with metadata.csv, .jsonl or .parquet), the glob, or the name on the Hub; or a
            data set on the Hub that is found already, which no file or folder of that name can stand in for.
        columns: The names of the columns.
        split: For a data set on the Hub its split (default: the only one, or `train`); for a folder the folder in it.
        config_name: For a data set on the Hub its configuration.
        revision: For a data set on the Hub its commit, tag or branch; None is the newest commit.
        allow_outside: Whether paths in cells may leave the folder of the table.

    Raises:
        FileNotFoundError: there is no such source.
        ValueError: the source is no table, has no rows, or lacks a column; the message says which it has.
    """
    if isinstance(source, HubSet):
        opened = open_split(source, split)
    else:
        opened = open_source(source, split=split, config_name=config_name, revision=revision)
    return table_of(opened, (columns or Columns()).resolve(opened), allow_outside)


def table_of(opened: Source, found: dict[str, str], allow_outside: bool = False) -> "Table":
    """Loads the columns that were found."""
    dataset = opened.load(list(found.values())).rename_columns({name: kind for kind, name in found.items()})
    if len(dataset) == 0:
        raise ValueError(f"`{opened.name}` has no rows below its header. Give a table with at least one row.")
    return Table(
        source=dataset,
        name=opened.name,
        shards=opened.shards,
        columns=found,
        available_columns=tuple(opened.column_names),
        rows=np.arange(len(dataset)),
        presence=_presence(dataset, opened, found),
        extra_roots=opened.extra_roots,
        origin=opened.origin,
        allow_outside=allow_outside,
    )


def _presence(dataset: "Dataset", source: Source, columns: dict[str, str]) -> np.ndarray:
    """Which cells hold something, as an array of rows by modalities, without loading any media."""
    presence = np.zeros((len(dataset), len(MODALITIES)), dtype=bool)
    for index, modality in enumerate(MODALITIES):
        if modality in columns:
            one_column = dataset.select_columns([modality]).with_format("arrow")
            chunks = [_filled(batch[modality].combine_chunks(), modality) for batch in one_column.iter(10_000)]
            if any(chunk is None for chunk in chunks):
                raise ValueError(
                    f"`{source.name}`: the column `{columns[modality]}` holds {dataset.features[modality]}"
                    f"{_first_number(dataset, modality)}, which cannot be read as {modality}. Allowed are "
                    f"{_HINT[modality]}."
                )
            presence[:, index] = np.concatenate(chunks)
    return presence


def _first_number(dataset: "Dataset", modality: str) -> str:
    """The first number in a column whose other cells are NaN, as pandas writes empty cells."""
    column = dataset.data.column(modality)
    if not pa.types.is_floating(column.type):
        return ""
    row = pc.index(pc.fill_null(pc.invert(pc.is_nan(column)), False), True).as_py()
    return "" if row < 0 else f" ({column[row].as_py()!r} in row {row + 1})"


def _filled(array: pa.Array, modality: str) -> np.ndarray | None:
    """Whether each cell holds something; None where the type cannot be read as this modality."""
    if isinstance(array, pa.ChunkedArray):  # what `combine_chunks` gives for no or for very large chunks
        array = pa.concat_arrays(array.chunks)
    kind = array.type
    if pa.types.is_null(kind):
        return np.zeros(len(array), dtype=bool)
    if pa.types.is_floating(kind):  # what pandas makes of a column without any value
        filled = pc.invert(pc.is_nan(array))
        return None if pc.any(filled).as_py() else np.zeros(len(array), dtype=bool)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        filled = pc.not_equal(pc.utf8_trim_whitespace(array), "")
    elif modality == "text":
        return None
    elif pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        filled = array.is_valid()
    elif pa.types.is_struct(kind) and {field.name for field in kind} & {"bytes", "path", "array"}:
        return _struct_filled(array)
    else:
        return None
    return filled.fill_null(False).to_numpy(zero_copy_only=False)


def _struct_filled(array: pa.StructArray) -> np.ndarray:
    filled = np.zeros(len(array), dtype=bool)
    for part in array.type:
        values = pc.struct_field(array, part.name)
        if part.name in ("bytes", "array"):
            filled |= values.is_valid().to_numpy(zero_copy_only=False)
        elif part.name == "path":
            filled |= _filled(values, "text")
    return filled


@dataclass(frozen=True)
class Table:
    """Rows of a table with the columns that were asked for, under the names `text`, `image`, `audio` and `label`.

    With the label columns of several tasks, these are called `label:TASK`, and `of_task` gives the table of one.

    Args:
        source: All rows of the source; memory-mapped where it is Parquet or from the Hub.
        name: What messages call the table: the file's path as it was given, or the Hub name and split.
        shards: The files it consists of, for messages and for relative paths.
        columns: From `text`, `image`, `audio`, `label` to the user's column names; only those that are there.
        available_columns: All columns of the source.
        rows: For each row of this table its place in the source, from 0.
        presence: (rows, 3) booleans: whether the row has a text, an image, an audio.
        extra_roots: Folders other than that of the table in which files may lie.
        origin: What identifies the source for good: `hub_id`, `revision` and `split` of a data set on the Hub.
        allow_outside: Whether paths in cells may leave these folders.
    """

    source: "Dataset"
    name: str
    shards: tuple[Shard, ...]
    columns: dict[str, str]
    available_columns: tuple[str, ...]
    rows: np.ndarray
    presence: np.ndarray
    extra_roots: tuple[Path, ...] = ()
    origin: dict[str, str] = field(default_factory=dict)
    allow_outside: bool = False
    _columns: dict[str, pa.ChunkedArray] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.rows)

    def __getstate__(self) -> dict[str, Any]:
        # A pickled `Dataset` is the path of its memory-mapped file, a pickled Arrow column is all of its bytes.
        return {**self.__dict__, "_columns": {}}

    @property
    def dataset(self) -> "Dataset":
        """The rows of this table as a `datasets.Dataset`."""
        return self.source.select(self.rows)

    @property
    def modalities(self) -> tuple[str, ...]:
        """The modalities for which there is a column, in the order text, image, audio."""
        return tuple(modality for modality in MODALITIES if modality in self.columns)

    @property
    def has_labels(self) -> bool:
        return bool(self.label_kinds)

    @property
    def label_kinds(self) -> tuple[str, ...]:
        """What the label columns are called here: `label`, or `label:TASK` for each task."""
        return tuple(kind for kind in self.columns if kind == "label" or kind.startswith(LABEL_OF))

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks, where there is a label column for each of several."""
        return tuple(kind.removeprefix(LABEL_OF) for kind in self.label_kinds if kind != "label")

    @property
    def root(self) -> Path | None:
        """The folder that paths of the first file are relative to; None for a data set on the Hub."""
        return self.shards[0].root

    def shard_of(self, index: int) -> Shard:
        return self.shards[bisect_right([shard.first_row for shard in self.shards], self.rows[index]) - 1]

    def row_number(self, index: int) -> int:
        """The number of the row in its file, from 1 (the first row below the header)."""
        return int(self.rows[index]) - self.shard_of(index).first_row + 1

    def place(self, index: int, kind: str | None = None) -> str:
        """Where a row or a cell stands, as messages write it: "train.csv:row 17, column `face`"."""
        row = f"{self.shard_of(index).name}:row {self.row_number(index)}"
        return row if kind is None else f"{row}, column `{self.columns[kind]}`"

    def is_present(self, index: int, modality: str) -> bool:
        return bool(self.presence[index, MODALITIES.index(modality)])

    def cell(self, index: int, kind: str) -> Any:
        """The cell as it stands in the table: a text, a path, bytes, an {"array", "sampling_rate"}; None where empty.

        For `label` a number that stands for a name (a ClassLabel) comes as that name.
        """
        if kind == "label":
            return self.labels([index])[0]
        if not self.is_present(index, kind):
            return None
        return content(self._column(kind)[self.rows[index]].as_py())

    def file_name(self, index: int, modality: str) -> str | None:
        """What the file of a picture or sound is called, without its folder; None where that is not known."""
        value = self._column(modality)[self.rows[index]].as_py() if self.is_present(index, modality) else None
        path = value.get("path") if isinstance(value, dict) else value
        return re.split(r"[/\\]", path.strip())[-1] or None if isinstance(path, str) else None

    def _column(self, kind: str) -> pa.ChunkedArray:
        # Straight from Arrow: a row access of `datasets` takes 0.2 ms, and reads all columns of the row.
        if kind not in self._columns:
            self._columns[kind] = self.source.data.column(kind)
        return self._columns[kind]

    def labels(self, indices: Sequence[int] | None = None) -> list[Any]:
        """The label cells, names in place of ClassLabel numbers, None where empty.

        Raises:
            ValueError: the table has no label column; the message lists the columns.
        """
        if not self.has_labels:
            raise ValueError(
                f"`{self.name}` has no label column. It has {_listed(self.available_columns)}; name one of these as "
                "the label column."
            )
        rows = self.rows if indices is None else self.rows[list(indices)]
        return named_labels(self._column("label").take(rows).to_pylist(), self.source.features["label"])

    def media(self, index: int, modality: str) -> Any:
        """The picture or sound of a row as the decoder takes it: a checked path, bytes or an array; None where empty.

        Raises:
            ValueError: the cell holds a URL, or a path that leaves the table's folder; the message has no place yet.
        """
        value = self.cell(index, modality)
        if not isinstance(value, str):
            return value
        return checked_path(value.strip(), self.shard_of(index).root, self.extra_roots, self.allow_outside)

    def select(self, indices: Sequence[int] | np.ndarray) -> "Table":
        """The table of these rows (indices into this table), which keep their numbers."""
        indices = np.asarray(indices, dtype=np.int64)
        return replace(self, rows=self.rows[indices], presence=self.presence[indices])

    def of_task(self, name: str) -> "Table":
        """The table with the labels of one of several tasks, and no others."""
        kind = f"{LABEL_OF}{name}"
        columns = {key: column for key, column in self.columns.items() if key not in self.label_kinds}
        source = self.source.rename_column(kind, "label")
        return replace(self, source=source, columns={**columns, "label": self.columns[kind]})

    def keep_modalities(self, modalities: Iterable[str]) -> "Table":
        """The table without the columns of other modalities, for a model that cannot read them."""
        dropped = [modality for modality in self.modalities if modality not in set(modalities)]
        presence = self.presence.copy()
        presence[:, [MODALITIES.index(modality) for modality in dropped]] = False
        columns = {kind: name for kind, name in self.columns.items() if kind not in dropped}
        return replace(self, columns=columns, presence=presence)

    def with_empty_cells(self, cells: Iterable[tuple[int, str]]) -> "Table":
        """The table with these cells (index, modality) taken as empty."""
        presence = self.presence.copy()
        for index, modality in cells:
            presence[index, MODALITIES.index(modality)] = False
        return replace(self, presence=presence)


def content(value: Any) -> Any:
    """What a cell of any format holds: of {"bytes", "path"} the bytes, or else the path."""
    if not isinstance(value, dict) or value.get("array") is not None:
        return value
    return value.get("path") if value.get("bytes") is None else value["bytes"]


def is_label(feature: Any) -> bool:
    """Whether a column holds numbers, or lists of numbers, that stand for names."""
    from datasets import ClassLabel

    return isinstance(getattr(feature, "feature", feature), ClassLabel)


def named_labels(values: Sequence[Any], feature: Any) -> list[Any]:
    """Return label cells with names in place of the numbers of a ClassLabel.

    A list that names a class twice is a vector of 0 and 1, one number for each class.
    """
    if not is_label(feature):
        return list(values)
    inner = getattr(feature, "feature", feature)
    names = dict(enumerate(inner.names))  # -1, "no label" by convention, has no name
    if inner is feature:
        return [names.get(value) for value in values]
    return [None if value is None else [names.get(item) for item in _classes(value, len(names))] for value in values]


def _classes(numbers: list[int], num_classes: int) -> list[int]:
    is_vector = len(numbers) == num_classes and set(numbers) <= {0, 1} and len(set(numbers)) < len(numbers)
    return [place for place, bit in enumerate(numbers) if bit] if is_vector else numbers
