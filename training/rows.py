"""What there is to learn from, in one of two ways behind one interface: a table, or a stream from the Hub.

A table is here as a whole: its labels are read, its cells are opened once beforehand, its rows are shuffled all
together. Of a stream nothing is known but what its data set declares, so what a table is asked (labels, number of
rows, texts for a vocabulary) a stream answers from there. `train.py` need not know which of the two it has.
"""

import math
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
from accelerate import PartialState
from accelerate.data_loader import prepare_data_loader
from torch.utils.data import DataLoader

from data import (
    Collator,
    Columns,
    LabelMap,
    Stream,
    StreamedDataset,
    Table,
    TaskMap,
    check_table,
    count_shared_rows,
    declared_names,
    find_hub_set,
    label_notes,
    read_table,
    stratified_split,
    stream_of,
)
from data.table import MODALITIES
from training.arguments import has_tasks
from training.features import CachedColumn, FeatureCollator, FeatureDataset
from training.grouping import LengthGroupedSampler, lengths_of
from training.label_choices import in_order
from training.resuming import together
from training.views import training_view
from training.workers import WatchedRows, finish_first

TEXTS_OF_A_STREAM = 20_000  # that a vocabulary is learnt from
PICTURES_OF_A_STREAM = 64  # whose bits are counted
HELD_OUT_OF_A_STREAM = 1_000


class TableRows:
    """Rows that are here as a whole.

    Args:
        table: The rows.
        is_training: Whether the model learns from them: they are shuffled, and each modality must be filled somewhere.
    """

    is_streamed = False

    def __init__(self, table: Table, is_training: bool = False):
        self.table, self.is_training = table, is_training
        self.features: dict[str, CachedColumn] = {}  # of the modalities whose towers were run beforehand

    @property
    def name(self) -> str:
        return self.table.name

    @property
    def modalities(self) -> tuple[str, ...]:
        return self.table.modalities

    @property
    def num_rows(self) -> int:
        return len(self.table)

    def place(self, row: int) -> str:
        """What messages call a row, by its place in the source, as batches give it."""
        return self.table.place(int((self.table.rows == row).argmax()))

    def record(self, public: Callable[[str], str]) -> dict:
        """What identifies the rows, for `training_config.json`."""
        return {"name": public(self.name), "num_rows": self.num_rows, **self.table.origin}

    def keep_modalities(self, modalities) -> "TableRows":
        return TableRows(self.table.keep_modalities(modalities), self.is_training)

    def take(self, max_rows: int | None) -> "TableRows":
        table = self.table if max_rows is None else self.table.select(range(min(max_rows, len(self.table))))
        return TableRows(table, self.is_training)

    @property
    def declares_labels(self) -> bool:
        """Whether the names of the labels, and their order, are declared (ClassLabel), not read from the rows."""
        return bool(declared_names(self.table))

    def labels(self, args) -> LabelMap | TaskMap:
        if self.table.tasks:
            return TaskMap.fit(self.table, args.problem_type, args.label_delimiter, args.task_weights)
        return LabelMap.fit(self.table, args.problem_type, args.label_delimiter, args.label_names)

    def texts(self) -> Iterator[str]:
        cells = (self.table.cell(index, "text") for index in range(len(self.table)))
        return (cell for cell in cells if cell is not None)

    def pictures(self, most: int) -> Iterator[bytes | Path]:
        """Files of pictures, from rows that are evenly spread over the table."""
        filled = np.flatnonzero(self.table.presence[:, MODALITIES.index("image")])
        for place in np.unique(np.linspace(0, len(filled) - 1, most).round().astype(int)) if len(filled) else ():
            try:
                yield self.table.media(int(filled[place]), "image")
            except ValueError:  # a URL, or a path that leads elsewhere: whoever opens it says so
                continue

    def check(self, args, processor, progress: bool) -> str:
        """Open every cell once, so that a bad one is said before training; what was seen, for people."""
        self.table, report = check_table(
            self.table,
            sampling_rate=processor.audio_sampling_rate,
            max_audio_seconds=processor.max_audio_seconds,
            on_bad_cell=args.on_bad_cell,
            allow_empty_columns=not self.is_training,  # what is never there cannot be learnt, but can be evaluated
            progress=progress,
        )
        return report.describe()

    def loader(self, args, accelerator, processor, labels: LabelMap, teacher=None) -> DataLoader:
        size = args.per_device_train_batch_size if self.is_training else args.per_device_eval_batch_size
        dataset = FeatureDataset(self.table, labels, processor, int(args.cache_gib * 2**30), self.features)
        collate = FeatureCollator(processor, self.features, with_rows=self.is_training)
        if self.is_training:
            dataset, collate = training_view(args, dataset, collate, processor, teacher)
        return DataLoader(
            WatchedRows(dataset, self.table.place, args.num_workers) if args.num_workers else dataset,
            size,
            shuffle=self.is_training and not args.group_by_length,
            sampler=self._grouped(args, accelerator, processor) if self.is_training and args.group_by_length else None,
            collate_fn=collate,
            **_workers(args, args.num_workers),
        )

    def _grouped(self, args, accelerator, processor) -> LengthGroupedSampler:
        """An order by length; one process measures, since all must have the same."""
        progress = accelerator.is_main_process
        lengths = together(accelerator, lambda: lengths_of(self.table, processor, progress))
        return LengthGroupedSampler(lengths, args.per_device_train_batch_size * accelerator.num_processes, args.seed)


class StreamedRows:
    """Rows that come over the network while the model learns from them.

    Args:
        stream: The rows.
    """

    is_streamed = True
    is_training = True
    declares_labels = True  # or else it could not be streamed

    def __init__(self, stream: Stream):
        self.stream = stream

    @property
    def name(self) -> str:
        return self.stream.name

    @property
    def modalities(self) -> tuple[str, ...]:
        return self.stream.modalities

    @property
    def num_rows(self) -> int | None:
        return self.stream.num_rows

    def place(self, row: int) -> str:
        """What messages call a row; a shuffled stream has no row numbers, only an order in which they came."""
        return f"{self.name}:row {row + 1} as it came"

    def record(self, public: Callable[[str], str]) -> dict:
        """What identifies the rows, for `training_config.json`; without their number where it is not declared."""
        count = {} if self.num_rows is None else {"num_rows": self.num_rows}
        return {"name": public(self.name), **count, **self.stream.origin}

    def keep_modalities(self, modalities) -> "StreamedRows":
        return StreamedRows(self.stream.keep_modalities(modalities))

    def take(self, max_rows: int | None) -> "StreamedRows":
        return self if max_rows is None else StreamedRows(self.stream.take(max_rows))

    def labels(self, args) -> LabelMap:
        return self.stream.labels(args.problem_type, args.label_delimiter, args.label_names)

    def texts(self) -> Iterator[str]:
        return self.stream.texts(TEXTS_OF_A_STREAM)

    def pictures(self, most: int) -> Iterator[bytes]:
        """Files of pictures, from the first rows."""
        return self.stream.pictures(min(most, PICTURES_OF_A_STREAM))

    def check(self, args, processor, progress: bool) -> str:
        dealt = {"error": "stops the training", "drop": "costs its row", "empty": "is taken as empty"}[
            args.on_bad_cell
        ]
        return f"{self.name}: streamed, its cells are not checked beforehand; a bad one {dealt} when it comes"

    def loader(self, args, accelerator, processor, labels: LabelMap, teacher=None) -> DataLoader:
        """A loader that `accelerate` need not divide among the processes: each reads its own rows already.

        It would either read all rows in one process and send them on (dispatch), or open every row in every process
        and throw most of them away.
        """
        dataset = StreamedDataset(
            self.stream,
            labels,
            processor,
            buffer_size=args.shuffle_buffer_size,
            seed=args.seed,
            on_bad_cell=args.on_bad_cell,
            num_rows=self._rows_of_an_epoch(args, accelerator),
            process_index=accelerator.process_index,
            num_processes=accelerator.num_processes,
        )
        collate = Collator(processor, with_rows=True)
        dataset, collate = training_view(args, dataset, collate, processor, teacher, accelerator.process_index)
        workers = self._num_workers(args, accelerator)
        loader = DataLoader(
            dataset,
            args.per_device_train_batch_size,
            collate_fn=collate,
            **_workers(args, workers),
        )
        loader = prepare_data_loader(
            loader, accelerator.device, num_processes=1, process_index=0, put_on_device=True, dispatch_batches=False
        )
        loader._is_accelerate_prepared = True  # the mark by which `accelerator.prepare` leaves it as it is
        return loader

    def _rows_of_an_epoch(self, args, accelerator) -> int:
        """What the data set declares; or else as many as the whole training will read."""
        if self.num_rows is not None:
            return self.num_rows
        batches = args.max_train_steps * args.gradient_accumulation_steps
        return batches * args.per_device_train_batch_size * accelerator.num_processes

    def _num_workers(self, args, accelerator) -> int:
        """Workers divide the files of a stream, and with them what is skipped and what is another process's share."""
        is_divided = accelerator.num_processes > 1 or self.stream.first_row > 0
        if is_divided and args.num_workers > 1:
            _say("note: this stream is read by one worker: --num_workers is taken as 1", file=sys.stderr)
            return 1
        return args.num_workers


def _workers(args, num_workers: int) -> dict:
    """Options of a DataLoader for the processes that open its rows."""
    if num_workers == 0:
        return {"num_workers": 0}
    is_kept = args.checkpointing_steps is not None  # then a signal lets the step be finished, which may need rows
    return {
        "num_workers": num_workers,
        "persistent_workers": True,
        "prefetch_factor": args.prefetch_factor,
        "timeout": args.dataloader_timeout,
        "worker_init_fn": finish_first if is_kept else None,
    }


# -- opening ----------------------------------------------------------------------------------------------------------


def open_rows(args, reads: Callable[[str], bool]) -> "tuple[TableRows | StreamedRows, TableRows, LabelMap]":
    """Training rows, validation rows and what their labels mean.

    Args:
        args: The flags of `train.py`.
        reads: Called with a modality: whether the model shall read it.
    """
    train, validation = _opened(args)
    train = _readable(args, train, reads).take(args.max_train_samples)
    if train.num_rows is None and args.max_train_steps is None:
        raise ValueError(
            f"`{train.name}` does not declare how many rows it has: say with --max_train_steps how long to train, or "
            "train without --streaming"
        )
    labels = in_order(args, train, train.labels(args))
    if validation is None:
        train, validation = _held_out(args, train, labels)
    else:
        validation = _fitting(_readable(args, validation, reads).take(args.max_eval_samples), train)
        labels.encode_table(validation.table)  # an unknown label is said now, not after the first epoch
        for note in label_notes(validation.table, labels):
            if note.startswith("warning"):  # what vectors mean is told of the training rows
                _say(note, file=sys.stderr)
    if labels.tasks is not None:
        for rows in (train, validation):
            labels.refuse_unlabelled(rows.table)
    if not train.is_streamed and (shared := count_shared_rows(train.table, validation.table)):
        _say(
            f"warning: {shared:,} of {validation.num_rows:,} validation rows stand among the training rows, too: "
            "their metrics will flatter the model",
            file=sys.stderr,
        )
    return train, validation, labels


def _opened(args) -> "tuple[TableRows | StreamedRows, TableRows | None]":
    """The rows as they were asked for; the second None where validation rows have to be set aside."""
    label = {name: name for name in args.label_column} if has_tasks(args) else args.label_column
    columns = Columns(args.text_column, args.image_column, args.audio_column, label)
    read = partial(read_table, columns=columns, allow_outside=args.allow_outside_paths)
    if args.dataset_name is not None:
        train, validation = _from_hub(args, columns, read)
    else:
        table = read(args.train_file, config_name=args.dataset_config_name)
        train, validation = TableRows(table, is_training=True), None
    if args.validation_file is not None:
        config_name = args.dataset_config_name if args.dataset_name is None else None
        validation = TableRows(read(args.validation_file, config_name=config_name))
    return train, validation


def _from_hub(args, columns: Columns, read: Callable):
    found = find_hub_set(args.dataset_name, config_name=args.dataset_config_name, revision=args.dataset_revision)
    split, held = found.choose_split(args.dataset_split), args.dataset_validation_split
    if held is None and args.validation_file is None and (held := found.validation_split(split)) is not None:
        _say(f"`{found.hub_id}` has a split `{held}`: it is used for validation")
    if not args.streaming:
        validation = None if held is None else TableRows(read(found, split=held))
        return TableRows(read(found, split=split), is_training=True), validation
    train = StreamedRows(stream_of(found, split, columns))
    if held is None:
        return train, None
    part = stream_of(found, found.choose_split(held), columns)
    part = part if args.max_eval_samples is None else part.take(args.max_eval_samples)
    return train, TableRows(part.table())


def _readable(args, rows, reads):
    """The rows with the modalities that the model shall read."""
    kept = [modality for modality in rows.modalities if reads(modality)]
    left_out = [modality for modality in rows.modalities if modality not in kept]
    given = args.model_name_or_path
    if not kept:
        why = "each of their towers is `none`" if given is None else f"`{given}` reads none of them"
        raise ValueError(f"`{rows.name}` has columns for {', '.join(rows.modalities)}, and {why}: keep one")
    if left_out and given is not None:
        _say(f"note: {', '.join(left_out)} of `{rows.name}` is not used: `{given}` does not read it", file=sys.stderr)
    return rows.keep_modalities(kept)


def _fitting(validation: TableRows, train) -> TableRows:
    """The validation rows with the modalities that are trained on."""
    if missing := [modality for modality in validation.modalities if modality not in train.modalities]:
        _say(f"note: {', '.join(missing)} of the validation file is not used: it is not trained on", file=sys.stderr)
    return validation.keep_modalities(train.modalities)


def _held_out(args, train, labels: LabelMap):
    """(Training rows, validation rows), by setting a part of the training rows aside."""
    if not train.is_streamed:
        kept, held = stratified_split(
            train.table, labels, validation_fraction=args.validation_fraction, seed=args.seed
        )
        return TableRows(kept, is_training=True), TableRows(held).take(args.max_eval_samples)
    size = args.max_eval_samples or HELD_OUT_OF_A_STREAM
    if train.num_rows is not None and size >= train.num_rows:
        size = max(1, math.floor(train.num_rows * args.validation_fraction))
    _say(f"`{train.name}` has no split for validation: its first {size:,} rows are held out")
    held = TableRows(train.stream.take(size).table())
    labels.encode_table(held.table)
    return StreamedRows(train.stream.skip(size)), held


def _say(text: str, **options) -> None:
    PartialState().print(text, **options)  # once, not once a process
