"""A validation part for a table that comes without one, and a look at what two tables share."""

import hashlib
from collections import Counter

import numpy as np

from data.labels import SINGLE_LABEL, LabelMap
from data.table import Table


def stratified_split(
    table: Table, labels: LabelMap, *, validation_fraction: float = 0.1, seed: int = 0
) -> tuple[Table, Table]:
    """Splits a table in two, the same way for the same seed; each class keeps its share in both parts.

    Rows of a regression, of several labels or of several tasks are only shuffled. Rows keep their order within each
    part.

    Args:
        table: The labelled rows.
        labels: Their labels.
        validation_fraction: Share of the rows that goes to the validation part, between 0 and 1.
        seed: Of the shuffle.

    Returns:
        The training part and the validation part.

    Raises:
        ValueError: a class is seen once, or there are too few rows for both parts.
    """
    from sklearn.model_selection import train_test_split

    if not 0 < validation_fraction < 1:
        raise ValueError(
            f"`validation_fraction` is {validation_fraction}; allowed is a share between 0 and 1, as 0.1."
        )
    classes = labels.encode_table(table) if labels.problem_type == SINGLE_LABEL else None
    num_validation = round(len(table) * validation_fraction)
    num_parts = 1
    if classes is not None:
        _refuse_rare_classes(table, labels, classes)
        num_parts = len(set(classes))
    if num_validation < num_parts or len(table) - num_validation < num_parts:
        raise ValueError(
            f"`{table.name}` has {len(table)} rows: {validation_fraction} of them are {num_validation}, and each part "
            f"needs at least {num_parts}. Add rows, choose another `validation_fraction`, or give a validation file."
        )
    parts = train_test_split(np.arange(len(table)), test_size=num_validation, random_state=seed, stratify=classes)
    train, validation = (table.select(np.sort(part)) for part in parts)
    return train, validation


def _refuse_rare_classes(table: Table, labels: LabelMap, classes: list[int]) -> None:
    once = [number for number, count in Counter(classes).items() if count == 1]
    if once:
        seen = ", ".join(f"`{labels.names[number]}` ({table.place(classes.index(number))})" for number in sorted(once))
        raise ValueError(
            f"`{table.name}`: seen once: {seen}. A class needs at least 2 rows, one for each part. Add rows of it, "
            "remove its row, or give a validation file."
        )


def count_shared_rows(a: Table, b: Table) -> int:
    """Counts the rows of `b` whose content (text, picture and sound, not the label) also stands in `a`.

    Cheap: files are compared by their path, not opened, so copies of a file under another name are not noticed.
    """
    seen = {_fingerprint(a, index) for index in range(len(a))}
    return sum(_fingerprint(b, index) in seen for index in range(len(b)))


def _fingerprint(table: Table, index: int) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for modality in table.modalities:
        value = table.cell(index, modality)
        if isinstance(value, str):
            root = table.shard_of(index).root
            value = value if modality == "text" or root is None else str(root / value.strip())
            value = value.encode(errors="surrogatepass")
        elif isinstance(value, dict):
            value = np.asarray(value["array"]).tobytes()
        digest.update(b"%s:%d:" % (modality.encode(), -1 if value is None else len(value)))
        digest.update(value or b"")
    return digest.digest()
