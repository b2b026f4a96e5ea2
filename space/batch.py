"""A visitor's table in, the same table with answers out: for the page's batch tab, and for whoever else has a service.

Unusual: a bad cell is no reason to stop. Its row gets the reason in the column `error`, and the others go on. What
would make every answer wrong (no such column, too many rows) is told before anything is opened. Rows go to the model
and into the files of the result a few at a time, so memory does not grow with the table.

Of CSV and TSV alone, and not of the other formats that `data/` reads: a few kilobytes of Parquet or JSON may unfold to
gigabytes.
"""

import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli.scored import csv_writer, parquet_writer, prediction_columns, refuse_taken_names
from space.archives import ArchiveLimits, open_upload
from space.errors import BadInput, Refusal
from space.inputs import MODALITIES

if TYPE_CHECKING:
    import pyarrow as pa

    from data.table import Table

ERROR_COLUMN = "error"
ON_BAD_CELL = ("report", "empty", "error")
# What is wrong with one cell alone, and which: with on_bad_cell "empty", the row is answered without it.
MODALITY_OF_CODE = {
    "text_too_long": "text", "image_unreadable": "image", "audio_unreadable": "audio", "audio_too_long": "audio"
}  # fmt: skip
RESULT_NAME = "predictions"

# Given samples as `inputs.check_sample` takes them; gives for each its ranked labels, or why there are none.
Predict = Callable[[list[dict[str, Any]]], Sequence[list[dict[str, Any]] | Refusal]]


@dataclass(frozen=True)
class BatchLimits:
    """How much one batch may be.

    Args:
        max_rows: of the table.
        max_columns: of the table.
        chunk_rows: rows that are given to the model at once.
        max_shown_rows: rows of the result that are returned for display; the files have all.
        patience_seconds: how long a batch waits when the server is full, each time.
        keep_seconds: how long the files of a result stay.
        archive: what the upload may hold.
    """

    max_rows: int = 1_000
    max_columns: int = 200
    chunk_rows: int = 16
    max_shown_rows: int = 200
    patience_seconds: float = 60.0
    keep_seconds: float = 3600.0
    archive: ArchiveLimits = field(default_factory=ArchiveLimits)


@dataclass(frozen=True)
class ModelFacts:
    """What a batch has to know of the model: what it reads, and what its answers mean."""

    modalities: Sequence[str]
    labels: Sequence[str]
    problem_type: str
    thresholds: Mapping[str, float] | None = None

    @property
    def id2label(self) -> dict[int, str]:
        return dict(enumerate(self.labels))


@dataclass
class BatchResult:
    """What came of a batch.

    Args:
        columns: names of the result's columns: those of the table, the answer's, and `error`.
        rows: the first rows, for display; None stands where there is no value.
        num_rows: of the table.
        num_done: rows that were answered or have their error; fewer than `num_rows` when it was cancelled.
        num_failed: rows without an answer.
        csv_file, parquet_file: the result as files.
    """

    columns: list[str]
    num_rows: int
    csv_file: Path
    parquet_file: Path
    rows: list[list[Any]] = field(default_factory=list)
    num_done: int = 0
    num_failed: int = 0

    @property
    def is_complete(self) -> bool:
        return self.num_done == self.num_rows


def run_batch(
    upload: str | Path,
    folder: str | Path,
    predict: Predict,
    model: ModelFacts,
    *,
    text_column: str | None = None,
    image_column: str | None = None,
    audio_column: str | None = None,
    on_bad_cell: str = "report",
    limits: BatchLimits | None = None,
    progress: Callable[[int, int], None] | None = None,
    cancelled: threading.Event | None = None,
) -> BatchResult:
    """Answer every row of an uploaded table.

    Blocks, and is meant for a thread of its own; for a service that lives on an event loop, `predict` is
    `lambda rows: asyncio.run_coroutine_threadsafe(service.ask_all(rows), service.loop).result()`.

    Args:
        upload: a .csv, a .tsv, or a .zip with one of them and the files that it names.
        folder: where uploads are unpacked for as long as it takes, and results are kept for a while; what is older is
            removed at the next batch.
        predict: answers samples.
        model: what it reads, and what its answers mean.
        text_column, image_column, audio_column: names of the columns, "none" to leave one out; None or blank: `text`,
            `image` and `audio`, as far as the table has them.
        on_bad_cell: what becomes of a cell that cannot be used: "report", the row has an error instead of an answer;
            "empty", the row is answered without the cell, and has the error as well; "error", the batch ends.
        limits: how much it may be.
        progress: called with (rows done, rows) at the start and after every few rows.
        cancelled: when set, the batch ends after the rows that are with the model; the result holds what is done.

    Raises:
        BadInput: the upload is no table or goes beyond a limit, or lacks the columns.
        Refusal: the server is stopping, or was full for too long.
    """
    if on_bad_cell not in ON_BAD_CELL:
        raise ValueError(f"`on_bad_cell` is {on_bad_cell!r}; allowed are {', '.join(ON_BAD_CELL)}.")
    limits, cancelled = limits or BatchLimits(), cancelled or threading.Event()
    names = {"text": text_column, "image": image_column, "audio": audio_column}
    with working_folder(Path(folder), limits.keep_seconds) as work:
        batch = Batch(Path(upload), work, names, model, limits)
        asker = Asker(predict, limits.patience_seconds, cancelled, on_bad_cell)
        with result_folder(Path(folder)) as output:
            return batch.run(asker, output, progress or (lambda done, total: None))


class Batch:
    """An opened upload whose rows can be answered."""

    def __init__(
        self, upload: Path, work: Path, names: Mapping[str, str | None], model: ModelFacts, limits: BatchLimits
    ):
        self.model, self.limits, self.work = model, limits, work
        path = open_upload(upload, work, limits.archive)
        with as_refusals(work):
            refuse_large_table(path, limits)
            self.table, self.source = open_columns(path, names, model.modalities)
            new_names = [*prediction_columns(model.problem_type, model.id2label, None), ERROR_COLUMN]
            refuse_taken_names(path.name, self.source.column_names, new_names)
            self.cells = (
                self.source.load(self.source.column_names).with_format("arrow")[:].replace_schema_metadata(None)
            )

    def run(self, asker: "Asker", output: Path, progress: Callable[[int, int], None]) -> BatchResult:
        schema = self._schema()
        makers = (csv_writer, parquet_writer)
        files = [output / f"{RESULT_NAME}.csv", output / f"{RESULT_NAME}.parquet"]
        result = BatchResult(schema.names, len(self.table), *files)
        progress(0, result.num_rows)
        with ExitStack() as stack:
            writers = [stack.enter_context(make(file)) for make, file in zip(makers, files, strict=True)]
            for start in range(0, result.num_rows, self.limits.chunk_rows):
                indices = range(start, min(start + self.limits.chunk_rows, result.num_rows))
                answers = asker.ask([self.sample(index) for index in indices], self.table, start)
                if answers is None:
                    break
                self._keep(self._chunk(answers, start, schema), answers, result, writers)
                progress(result.num_done, result.num_rows)
            if result.num_done == 0:  # cancelled at once: files with columns and no rows
                for write in writers:
                    write(schema.empty_table())
        return result

    def sample(self, index: int) -> dict[str, Any] | Refusal:
        """Give one row as the service takes it, or why it cannot."""
        sample = {}
        for name in self.table.modalities:
            try:
                value = self._value(index, name)
            except BadInput as refusal:
                return refusal
            if value is not None:
                sample[name] = value
        return sample

    def _value(self, index: int, name: str) -> str | Path | None:
        """Give a text, or the path of a file of the upload.

        Raises:
            BadInput: the cell is a URL or leads elsewhere, or there is no such file.
        """
        cell = self.table.cell(index, name)
        if cell is None or name == "text":
            return cell
        try:
            path = self.table.media(index, name)
        except ValueError:
            raise BadInput(
                "not_a_file",
                f"`{name}`: {cell!r:.80} is a URL or leads out of the upload; nothing is fetched: put the file into "
                "the zip, beside the table.",
            ) from None
        if not path.is_file():
            raise BadInput(
                "not_a_file", f"`{name}`: {cell!r:.80} is not in the upload: put it into the zip, beside the table."
            )
        return path

    def _schema(self) -> "pa.Schema":
        """Give one schema for all chunks, those without any answer too."""
        import pyarrow as pa

        is_several = self.model.problem_type == "multi_label_classification"
        kinds = {"prediction": pa.list_(pa.string()) if is_several else pa.string()}
        if self.model.problem_type == "regression":
            kinds = {}
        fields = list(self.cells.schema)
        for name in prediction_columns(self.model.problem_type, self.model.id2label, None):
            fields.append(pa.field(name, kinds.get(name, pa.float64())))
        return pa.schema([*fields, pa.field(ERROR_COLUMN, pa.string())])

    def _chunk(self, answers: list["Answer"], start: int, schema: "pa.Schema") -> "pa.Table":
        """Give the rows of the table with their answers beside them."""
        import numpy as np
        import pyarrow as pa

        labels = self.model.labels
        answered = [index for index, answer in enumerate(answers) if answer.ranked is not None]
        scores = [{entry["label"]: entry["score"] for entry in answers[index].ranked} for index in answered]
        scores = np.array([[by_label[name] for name in labels] for by_label in scores]).reshape(-1, len(labels))
        columns: dict[str, list] = {}
        model = self.model
        found = prediction_columns(model.problem_type, model.id2label, scores, model.thresholds)
        for name, values in found.items():
            columns[name] = [None] * len(answers)
            for index, value in zip(answered, values, strict=True):
                columns[name][index] = value
        columns[ERROR_COLUMN] = [answer.error for answer in answers]
        given = self.cells.slice(start, len(answers))
        arrays = [*given.columns, *(pa.array(columns[name], schema.field(name).type) for name in columns)]
        return pa.table(arrays, schema=schema)

    def _keep(self, chunk: "pa.Table", answers: list["Answer"], result: BatchResult, writers: list) -> None:
        for write in writers:
            write(chunk)
        result.num_done += len(answers)
        result.num_failed += sum(answer.ranked is None for answer in answers)
        room = max(0, self.limits.max_shown_rows - len(result.rows))
        result.rows += [list(row.values()) for row in chunk.slice(0, room).to_pylist()]


@dataclass
class Answer:
    """Ranked labels, or an error, or both where the row was answered without a bad cell."""

    ranked: list[dict[str, Any]] | None = None
    error: str | None = None


class Asker:
    """Gets answers from a server that may be full, and does with bad cells what was asked for."""

    def __init__(self, predict: Predict, patience_seconds: float, cancelled: threading.Event, on_bad_cell: str):
        self.predict, self.patience_seconds = predict, patience_seconds
        self.cancelled, self.on_bad_cell = cancelled, on_bad_cell

    def ask(self, samples: list[dict | Refusal], table: "Table", start: int) -> list[Answer] | None:
        """Answer some rows; None: cancelled.

        Raises:
            BadInput: a row cannot be answered, and `on_bad_cell` is "error".
        """
        given = self._patiently(samples)
        if given is None:
            return None
        answers = [self._answer(answer) for answer in given]
        for index, (answer, refusal) in enumerate(zip(answers, given, strict=True)):
            if answer.error is not None and self.on_bad_cell == "error":
                raise BadInput(refusal.code, f"row {start + index + 1}: {answer.error}")
            if isinstance(refusal, Refusal) and self.on_bad_cell == "empty":
                answers[index] = self._without_bad_cells(samples[index], refusal)
        return answers

    def _answer(self, given: list[dict] | Refusal) -> Answer:
        return Answer(error=given.message) if isinstance(given, Refusal) else Answer(ranked=given)

    def _without_bad_cells(self, sample: dict | Refusal, refusal: Refusal) -> Answer:
        """Answer a row without the cell that was refused, and again without the next one."""
        errors = [refusal.message]
        while isinstance(sample, dict) and (bad := MODALITY_OF_CODE.get(refusal.code)) in sample:
            sample = {name: value for name, value in sample.items() if name != bad}
            given = self._patiently([sample]) if sample else None
            if given is None:
                break
            if not isinstance(given[0], Refusal):
                return Answer(given[0], " ".join(errors))
            refusal = given[0]
            errors.append(refusal.message)
        return Answer(error=" ".join(errors))

    def _patiently(self, samples: list[dict | Refusal]) -> list | None:
        """Ask, and ask again while the server is full: a batch can wait; None: cancelled."""
        end = time.monotonic() + self.patience_seconds
        while not self.cancelled.is_set():
            try:
                return list(self.predict(samples))
            except Refusal as refusal:
                if refusal.code != "overloaded" or time.monotonic() > end:
                    raise
                self.cancelled.wait(min(1.0, self.patience_seconds / 10))
        return None


# -- opening ----------------------------------------------------------------------------------------------------------


def open_columns(path: Path, names: Mapping[str, str | None], modalities: Sequence[str]) -> tuple["Table", Any]:
    """Open a table, and find the columns of what the model reads.

    Returns:
        The rows, and the source, which has all columns.
    """
    from data.reading import open_source
    from data.table import Columns, table_of

    names = {name: (column or "").strip() or None for name, column in names.items()}
    for name, column in names.items():
        if name not in modalities and column not in (None, "none"):
            reads = ", ".join(modalities)
            raise BadInput(
                "modality_not_supported", f"`{column}` is named as {name}, but the model reads only {reads}."
            )
    ours = {name: names[name] if name in modalities else "none" for name in MODALITIES}
    source = open_source(path)
    return table_of(source, Columns(**ours, label="none").resolve(source)), source


def refuse_large_table(path: Path, limits: BatchLimits) -> None:
    """Look first, as far as the limits go: the reader of tables takes all rows in, and compares names with each other.

    Raises:
        BadInput: it has too many columns or rows.
    """
    from data.csv_files import csv_rows

    try:
        every = (cells for _, cells in csv_rows(path))
        num_columns = len(next(filter(None, every), []))
        if num_columns > limits.max_columns:
            told = f"`{path.name}` has {num_columns:,} columns, the limit is {limits.max_columns:,}."
            raise BadInput("bad_table", told)
        # Of one column, a blank line is an empty cell.
        rows = (cells for cells in every if cells or num_columns == 1)
        if next(islice(rows, limits.max_rows, None), None) is not None:
            told = f"`{path.name}` has more than {limits.max_rows:,} rows, the limit: divide it into several."
            raise BadInput("too_many_rows", told)
    except ValueError:
        return  # the reader of tables has a sentence for these, and comes upon the same


@contextmanager
def as_refusals(work: Path) -> Iterator[None]:
    """Turn what the reader of tables says into refusals, without a path of this machine."""
    try:
        yield
    except (ValueError, OSError) as error:
        told = str(error).replace(f"{work.resolve()}/", "").replace(f"{work}/", "")
        raise BadInput("bad_table", told) from None


# -- folders ----------------------------------------------------------------------------------------------------------


@contextmanager
def working_folder(folder: Path, keep_seconds: float) -> Iterator[Path]:
    """Give a folder for an upload, and remove it; and remove what earlier batches left, killed ones too."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for old in [*folder.glob("upload-*"), *folder.glob("result-*")]:
        with suppress(FileNotFoundError):  # another batch was quicker
            if time.time() - old.stat().st_mtime > keep_seconds:
                shutil.rmtree(old, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix="upload-", dir=folder) as work:
        yield Path(work)


@contextmanager
def result_folder(folder: Path) -> Iterator[Path]:
    """Give a folder for a result; after a failure it is removed."""
    output = Path(tempfile.mkdtemp(prefix="result-", dir=folder))
    try:
        yield output
    except BaseException:
        shutil.rmtree(output, ignore_errors=True)
        raise
