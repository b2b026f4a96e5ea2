"""Cells and rows as data sets, tables and other tools give them: what is empty, what is packed, what a key means.

Design notes: nothing here opens a file or imports pandas, `datasets` or torchcodec. Their objects are known by what
they look like, so that a cell means the same in the pipeline, in the processor and in a service.
"""

import dataclasses
import difflib
import functools
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

MODALITIES = ("text", "image", "audio")
ALIASES = {"images": "image"}
NAMES = (*MODALITIES, *ALIASES)
# Other words for a modality: more often a mistake than a column that is not meant.
SYNONYMS = {
    "img": "image", "imgs": "image", "pic": "image", "pics": "image", "picture": "image", "pictures": "image",
    "photo": "image", "photos": "image", "txt": "text", "sound": "audio", "sounds": "audio", "wav": "audio",
}  # fmt: skip


# == Cells ============================================================================================================


def is_empty(cell: Any) -> bool:
    """Return whether there is nothing in a cell.

    Empty are None, NaN, NaT and `pandas.NA`, a blank string (a text as well as a path), and a dict with "bytes",
    "path" or "array" in which none of them is filled. Empty bytes are not: they are a damaged file.
    """
    if isinstance(cell, str):
        return not cell.strip()
    if cell is None or type(cell).__name__ in ("NAType", "NaTType"):
        return True
    if getattr(cell, "ndim", None) == 0:  # a number or date of NumPy or torch
        cell = cell.item()  # NaT becomes None
    if isinstance(cell, Mapping):
        held = [cell[name] for name in ("bytes", "path", "array") if name in cell]
        return bool(held) and all(map(is_empty, held))
    if isinstance(cell, Decimal):
        return cell.is_nan()
    return cell is None or (isinstance(cell, float) and cell != cell)


def unpacked_media(cell: Any, name: str) -> Any:
    """Return what a picture's or sound's cell holds: a path, bytes, an array, an object of a library, or None.

    Args:
        cell: Such a thing, a list of one, {"bytes", "path"} as `datasets` gives what it has not decoded (of both the
            bytes count), or {"array", "sampling_rate"}, which stays as it is.
        name: What the cell is called in an error.

    Raises:
        ValueError: A list of several.
    """
    if isinstance(cell, (list, tuple)) and not (cell and isinstance(cell[0], (int, float, list, tuple))):
        if len(cell) > 1:
            raise ValueError(f"{name} is a list of {len(cell)}; a row has one: make a row of each")
        cell = cell[0] if cell else None
    if is_empty(cell):
        return None
    if isinstance(cell, Mapping) and "raw" in cell and "array" not in cell:  # as speech pipelines of transformers say
        return {"array": cell["raw"], "sampling_rate": cell.get("sampling_rate")}
    if isinstance(cell, Mapping) and is_empty(cell.get("array")):
        return next((cell[part] for part in ("bytes", "path") if not is_empty(cell.get(part))), cell)
    return cell


def with_samples(sound: Any, max_seconds: float) -> Any:
    """Return the samples of torchcodec's `AudioDecoder` or `AudioSamples` as {"array", "sampling_rate"}.

    Args:
        sound: Such an object; anything else is returned as it is.
        max_seconds: What comes later is not decoded.
    """
    if hasattr(sound, "get_samples_played_in_range"):
        sound = sound.get_samples_played_in_range(0.0, max_seconds)
    if hasattr(sound, "data") and hasattr(sound, "sample_rate"):
        return {"array": sound.data, "sampling_rate": sound.sample_rate}
    return sound


# == Rows =============================================================================================================


def is_row(given: Any) -> bool:
    """Return whether this is one row: a dict or its like, a named tuple, or a row of a pandas DataFrame."""
    return isinstance(given, Mapping) or hasattr(given, "_asdict") or _is_row_of_pandas(given)


def rows_of(given: Any) -> Any:
    """Return many rows as a list, or as the data set or iterable that they are.

    Args:
        given: A list or tuple, a DataFrame of pandas or polars, a table of pyarrow, a data set, or any iterable. The
            sounds of a `datasets.Dataset` are left undecoded: no torchcodec is needed, and only what is heard is read.
    """
    if isinstance(given, (list, tuple)):
        return list(given)
    if hasattr(given, "to_dict") and hasattr(given, "columns"):
        return given.to_dicts() if hasattr(given, "to_dicts") else given.to_dict("records")  # polars, pandas
    if hasattr(given, "to_pylist"):
        return given.to_pylist()
    features = getattr(given, "features", None)
    if isinstance(features, Mapping) and hasattr(given, "cast_column"):
        sound = features.get("audio")
        if getattr(sound, "decode", False) and dataclasses.is_dataclass(sound) and not _is_formatted(given):
            return given.cast_column("audio", dataclasses.replace(sound, decode=False))
    return given


def sample_of_row(row: Any) -> dict[str, Any]:
    """Return the filled cells of one row by modality; keys that mean no modality (a label, an id) are ignored.

    Args:
        row: As for `is_row`, with any of the keys "text", "image" (or "images") and "audio"; "sampling_rate" beside it
            is the rate of a bare array.

    Raises:
        ValueError: Another type, none of the keys, a misspelt one, a list of several pictures or sounds, or both
            names of the picture.
    """
    if not is_row(row):
        raise ValueError(f'a sample is a dict such as {{"text": …, "image": …, "audio": …}}, got {type(row).__name__}')
    row = row if isinstance(row, Mapping) else row._asdict() if hasattr(row, "_asdict") else row.to_dict()
    sample = {}
    for name in NAMES:
        cell, modality = row.get(name), ALIASES.get(name, name)
        cell = cell if modality == "text" else unpacked_media(cell, f'"{name}"')
        if is_empty(cell):
            continue
        if name == "audio" and _is_bare_array(cell) and not is_empty(rate := row.get("sampling_rate")):
            cell = {"array": cell, "sampling_rate": rate}
        if modality in sample:
            raise ValueError(f'"{modality}" and "{name}" are both filled, and mean the same: leave one out')
        sample[modality] = cell
    _check_keys(row, sample)
    return sample


def _check_keys(row: Mapping, sample: Mapping) -> None:
    """Refuse a key that is probably a modality and would be ignored, and a row that has no key of a modality."""
    for key, cell in row.items():
        if isinstance(key, str) and key not in NAMES:
            meant = _modality_meant(key)
            if meant is not None and meant not in sample and not is_empty(cell):
                raise ValueError(
                    f'unknown key in a sample: {key!r}; if it is the {meant}, call it "{meant}", else drop it'
                )
    if row and not any(name in row for name in NAMES):
        keys = ", ".join(repr(key) for key in list(row)[:20])
        raise ValueError(f"a sample has none of the keys {', '.join(MODALITIES)}; it has {keys}: rename what is meant")


@functools.lru_cache(maxsize=1024)
def _modality_meant(key: str) -> str | None:
    word = key.strip().lower()
    if word in SYNONYMS:
        return SYNONYMS[word]
    turned = [name for name in NAMES if sorted(name) == sorted(word)]  # "tetx"
    close = turned or difflib.get_close_matches(word, NAMES, n=1, cutoff=0.8)
    return ALIASES.get(close[0], close[0]) if close else None


def _is_row_of_pandas(given: Any) -> bool:
    return hasattr(given, "to_dict") and hasattr(given, "index") and not hasattr(given, "columns")


def _is_bare_array(cell: Any) -> bool:
    return isinstance(cell, (list, tuple)) or getattr(cell, "ndim", 0) > 0


def _is_formatted(data_set: Any) -> bool:
    """Whether a data set hands its rows to a format or a function of the user, which expects what it is given."""
    form = getattr(data_set, "format", None)
    return isinstance(form, Mapping) and form.get("type") is not None
