"""Thresholds: from which probability on a label of a multi-label model counts as predicted.

`is_predicted` is the one place in this room that decides it. 0.5 makes the fewest wrong decisions, and hardly ever
says yes to a rare label; so each label gets the threshold with the highest F1 on held-out rows.

Unusual: what the model itself believes is asked, too, and counts as much as `PRIOR_POSITIVES` positives. A threshold
from a few of them alone is mostly chance, and worse than 0.5 where the model tells the label well; from calibrated
probabilities the best one would follow without any label.

Source: Lipton, Elkan & Narayanaswamy 2014, arXiv:1402.1892 (for calibrated probabilities it is half of the best F1).
Differs: labels and probabilities are mixed.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

DEFAULT = 0.5
MIN_POSITIVES = 5  # a label that fewer rows have keeps 0.5
PRIOR_POSITIVES = 10.0


def is_predicted(probabilities: "np.ndarray", thresholds: "np.ndarray | None" = None) -> "np.ndarray":
    """Give (rows, labels) True where a label is predicted.

    Args:
        probabilities: (rows, labels).
        thresholds: (labels,), or (rows, labels) where each row has its own; None: 0.5.
    """
    return probabilities >= (DEFAULT if thresholds is None else thresholds)


def confidences(probabilities: "np.ndarray", thresholds: "np.ndarray | None" = None) -> "np.ndarray":
    """Give (rows, labels) how sure each yes or no is: the probability that it is right.

    With a threshold of 0.2 a yes may be sure by no more than 0.2: for the best F1 a rare label is named where it is
    more likely wrong than right. So a calibrated model's decisions are as often right as they say, whatever the
    thresholds, and who refuses unsure answers refuses such a yes.
    """
    import numpy as np

    return np.where(is_predicted(probabilities, thresholds), probabilities, 1 - probabilities)


def fit_thresholds(probabilities: "np.ndarray", labels: "np.ndarray") -> "np.ndarray":
    """Give (labels,) the threshold of each label that has the highest F1.

    Args:
        probabilities: (rows, labels), calibrated.
        labels: (rows, labels) 0 or 1, NaN for none.
    """
    import numpy as np

    columns = zip(probabilities.T, np.asarray(labels, float).T, strict=True)
    return np.array([_fit_threshold(*column) for column in columns])


def num_positives(labels: "np.ndarray") -> "np.ndarray":
    """Give (labels,) how many rows have each label."""
    import numpy as np

    return (np.asarray(labels, float) == 1).sum(axis=0)  # NaN is not


def _fit_threshold(probabilities: "np.ndarray", labels: "np.ndarray") -> float:
    """Give the threshold of one label; of several that are as good, the one nearest to 0.5."""
    import numpy as np
    from sklearn.metrics import precision_recall_curve

    is_known = ~np.isnan(labels)
    probabilities, labels = probabilities[is_known], labels[is_known]
    if labels.sum() < MIN_POSITIVES:
        return DEFAULT
    believed = PRIOR_POSITIVES / (PRIOR_POSITIVES + labels.sum())
    shares = (1 - believed) * labels + believed * probabilities
    # Each row once as a positive and once as a negative, each by its share.
    precision, recall, levels = precision_recall_curve(
        np.repeat([1, 0], len(labels)), np.tile(probabilities, 2), sample_weight=np.concatenate([shares, 1 - shares])
    )
    f1 = (2 * precision * recall / np.maximum(precision + recall, 1e-12))[:-1]  # the last is that of no level
    # Between a level and the one below it, so that no rounding moves a row to the other side.
    between = (levels + np.concatenate([[0.0], levels[:-1]])) / 2
    best = between[f1 >= f1.max() - 1e-12]
    return float(best[np.abs(best - DEFAULT).argmin()])


# -- for people -------------------------------------------------------------------------------------------------------


def describe_thresholds(result: dict) -> str | None:
    """Say in a sentence what the thresholds are and what they did; None where none were fitted.

    Args:
        result: From `metrics.calibration.evaluate_calibrated`.
    """
    found = result.get("thresholds")
    if found is None:
        return None
    shown = [f"{name} {value['threshold']:.2f}" for name, value in found["labels"].items()]
    shown = shown[:30] + ([f"and {len(shown) - 30} more"] if len(shown) > 30 else [])
    before, after = (found[key]["macro_f1"] for key in ("before", "after"))
    gain = "" if before is None else f"; macro F1 {before:.1%} with 0.5, {after:.1%} with them (cross-fitted)"
    return f"thresholds: {', '.join(shown)}{gain}"
