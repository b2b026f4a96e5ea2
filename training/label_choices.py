"""What is said of the labels beside what they are: which counts how much in the loss, and in which order they stand.

Unusual: neither touches a metric. A weight is there for the loss alone, and an order moves the numbers of the classes,
so that whatever has the numbers (the loss of `config.ordinal`, the metrics, a later training) has the order.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

from data.labels import LabelMap, listed

BALANCED = "balanced"
MOST = 10.0  # of the presence of a rare label, so that one row of a batch does not outweigh all the others


# -- weights ----------------------------------------------------------------------------------------------------------


def weigh_labels(args, model, rows, labels) -> list[str]:
    """Put the weights that `--class_weights` asks for into the model's configuration; lines for people.

    Args:
        args: The flags of `train.py`.
        model: The classifier, before its first step.
        rows: The rows to train on, those that cannot be used left out.
        labels: What the labels mean.

    Raises:
        ValueError: The labels are numbers, or one that is named is none of them.
    """
    if args.class_weights is None:
        return []
    if labels.problem_type == "regression":
        raise ValueError(f"--class_weights: `{rows.name}` is a regression, which has no classes; leave it out")
    if args.class_weights == BALANCED:
        weights = balanced_weights(labels, labels.encode_table(rows.table))
    else:
        weights = named_weights(labels.names, args.class_weights)
    model.config.class_weights = weights
    shown = [f"{name} {weight:.3g}" for name, weight in zip(labels.names, weights, strict=True)]
    return [f"weights in the loss: {listed(shown)}"]


def balanced_weights(labels: LabelMap, encoded: Sequence) -> list[float]:
    """The weight of each label that makes up for how rare it is; a label that never occurs weighs 1.

    Of several classes all weigh the same together, and a row weighs 1 on average. Of several labels a presence weighs
    as much as the absences do, but from 1 / `MOST` to `MOST`.

    Args:
        labels: Single-label or multi-label.
        encoded: The labels of the rows, as `encode_table` gives them.
    """
    import numpy as np
    from sklearn.utils.class_weight import compute_class_weight

    values = np.asarray(encoded)
    weights = np.ones(labels.num_labels)
    if labels.problem_type == "single_label_classification":
        occurring = np.unique(values)
        weights[occurring] = compute_class_weight(BALANCED, classes=occurring, y=values)
        return weights.tolist()
    num_present = values.sum(axis=0)
    occurs = num_present > 0
    weights[occurs] = (len(values) - num_present[occurs]) / num_present[occurs]
    return weights.clip(1 / MOST, MOST).tolist()


def named_weights(names: Sequence[str], given: dict[str, float]) -> list[float]:
    """The weight of each label: the given one, or 1."""
    if unknown := [name for name in given if name not in names]:
        raise ValueError(
            f"--class_weights {unknown[0]}={given[unknown[0]]:g}: the label {unknown[0]!r:.80} is not known. Allowed "
            f"are {listed(names)}"
        )
    return [given.get(name, 1.0) for name in names]


# -- order ------------------------------------------------------------------------------------------------------------


def in_order(args, rows, labels):
    """The labels in the order that `--ordinal` asks for, lowest first.

    Args:
        args: The flags of `train.py`.
        rows: The rows to train on.
        labels: What their labels mean.

    Raises:
        ValueError: There is not one of several classes to predict, or their order is not known.
    """
    if not args.ordinal:
        return labels
    if labels.problem_type != "single_label_classification":
        raise ValueError(
            f"--ordinal is for classes that have an order, and `{rows.name}` is {labels.problem_type}: leave it out, "
            "or add --problem_type single_label_classification"
        )
    if args.label_order is not None:
        return replace(labels, names=_given_order(labels.names, args.label_order))
    if rows.declares_labels:
        return labels
    numbers = {name: _number(name) for name in labels.names}
    if None in numbers.values():
        raise ValueError(
            f"--ordinal: in which order the labels of `{rows.name}` stand ({listed(labels.names)}) is not known, for "
            'they are no numbers: say it, lowest first, as in --label_order "bad,fair,good"'
        )
    return replace(labels, names=tuple(sorted(labels.names, key=numbers.get)))


def _given_order(names: Sequence[str], order: Sequence[str]) -> tuple[str, ...]:
    unknown, missing = [n for n in order if n not in names], [n for n in names if n not in order]
    if unknown or missing:
        wrong = f"{unknown[0]!r:.80} is no label" if unknown else f"the label {missing[0]!r:.80} is missing"
        raise ValueError(f"--label_order {','.join(order)}: {wrong}; put all of {listed(names)} in order")
    return tuple(order)


def _number(name: str) -> float | None:
    try:
        number = float(name)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
