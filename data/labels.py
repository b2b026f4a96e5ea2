"""From label cells to what the loss takes, and back to names.

How `LabelMap.fit` guesses the problem when it is not told:

1. A delimiter is given, or cells are lists (also written as text): `multi_label_classification`. Lists hold names, or
   they are vectors of 0 and 1 (see `label_cells.vector_size`), whose labels are called `label_0`, `label_1`, … by the
   column's name, or as `names` says.
2. Every cell is a number (also with a decimal comma) and at least one has a fraction: `regression`.
3. Anything else: `single_label_classification`, one class for each distinct value. Classes that are whole numbers are
   sorted as numbers, all others as text; a ClassLabel column of `datasets` brings its own names in its own order.

Cells are stripped of white space, and NaN is an empty cell. A CSV holds only text, so there the rule looks at what the
text says.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from data.label_cells import (
    as_float,
    bits,
    divided,
    is_bits,
    look_alikes,
    plain_name,
    plain_value,
    read_cells,
    text_as_list,
    vector_size,
)
from data.label_names import (
    BOOLEANS,
    constant_labels,
    known_names,
    label_name,
    label_number,
    listed,
    numbered_names,
    one_spelling,
    sorted_names,
)
from data.table import Table

SINGLE_LABEL, MULTI_LABEL, REGRESSION = "single_label_classification", "multi_label_classification", "regression"
PROBLEM_TYPES = (SINGLE_LABEL, MULTI_LABEL, REGRESSION)
_MAX_REPORTED = 20


@dataclass(frozen=True)
class LabelMap:
    """The meaning of the model's outputs.

    Args:
        problem_type: One of `PROBLEM_TYPES`.
        names: For each output its name; for regression the name of the column.
        delimiter: What separates the labels of one text cell in a multi-label problem.
        note: What a person should know of how the labels were read; empty: nothing.
    """

    problem_type: str
    names: tuple[str, ...]
    delimiter: str | None = None
    note: str = field(default="", compare=False)

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
    def fit(
        cls,
        table: Table,
        problem_type: str | None = None,
        delimiter: str | None = None,
        names: Sequence[str] | None = None,
    ) -> "LabelMap":
        """Learn the labels of a training table.

        Args:
            table: A table with a label column.
            problem_type: One of `PROBLEM_TYPES`; None guesses by the rule at the head of this file.
            delimiter: What separates several labels in one text cell, such as "," or "|"; makes it multi-label.
            names: What the places of vectors of 0 and 1 stand for, or the targets of a regression; None: numbered.

        Raises:
            ValueError: no label column, a row without a label, a value that is no number in a regression, fewer
                than two classes, labels that every row has, or `names` of another number.
        """
        if problem_type is not None and problem_type not in PROBLEM_TYPES:
            raise ValueError(f"`problem_type` is {problem_type!r}; allowed are {', '.join(PROBLEM_TYPES)}.")
        values = _read_column(table, problem_type, delimiter)
        problem_type = problem_type or _guess(values, delimiter)
        size = None if problem_type == REGRESSION else vector_size(values)
        if size is not None:
            return cls._fit_vectors(table, values, problem_type, delimiter, _given_names(table, size, names))
        # A map without names knows how to read a cell; what the cells say then becomes the names.
        reader = cls(problem_type, (), delimiter)
        read = _for_each_row(table, values, reader._read)
        if problem_type == REGRESSION:
            return cls(problem_type, _target_names(table, read, names))
        if names is not None:
            raise ValueError(
                f"`names` ({listed(tuple(names))}) are for vectors of 0 and 1 and for several targets, and the column "
                f"`{table.columns['label']}` of `{table.name}` holds the names themselves. Leave them out."
            )
        found = declared_names(table) or sorted_names(one_spelling({name for names in read for name in names}))
        _refuse_look_alikes(table, found)
        fitted = cls(problem_type, found, delimiter)
        fitted._refuse_too_few(table)
        if problem_type == MULTI_LABEL:
            fitted = replace(fitted, note=constant_labels(table, fitted.names, read))
        return fitted

    @classmethod
    def _fit_vectors(
        cls, table: Table, values: list[Any], problem_type: str, delimiter: str | None, names: tuple[str, ...]
    ) -> "LabelMap":
        """Take the places of vectors of 0 and 1 for labels; of one of several classes each row has exactly one."""
        rows = _for_each_row(table, values, lambda value: bits(value, len(names)))
        column = table.columns["label"]
        note = f"the column `{column}` holds vectors of 0 and 1, one number for each of these labels in this order"
        if problem_type == SINGLE_LABEL:
            _for_each_row(table, rows, _hot)
            return cls(problem_type, names, delimiter, note)
        if all(sum(row) == 1 for row in rows):
            note += "; each row has exactly one: `--problem_type single_label_classification` learns one of several"
        said = [[name for name, bit in zip(names, row, strict=True) if bit] for row in rows]
        fitted = cls(problem_type, names, delimiter)
        constant = constant_labels(table, names, said)
        return replace(fitted, note="; ".join(filter(None, [note, constant])))

    @classmethod
    def declared(
        cls, feature: Any, column: str, name: str, problem_type: str | None = None, first_values: Sequence[Any] = ()
    ) -> "LabelMap":
        """Take the labels that a data set declares for a column, without a look at all of its rows.

        Args:
            feature: The column's feature of `datasets`: a ClassLabel, a list of it, a float, or a list of floats of a
                fixed length; whole numbers only with `problem_type` regression.
            column: The column's name.
            name: What messages call the data set.
            problem_type: What the feature has to stand for; None takes what it says.
            first_values: Cells of the first rows, which tell whether lists of numbers are vectors of 0 and 1.

        Raises:
            ValueError: the feature does not say what the labels are, or says something else than `problem_type`.
        """
        inner, is_list = getattr(feature, "feature", feature), hasattr(feature, "feature")
        dtype = str(getattr(inner, "dtype", ""))
        size = None if problem_type == REGRESSION else vector_size([plain_value(value) for value in first_values])
        if getattr(inner, "names", None) is None and size is not None:
            fitted = cls(
                problem_type or MULTI_LABEL, numbered_names(column, size), note=f"`{column}` holds vectors of 0 and 1"
            )
        elif getattr(inner, "names", None):
            fitted = cls(MULTI_LABEL if is_list else SINGLE_LABEL, tuple(inner.names))
        elif dtype.startswith("float") or (problem_type == REGRESSION and dtype.startswith(("int", "uint"))):
            fitted = cls(REGRESSION, numbered_names(column, getattr(feature, "length", -1) if is_list else 1))
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
        """Return a label cell as a class number, a float, or (several targets, multi-label) a list of floats.

        Raises:
            ValueError: the cell is empty, or its label is none of the model's; the message says which are allowed.
        """
        value = self._list_of_text(plain_value(value))
        if self.problem_type != REGRESSION and self._is_vector(value):
            vector = bits(value, self.num_labels)
            return _hot(vector) if self.problem_type == SINGLE_LABEL else [float(bit) for bit in vector]
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
        """Encode the label of every row.

        Raises:
            ValueError: some labels cannot be encoded; one line for each, with file, row and value.
        """
        return _for_each_row(table, self.cells(table), self.encode)

    def cells(self, table: Table) -> list[Any]:
        """Return the label cells of a table as `encode` takes them, with lists and numbers in place of their text."""
        return _read_column(table, self.problem_type, self.delimiter)

    def holds_vectors(self, table: Table) -> bool:
        """Return whether the labels of a table are vectors of 0 and 1, which do not say what their places mean."""
        if self.problem_type == REGRESSION:
            return False
        return any(map(self._is_vector, self.cells(table)))

    def _list_of_text(self, value: Any) -> Any:
        """Return a text that writes a list, or divides one, as that list."""
        if not isinstance(value, str) or plain_name(value) in self._known:
            return value
        if (items := text_as_list(value)) is not None:
            return items
        return divided(value, self.delimiter) if self.delimiter else value

    def _is_vector(self, value: Any) -> bool:
        """Return whether a list is a vector of 0 and 1: its items are not names of labels, or one comes twice."""
        if not isinstance(value, list) or not is_bits(value):
            return False
        names = [label_name(item) for item in value]
        is_named = all(name in self._known for name in names)
        return not is_named or (len(set(names)) < len(names) == self.num_labels)

    def describe(self) -> str:
        """One line for people: what is predicted."""
        if self.problem_type == REGRESSION:
            return f"regression: {listed(self.names)}"
        kind = "one of" if self.problem_type == SINGLE_LABEL else "any of"
        told = f"{self.problem_type.replace('_', ' ')}: {kind} {self.num_labels} labels ({listed(self.names)})"
        return f"{told}\nnote: {self.note}" if self.note else told

    def _read(self, value: Any) -> list[str] | list[float]:
        """What a cell says, before it is known whether that is allowed: names, or numbers in a regression."""
        if self.problem_type == REGRESSION:
            return [label_number(item) for item in (value if isinstance(value, list) else [value])]
        if self.problem_type == MULTI_LABEL:
            return self._read_several(value)
        if isinstance(value, list):
            raise ValueError(f"{value!r:.80} is a list, where one label is expected. For several use {MULTI_LABEL}.")
        name = label_name(value)
        if not name:
            raise ValueError("the label is missing. Fill the cell or remove the row.")
        return [name]

    def _read_several(self, value: Any) -> list[str]:
        """An empty text or list says that none of the labels holds; null says that it is not known."""
        if value is None:
            raise ValueError("the labels are missing. Fill the cell (an empty list means: none of them).")
        if isinstance(value, str) and self.delimiter is None and value.strip()[:1] in ("[", "("):
            raise ValueError(f"{value!r:.80} begins as a list and is not a whole one. Correct the cell.")
        items = value if isinstance(value, list) else [value]
        fraction = next((item for item in items if isinstance(item, float) and not item.is_integer()), None)
        if fraction is not None:
            raise ValueError(
                f"{value!r:.80} holds {fraction:g}, which is not a label. In vectors write 0 or 1 for each label; for "
                f"numbers use {REGRESSION}."
            )
        return list(dict.fromkeys(name for name in map(label_name, items) if name))

    @property
    def _known(self) -> dict[str, int]:
        """The number of each label, by its name in one spelling."""
        return known_names(self.names)

    def _number_of(self, name: str) -> int:
        if name in self._known:
            return self._known[name]
        # "1.0" is what becomes of the class 1 in a column that another program has read as floats, and every program
        # writes the two booleans in its own way.
        if (number := as_float(name)) is not None:
            same = [index for index, other in enumerate(self.names) if as_float(other) == number]
        elif (folded := name.casefold()) in BOOLEANS:
            same = [index for index, other in enumerate(self.names) if other.casefold() == folded]
        else:
            same = []
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


def _hot(vector: list[int]) -> int:
    """Return the place of the only 1."""
    if sum(vector) != 1:
        raise ValueError(
            f"the vector {vector!r:.80} holds {sum(vector)} ones, where {SINGLE_LABEL} has exactly one. Correct the "
            f"cell, or use {MULTI_LABEL}."
        )
    return vector.index(1)


def _read_column(table: Table, problem_type: str | None, delimiter: str | None) -> list[Any]:
    try:
        return read_cells(table.labels(), problem_type, delimiter)
    except ValueError as error:
        if not table.has_labels:
            raise
        raise ValueError(f"`{table.name}`, column `{table.columns['label']}`: {error}") from None


def _guess(cells: Sequence[Any], delimiter: str | None) -> str:
    if delimiter is not None or any(isinstance(cell, list) for cell in cells):
        return MULTI_LABEL
    filled = [cell for cell in cells if cell is not None and str(cell).strip()]
    numbers = [None if isinstance(cell, bool) else as_float(cell) for cell in filled]
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


def _target_names(table: Table, read: list[list[float]], names: Sequence[str] | None = None) -> tuple[str, ...]:
    """Return the column's name, numbered when every cell holds several numbers, or the names that are given."""
    sizes = {len(numbers) for numbers in read}
    if len(sizes) > 1 or 0 in sizes:
        raise ValueError(
            f"`{table.name}`: the lists in the column `{table.columns['label']}` hold {sorted(sizes)} numbers. "
            "For a regression every row needs the same count, at least one."
        )
    return _given_names(table, sizes.pop(), names)


def _given_names(table: Table, size: int, names: Sequence[str] | None) -> tuple[str, ...]:
    if names is None:
        return numbered_names(table.columns["label"], size)
    if len(names) != size:
        raise ValueError(
            f"`names` has {len(names)} ({listed(tuple(names))}), and the cells of the column "
            f"`{table.columns['label']}` of `{table.name}` hold {size} numbers. Give a name for each, in their order."
        )
    return tuple(names)


def declared_names(table: Table) -> tuple[str, ...]:
    feature = table.source.features["label"]
    return tuple(getattr(getattr(feature, "feature", feature), "names", None) or ())


def _refuse_look_alikes(table: Table, names: Sequence[str]) -> None:
    if (pair := look_alikes(names)) is not None:
        raise ValueError(
            f"`{table.name}`: the column `{table.columns['label']}` holds the labels {pair[0]!a} and "
            f"{pair[1]!a}, which differ in invisible characters alone. Write them in one way."
        )
