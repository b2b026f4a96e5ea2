"""An order of the rows in which those of a batch are about equally long, so that little of a batch is padding.

The order is as random as that allows: rows are shuffled, sorted by length within stretches of fifty steps, cut into
steps, and the steps are shuffled. What is unusual: a row that lacks a modality stands anywhere, for its tower does no
work on it; so a batch holds rows with and without sound as in a random order, and its gradient is not biased by what
is missing. The longest sounds come first in the first epoch: where memory does not suffice, that is known at once.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch.utils.data import Sampler

from data.lengths import audio_seconds, text_tokens
from data.table import Table

STEPS_TOGETHER = 50  # whose rows are sorted together
LEAST_STRETCHES = 4  # of a small table: sorted as a whole, its batches would be the same in every epoch
LEVEL = 1.05  # sounds are taken as equally long up to this ratio, and sorted by their texts
MIN_SECONDS = 0.025


def lengths_of(table: Table, processor, progress: bool = False) -> list[np.ndarray]:
    """How long the rows are in each modality whose length costs time, the costliest first.

    Pictures are all of one size. So are sounds where the tower's norm takes statistics over the padding, too, since
    the processor then pads each of them to `max_audio_seconds`.

    Args:
        table: The rows.
        processor: An MMFusionProcessor.
        progress: Whether a bar is shown on stderr where it takes long.

    Returns:
        Of (rows,) floats at most two: seconds of the sounds, tokens of the texts; NaN where a row has none.

    Raises:
        ValueError: No row is longer than another.
    """
    found = []
    read = set(table.modalities) & set(processor.modalities)
    if "audio" in read and processor.feature_extractor.return_attention_mask:
        found.append(np.clip(audio_seconds(table, progress), MIN_SECONDS, processor.max_audio_seconds))
    if "text" in read:
        found.append(text_tokens(table, processor))
    found = [lengths for lengths in found if len(np.unique(lengths[~np.isnan(lengths)])) > 1]
    if not found:
        raise ValueError(
            f"--group_by_length: to this model, all rows of `{table.name}` are equally long (it has "
            f"{', '.join(table.modalities)}), so that there is nothing to group by: leave the flag out"
        )
    return found


class LengthGroupedSampler(Sampler[int]):
    """The indices of all rows, those of a step next to each other and about equally long.

    The order comes from seed and epoch alone, so that a run that goes on finds it again; a loader that `accelerate`
    has prepared sets the epoch.

    Args:
        lengths: (rows,) floats for each modality, the costliest first; NaN for rows that lack it.
        step_size: Rows that are trained on at once, in all processes together.
        seed: Of the order.

    Source: `get_length_grouped_indices` of `transformers`, which leaves the batches in order of their length, the
    shortest rows always in the incomplete last one, and knows neither missing cells nor a second length.
    """

    def __init__(self, lengths: Sequence[np.ndarray], step_size: int, seed: int):
        self.longest = torch.from_numpy(lengths[0]).nan_to_num(0.0)
        levels = [np.ceil(np.log(some) / math.log(LEVEL)) for some in lengths[:-1]]
        self.keys = [torch.from_numpy(key) for key in (*levels, lengths[-1])]
        self.step_size, self.seed, self.epoch = step_size, seed, 0

    def __len__(self) -> int:
        return len(self.longest)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        rows = torch.randperm(len(self), generator=generator)
        last, rows = rows.split([len(rows) % self.step_size, len(rows) - len(rows) % self.step_size])
        keys = [_drawn_where_absent(key, generator) for key in self.keys]
        stretches = [_sorted(stretch, keys) for stretch in rows.split(self._stretch())]
        steps = torch.cat(stretches).reshape(len(rows) // self.step_size, self.step_size)
        steps = steps[torch.randperm(len(steps), generator=generator)]
        if self.epoch == 0 and len(steps):
            first = int(self.longest[steps].amax(dim=1).argmax())
            steps[[0, first]] = steps[[first, 0]]
        yield from torch.cat([steps.flatten(), last]).tolist()

    def _stretch(self) -> int:
        """How many rows are sorted together."""
        steps = min(STEPS_TOGETHER, len(self) // (self.step_size * LEAST_STRETCHES))
        return max(1, steps) * self.step_size


def _drawn_where_absent(key: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """The key, with any of the others' where there is none."""
    is_absent = key.isnan()
    others = key[~is_absent]
    drawn = others[torch.randint(len(others), (len(key),), generator=generator)]
    return torch.where(is_absent, drawn, key)


def _sorted(rows: torch.Tensor, keys: Sequence[torch.Tensor]) -> torch.Tensor:
    """The rows by the first key, where that is equal by the next."""
    for key in reversed(keys):
        rows = rows[key[rows].argsort(stable=True)]
    return rows
