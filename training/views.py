"""How the rows to train on are met: changed at random (`--augment`), and with what a teacher reads of them."""

from collections.abc import Callable
from typing import Any

from torch.utils.data import Dataset

from data import FusionDataset
from training.augmentation import Epoch, augmented_collator, augmented_rows
from training.distillation import TaughtCollator, TaughtRows, Teacher


def training_view(
    args, dataset: Dataset, collate: Callable, processor: Any, teacher: Teacher | None, process_index: int = 0
) -> tuple[Dataset, Callable]:
    """(Rows, what puts them together) as the flags ask for; what was given where they ask for nothing.

    The teacher's sounds, where they are others, are changed as the model's are: by the same numbers of chance.

    Args:
        args: The flags of `train.py`.
        dataset: A `FusionDataset` or a `StreamedDataset`.
        collate: Puts its rows together.
        processor: The model's.
        teacher: That fits the rows, or None.
        process_index: Which process this is.
    """
    epoch = Epoch()
    rows = augmented_rows(args, dataset, epoch, process_index)
    if teacher is not None:
        if teacher.hears_otherwise(processor):
            rows = TaughtRows(rows, augmented_rows(args, sounds_for(teacher, processor, dataset), epoch))
        if apart := teacher.reads_apart(processor):
            collate = TaughtCollator(collate, teacher.processor, apart)
    return rows, augmented_collator(args, collate, dataset, processor, epoch)


def sounds_for(teacher: Teacher, processor: Any, dataset: Dataset) -> FusionDataset:
    """The rows opened for the teacher, with their sounds alone.

    Raises:
        ValueError: They are a stream, which opens each sound once.
    """
    if isinstance(dataset, FusionDataset):
        table = dataset.table.keep_modalities(("audio",))
        return FusionDataset(table, None, teacher.processor, dataset.cache.max_bytes)
    heard = [f"{p.max_audio_seconds:g} s at {p.audio_sampling_rate:,} Hz" for p in (teacher.processor, processor)]
    raise ValueError(
        f"--teacher {teacher.name} hears {heard[0]} of a sound and the model {heard[1]}; with --streaming both must "
        "hear the same: set --sampling_rate and --max_audio_seconds to the teacher's, or train without --streaming"
    )
