"""`--cache_features`: what frozen towers say about each cell is found out once, and then only the fusion trains.

What is unusual: a batch holds `tower_outputs` in place of the inputs of towers that stand still, and the model goes on
from there. Towers that learn get their inputs as ever, in the same batch. How cells are encoded, so that it does not
matter when and by whom, is in `features_encoding`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from data import Collator, FusionDataset, LabelMap
from data.table import MODALITIES, Table
from modeling_mmfusion import TOWERS
from training.features_encoding import TowerCells
from training.features_store import FeatureStore

# == In a training ====================================================================================================


@dataclass
class CachedColumn:
    """The features of a table's cells of one modality; opened where it is used, and cheap to send to other processes.

    Args:
        store: Where they are.
        places: (rows, 2) from `FeatureStore.find`, -1 where the cell is empty.
    """

    store: FeatureStore
    places: np.ndarray

    def __getitem__(self, index: int) -> torch.Tensor | None:
        """(T, C) tokens or a feature map (C, H, W); None where the cell is empty, or has not one token."""
        place = self.places[index]
        cell = None if place[0] < 0 else self.store[place]
        return None if cell is None or len(cell) == 0 else cell


class FeatureDataset(FusionDataset):
    """The rows of a table, with features in place of the cells whose tower is frozen.

    Args:
        table, labels, processor, cache_bytes: As for `FusionDataset`.
        features: By modality; without any, this is a `FusionDataset`.
    """

    def __init__(self, table: Table, labels: LabelMap | None, processor, cache_bytes: int, features: dict):
        super().__init__(table, labels, processor, cache_bytes)
        self.features = features

    def _cell(self, index: int, modality: str) -> Any:
        column = self.features.get(modality)
        return super()._cell(index, modality) if column is None else column[index]


class FeatureCollator(Collator):
    """Puts rows of a `FeatureDataset` together: what is no feature as ever, features as `tower_outputs`.

    Args:
        processor: An MMFusionProcessor.
        cached: The modalities whose cells are features.
        with_rows: As for `Collator`.
    """

    def __init__(self, processor, cached: Sequence[str] = (), *, with_rows: bool = False):
        super().__init__(processor, with_rows=with_rows)
        self.cached = tuple(cached)

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        if not self.cached:
            return super().__call__(rows)
        batch = super().__call__([{**row, **dict.fromkeys(self.cached)} for row in rows])
        outputs = {}
        for modality in self.cached:
            is_there = torch.tensor([row[modality] is not None for row in rows])
            batch["modality_mask"][:, MODALITIES.index(modality)] = is_there
            if is_there.any():
                outputs[modality] = collated([row[modality] for row in rows if row[modality] is not None])
        return {**batch, "tower_outputs": outputs} if outputs else batch


def collated(cells: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """(Hidden states, mask of their tokens) as a tower returns them: (P, T, C), or maps (P, C, H, W), and (P, T)."""
    if cells[0].ndim == 3:
        hidden = torch.stack(list(cells)).float()
        return hidden, torch.ones(len(cells), hidden[0, 0].numel(), dtype=torch.bool)
    hidden = pad_sequence(list(cells), batch_first=True).float()
    return hidden, torch.arange(hidden.shape[1]) < torch.tensor([len(cell) for cell in cells])[:, None]


def some_rows(batch: dict, start: int, stop: int) -> dict:
    """These rows of a batch; features are given for the rows that have them."""
    part = {name: value[start:stop] for name, value in batch.items() if name != "tower_outputs"}
    outputs = {}
    for modality, (hidden, mask) in batch.get("tower_outputs", {}).items():
        number = batch["modality_mask"][:, MODALITIES.index(modality)].bool().cumsum(0).tolist()
        first, last = (number[row - 1] if row else 0 for row in (start, min(stop, len(number))))
        if last > first:
            outputs[modality] = (hidden[first:last], mask[first:last])
    return {**part, "tower_outputs": outputs} if outputs else part


# == Which towers =====================================================================================================


def frozen_modalities(model) -> tuple[str, ...]:
    """The modalities whose tower stands still."""
    towers = {modality: getattr(model.mmfusion, TOWERS[modality]) for modality in model.config.modalities}
    return tuple(m for m, tower in towers.items() if not any(p.requires_grad for p in tower.parameters()))


def cache_features(args, accelerator, model, processor, rows: Sequence) -> list[str]:
    """Have the cells of frozen towers encoded, where `--cache_features` asks for it; what was done, for people.

    Args:
        args: The flags of `train.py`.
        accelerator: Of the run; its processes share the work.
        model: The classifier, not yet prepared.
        processor: That prepares its inputs.
        rows: `TableRows`, whose `features` are set.

    Raises:
        ValueError: No tower is frozen, or what else is asked for changes what frozen towers see.
        OSError: The cache cannot be written.
    """
    if not args.cache_features:
        return []
    frozen = [m for m in frozen_modalities(model) if any(m in some.modalities for some in rows)]
    _refuse(args, frozen)
    said = []
    for modality in frozen:
        folder = Path(args.cache_dir or default_cache_dir()).expanduser()
        tower = TowerCells(args, accelerator, model, processor, modality, [some.table for some in rows], folder)
        for some, places in zip(rows, tower.places(), strict=True):
            some.features[modality] = CachedColumn(tower.store, places)
        said += tower.said
    return said


def _refuse(args, frozen: Sequence[str]) -> None:
    if not frozen:
        raise ValueError(
            "--cache_features keeps what frozen towers say, and no tower of this model is frozen: freeze towers with "
            "--text_learning_rate 0, --image_learning_rate 0 or --audio_learning_rate 0, or leave it out"
        )
    if changed := [modality for modality in frozen if modality in args.augment]:
        raise ValueError(
            f"--augment {changed[0]} changes the cells in every epoch, and with --cache_features the frozen "
            f"{changed[0]} tower sees each once: leave one of them out"
        )
    if args.fgm_epsilon and "text" in frozen:
        raise ValueError(
            "--fgm_epsilon moves what goes into the text tower, which --cache_features does not run: leave one of the "
            "two out"
        )


def default_cache_dir() -> Path:
    """Beside the cache of Hugging Face, wherever HF_HOME or XDG_CACHE_HOME put that."""
    from huggingface_hub import constants

    return Path(constants.HF_HOME).parent / "mmfusion" / "features"
