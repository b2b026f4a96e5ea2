"""How long the texts and sounds of a table are, told without opening a sound.

The seconds of a sound stand in the header of its file; of a waveform that is in the table itself, its samples are
counted where they lie. A length that cannot be told is NaN: that of an empty cell, and that of a damaged one, about
which whoever opens it has more to say.
"""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import soundfile
from tqdm import tqdm

from data.table import MODALITIES, Table

UNKNOWN_FRAMES = 2**62  # and more is what libsndfile says of a FLAC file that came through a pipe
_ROWS_AT_ONCE = 1000  # bounds what waits for a thread, and what is tokenised together


def text_tokens(table: Table, processor: Any) -> np.ndarray:
    """How many tokens each row's text becomes, as the processor cuts it.

    Args:
        table: The rows.
        processor: An MMFusionProcessor that reads text.

    Returns:
        (rows,) floats, NaN where there is no text.
    """
    tokens = np.full(len(table), np.nan)
    for rows in _pieces(table, "text"):
        batch = processor(text=[table.cell(index, "text") for index in rows])
        tokens[rows] = batch["attention_mask"].sum(dim=1).numpy()
    return tokens


def audio_seconds(table: Table, progress: bool = False) -> np.ndarray:
    """How long each row's sound lasts, in seconds.

    A file that stands in many rows is looked at once, and threads hide what a slow disk takes.

    Args:
        table: The rows.
        progress: Whether a bar is shown on stderr when it takes more than two seconds.

    Returns:
        (rows,) floats, NaN where there is no sound or its length cannot be told.
    """
    seconds = np.full(len(table), np.nan)
    measure = partial(_seconds, table, table.source.data.column("audio"), {})
    total = int(table.presence[:, MODALITIES.index("audio")].sum())
    with (
        ThreadPoolExecutor() as pool,
        tqdm(total=total, desc=f"Measuring {table.name}", unit=" sounds", disable=not progress, delay=2) as bar,
    ):
        for rows in _pieces(table, "audio"):
            seconds[rows] = list(pool.map(measure, rows))
            bar.update(len(rows))
    return seconds


def _pieces(table: Table, modality: str):
    """The rows that have this modality, some at a time."""
    rows = np.flatnonzero(table.presence[:, MODALITIES.index(modality)])
    return (rows[start : start + _ROWS_AT_ONCE] for start in range(0, len(rows), _ROWS_AT_ONCE))


def _seconds(table: Table, column: pa.ChunkedArray, known: dict[Path, float], index: int) -> float:
    waveform = _waveform_seconds(column[table.rows[index]])
    if waveform is not None:
        return waveform
    try:
        source = table.media(index, "audio")
    except ValueError:  # a URL, or a path that leads elsewhere
        return np.nan
    if not isinstance(source, Path):
        return _header_seconds(BytesIO(source))
    if source not in known:
        known[source] = _header_seconds(source)
    return known[source]


def _waveform_seconds(cell: pa.Scalar) -> float | None:
    """Of an {"array", "sampling_rate"} in the table, whose numbers stay in Arrow; None for any other cell."""
    if not isinstance(cell, Mapping) or "array" not in cell or not cell["array"].is_valid:
        return None
    samples, rate = cell["array"], cell["sampling_rate"].as_py() if "sampling_rate" in cell else None
    if not rate or len(samples) == 0:
        return np.nan
    is_nested = isinstance(samples[0], pa.ListScalar | pa.LargeListScalar | pa.FixedSizeListScalar)
    return max(len(samples), len(samples[0]) if is_nested else 0) / rate  # channels are fewer than samples


def _header_seconds(file: Path | BytesIO) -> float:
    try:
        info = soundfile.info(file)
    except (soundfile.SoundFileError, OSError, TypeError):  # TypeError: a headerless format
        return np.nan
    return info.frames / info.samplerate if info.frames < UNKNOWN_FRAMES else np.nan
