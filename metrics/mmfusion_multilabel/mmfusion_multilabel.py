"""Micro F1, macro F1 and mean average precision of label probabilities, as one `evaluate` module."""

import datasets
import evaluate
import numpy as np
from sklearn.metrics import average_precision_score, f1_score

_DESCRIPTION = """
Micro F1, macro F1 and mean average precision (mAP) of a model that gives one probability a label, where a row may
have any number of labels.

A label is predicted when its probability is at least the threshold, or its own of several thresholds. Micro F1 counts
all labels together. Macro F1 and mAP are means over the labels that occur in the references: for the others neither
recall nor average precision is defined. Where no label occurs at all, both are `None`.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (`list` of `list` of `float`): One list a row, with one probability a label, 0 to 1.
    references (`list` of `list` of `int`): One list a row, with 1 where the row has the label, else 0.
    threshold (`float`, or `list`): Probability from which a label counts as predicted, or a list with that of each
        label, or a list of such lists, one a row. Defaults to 0.5.

Returns:
    micro_f1 (`float`): F1 of all labels of all rows together, 0 to 1.
    macro_f1 (`float` or `None`): Mean F1 over the labels that occur, 0 to 1.
    mean_average_precision (`float` or `None`): Mean over the labels that occur, 0 to 1.

Examples:

    >>> metric = evaluate.load("metrics/mmfusion_multilabel")
    >>> metric.compute(predictions=[[0.9, 0.6], [0.2, 0.7]], references=[[1, 0], [0, 1]])
    {'micro_f1': 0.8, 'macro_f1': 0.8333333333333333, 'mean_average_precision': 1.0}
"""

_CITATION = """
@article{scikit-learn,
  title = {Scikit-learn: Machine Learning in {P}ython},
  author = {Pedregosa, F. and others},
  journal = {Journal of Machine Learning Research},
  volume = {12},
  pages = {2825--2830},
  year = {2011}
}
"""


def _checked(predictions: list, references: list) -> tuple[np.ndarray, np.ndarray]:
    """Turn both lists into arrays, or say which row does not fit."""
    if len(references) == 0:
        raise ValueError("`references` is empty: at least one row is needed.")
    width = len(predictions[0])
    for name, rows in (("predictions", predictions), ("references", references)):
        for index, row in enumerate(rows):
            if len(row) != width or not all(0 <= value <= 1 for value in row):
                raise ValueError(
                    f"`{name}[{index}]` is {row}: give {width} values from 0 to 1, one a label "
                    "(the sigmoid of the logits, and 0 or 1 as reference)."
                )
    return np.asarray(predictions, dtype=float), np.asarray(references, dtype=int)


def _as_wide(threshold: float | list, shape: tuple[int, int]) -> np.ndarray:
    """Give the threshold of each label of each row."""
    thresholds = np.asarray(threshold, dtype=float)
    if thresholds.shape not in ((), shape[1:], shape):
        raise ValueError(
            f"`threshold` has the shape {thresholds.shape}: give one number, {shape[1]} of them, one a label, or "
            f"such a list for each of the {shape[0]} rows."
        )
    return np.broadcast_to(thresholds, shape)


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class MmfusionMultilabel(evaluate.Metric):
    """Metric module: see the description above."""

    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                {
                    "predictions": datasets.Sequence(datasets.Value("float64")),
                    "references": datasets.Sequence(datasets.Value("int64")),
                }
            ),
            reference_urls=[
                "https://scikit-learn.org/stable/modules/model_evaluation.html#multilabel-ranking-metrics"
            ],
        )

    # `evaluate.combine` hands every keyword to every module, so those meant for the others are let through.
    def _compute(self, predictions, references, threshold=0.5, **kwargs):
        probabilities, labels = _checked(predictions, references)
        predicted = (probabilities >= _as_wide(threshold, probabilities.shape)).astype(int)
        occurs = labels.any(axis=0)
        macro_f1 = mean_average_precision = None
        if occurs.any():
            # Column by column: scikit-learn reads a table of one column as binary labels and takes other averages.
            columns = np.flatnonzero(occurs)
            macro_f1 = float(np.mean([f1_score(labels[:, c], predicted[:, c], zero_division=0) for c in columns]))
            mean_average_precision = float(
                np.mean([average_precision_score(labels[:, c], probabilities[:, c]) for c in columns])
            )
        return {
            "micro_f1": float(f1_score(labels.ravel(), predicted.ravel(), zero_division=0)),
            "macro_f1": macro_f1,
            "mean_average_precision": mean_average_precision,
        }
