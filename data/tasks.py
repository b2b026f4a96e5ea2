"""Several label columns at once: what each of them means, and one row of numbers that holds the labels of all.

Unusual: a row may lack some of the labels, which are NaN then; only a row that lacks all of them is a mistake. What
an empty cell means is the rule of `LabelMap`: in a multi-label column an empty text says that none of the labels
holds, and only null that nobody knows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data.label_names import constant_labels, listed
from data.labels import MULTI_LABEL, REGRESSION, SINGLE_LABEL, LabelMap
from data.table import Table

_MAX_REPORTED = 20


@dataclass(frozen=True)
class TaskMap:
    """The meaning of the outputs of a model with several tasks, which stand side by side.

    Args:
        maps: Task -> what its labels mean; a task is called as its column was in training.
        weights: Of the tasks' losses, in the same order.
    """

    maps: Mapping[str, LabelMap]
    weights: tuple[float, ...]

    problem_type = None  # each task has its own

    @property
    def tasks(self) -> list[dict[str, Any]]:
        """The tasks as the model's configuration takes them."""
        return [
            {"name": name, "problem_type": one.problem_type, "labels": list(one.names), "weight": weight}
            for (name, one), weight in zip(self.maps.items(), self.weights, strict=True)
        ]

    @classmethod
    def fit(
        cls,
        table: Table,
        problem_type: str | Sequence[str] | None = None,
        delimiter: str | None = None,
        weights: Sequence[float] | None = None,
    ) -> "TaskMap":
        """Learns the labels of a training table.

        Args:
            table: A table with several label columns.
            problem_type: One for all tasks or one for each; None guesses each as `LabelMap.fit` does.
            delimiter: What separates the labels of a cell, in the tasks whose problem type is multi-label.
            weights: Of the tasks' losses; None: all the same.

        Raises:
            ValueError: a column has no label, or labels that cannot be used.
        """
        problems = [problem_type] * len(table.tasks) if problem_type is None or isinstance(problem_type, str) else None
        maps = {}
        for name, problem in zip(table.tasks, problems or problem_type, strict=True):
            own = table.of_task(name)
            rows = _labelled_rows(own, problem)
            if not rows:
                raise ValueError(f"`{table.name}`: the column `{own.columns['label']}` holds no label at all.")
            maps[name] = LabelMap.fit(own.select(rows), problem, delimiter if problem == MULTI_LABEL else None)
        return cls(maps, tuple(weights or [1.0] * len(maps)))

    @classmethod
    def from_config(cls, config: Any, delimiter: str | None = None) -> "TaskMap":
        """Takes the tasks of a trained model from its configuration."""
        tasks = config.each_task()
        several = {task.name for task in tasks if task.config.problem_type == MULTI_LABEL}
        maps = {t.name: LabelMap.from_config(t.config, delimiter if t.name in several else None) for t in tasks}
        return cls(maps, tuple(task.weight for task in tasks))

    def encode_table(self, table: Table) -> list[list[float]]:
        """Encodes the labels of every row: the columns of all tasks side by side, NaN where the row lacks the label.

        Raises:
            ValueError: some labels cannot be encoded, or a row has none; one line for each, with file, row and value.
        """
        if not table.tasks:
            raise ValueError(
                f"`{table.name}` has a label column for none of the tasks {', '.join(self.maps)}. It has "
                f"{', '.join(f'`{name}`' for name in table.available_columns)}; name one of these for each task."
            )
        columns, problems = [], []
        for name, one in self.maps.items():
            try:
                columns.append(_encoded(table, name, one))
            except ValueError as error:
                problems.append(str(error))
        if problems:
            raise ValueError("\n".join(problems))
        encoded = np.concatenate(columns, axis=1)
        if len(table.tasks) == len(self.maps):  # else the column that was left out may have it
            _refuse_bare_rows(table, np.isnan(encoded).all(axis=1))
        return encoded.tolist()

    def refuse_unlabelled(self, table: Table) -> None:
        """Refuse a table without a label of some task: it could not be learnt from it, or not be measured.

        Raises:
            ValueError: there is such a task.
        """
        for name, one in self.maps.items():
            if name not in table.tasks or not _labelled_rows(table.of_task(name), one.problem_type):
                raise ValueError(
                    f"`{table.name}` has no label of the task `{name}` among the {len(table):,} rows that are used of "
                    "it. Training and validation rows need some of each task: add rows, or leave the column out."
                )

    def describe(self) -> str:
        """A line a task for people: what is predicted."""
        weights = [f" (weight {weight:g})" if weight != 1 else "" for weight in self.weights]
        return "\n".join(
            f"{name}{weight}: {one.describe()}" for (name, one), weight in zip(self.maps.items(), weights, strict=True)
        )


def labels_of(config: Any, delimiter: str | None = None) -> LabelMap | TaskMap:
    """What the labels of a trained model mean, by its configuration."""
    kind = LabelMap if getattr(config, "tasks", None) is None else TaskMap
    return kind.from_config(config, delimiter)


def label_notes(table: Table, labels: LabelMap | TaskMap) -> list[str]:
    """Return what a person should know of the labels of a table that can be read: sentences, mostly none.

    Args:
        table: The rows; their labels are those of the model.
        labels: What the model knows.
    """
    if labels.tasks is None:
        return _notes(table, labels)
    kept = [(name, one) for name, one in labels.maps.items() if name in table.tasks]
    labelled = [(table.of_task(name), one) for name, one in kept]
    return [note for own, one in labelled for note in _notes(own.select(_labelled_rows(own, one.problem_type)), one)]


def _notes(table: Table, labels: LabelMap) -> list[str]:
    if not table.has_labels or labels.problem_type == REGRESSION or len(table) == 0:
        return []
    notes = []
    if labels.holds_vectors(table):
        notes.append(
            f"note: the labels of `{table.name}` are vectors of 0 and 1, read in this order: {listed(labels.names)}"
        )
    if labels.problem_type == MULTI_LABEL:
        rows = [[labels.names[at] for at in np.flatnonzero(row)] for row in labels.encode_table(table)]
        try:
            told = constant_labels(table, labels.names, rows)
        except ValueError as error:  # a training would be refused; a score is only worth nothing
            notes.append(f"warning: {error} F1 is 100 % for whoever always answers so.")
        else:
            # Of a model's labels, some rows have only some: what none has is not told.
            notes += [f"warning: {told}"] if "every row has" in told else []
    return notes


def is_missing(value: Any, problem_type: str | None) -> bool:
    """Whether nobody knows the label; of several labels an empty text says that none holds."""
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return True
    return problem_type != MULTI_LABEL and isinstance(value, str) and not value.strip()


def _labelled_rows(own: Table, problem_type: str | None) -> list[int]:
    """Which rows of the table of a task have its label."""
    return [index for index, value in enumerate(own.labels()) if not is_missing(value, problem_type)]


def _encoded(table: Table, name: str, labels: LabelMap) -> np.ndarray:
    """The columns of a task (rows, columns); all NaN where the table lacks its column."""
    width = 1 if labels.problem_type == SINGLE_LABEL else labels.num_labels
    encoded = np.full((len(table), width), np.nan)
    if name in table.tasks:
        own = table.of_task(name)
        rows = _labelled_rows(own, labels.problem_type)
        encoded[rows] = np.reshape(labels.encode_table(own.select(rows)), (len(rows), width))
    return encoded


def _refuse_bare_rows(table: Table, is_bare: np.ndarray) -> None:
    places = [table.place(int(index)) for index in np.flatnonzero(is_bare)]
    if places:
        more = f"\n… and {len(places) - _MAX_REPORTED} more" if len(places) > _MAX_REPORTED else ""
        asked = ", ".join(f"`{table.columns[kind]}`" for kind in table.label_kinds)
        told = [f"{place}: the row has no label in any of {asked}. Fill one of these cells or remove the row."
                for place in places[:_MAX_REPORTED]]  # fmt: skip
        raise ValueError("\n".join(told) + more)
