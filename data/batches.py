"""Rows for a DataLoader: open the cells of a row, and put rows together into what the model takes.

Opening costs: a FLAC file is decoded and resampled at every epoch. So opened pictures and sounds are kept in memory
until a limit is reached. What is in stays in: rows come in random order, and throwing the oldest out would throw out
each one shortly before its turn.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from data.labels import LabelMap
from data.table import MODALITIES, Table
from data.tasks import TaskMap
from decoding_mmfusion import decode_audio, decode_image


def cell_key(table: Table, index: int, modality: str, source: Any) -> tuple:
    """What identifies the content of a cell: two rows with the same file have the same key."""
    place = int(table.rows[index]) if isinstance(source, (bytes, dict)) else str(source)
    return (modality, place)


class CellCache:
    """Opened pictures and sounds, up to a number of bytes; it is left behind when a DataLoader's worker is started.

    Args:
        max_bytes: Room in memory; 0 keeps nothing. Each worker process of a DataLoader fills one of its own.
    """

    def __init__(self, max_bytes: int):
        if max_bytes < 0:
            raise ValueError(f"`cache_bytes` is {max_bytes}; allowed is 0 (keep nothing) or a number of bytes.")
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self._cells: dict[tuple, Any] = {}

    def __len__(self) -> int:
        return len(self._cells)

    def __getstate__(self) -> dict[str, Any]:
        return {"max_bytes": self.max_bytes, "num_bytes": 0, "_cells": {}}

    def get(self, key: tuple | None) -> Any:
        return self._cells.get(key)

    def put(self, key: tuple, value: Any) -> None:
        size = _num_bytes(value)
        if key not in self._cells and self.num_bytes + size <= self.max_bytes:
            self._cells[key] = value
            self.num_bytes += size


def _num_bytes(value: Any) -> int:
    if isinstance(value, Image.Image):
        return value.width * value.height * len(value.getbands())
    return value.nbytes


class FusionDataset(Dataset):
    """The rows of a table, opened one by one.

    A row is a dict: `text` (str), `image` (PIL, RGB), `audio` (float32, mono, at the processor's rate), each None
    where the cell is empty or the processor cannot read it; `label` (encoded, None without labels); `row` (the row's
    place in its source, from 0).

    Args:
        table: The rows.
        labels: How to encode the labels; None leaves them out.
        processor: An MMFusionProcessor; it says what can be read, at which sampling rate and how long.
        cache_bytes: Room for opened pictures and sounds; 0 turns the cache off.

    Raises:
        ValueError: a label cannot be encoded; the message names the rows.
    """

    def __init__(self, table: Table, labels: LabelMap | TaskMap | None, processor: Any, cache_bytes: int = 2**30):
        self.table = table
        self.modalities = tuple(name for name in processor.modalities if name in table.modalities)
        self.encoded_labels = None if labels is None else labels.encode_table(table)
        self.sampling_rate = processor.audio_sampling_rate
        self.max_audio_seconds = processor.max_audio_seconds
        self.image_bits = getattr(processor, "image_bits", 16)  # models of before have no record, and took all 16
        self.cache = CellCache(cache_bytes)
        self._keys: dict[tuple[int, str], tuple] = {}

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row: dict[str, Any] = dict.fromkeys(MODALITIES)
        for modality in self.modalities:
            row[modality] = self._cell(index, modality)
        row["label"] = None if self.encoded_labels is None else self.encoded_labels[index]
        row["row"] = int(self.table.rows[index])
        return row

    def _cell(self, index: int, modality: str) -> Any:
        if modality == "text":
            return self.table.cell(index, modality)
        # The key of a cell is kept, so that a cached picture is not read from the table (or its path looked up) again.
        value = self.cache.get(self._keys.get((index, modality)))
        if value is not None:
            return value
        try:
            return self._opened(index, modality, self.table.media(index, modality))
        except (ValueError, OSError) as error:
            raise _placed(error, self.table.place(index, modality)) from error

    def _opened(self, index: int, modality: str, source: Any) -> Image.Image | np.ndarray | None:
        if source is None:
            return None
        key = self._keys[index, modality] = cell_key(self.table, index, modality, source)
        value = self.cache.get(key)
        if value is None:
            value = open_media(source, modality, self.sampling_rate, self.max_audio_seconds, self.image_bits)
            self.cache.put(key, value)
        return value


def open_media(
    source: Any,
    modality: str,
    sampling_rate: int | None,
    max_audio_seconds: float | None,
    image_bits: int | None = None,
) -> Image.Image | np.ndarray:
    """Open a picture or a sound, as the functions of `decoding_mmfusion` do with these settings of a processor."""
    if modality == "image":
        return decode_image(source, bits=image_bits)
    return decode_audio(source, sampling_rate=sampling_rate, max_seconds=max_audio_seconds)


def _placed(error: Exception, place: str) -> Exception:
    """The same kind of error with the place of the cell before its reason."""
    kind = FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError
    return kind(f"{place}: {error}")


class Collator:
    """Puts rows of a `FusionDataset` together: the processor's batch, and `labels` where rows have a label.

    `labels` is long (B,) for classes, and float (B, labels) for multi-label, regression and several tasks.

    Args:
        processor: An MMFusionProcessor.
        with_rows: Whether the batch also gets `rows`, a long tensor (B,) with each row's place in its source; take it
            out (`rows = batch.pop("rows")`) before the batch goes to the model.
    """

    def __init__(self, processor: Any, *, with_rows: bool = False):
        self.processor = processor
        self.with_rows = with_rows

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        names = {"text": "text", "image": "images", "audio": "audio"}
        cells = {names[modality]: [row[modality] for row in rows] for modality in self.processor.modalities}
        batch = dict(self.processor(**cells, sampling_rate=self.processor.audio_sampling_rate))
        labels = [row["label"] for row in rows]
        if any(label is not None for label in labels):
            batch["labels"] = label_tensor(labels)
        if self.with_rows:
            batch["rows"] = torch.tensor([row["row"] for row in rows])
        return batch


def label_tensor(labels: Sequence[int | float | list[float]]) -> torch.Tensor:
    """Long (B,) for class numbers, float (B, labels) for everything else."""
    if isinstance(labels[0], int):
        return torch.tensor(labels, dtype=torch.long)
    labels = torch.tensor(labels, dtype=torch.float32)
    return labels[:, None] if labels.ndim == 1 else labels
