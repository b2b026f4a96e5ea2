"""What tells whether a tower has seen a cell before: keys of towers, of what prepares their inputs, and of cells.

What is unusual: everything counts by its content. A tower is its weights and its architecture, wherever it was loaded
from; a picture is the bytes of its file, whatever that is called. What only matters in training (dropout, SpecAugment)
does not count, since a frozen tower does without.
"""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.table import Table
from training.features_store import KEY

FORMAT = 1  # of the features; the next one where a change of this software changes them
# Fields of a configuration that say where it comes from, or count in training only.
_IDLE = re.compile(
    r"drop|^mask_(time|feature)|apply_spec_augment|initializer|^_|^architectures$|version$|dtype$|label"
)
_IDLE_OF_PARTS = re.compile(r"^_|processor_class|feature_extractor_type|image_processor_type|auto_map|name_or_path")


def tower_key(tower, processor, modality: str, precision: str) -> str:
    """What a tower's features depend on besides the cells, as 32 hexadecimal digits.

    Args:
        tower: With its weights.
        processor: An MMFusionProcessor.
        modality: The tower's.
        precision: As `Accelerator.mixed_precision`.
    """
    digest = hashlib.blake2b(digest_size=16)
    config = _without(tower.config.to_dict(), _IDLE)
    _update(digest, [FORMAT, type(tower).__name__, config, prepared_by(processor, modality), precision])
    for name, tensor in sorted(tower.state_dict().items()):
        _update(digest, [name, str(tensor.dtype), list(tensor.shape)])
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def prepared_by(processor, modality: str) -> dict:
    """What of a processor decides how a tower of this modality sees a cell."""
    if modality == "image":
        bits = getattr(processor, "image_bits", 16)
        parts = _without(processor.image_processor.to_dict(), _IDLE_OF_PARTS)
        return parts if bits == 16 else {**parts, "image_bits": bits}  # as it was before there was a choice
    if modality == "audio":
        parts = _without(processor.feature_extractor.to_dict(), _IDLE_OF_PARTS)
        return {**parts, "max_audio_seconds": processor.max_audio_seconds}
    return {**_tokenizer_parts(processor.tokenizer), "max_text_length": processor.max_text_length}


def _tokenizer_parts(tokenizer) -> dict:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:  # one in Python: its words, and how it was made
        rules, made = tokenizer.get_vocab(), _without(tokenizer.init_kwargs, _IDLE_OF_PARTS)
    else:
        rules, made = json.loads(backend.to_str()), {}
        rules = {
            name: part for name, part in rules.items() if name not in ("truncation", "padding")
        }  # of the last call
    return {"rules": rules, "made": made, "special": tokenizer.special_tokens_map}


def _without(values: dict, names: re.Pattern) -> dict:
    return {name: value for name, value in values.items() if not names.search(name)}


def _update(digest, content: Any) -> None:
    digest.update(json.dumps(content, sort_keys=True, default=str).encode())


def cell_keys(table: Table, modality: str, indices: range, view: int = 0) -> np.ndarray:
    """(N,) keys of the cells of these rows; zeros where a cell is empty.

    Args:
        table: The rows.
        modality: Whose column.
        indices: Of rows in the table.
        view: Which of several random changes of a cell; 0 is the cell as it stands.

    Raises:
        ValueError, FileNotFoundError: A file cannot be read; the message says in which row.
    """
    keys = np.zeros(len(indices), dtype=KEY)
    for number, index in enumerate(indices):
        try:
            content = table.cell(index, modality) if modality == "text" else table.media(index, modality)
            if content is not None:
                keys[number] = content_key(content, view)
        except (ValueError, OSError) as error:
            kind = FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError
            raise kind(f"{table.place(index, modality)}: {error}") from error
    return keys


def content_key(content: str | bytes | Path | dict, view: int = 0) -> bytes:
    """What identifies the content of one cell: a text, a file or its bytes, or an {"array", "sampling_rate"}."""
    digest = hashlib.blake2b(digest_size=KEY.itemsize, salt=view.to_bytes(16, "little"))
    if isinstance(content, dict):
        array = np.ascontiguousarray(content["array"])
        _update(digest, [str(array.dtype), array.shape, content.get("sampling_rate")])
        content = array.tobytes()
    elif isinstance(content, str):
        content = content.encode("utf-8", "surrogatepass")
    digest.update(content.read_bytes() if isinstance(content, Path) else content)
    return digest.digest()


def is_cell(keys: np.ndarray) -> np.ndarray:
    """(N,) True where a key is not that of an empty cell."""
    return keys != np.zeros(1, dtype=KEY)[0]


def distinct(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(Keys of the cells, for each the first row that has it), without the empty cells.

    Inputs:
        keys: (N,) as `cell_keys` gives them.
    """
    found, rows = np.unique(keys, return_index=True)
    kept = is_cell(found)
    return found[kept], rows[kept]
