"""Accuracy, macro F1 and expected calibration error of class probabilities, as one `evaluate` module."""

import datasets
import evaluate
import numpy as np
from sklearn.metrics import accuracy_score, cohen_kappa_score, f1_score

_DESCRIPTION = """
Accuracy, macro F1 and expected calibration error (ECE) of a classifier that gives one probability a class.

The predicted class is the one with the highest probability (the first of equals), and that probability is the
confidence. Macro F1 is scikit-learn's: the mean over the classes that occur in the references or are predicted.
ECE sorts the rows by confidence into 15 bins of equal width, closed on the right, and averages the distance between
accuracy and mean confidence of each bin, weighted by the rows in it: 0 is perfectly calibrated.

Of classes that have an order, two more say how far off the answers are: the mean absolute error in ranks, and Cohen's
kappa with quadratic weights, which is 1 for answers that are all right and 0 for what chance would give.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (`list` of `list` of `float`): One list a row, with one probability a class; each adds up to 1.
    references (`list` of `int`): The true class of each row.
    num_bins (`int`): Bins of the calibration error. Defaults to 15.
    ordinal (`bool`): Whether the classes have an order, that of their numbers. Defaults to False.

Returns:
    accuracy (`float`): Share of the rows whose predicted class is the true one, 0 to 1.
    macro_f1 (`float`): Mean F1 over the classes, 0 to 1.
    expected_calibration_error (`float`): 0 (calibrated) to 1.
    rank_mae (`float`): With `ordinal`, the mean number of classes between the predicted and the true one, from 0.
    quadratic_kappa (`float` or `None`): With `ordinal`, -1 to 1; `None` where all rows have and get the same class.

Examples:

    >>> metric = evaluate.load("metrics/mmfusion_classification")
    >>> metric.compute(predictions=[[0.75, 0.25], [0.25, 0.75]], references=[0, 0])
    {'accuracy': 0.5, 'macro_f1': 0.3333333333333333, 'expected_calibration_error': 0.25}
    >>> sure = [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
    >>> result = metric.compute(predictions=sure, references=[0, 1, 1], ordinal=True)
    >>> result["rank_mae"], result["quadratic_kappa"]
    (0.3333333333333333, 0.6666666666666667)
"""

_CITATION = """
@inproceedings{guo2017calibration,
  title = {On Calibration of Modern Neural Networks},
  author = {Guo, Chuan and Pleiss, Geoff and Sun, Yu and Weinberger, Kilian Q.},
  booktitle = {International Conference on Machine Learning},
  year = {2017}
}
@article{scikit-learn,
  title = {Scikit-learn: Machine Learning in {P}ython},
  author = {Pedregosa, F. and others},
  journal = {Journal of Machine Learning Research},
  volume = {12},
  pages = {2825--2830},
  year = {2011}
}
"""


def expected_calibration_error(confidence: np.ndarray, correct: np.ndarray, num_bins: int = 15) -> float:
    """Give the mean distance between confidence and accuracy over bins of equal width.

    Args:
        confidence: (rows,) probability of the predicted class, 0 to 1.
        correct: (rows,) True where the predicted class is the true one.
        num_bins: number of bins between 0 and 1; a confidence on an edge belongs to the bin below it.

    Source: Guo et al. 2017, "On Calibration of Modern Neural Networks", equation 3.
    """
    edges = np.linspace(0, 1, num_bins + 1)
    bins = np.digitize(confidence, edges[1:-1], right=True)
    # A bin weighs (rows in it / rows) and its gap is a mean over those rows, so the row counts cancel.
    gaps = np.bincount(bins, weights=correct - confidence, minlength=num_bins)
    return float(np.abs(gaps).sum() / len(confidence))


def ordinal_metrics(predicted: np.ndarray, labels: np.ndarray) -> dict[str, float | None]:
    """Give how far the predicted classes (rows,) are from the true ones.

    Source: Cohen 1968, "Weighted kappa", Psychological Bulletin 70(4).
    """
    both = np.union1d(predicted, labels)
    kappa = None  # not defined where there is nothing to tell apart
    if len(both) > 1:
        ranks = np.arange(both[0], both[-1] + 1)  # with those between, for they count
        kappa = float(cohen_kappa_score(labels, predicted, labels=ranks, weights="quadratic"))
    return {"rank_mae": float(np.abs(predicted - labels).mean()), "quadratic_kappa": kappa}


def _checked(predictions: list, references: list) -> tuple[np.ndarray, np.ndarray]:
    """Turn both lists into arrays, or say which row is no probability distribution."""
    if len(references) == 0:
        raise ValueError("`references` is empty: at least one row is needed.")
    widths = {len(row) for row in predictions}
    if len(widths) != 1:
        raise ValueError(f"`predictions` has rows of {sorted(widths)} probabilities: give one a class in every row.")
    probabilities, labels = np.asarray(predictions, dtype=float), np.asarray(references)
    valid = (probabilities >= -1e-6).all(axis=1) & (np.abs(probabilities.sum(axis=1) - 1) < 1e-3)
    if not valid.all():
        row = int(np.flatnonzero(~valid)[0])
        raise ValueError(
            f"`predictions[{row}]` is {predictions[row]}: give probabilities from 0 to 1 that add up to 1 "
            "(the softmax of the logits)."
        )
    if labels.min() < 0 or labels.max() >= probabilities.shape[1]:
        row = int(np.flatnonzero((labels < 0) | (labels >= probabilities.shape[1]))[0])
        raise ValueError(
            f"`references[{row}]` is {labels[row]}: `predictions` has {probabilities.shape[1]} classes, "
            f"so a label is 0 to {probabilities.shape[1] - 1}."
        )
    return probabilities, labels


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class MmfusionClassification(evaluate.Metric):
    """Metric module: see the description above."""

    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                {
                    "predictions": datasets.Sequence(datasets.Value("float64")),
                    "references": datasets.Value("int64"),
                }
            ),
            reference_urls=["https://arxiv.org/abs/1706.04599"],
        )

    # `evaluate.combine` hands every keyword to every module, so those meant for the others are let through.
    def _compute(self, predictions, references, num_bins=15, ordinal=False, **kwargs):
        probabilities, labels = _checked(predictions, references)
        predicted = probabilities.argmax(axis=1)
        confidence = probabilities.max(axis=1)
        result = {
            "accuracy": float(accuracy_score(labels, predicted)),
            "macro_f1": float(f1_score(labels, predicted, average="macro", zero_division=0)),
            "expected_calibration_error": expected_calibration_error(confidence, predicted == labels, num_bins),
        }
        return {**result, **ordinal_metrics(predicted, labels)} if ordinal else result
