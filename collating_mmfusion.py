"""Rows of a data set into batches for training and use: `processor.collator(model.config)`.

Design notes: cells are opened here, in the workers of a `DataLoader`, by the functions that check limits and never
fetch a URL. Labels become what the loss takes by the configuration of the model, so that names, numbers, lists of
labels and vectors of 0 and 1 all mean what they say.
"""

import difflib
import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

try:
    from .cells_mmfusion import SYNONYMS, is_empty, unpacked_media
except ImportError:
    if __package__:  # inside the Hub cache this is a real failure: show it
        raise
    from cells_mmfusion import SYNONYMS, is_empty, unpacked_media

ARGUMENTS = {"text": "text", "image": "images", "audio": "audio"}  # modality -> argument of the processor
LABEL_COLUMNS = ("label", "labels")
NO_CLASS = -100  # what the loss leaves out


# == Keywords of the processor ========================================================================================


def refuse_unknown_keywords(processor: Any, kwargs: Mapping) -> None:
    """Refuse what the library would tell in a log line and then leave out.

    Args:
        processor: An `MMFusionProcessor`.
        kwargs: What it was called with besides its own arguments: options of its parts, flat or nested.

    Raises:
        TypeError: A name that no part takes.
    """
    stated = processor.valid_processor_kwargs.__annotations__
    parts = {
        "text_kwargs": processor.tokenizer,
        "images_kwargs": processor.image_processor,
        "audio_kwargs": processor.feature_extractor,
    }
    flat = {group: _stated_options(stated[group], part) for group, part in parts.items()}
    own = inspect.signature(type(processor).__call__).parameters.keys() - {"self", "kwargs"}
    known = {*own, *parts, "common_kwargs"}.union(*flat.values())
    for name in kwargs:
        if name not in known:
            raise TypeError(f"`{name}` is not an argument of the processor; {_meant(name, known, own)}")
    for group, part in parts.items():
        called = {} if part is None else inspect.signature(type(part).__call__).parameters
        allowed = {*flat[group], *called, *getattr(processor, group, {})}
        for name in kwargs.get(group) or {}:
            if name not in allowed:
                raise TypeError(f"`{name}` in `{group}` is not an option; {_meant(name, allowed, flat[group])}")


def _stated_options(stated: Any, part: Any) -> set[str]:
    return {*stated.__annotations__, *getattr(getattr(part, "valid_kwargs", None), "__annotations__", {})}


def _meant(name: str, known: set[str], listed: set[str]) -> str:
    near = [SYNONYMS[name]] if name in SYNONYMS else difflib.get_close_matches(name, listed, n=1, cutoff=0.6)
    near = near or difflib.get_close_matches(name, known, n=1, cutoff=0.75)
    return f"did you mean `{near[0]}`?" if near else f"allowed are {', '.join(sorted(listed))}"


# == Rows =============================================================================================================


class MMFusionCollator:
    """Makes a batch of rows, for `DataLoader(collate_fn=…)` and `Trainer(data_collator=…)`.

    Rows are dicts, raw (text, pictures, sounds) or as `Dataset.map` left what the processor made of them. Of a raw
    row, media may be a path, bytes, {"bytes", "path"}, a picture of PIL, an array, {"array", "sampling_rate"} or a
    decoder of torchcodec; None, NaN, `pandas.NA` and a blank string are empty cells.

    Args:
        processor: An `MMFusionProcessor`.
        config: Configuration of the model, by which labels are read; None: labels are numbers, or lists of them.
        text, image, audio: Names of the columns; where "image" is not there, "images" is looked for.
        labels: Name of the column with the labels; of a model with several tasks, {task: column}. None: "label" or
            "labels", and of several tasks their own names. Rows without it make a batch without labels.
        all_modalities: As for the processor.
    """

    def __init__(
        self,
        processor: Any,
        config: Any = None,
        *,
        text: str = "text",
        image: str = "image",
        audio: str = "audio",
        labels: str | Mapping[str, str] | None = None,
        all_modalities: bool = False,
    ):
        self.processor, self.config, self.labels = processor, config, labels
        self.columns = {"text": text, "image": image, "audio": audio}
        self.all_modalities = all_modalities

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Return what the model takes, with `labels` where the rows have some.

        Raises:
            ValueError: No row, none of the columns, a cell that cannot be opened, or an unknown label.
        """
        if not rows:
            raise ValueError("there are no rows to make a batch of; give at least one")
        if "modality_mask" in rows[0]:
            batch = self._padded(rows)
        else:
            self._check_columns(rows[0])
            cells = {ARGUMENTS[name]: self._cells(name, rows) for name in self.columns if self._is_read(name, rows)}
            rate = self.processor.audio_sampling_rate
            batch = dict(self.processor(**cells, sampling_rate=rate, all_modalities=self.all_modalities))
        labels = self._labels(rows)
        return batch if labels is None else {**batch, "labels": labels}

    # -- raw rows ----------------------------------------------------------------------------------------------------

    def _is_read(self, modality: str, rows: Sequence[Mapping]) -> bool:
        return modality in self.processor.modalities or any(not is_empty(self._cell(modality, row)) for row in rows)

    def _cell(self, modality: str, row: Mapping) -> Any:
        column = self.columns[modality]
        return row.get("images") if column == "image" and "image" not in row else row.get(column)

    def _cells(self, modality: str, rows: Sequence[Mapping]) -> list:
        column = self.columns[modality]
        if modality == "text":
            return [None if is_empty(cell := self._cell(modality, row)) else cell for row in rows]
        opener = {"image": self.processor.decode_image, "audio": self.processor.decode_audio}[modality]
        cells = []
        for number, row in enumerate(rows):
            try:
                cell = unpacked_media(self._cell(modality, row), f"`{column}`")
                cells.append(None if cell is None else opener(cell))
            except (ValueError, TypeError, FileNotFoundError) as error:
                raise type(error)(f"`{column}` of row {number} of the batch: {error}") from None
        return cells

    def _check_columns(self, row: Mapping) -> None:
        found = [column for column in self.columns.values() if column in row]
        missing = [c for name, c in self.columns.items() if c not in row and c != name]  # named by the caller
        if (found or "images" in row) and not missing:
            return
        asked = ", ".join(f"`{column}`" for column in missing or self.columns.values())
        raise ValueError(
            f"the rows have no {asked}, only {', '.join(f'`{key}`' for key in row) or 'nothing'}. Name the columns in "
            "`processor.collator(…)`; with `Trainer`, which drops columns that it does not know, give "
            "`TrainingArguments(remove_unused_columns=False)`"
        )

    # -- rows that were prepared -------------------------------------------------------------------------------------

    def _padded(self, rows: Sequence[Mapping]) -> dict[str, torch.Tensor]:
        """Return the processor's outputs (…) of each row as a batch (B, …), filled up to the longest."""
        batch = {}
        for name in self.processor.model_input_names:
            tensors = [None if row.get(name) is None else torch.as_tensor(row[name]) for row in rows]
            some = next((tensor for tensor in tensors if tensor is not None), None)
            if some is None:
                continue
            length = max(len(tensor) for tensor in tensors if tensor is not None)
            pad = self.processor.tokenizer.pad_token_id if name == "input_ids" else 0
            batch[name] = some.new_full((len(rows), length, *some.shape[1:]), pad or 0)
            for row, tensor in enumerate(tensors):
                if tensor is not None:
                    batch[name][row, : len(tensor)] = tensor
        return batch

    # -- labels ------------------------------------------------------------------------------------------------------

    def _labels(self, rows: Sequence[Mapping]) -> torch.Tensor | None:
        """Return (B,) class numbers, or (B, L) floats, as `forward` takes them; None where no row has labels."""
        if self.config is not None and self.config.tasks is not None:
            return self._labels_of_tasks(rows)
        column = self.labels or next((name for name in LABEL_COLUMNS if name in rows[0]), None)
        if column is None or not any(column in row for row in rows):
            return None
        cells = [row.get(column) for row in rows]
        if self.config is None:
            return _plain_labels(cells, column)
        return torch.stack([_label(cell, self.config, _place(column, row)) for row, cell in enumerate(cells)])

    def _labels_of_tasks(self, rows: Sequence[Mapping]) -> torch.Tensor | None:
        tasks = self.config.each_task()
        columns = {task.name: (self.labels or {}).get(task.name, task.name) for task in tasks}
        if not any(column in row for row in rows for column in columns.values()):
            return None
        batch = []
        for number, row in enumerate(rows):
            each = [_label(row.get(columns[t.name]), t.config, _place(columns[t.name], number)) for t in tasks]
            each = [torch.where(value == NO_CLASS, math.nan, value) if value.ndim == 0 else value for value in each]
            batch.append(torch.cat([value.float().reshape(-1) for value in each]))
        return torch.stack(batch)


def _place(column: str, row: int) -> str:
    return f"`{column}` of row {row} of the batch"


def _plain_labels(cells: list, column: str) -> torch.Tensor:
    if any(isinstance(cell, str) for cell in cells):
        raise ValueError(f"`{column}` holds names: give the model's `config` to `processor.collator(config)`")
    labels = torch.as_tensor([cell.tolist() if hasattr(cell, "tolist") else cell for cell in cells])
    return labels.float() if labels.is_floating_point() or labels.ndim > 1 else labels.long()


def _label(cell: Any, config: Any, place: str) -> torch.Tensor:
    """Return the label of one row: () a class number, or (L,) floats."""
    cell = cell.tolist() if hasattr(cell, "tolist") else cell  # of NumPy or torch
    problem = config.problem_type or ("regression" if config.num_labels == 1 else "single_label_classification")
    if problem == "single_label_classification":
        return torch.tensor(NO_CLASS if is_empty(cell) else _number_of(cell, config, place))
    if is_empty(cell):
        return torch.full((config.num_labels,), math.nan)
    cells = list(cell) if isinstance(cell, (list, tuple)) else [cell]
    if problem == "regression":
        if len(cells) != config.num_labels or any(isinstance(value, str) for value in cells):
            raise ValueError(f"{place} is {cell!r}; {config.num_labels} number(s) are allowed")
        return torch.tensor([math.nan if is_empty(value) else float(value) for value in cells])
    if len(cells) == config.num_labels and all(not isinstance(v, str) and v in (0, 1) for v in cells):
        return torch.tensor([float(value) for value in cells])  # a vector of 0 and 1
    vector = torch.zeros(config.num_labels)
    vector[[_number_of(value, config, place) for value in cells]] = 1.0
    return vector


def _number_of(cell: Any, config: Any, place: str) -> int:
    """Return the number of a label that is given by name or by number."""
    if isinstance(cell, str):
        name = cell.strip()
        if name in config.label2id:
            return int(config.label2id[name])
        cell = int(name) if name.isdecimal() else cell
    if isinstance(cell, (int, float)) and cell == int(cell) and 0 <= cell < config.num_labels:
        return int(cell)
    names = [str(config.id2label[number]) for number in range(config.num_labels)]
    shown = ", ".join(names[:20]) + (" …" if len(names) > 20 else "")
    near = difflib.get_close_matches(str(cell), names, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"allowed are {shown}, or 0 to {len(names) - 1}"
    raise ValueError(f"{place} is {cell!r}, which is not a label of the model; {hint}")


__all__ = ["MMFusionCollator"]
