"""From label cells to what the loss takes, and back to names.

How `LabelMap.fit` guesses the problem when it is not told:

1. A delimiter is given, or the cells are lists: `multi_label_classification`.
2. Every cell is a number and at least one has a fraction: `regression`.
3. Anything else: `single_label_classification`, one class for each distinct value. Classes that are whole numbers are
   sorted as numbers, all others as text; a ClassLabel column of `datasets` brings its own names in its own order.

Cells are stripped of white space. A CSV holds only text, so there the rule looks at what the text says.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data.table import Table

SINGLE_LABEL, MULTI_LABEL, REGRESSION = "single_label_classification", "multi_label_classification", "regression"
PROBLEM_TYPES = (SINGLE_LABEL, MULTI_LABEL, REGRESSION)
_MAX_LISTED = 30
_MAX_REPORTED = 20


@dataclass(frozen=True)
class LabelMap:
    """The meaning of the model's outputs.

    Args:
        problem_type: One of `PROBLEM_TYPES`.
        names: For each output its name; for regression the name of the column.
        delimiter: What separates the labels of one text cell in a multi-label problem.
    """

    problem_type: str
    names: tuple[str, ...]
    delimiter: str | None = None

    def __post_init__(self) -> None:
        if self.problem_type not in PROBLEM_TYPES:
            raise ValueError(f"`problem_type` is {self.problem_type!r}; allowed are {', '.join(PROBLEM_TYPES)}.")
        if self.delimiter is not None and self.problem_type != MULTI_LABEL:
            raise ValueError(
                f"`delimiter` is {self.delimiter!r}, but the problem is {self.problem_type}, where no cell is "
                f"divided. Leave it out, or use {MULTI_LABEL}."
            )
        if self.delimiter == "":
            raise ValueError("`delimiter` is empty. Give the character between two labels, such as `;`.")
        if len(set(self.names)) < len(self.names):
            twice = [name for name, count in Counter(self.names).items() if count > 1]
            raise ValueError(f"The label names {listed(twice)} stand more than once. Every label needs its own name.")

    tasks = None  # there is one

    @property
    def num_labels(self) -> int:
        return len(self.names)

    @property
    def id2label(self) -> dict[int, str]:
        return dict(enumerate(self.names))

    @property
    def label2id(self) -> dict[str, int]:
        return {name: index for index, name in enumerate(self.names)}

    @classmethod
    def fit(cls, table: Table, problem_type: str | None = None, delimiter: str | None = None) -> "LabelMap":
        """Learns the labels of a training table.

        Args:
            table: A table with a label column.
            problem_type: One of `PROBLEM_TYPES`; None guesses by the rule at the head of this file.
            delimiter: What separates several labels in one text cell, such as "," or "|"; makes it multi-label.

        Raises:
            ValueError: no label column, a row without a label, a value that is no number in a regression, or fewer
                than two classes.
        """
        if problem_type is not None and problem_type not in PROBLEM_TYPES:
            raise ValueError(f"`problem_type` is {problem_type!r}; allowed are {', '.join(PROBLEM_TYPES)}.")
        values = table.labels()
        problem_type = problem_type or _guess(values, delimiter)
        # A map without names knows how to read a cell; what the cells say then becomes the names.
        reader = cls(problem_type, (), delimiter)
        read = _for_each_row(table, values, reader._read)
        if problem_type == REGRESSION:
            return cls(problem_type, _target_names(table, read))
        names = declared_names(table) or _sorted_names({name for names in read for name in names})
        fitted = cls(problem_type, names, delimiter)
        fitted._refuse_too_few(table)
        return fitted

    @classmethod
    def declared(cls, feature: Any, column: str, name: str, problem_type: str | None = None) -> "LabelMap":
        """Takes the labels that a data set declares for a column, without a look at its rows.

        Args:
            feature: The column's feature of `datasets`: a ClassLabel, a list of it, a float, or a list of floats of a
                fixed length; whole numbers only with `problem_type` regression.
            column: The column's name.
            name: What messages call the data set.
            problem_type: What the feature has to stand for; None takes what it says.

        Raises:
            ValueError: the feature does not say what the labels are, or says something else than `problem_type`.
        """
        inner, is_list = getattr(feature, "feature", feature), hasattr(feature, "feature")
        dtype = str(getattr(inner, "dtype", ""))
        if getattr(inner, "names", None):
            fitted = cls(MULTI_LABEL if is_list else SINGLE_LABEL, tuple(inner.names))
        elif dtype.startswith("float") or (problem_type == REGRESSION and dtype.startswith(("int", "uint"))):
            fitted = cls(REGRESSION, _numbered(column, getattr(feature, "length", -1) if is_list else 1))
        else:
            raise ValueError(
                f"`{name}` declares its column `{column}` as {feature}, which does not say what the labels are before "
                "all rows are read. Push it with ClassLabel (`push_to_hub.py --dataset` does), or train without "
                "--streaming."
            )
        if problem_type not in (None, fitted.problem_type):
            raise ValueError(
                f"`problem_type` is {problem_type}, but `{name}` declares its column `{column}` as {feature}, which "
                f"is {fitted.problem_type}. Leave `problem_type` out, or train without --streaming."
            )
        return fitted

    @classmethod
    def from_config(cls, config: Any, delimiter: str | None = None) -> "LabelMap":
        """Takes the labels of a trained model from its config (an object or a dict with `id2label`)."""
        get = config.get if isinstance(config, Mapping) else lambda key: getattr(config, key, None)
        id2label = get("id2label")
        if not id2label:
            raise ValueError("The model's config has no `id2label`: it was saved without labels. Train it again.")
        by_id = {int(index): str(name) for index, name in id2label.items()}
        if sorted(by_id) != list(range(len(by_id))):
            raise ValueError(
                f"`id2label` of the model's config has the numbers {sorted(by_id)}; they must count from 0."
            )
        guess = REGRESSION if len(by_id) == 1 else SINGLE_LABEL  # as transformers does
        return cls(get("problem_type") or guess, tuple(by_id[index] for index in range(len(by_id))), delimiter)

    def encode(self, value: Any) -> int | float | list[float]:
        """Turns a label cell into a class number, a float, or (several targets, multi-label) a list of floats.

        Raises:
            ValueError: the cell is empty, or its label is none of the model's; the message says which are allowed.
        """
        read = self._read(value)
        if self.problem_type == REGRESSION:
            if len(read) != self.num_labels:
                raise ValueError(f"{value!r:.80} holds {len(read)} numbers where {self.num_labels} are expected.")
            return read[0] if self.num_labels == 1 else read
        numbers = [self._number_of(name) for name in read]
        if self.problem_type == SINGLE_LABEL:
            return numbers[0]
        return [float(index in numbers) for index in range(self.num_labels)]

    def encode_table(self, table: Table) -> list[int] | list[float] | list[list[float]]:
        """Encodes the label of every row.

        Raises:
            ValueError: some labels cannot be encoded; one line for each, with file, row and value.
        """
        return _for_each_row(table, table.labels(), self.encode)

    def describe(self) -> str:
        """One line for people: what is predicted."""
        if self.problem_type == REGRESSION:
            return f"regression: {listed(self.names)}"
        kind = "one of" if self.problem_type == SINGLE_LABEL else "any of"
        return f"{self.problem_type.replace('_', ' ')}: {kind} {self.num_labels} labels ({listed(self.names)})"

    def _read(self, value: Any) -> list[str] | list[float]:
        """What a cell says, before it is known whether that is allowed: names, or numbers in a regression."""
        if self.problem_type == REGRESSION:
            return [_number(item) for item in (value if _is_list(value) else [value])]
        if self.problem_type == MULTI_LABEL:
            return self._read_several(value)
        if _is_list(value):
            raise ValueError(f"{value!r:.80} is a list, where one label is expected. For several use {MULTI_LABEL}.")
        name = _name(value)
        if not name:
            raise ValueError("the label is missing. Fill the cell or remove the row.")
        return [name]

    def _read_several(self, value: Any) -> list[str]:
        """An empty text or list says that none of the labels holds; null says that it is not known."""
        if value is None:
            raise ValueError("the labels are missing. Fill the cell (an empty list means: none of them).")
        if not _is_list(value):
            value = str(value).split(self.delimiter) if self.delimiter else [value]
        return list(dict.fromkeys(name for name in map(_name, value) if name))

    def _number_of(self, name: str) -> int:
        known = self.label2id
        if name in known:
            return known[name]
        # "1.0" is what becomes of the class 1 in a column that another program has read as floats.
        if (number := _as_float(name)) is not None:
            same = [index for index, other in enumerate(self.names) if _as_float(other) == number]
            if len(same) == 1:
                return same[0]
        raise ValueError(f"the label {name!r:.80} is not known. Allowed are {listed(self.names)}.")

    def _refuse_too_few(self, table: Table) -> None:
        least = 2 if self.problem_type == SINGLE_LABEL else 1
        if self.num_labels < least:
            has = f"only the label {listed(self.names)}" if self.names else "no label at all"
            raise ValueError(
                f"`{table.name}`: the column `{table.columns['label']}` holds {has}. A model needs at least {least} "
                "to tell apart."
            )


def _guess(values: Sequence[Any], delimiter: str | None) -> str:
    if delimiter is not None or any(_is_list(value) for value in values):
        return MULTI_LABEL
    filled = [value for value in values if value is not None and str(value).strip()]
    numbers = [None if isinstance(value, bool) else _as_float(value) for value in filled]
    if None not in numbers and any(not number.is_integer() for number in numbers):
        return REGRESSION
    return SINGLE_LABEL


def _for_each_row(table: Table, values: Sequence[Any], call: Callable[[Any], Any]) -> list[Any]:
    """Calls for every label, and reports all that fail at once, with their rows."""
    results, problems = [], []
    for index, value in enumerate(values):
        try:
            results.append(call(value))
        except ValueError as error:
            problems.append(f"{table.place(index, 'label')}: {error}")
    if problems:
        more = f"\n… and {len(problems) - _MAX_REPORTED} more" if len(problems) > _MAX_REPORTED else ""
        raise ValueError("\n".join(problems[:_MAX_REPORTED]) + more)
    return results


def _target_names(table: Table, read: list[list[float]]) -> tuple[str, ...]:
    """The column's name, numbered when every cell holds several numbers."""
    sizes = {len(numbers) for numbers in read}
    if len(sizes) > 1 or 0 in sizes:
        raise ValueError(
            f"`{table.name}`: the lists in the column `{table.columns['label']}` hold {sorted(sizes)} numbers. "
            "For a regression every row needs the same count, at least one."
        )
    return _numbered(table.columns["label"], sizes.pop())


def _numbered(column: str, size: int) -> tuple[str, ...]:
    """Names of the targets of a regression; a list whose length is not declared (-1) cannot be named."""
    if size < 1:
        raise ValueError(
            f"The column `{column}` declares lists of any length: how many targets it has is not known before all "
            "rows are read. Push it with a fixed length (`push_to_hub.py --dataset` does), or do not stream it."
        )
    return (column,) if size == 1 else tuple(f"{column}_{index}" for index in range(size))


def declared_names(table: Table) -> tuple[str, ...]:
    feature = table.source.features["label"]
    return tuple(getattr(getattr(feature, "feature", feature), "names", None) or ())


def _sorted_names(names: set[str]) -> tuple[str, ...]:
    if all(name.removeprefix("-").isdecimal() for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple, np.ndarray))


def _name(value: Any) -> str:
    """The label as text; a whole number in a float column is that number."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, (bytes, Mapping)):
        raise ValueError(f"{value!r:.80} is no label. Allowed are text, whole numbers and lists of these.")
    return str(value).strip()


def _number(value: Any) -> float:
    number = _as_float(value)
    if number is None or isinstance(value, bool):
        is_missing = value is None or not str(value).strip()
        what = "the value is missing" if is_missing else f"{value!r:.80} is not a number (such as 3.5)"
        raise ValueError(f"{what}. Fill the cell or remove the row.")
    if not math.isfinite(number):
        raise ValueError(f"{value!r} is not a finite number. Correct the cell or remove the row.")
    return number


def _as_float(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def listed(names: Sequence[str]) -> str:
    """Names as a message shows them, of many the first."""
    more = f" and {len(names) - _MAX_LISTED} more" if len(names) > _MAX_LISTED else ""
    return ", ".join(names[:_MAX_LISTED]) + more
