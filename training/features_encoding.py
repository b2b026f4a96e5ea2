"""Cells of frozen towers, encoded once: which are missing, who encodes them, and in which batches.

What is unusual: a cell's features do not depend on the cells that it was encoded with. Tokens, samples and pictures
come to a tower in batches whose shape follows from the cell alone: texts with those of the same number of tokens, so
without padding; sounds padded to one of a few lengths, always by at least a frame; a batch that is not full is filled
up with copies. (Sums are rounded in another order where the shape is another one, or where there is no mask.) So a
cache may be deleted, shared, or filled by several processes and in any order, and a training ends with the same
weights to the last bit.
"""

import os
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate.utils import gather_object, send_to_device
from torch.utils.data import ConcatDataset, DataLoader, Subset
from tqdm.auto import tqdm

from data import Collator, FusionDataset
from data.table import Table
from modeling_mmfusion import TOWERS
from towers_mmfusion import has_fixed_length, hears_waveforms, receptive_field, runs_by_length, tower_width
from training.features_keys import cell_keys, distinct, is_cell, tower_key
from training.features_store import KEY, FeatureStore
from training.randomness import keeping_random_state
from training.workers import WatchedRows, telling_faults

CELLS_AT_ONCE = 256  # that are opened before it is looked up again what others have encoded meanwhile
SHARD_BYTES = 64 * 2**20
SHARD_SECONDS = 60.0  # after which a smaller shard is written: no more work than that is lost
BATCH_SIZE = {"cpu": 8}  # cells that a tower sees at once; each length has one batch that is filled up
LARGE_BATCH_SIZE = 16  # on all other devices
MASKS = {"text": "attention_mask", "audio": "audio_attention_mask"}


class TowerCells:
    """The cells of one frozen tower in all tables of a run, and what it says about them.

    Args:
        args, accelerator, model, processor: As for `features.cache_features`.
        modality: The tower's.
        tables: Whose cells.
        cache_dir: In which this tower has a folder of its own.
    """

    def __init__(self, args, accelerator, model, processor, modality: str, tables: Sequence[Table], cache_dir: Path):
        self.args, self.accelerator, self.model, self.processor = args, accelerator, model, processor
        self.modality, self.tables = modality, [table.keep_modalities([modality]) for table in tables]
        self.tower = getattr(model.mmfusion, TOWERS[modality])
        self.size = BATCH_SIZE.get(accelerator.device.type, LARGE_BATCH_SIZE)
        self.dtype = getattr(torch, args.cache_dtype)
        self.said: list[str] = []
        key = tower_key(self.tower, processor, modality, accelerator.mixed_precision)
        self.store = FeatureStore(cache_dir / f"{modality}-{key}-{args.cache_dtype}", self.dtype)

    def places(self) -> list[np.ndarray]:
        """Of each table where its cells are in the store, all of them by then; -1 where they are empty."""
        keys = self._keys()
        cells, first_rows = distinct(np.concatenate(keys))
        self._look()
        num_missing = len(self._missing(cells))
        own, local = self.accelerator, self.accelerator.local_process_index
        here = int(os.environ.get("LOCAL_WORLD_SIZE", own.num_processes))
        # The second time what another machine has encoded where it is not seen from here; at last whatever is left,
        # for other runs that fill this store may have been seen by some of the processes only.
        for index, count in ((own.process_index, own.num_processes), (local, here), (0, 1)):
            self._in_all(partial(self._encode, cells, first_rows, index, count))
            self.store.refresh(is_known=True)
        if len(self._missing(cells)):
            raise OSError(f"--cache_dir: features were removed from `{self.store.folder}` while they were made")
        self.said.append(
            f"{self.modality} features: {len(cells):,} distinct cells, {num_missing:,} of them encoded now, in "
            f"`{self.store.folder}`"
        )
        return [np.where(is_cell(some)[:, None], self.store.find(some), np.int32(-1)) for some in keys]

    def _missing(self, cells: np.ndarray) -> np.ndarray:
        """Which of these cells are not in the store, by their numbers."""
        return np.flatnonzero(self.store.find(cells)[:, 0] < 0)

    def _keys(self) -> list[np.ndarray]:
        """Of each table the keys of its cells; the processes divide them among themselves."""
        index, count, keys = self.accelerator.process_index, self.accelerator.num_processes, []
        for table in self.tables:
            own = range(index, len(table), count)
            parts = gather_object([self._in_all(partial(cell_keys, table, self.modality, own))])
            whole = np.empty(len(table), dtype=KEY)
            for number, part in enumerate(parts):
                whole[number::count] = part
            keys.append(whole)
        return keys

    def _look(self) -> None:
        """Take in what is there; one process on each machine compares it with its checksums."""
        if self.accelerator.is_local_main_process:
            self.said += [f"warning: {word}" for word in self.store.refresh()]
        self.accelerator.wait_for_everyone()
        self.store.refresh(is_known=True)

    def _in_all(self, function: Callable) -> Any:
        """Do something in every process; an error of one is raised in all, which would else wait for it for ever."""
        result = error = None
        try:
            result = function()
        except (OSError, ValueError) as raised:
            error = raised
        errors = [error for error in gather_object([error]) if error is not None]
        if errors:
            raise error or errors[0]
        return result

    # -- one process --------------------------------------------------------------------------------------------------

    def _encode(self, cells: np.ndarray, first_rows: np.ndarray, index: int, count: int) -> None:
        """Encode this process's share of the cells that are not there.

        Inputs:
            cells: (N,) keys.
            first_rows: (N,) a row of each, counted through all tables.
        """
        missing = self._missing(cells)[index::count]
        if len(missing) == 0:
            return
        self.store.describe(
            tower=type(self.tower).__name__,
            where_from=self.tower.name_or_path or self.args.model_name_or_path,
            mixed_precision=self.accelerator.mixed_precision,
        )
        # Whoever else fills this store now begins elsewhere, so that the two meet instead of doing the same.
        missing = np.roll(missing, secrets.randbelow(len(missing)))
        hidden = not self.accelerator.is_local_main_process
        modes = [(module, module.training) for module in self.model.modules()]
        bar = tqdm(total=len(missing), desc=f"encoding {self.modality}", unit=" cells", disable=hidden)
        try:
            with bar, keeping_random_state(), torch.no_grad():
                self.tower.to(self.accelerator.device)
                self.model.eval()
                self._write(self._said(self._opened(cells, first_rows, missing, bar)), cells)
        finally:
            for module, training in modes:
                module.training = training

    def _opened(self, cells, first_rows, missing: np.ndarray, bar) -> Iterator[tuple[int, dict[str, torch.Tensor]]]:
        """(Number of the cell, its inputs without padding), leaving out what others have written meanwhile."""
        rows = ConcatDataset([FusionDataset(table, None, self.processor, 0) for table in self.tables])
        for numbers in np.split(missing, range(CELLS_AT_ONCE, len(missing), CELLS_AT_ONCE)):
            self.store.refresh()
            left = numbers[self._missing(cells[numbers])]
            bar.update(len(numbers) - len(left))
            loader = self._loader(Subset(rows, first_rows[left].tolist()))
            with telling_faults(loader):
                for batch in loader:
                    for inputs in self._apart(batch):
                        yield int(left[0]), inputs
                        left = left[1:]
                        bar.update()

    def _loader(self, rows: Subset) -> DataLoader:
        num_workers = min(self.args.num_workers, len(rows))
        place = partial(_place, self.tables, self.modality, rows.indices)
        return DataLoader(
            WatchedRows(rows, place, num_workers) if num_workers else rows,
            16,
            collate_fn=Collator(self.processor),
            num_workers=num_workers,
            timeout=self.args.dataloader_timeout if num_workers else 0,
        )

    def _apart(self, batch: dict[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
        """The inputs of each cell of a batch, without their padding."""
        name, mask_name = self._main_input(), MASKS.get(self.modality)
        if name not in batch:  # no text of them is one for the processor
            return [{name: torch.empty(0)}] * len(batch["modality_mask"])
        values, masks = batch[name], batch.get(mask_name)
        if masks is None:
            return [{name: value} for value in values]
        if self._is_one_length():
            return [{name: value, mask_name: mask} for value, mask in zip(values, masks, strict=True)]
        kept = [value[mask.bool()] for value, mask in zip(values, masks, strict=True)]
        return [{name: value, mask_name: torch.ones(len(value), dtype=torch.long)} for value in kept]

    def _main_input(self) -> str:
        return self.model.config.main_inputs[self.modality]

    def _is_one_length(self) -> bool:
        """Whether padding is part of what the tower hears: a group-norm one takes statistics over all of the clip."""
        if self.modality != "audio":
            return False
        config = self.tower.config
        is_unmasked = hears_waveforms(config) and not self.processor.feature_extractor.return_attention_mask
        return is_unmasked or has_fixed_length(config)

    def _length(self, inputs: dict[str, torch.Tensor]) -> int:
        """Of the batch in which a cell is encoded; a matter of the cell alone."""
        length = len(inputs[self._main_input()])
        config = self.tower.config
        if self.modality != "audio" or self._is_one_length() or runs_by_length(config):
            return length
        # Padded always, since kernels differ with and without a mask.
        length += receptive_field(config) if hears_waveforms(config) else 1
        step = 2 ** max(length.bit_length() - 4, 0)
        return -(-length // step) * step  # of eight lengths between one power of two and the next

    def _said(self, cells: Iterator[tuple[int, dict]]) -> Iterator[tuple[int, torch.Tensor]]:
        """(Number of the cell, what the tower says about it), in the order in which batches get full."""
        waiting: dict[int, list] = {}
        for cell in cells:
            length = self._length(cell[1])
            queue = waiting.setdefault(length, [])
            queue.append(cell)
            if len(queue) == self.size:
                yield from self._run(waiting.pop(length), length)
        for length, queue in waiting.items():
            yield from self._run(queue, length)

    def _run(self, queue: list[tuple[int, dict]], length: int) -> Iterator[tuple[int, torch.Tensor]]:
        """One batch, filled up with copies of its last cell."""
        if length == 0:  # a text of which the tokenizer leaves nothing
            empty = torch.empty(0, tower_width(self.tower.config), dtype=self.dtype)
            yield from ((number, empty) for number, _ in queue)
            return
        cells = [inputs for _, inputs in queue]
        cells += cells[-1:] * (self.size - len(cells))
        is_padded = self.modality != "image" and not self._is_one_length()
        batch = {
            name: torch.stack([_padded(cell[name], length) if is_padded else cell[name] for cell in cells])
            for name in cells[0]
        }
        with self.accelerator.autocast():
            outputs, _ = self.model.mmfusion.run_towers(**send_to_device(batch, self.accelerator.device))
        hidden, mask = (tensor.cpu() for tensor in outputs[self.modality])
        kept = hidden.to(self.dtype)
        if self.dtype == torch.float16 and (kept.isinf() & hidden.isfinite()).any():
            raise ValueError(
                f"--cache_dtype float16 holds numbers up to 65,504, and the {self.modality} tower says "
                f"{float(hidden.abs().max()):,.0f}: give bfloat16 or float32"
            )
        for row, (number, _) in enumerate(queue):
            yield number, (kept[row] if kept.ndim == 4 else kept[row][mask[row]]).clone()

    def _write(self, said: Iterator[tuple[int, torch.Tensor]], keys: np.ndarray) -> None:
        """Write what the tower says, shard by shard."""
        numbers, cells, size, started = [], [], 0, time.monotonic()
        for number, cell in said:
            numbers.append(number)
            cells.append(cell)
            size += cell.nbytes
            if size >= SHARD_BYTES or time.monotonic() - started > SHARD_SECONDS:
                self.store.write(keys[numbers], cells)
                numbers, cells, size, started = [], [], 0, time.monotonic()
        if cells:
            self.store.write(keys[numbers], cells)


def _place(tables: Sequence[Table], modality: str, rows: Sequence[int], index: int) -> str:
    """What messages call a cell by its index into rows that are counted through all tables."""
    row = rows[index]
    for table in tables:
        if row < len(table):
            break
        row -= len(table)
    return table.place(row, modality)


def _padded(values: torch.Tensor, length: int) -> torch.Tensor:
    """(length, …) with zeros behind."""
    return F.pad(values, (*[0] * (2 * (values.ndim - 1)), 0, length - len(values)))
