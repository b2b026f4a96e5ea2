"""Rows that come over the network while the model learns from them; the data set is never here as a whole.

What is unusual: nothing is known beforehand but what the data set declares. So labels come from its features, the
number of rows from its card, the modalities from its columns, and a bad cell is met in the middle of the training.

Media come undecoded as {bytes, path}, without `Audio()` features: these would ask for torchcodec at the first row.
Only the bytes are used: a path in a stream leads to another machine, or to a file here that is none of its business.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, count, islice
from typing import TYPE_CHECKING, Any

import torch.utils.data

from data.arrow_types import plain_dataset
from data.batches import open_media
from data.hub import HubSet, find_hub_set, hub_source, one_sentence
from data.labels import LabelMap
from data.table import MODALITIES, Columns, Table, content, is_label, named_labels, table_of

if TYPE_CHECKING:
    from datasets import Dataset, Features, IterableDataset

_MAX_TOLD = 20
_FIRST_ROWS = 100
_MAYBE_TEXT = ("string", "large_string", "string_view", "null", "float32", "float64")  # floats: all of them NaN


@dataclass(frozen=True)
class Stream:
    """A split of a data set on the Hub, its columns chosen, not read yet.

    Args:
        hub_set: The data set, at one commit.
        split: Which of its splits.
        columns: From `text`, `image`, `audio`, `label` to the data set's column names; only those that are there.
        features: What it declares for each of its columns.
        first_row: Rows before this one are left out.
        max_rows: So many rows after that; None is all.
    """

    hub_set: HubSet
    split: str
    columns: dict[str, str]
    features: "Features"
    first_row: int = 0
    max_rows: int | None = None

    @property
    def name(self) -> str:
        return f"{self.hub_set.hub_id}:{self.split}"

    @property
    def origin(self) -> dict[str, str]:
        return self.hub_set.origin(self.split)

    @property
    def modalities(self) -> tuple[str, ...]:
        return tuple(modality for modality in MODALITIES if modality in self.columns)

    @property
    def num_rows(self) -> int | None:
        """How many rows it has by what its card declares; None where it does not."""
        declared = self.hub_set.num_rows(self.split)
        if declared is None:
            return None
        rest = max(0, declared - self.first_row)
        return rest if self.max_rows is None else min(rest, self.max_rows)

    def keep_modalities(self, modalities: list[str]) -> "Stream":
        kept = {kind: name for kind, name in self.columns.items() if kind in modalities or kind == "label"}
        return replace(self, columns=kept)

    def take(self, max_rows: int) -> "Stream":
        """The first rows only."""
        return replace(self, max_rows=max_rows if self.max_rows is None else min(max_rows, self.max_rows))

    def skip(self, num_rows: int) -> "Stream":
        """All but the first rows."""
        left = None if self.max_rows is None else max(0, self.max_rows - num_rows)
        return replace(self, first_row=self.first_row + num_rows, max_rows=left)

    def labels(
        self, problem_type: str | None = None, delimiter: str | None = None, names: Sequence[str] | None = None
    ) -> LabelMap:
        """Return the labels, from what the data set declares.

        Lists of numbers do not say whether they are vectors of 0 and 1: for these the first rows are looked at.

        Raises:
            ValueError: it has no label column, or does not declare what is in it.
        """
        if "label" not in self.columns:
            raise ValueError(
                f"`{self.name}` has no label column. It has {', '.join(f'`{name}`' for name in self.features)}; name "
                "one of these as the label column."
            )
        if delimiter is not None:
            raise ValueError(
                "--label_delimiter divides text, and the labels of a stream are those that the data set declares: "
                "leave it out, or train without --streaming."
            )
        column = self.columns["label"]
        feature = self.features[column]
        first = self._first_labels(column) if hasattr(feature, "feature") and not is_label(feature) else ()
        fitted = LabelMap.declared(feature, column, self.name, problem_type, first)
        if names is not None and len(names) != fitted.num_labels:
            raise ValueError(
                f"--label_names has {len(names)} names, and `{self.name}` has {fitted.num_labels} labels in its "
                f"column `{column}`. Give a name for each, in their order."
            )
        return fitted if names is None else replace(fitted, names=tuple(names))

    def _first_labels(self, column: str) -> list[Any]:
        with one_sentence(self.hub_set.hub_id):
            return [row[column] for row in self.take(_FIRST_ROWS).rows(("label",))]

    def rows(self, kinds: tuple[str, ...] | None = None) -> "IterableDataset":
        """The rows in their order, undecoded, only the columns of these kinds."""
        columns = [self.columns[kind] for kind in kinds or self.columns]
        stream = without_decoding(self.hub_set.stream(self.split, columns))
        stream = stream.skip(self.first_row) if self.first_row else stream
        return stream if self.max_rows is None else stream.take(self.max_rows)

    def texts(self, max_rows: int) -> Iterator[str]:
        """The texts of the first rows; of Parquet nothing else is downloaded for them."""
        with one_sentence(self.hub_set.hub_id):
            for row in self.take(max_rows).rows(("text",)):
                text = row[self.columns["text"]]
                if isinstance(text, str) and text.strip():
                    yield text

    def pictures(self, max_rows: int) -> Iterator[bytes]:
        """The files of the pictures of the first rows; of Parquet nothing else is downloaded for them."""
        with one_sentence(self.hub_set.hub_id):
            for row in self.take(max_rows).rows(("image",)):
                if isinstance(value := content(row[self.columns["image"]]), bytes):
                    yield value

    def table(self) -> Table:
        """All of these rows as a table, kept in the cache of `datasets` on disk."""
        source = hub_source(self.hub_set, self.split, list(self.features), lambda columns: self._stored())
        return table_of(source, self.columns)

    def _stored(self) -> "Dataset":
        from datasets import Dataset
        from datasets.fingerprint import Hasher

        key = (*self.origin.values(), self.hub_set.config_name, *self.columns.items(), self.first_row, self.max_rows)
        rows = self.rows()
        with one_sentence(self.hub_set.hub_id):
            return Dataset.from_generator(
                lambda: iter(rows), features=rows.features, fingerprint=Hasher.hash(key), split=self.split
            )


def open_stream(
    name: str,
    *,
    columns: Columns | None = None,
    split: str | None = None,
    config_name: str | None = None,
    revision: str | None = None,
) -> Stream:
    """Finds a data set on the Hub, without downloading it.

    Raises:
        FileNotFoundError: there is none that can be read.
        OSError: the Hub cannot be reached.
        ValueError: it cannot be streamed, lacks a column, or declares no features.
    """
    hub_set = find_hub_set(name, config_name=config_name, revision=revision)
    return stream_of(hub_set, hub_set.choose_split(split), columns)


def stream_of(hub_set: HubSet, split: str, columns: Columns | None = None) -> Stream:
    """The same for another split of a data set that is found already."""
    features = hub_set.builder.info.features or hub_set.stream(split).features
    if not features:
        raise ValueError(
            f"The data set `{hub_set.hub_id}` declares no features: its columns are not known before it is read. "
            "Train without --streaming, or push it as Parquet (`push_to_hub.py --dataset` does)."
        )
    source = hub_source(hub_set, split, list(features), None)
    stream = Stream(hub_set, split, (columns or Columns()).resolve(source), features)
    for modality in stream.modalities:
        _refuse_other_types(stream, modality)
    return stream


def _refuse_other_types(stream: Stream, modality: str) -> None:
    """What a table finds out by its cells, a stream must know from what is declared."""
    feature = stream.features[stream.columns[modality]]
    dtype = str(getattr(feature, "dtype", ""))
    is_file = modality != "text" and ("binary" in dtype or "bytes" in _parts(feature))
    if not is_file and dtype not in _MAYBE_TEXT:
        raise ValueError(
            f"`{stream.name}`: the column `{stream.columns[modality]}` holds {feature}, which cannot be read as "
            f"{modality} from a stream. Allowed are {'text' if modality == 'text' else 'bytes or {bytes, path}'}."
        )


def _parts(feature: Any) -> tuple[str, ...]:
    from datasets import Audio, Image

    if isinstance(feature, (Audio, Image)):
        return ("bytes", "path")
    return tuple(feature) if isinstance(feature, dict) else ()


def without_decoding(stream: "IterableDataset") -> "IterableDataset":
    """Return the same rows with pictures and sounds as plain {bytes, path}, and plain types."""
    from datasets import Audio, Image, Value

    stream = stream.decode(False)
    for column, feature in stream.features.items():
        if isinstance(feature, (Audio, Image)):
            stream = stream.cast_column(column, {"bytes": Value("binary"), "path": Value("string")})
    return plain_dataset(stream)


class StreamedDataset(torch.utils.data.IterableDataset):
    """The rows of a stream, shuffled and opened: dicts as `FusionDataset` gives them.

    `row` counts the rows as this process meets them. With several processes each gets every so-manieth row, and all
    get equally many: one that comes out short begins again, as `accelerate` does with the last batch of a table.

    Args:
        stream: The rows.
        labels: How to encode the labels.
        processor: An MMFusionProcessor; it says what can be read, at which sampling rate and how long.
        buffer_size: Rows among which the next one is drawn; they are in memory, undecoded.
        seed: Of the order; another order is drawn in each epoch.
        on_bad_cell: One of `data.ON_BAD_CELL`.
        num_rows: Rows of one epoch, of all processes together.
        process_index: Which process this is.
        num_processes: How many there are.
    """

    def __init__(
        self,
        stream: Stream,
        labels: LabelMap,
        processor: Any,
        *,
        buffer_size: int,
        seed: int,
        on_bad_cell: str,
        num_rows: int,
        process_index: int = 0,
        num_processes: int = 1,
    ):
        from datasets.distributed import split_dataset_by_node

        self.stream, self.labels, self.on_bad_cell = stream, labels, on_bad_cell
        self.modalities = tuple(name for name in processor.modalities if name in stream.modalities)
        self.sampling_rate, self.max_audio_seconds = processor.audio_sampling_rate, processor.max_audio_seconds
        self.image_bits = getattr(processor, "image_bits", 16)  # as in a FusionDataset
        self.num_rows, self.num_processes, self.num_told = num_rows, num_processes, 0
        rows = stream.rows()
        # From several files at once, where there are several; to ask that of one costs `datasets` a wait of 5 s.
        num_files = min(10, rows.num_shards)
        self.source = rows.shuffle(seed=seed, buffer_size=buffer_size, max_buffer_input_shards=num_files)
        if num_processes > 1:
            # By rows and not by files, whatever these hold: then no process has more than one row less.
            self.source = split_dataset_by_node(self.source, process_index, num_processes, strategy="examples")

    def __len__(self) -> int:
        return self.num_rows

    def set_epoch(self, epoch: int) -> None:
        """Called by the prepared DataLoader at the start of each epoch."""
        self.source.set_epoch(epoch)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        if self.num_processes == 1:
            return self._once()
        share = -(-self.num_rows // self.num_processes)
        return islice(chain.from_iterable(self._once() for _ in count()), share)

    def _once(self) -> Iterator[dict[str, Any]]:
        """Every row that can be used, once."""
        is_empty = True
        for number, raw in self._numbered():
            row = self._opened(raw, number)
            if row is not None:
                is_empty = False
                yield row
        worker = torch.utils.data.get_worker_info()
        if is_empty and (worker is None or worker.num_workers == 1):  # one of several may have no file to read
            raise ValueError(f"`{self.stream.name}` has no row that can be used.")

    def _numbered(self) -> Iterator[tuple[int, dict[str, Any]]]:
        with one_sentence(self.stream.hub_set.hub_id):
            yield from enumerate(self.source)

    def _opened(self, raw: dict[str, Any], number: int) -> dict[str, Any] | None:
        """A row as the collator takes it; None where it is left out."""
        row: dict[str, Any] = dict.fromkeys(MODALITIES)
        problems = []
        for modality in self.modalities:
            cell = raw[self.stream.columns[modality]]
            try:
                row[modality] = self._cell(cell, modality)
            except (ValueError, OSError) as error:
                problems.append(f"{self._place(number, modality, cell)}: {error}")
        if not problems and all(row[modality] is None for modality in MODALITIES):
            problems.append(f"{self._place(number)}: the row has no modality")
        self._deal_with(problems)
        if (problems and self.on_bad_cell == "drop") or all(row[modality] is None for modality in MODALITIES):
            return None
        row["label"] = self._label(raw, number)
        row["row"] = number
        return row

    def _cell(self, cell: Any, modality: str) -> Any:
        value = content(cell)
        if value is None or value != value or (isinstance(value, str) and not value.strip()):  # NaN is not itself
            return None
        if isinstance(value, float):
            raise ValueError(f"{value!r} is a number, which cannot be read as {modality}.")
        if modality == "text":
            return value
        if isinstance(value, str):
            raise ValueError(
                f"it holds only the path {value!r:.200}, which a stream does not follow. Push the data set with its "
                "media in it (`push_to_hub.py --dataset` does)."
            )
        return open_media(value, modality, self.sampling_rate, self.max_audio_seconds, self.image_bits)

    def _label(self, raw: dict[str, Any], number: int) -> Any:
        column = self.stream.columns["label"]
        try:
            return self.labels.encode(named_labels([raw[column]], self.stream.features[column])[0])
        except ValueError as error:
            raise ValueError(f"{self._place(number)}, column `{column}`: {error}") from None

    def _place(self, number: int, modality: str | None = None, cell: Any = None) -> str:
        """Where it stands; a shuffled stream has no row numbers, but a file has a name."""
        path = cell.get("path") if isinstance(cell, dict) else None
        name = f" (`{path}`)" if path else ""
        column = "" if modality is None else f", column `{self.stream.columns[modality]}`{name}"
        return f"{self.stream.name}:row {number + 1} as it came{column}"

    def _deal_with(self, problems: list[str]) -> None:
        if problems and self.on_bad_cell == "error":
            raise ValueError(
                "\n".join(problems) + "\nCorrect it, or choose what happens (--on_bad_cell): `drop` leaves out such "
                "rows, `empty` takes such cells as empty."
            )
        for problem in problems:
            self.num_told += 1
            if self.num_told <= _MAX_TOLD:
                what = "the row is left out" if self.on_bad_cell == "drop" else "taken as empty"
                print(f"note: {problem} ({what})", file=sys.stderr)
            elif self.num_told == _MAX_TOLD + 1:
                print("note: … further bad cells of the stream are not told", file=sys.stderr)
