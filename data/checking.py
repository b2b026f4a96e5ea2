"""A look at every cell before the training starts: all problems at once, not one an hour.

Each distinct file is opened once, by threads: Pillow, libsndfile and soxr let others run while they work.
"""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
from tqdm import tqdm

from data.batches import cell_key, open_media
from data.table import MODALITIES, Table

ON_BAD_CELL = ("error", "drop", "empty")
ANY_RATE = 40  # Hz; opened at this rate, no sound is too slow (from 2 Hz) or too short that is not so by itself
_CELLS_AT_ONCE = 64  # bounds how many undecoded cells are in memory
_REMEDIES = (
    "Correct them, or choose what happens to them (--on_bad_cell): `error` stops here, `drop` leaves out their rows, "
    "`empty` takes these cells as empty."
)


@dataclass(frozen=True)
class Problem:
    """One cell, or one row (`modality` None), that cannot be used, and why."""

    index: int
    modality: str | None
    place: str
    reason: str

    def __str__(self) -> str:
        return f"{self.place}: {self.reason}"


class BadCellsError(ValueError):
    """Cells that cannot be used; `problems` holds all of them, the message the first ones."""

    def __init__(self, message: str, problems: Sequence[Problem]):
        super().__init__(message)
        self.problems = list(problems)


@dataclass(frozen=True)
class CheckReport:
    """What `check_table` saw and did."""

    name: str
    num_rows: int
    num_cells: dict[str, int]
    num_opened: int
    policy: str
    problems: list[Problem] = field(default_factory=list)
    num_dropped: int = 0
    num_emptied: int = 0
    max_reported: int = 20

    def describe(self) -> str:
        """Lines for people: the count of cells, and the problems with what was done about them."""
        cells = ", ".join(f"{count} {modality}" for modality, count in self.num_cells.items())
        lines = [f"{self.name}: {self.num_rows} rows checked ({cells}; {self.num_opened} pictures and sounds opened)"]
        if self.problems:
            lines += _reported(self.problems, self.max_reported)
            lines.append(
                f"{len(self.problems)} problems, on_bad_cell={self.policy}: {self.num_emptied} cells taken as empty, "
                f"{self.num_dropped} rows left out"
            )
        return "\n".join(lines)


def check_table(
    table: Table,
    *,
    sampling_rate: int | None = None,
    max_audio_seconds: float | None = None,
    on_bad_cell: str = "error",
    allow_empty_columns: bool = False,
    num_workers: int | None = None,
    progress: bool = True,
    max_reported: int = 20,
) -> tuple[Table, CheckReport]:
    """Opens every picture and sound of a table, and looks for rows and columns that hold nothing.

    Args:
        table: The rows; leave out the modalities that the model cannot read before (`Table.keep_modalities`).
        sampling_rate: At which sounds are opened, in Hz; None only asks whether they can be.
        max_audio_seconds: How much of a sound is opened; None is all of it.
        on_bad_cell: "error" raises; "drop" leaves out the rows; "empty" takes the cells as empty, and leaves out rows
            in which nothing remains.
        allow_empty_columns: Whether a column may have no filled cell at all, as when a model is only used.
        num_workers: Threads; None is one for each core.
        progress: Whether a bar is shown on stderr.
        max_reported: How many problems are written out.

    Returns:
        The table without what was dropped or emptied, and the report.

    Raises:
        BadCellsError: there are problems, and `on_bad_cell` is "error".
        ValueError: the table has no rows (left), or a whole column is empty.
    """
    if on_bad_cell not in ON_BAD_CELL:
        raise ValueError(f"`on_bad_cell` is {on_bad_cell!r}; allowed are {', '.join(ON_BAD_CELL)}.")
    if not allow_empty_columns:
        _refuse_empty_columns(table)
    keys, reasons = _open_all(table, sampling_rate or ANY_RATE, max_audio_seconds, num_workers, progress)
    problems = [*_bad_cells(table, keys, reasons), *_empty_rows(table)]
    problems.sort(key=lambda problem: (problem.index, problem.modality is not None))
    if problems and on_bad_cell == "error":
        lines = [*_reported(problems, max_reported), f"{len(problems)} problems in `{table.name}`. {_REMEDIES}"]
        raise BadCellsError("\n".join(lines), problems)
    checked, num_emptied = _apply(table, problems, on_bad_cell)
    if len(checked) == 0:
        lines = [*_reported(problems, max_reported), f"No row of `{table.name}` is left after the check."]
        raise BadCellsError("\n".join(lines), problems)
    if not allow_empty_columns:
        _refuse_empty_columns(checked, _reported(problems, max_reported))
    report = CheckReport(
        name=table.name,
        num_rows=len(table),
        num_cells={m: int(table.presence[:, MODALITIES.index(m)].sum()) for m in table.modalities},
        num_opened=len(reasons),
        policy=on_bad_cell,
        problems=problems,
        num_dropped=len(table) - len(checked),
        num_emptied=num_emptied,
        max_reported=max_reported,
    )
    return checked, report


def _reported(problems: Sequence[Problem], max_reported: int) -> list[str]:
    more = len(problems) - max_reported
    return [str(problem) for problem in problems[:max_reported]] + ([f"… and {more} more"] if more > 0 else [])


def _refuse_empty_columns(table: Table, told: Sequence[str] = ()) -> None:
    for modality in table.modalities:
        if not table.presence[:, MODALITIES.index(modality)].any():
            reason = (
                f"`{table.name}`: every cell of the column `{table.columns[modality]}` is empty. Fill some, or leave "
                f"the column out (name `none` as the {modality} column)."
            )
            raise ValueError("\n".join([*told, reason]))


def _empty_rows(table: Table) -> Iterator[Problem]:
    columns = ", ".join(f"`{table.columns[modality]}`" for modality in table.modalities)
    for index in np.flatnonzero(~table.presence.any(axis=1)):
        yield Problem(int(index), None, table.place(index), f"the row has no modality ({columns} are all empty)")


def _media_cells(table: Table) -> Iterator[tuple[int, str]]:
    for modality in ("image", "audio"):
        if modality in table.modalities:
            yield from ((int(i), modality) for i in np.flatnonzero(table.presence[:, MODALITIES.index(modality)]))


def _open_all(
    table: Table, sampling_rate: int, max_audio_seconds: float | None, num_workers: int | None, progress: bool
) -> tuple[dict[tuple[int, str], tuple], dict[tuple, str | None]]:
    """Opens each distinct picture and sound.

    Returns:
        The key of each cell's content, and for each key why it cannot be opened (None where it can).
    """
    keys: dict[tuple[int, str], tuple] = {}
    reasons: dict[tuple, str | None] = {}
    cells = _media_cells(table)
    total = int(sum(table.presence[:, MODALITIES.index(m)].sum() for m in table.modalities if m != "text"))
    with (
        ThreadPoolExecutor(num_workers or os.cpu_count()) as pool,
        tqdm(total=total, desc=f"Checking {table.name}", unit=" cells", disable=not (progress and total)) as bar,
    ):
        while chunk := list(islice(cells, _CELLS_AT_ONCE)):
            sources = {}
            for index, modality in chunk:
                key, source, reason = _locate(table, index, modality)
                keys[index, modality] = key
                if reason is not None:
                    reasons[key] = reason
                elif key not in reasons:
                    sources[key] = (source, modality)
            opened = pool.map(lambda item: _reason(*item, sampling_rate, max_audio_seconds), sources.values())
            reasons.update(zip(sources, opened, strict=True))
            bar.update(len(chunk))
    return keys, reasons


def _locate(table: Table, index: int, modality: str) -> tuple[tuple, object, str | None]:
    try:
        source = table.media(index, modality)
    except ValueError as error:
        return (modality, int(table.rows[index]), "not located"), None, str(error)
    return cell_key(table, index, modality, source), source, None


def _reason(source: object, modality: str, sampling_rate: int, max_audio_seconds: float | None) -> str | None:
    try:
        open_media(source, modality, sampling_rate, max_audio_seconds)
    except (ValueError, OSError) as error:
        return str(error)
    return None


def _bad_cells(
    table: Table, keys: dict[tuple[int, str], tuple], reasons: dict[tuple, str | None]
) -> Iterator[Problem]:
    for (index, modality), key in keys.items():
        if reasons[key] is not None:
            yield Problem(index, modality, table.place(index, modality), reasons[key])


def _apply(table: Table, problems: Sequence[Problem], policy: str) -> tuple[Table, int]:
    """Carries out `drop` or `empty`; rows that hold nothing are left out either way."""
    bad_cells = [(problem.index, problem.modality) for problem in problems if problem.modality is not None]
    if policy == "empty":
        table = table.with_empty_cells(bad_cells)
    keep = table.presence.any(axis=1)
    if policy == "drop":
        keep[[index for index, _ in bad_cells]] = False
    checked = table if keep.all() else table.select(np.flatnonzero(keep))
    return checked, len(bad_cells) if policy == "empty" else 0
