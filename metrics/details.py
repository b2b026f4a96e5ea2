"""What a picture of an evaluation needs: who is taken for whom, and how often a confidence is right.

Unusual: everything is plain lists and numbers, ready for `metrics.json`, so that a card can be drawn long after the
rows are gone. Nothing here can be traced back to a row.
"""

from typing import TYPE_CHECKING

from metrics.coverage import coverage_curve, is_right, sureness
from metrics.thresholds import confidences, is_predicted

if TYPE_CHECKING:
    import numpy as np

NUM_BINS = 15  # as many as the calibration error of `mmfusion_classification` has
ERROR_QUANTILES = (0.5, 0.9, 1.0)


def evaluation_details(
    problem: str, predictions: "np.ndarray", labels: "np.ndarray", thresholds: "np.ndarray | None" = None
) -> dict:
    """Give what the pictures of one subset's predictions are drawn from.

    Args:
        problem: a key of `metrics.subsets.METRIC_MODULES`.
        predictions: (rows, labels) probabilities, or the predicted numbers of a regression.
        labels: (rows,) class numbers; (rows, labels) 0 or 1; or (rows,) or (rows, labels) numbers for a regression.
        thresholds: of a multi-label model, as for `metrics.thresholds.is_predicted`.

    Returns:
        Single-label: `confusion_matrix` (a list of rows of counts: rows are true labels, columns predicted ones),
        `reliability` and `coverage` (see `metrics.coverage.coverage_curve`). Multi-label: `coverage`, and
        `reliability` of all decisions of all rows together; a decision's confidence is the probability of the answer
        given, yes or no. Regression: `absolute_error_quantiles`, quantile -> error.
    """
    import numpy as np

    predictions, labels = np.asarray(predictions), np.asarray(labels)
    if problem == "regression":
        errors = np.abs(predictions - labels.reshape(predictions.shape))
        return {"absolute_error_quantiles": {str(q): float(np.quantile(errors, q)) for q in ERROR_QUANTILES}}
    labels = labels.astype(int)
    details = {
        "reliability": reliability(*decisions(problem, predictions, labels, thresholds)),
        "coverage": coverage_curve(
            sureness(problem, predictions, thresholds), is_right(problem, predictions, labels, thresholds)
        ),
    }
    if problem == "multi_label_classification":
        return details
    from sklearn.metrics import confusion_matrix

    shape = range(predictions.shape[1])
    return {"confusion_matrix": confusion_matrix(labels, predictions.argmax(axis=1), labels=shape).tolist(), **details}


def decisions(
    problem: str, predictions: "np.ndarray", labels: "np.ndarray", thresholds: "np.ndarray | None" = None
) -> tuple["np.ndarray", "np.ndarray"]:
    """Give confidence and rightness of each answer, of several labels of each decision for or against one."""
    if problem == "multi_label_classification":
        is_right_each = is_predicted(predictions, thresholds) == labels
        return confidences(predictions, thresholds).ravel(), is_right_each.ravel()
    return predictions.max(axis=1), predictions.argmax(axis=1) == labels


def reliability(confidence: "np.ndarray", correct: "np.ndarray") -> list[dict]:
    """Sort answers by confidence into bins of equal width and say how often those of each bin are right.

    The bins are those of the calibration error: closed on the right, so that the error can be computed again as the
    mean of |accuracy - confidence|, weighted by `num_rows`.

    Args:
        confidence: (answers,) from 0 to 1.
        correct: (answers,) True where the answer is right.

    Returns:
        A bin each, lowest confidence first, empty ones left out: `num_rows` (for multi-label: decisions), and the
        mean `confidence` and `accuracy` in it.
    """
    import numpy as np

    bins = bin_numbers(confidence)
    return [
        {
            "num_rows": int((bins == number).sum()),
            "confidence": float(confidence[bins == number].mean()),
            "accuracy": float(correct[bins == number].mean()),
        }
        for number in np.unique(bins)
    ]


def calibration_error(
    problem: str, predictions: "np.ndarray", labels: "np.ndarray", thresholds: "np.ndarray | None" = None
) -> float:
    """Give the expected calibration error: the mean of |accuracy - confidence| over the bins of `reliability`."""
    import numpy as np

    bins = reliability(*decisions(problem, predictions, np.asarray(labels).astype(int), thresholds))
    num_rows = sum(entry["num_rows"] for entry in bins)
    return sum(abs(entry["accuracy"] - entry["confidence"]) * entry["num_rows"] for entry in bins) / num_rows


def bin_numbers(confidence: "np.ndarray") -> "np.ndarray":
    """Give the number of the bin, from 0, of each confidence; one on an edge belongs to the bin below it."""
    import numpy as np

    return np.digitize(confidence, np.linspace(0, 1, NUM_BINS + 1)[1:-1], right=True)
