"""Answers that may be refused: how often a model is right when it answers only where it is sure enough.

Unusual: rows of the same confidence are never parted, whatever their order, since a threshold cannot part them; so a
point of the curve may answer a few more rows than were asked for.

Source: El-Yaniv & Wiener 2010 (risk and coverage); Geifman & El-Yaniv 2017, arXiv:1705.08500 (selective accuracy).
"""

from typing import TYPE_CHECKING

from metrics.thresholds import confidences, is_predicted

if TYPE_CHECKING:
    import numpy as np

SHARES = tuple(share / 100 for share in range(100, 0, -5))  # of the rows, that the points of a curve answer
SHOWN = (1.0, 0.9, 0.8, 0.5)


def sureness(problem: str, predictions: "np.ndarray", thresholds: "np.ndarray | None" = None) -> "np.ndarray":
    """Give (rows,) how sure each answer is: what `reject_below` is compared with, here and in the pipeline.

    Args:
        problem: a key of `metrics.subsets.METRIC_MODULES`, but not a regression.
        predictions: (rows, labels) probabilities.
        thresholds: of a multi-label model, as for `metrics.thresholds.is_predicted`.

    Returns:
        Single-label: the highest probability. Multi-label: the probability of the least sure of the row's decisions,
        each of which is a yes or a no; see `metrics.thresholds.confidences`.

    Raises:
        ValueError: For a regression, which has no probabilities.
    """
    if problem == "regression":
        raise ValueError(
            "a regression predicts numbers without probabilities: no answer can be refused for being unsure."
        )
    if problem == "multi_label_classification":
        return confidences(predictions, thresholds).min(axis=1, initial=1.0)
    return predictions.max(axis=1)


def is_right(
    problem: str, predictions: "np.ndarray", labels: "np.ndarray", thresholds: "np.ndarray | None" = None
) -> "np.ndarray":
    """Give (rows,) True where the answer is right; of several labels, where all decisions of the row are."""
    if problem == "multi_label_classification":
        return (is_predicted(predictions, thresholds) == labels).all(axis=1)
    return predictions.argmax(axis=1) == labels


def coverage_curve(confidence: "np.ndarray", correct: "np.ndarray") -> dict:
    """Give accuracy as a function of the share of rows that are answered, the surest ones first.

    Args:
        confidence: (rows,) from 0 to 1, at least one.
        correct: (rows,) True where the answer is right.

    Returns:
        `points`, the fullest first, each with `coverage` (share of the rows that is answered), `accuracy` (of these
        answers) and `threshold` (they are at least as sure); and `area_under_risk_coverage`, the mean over all
        numbers of answered rows of the share of wrong answers: 0 is best.
    """
    import numpy as np

    levels, accuracy, coverage = _levels(confidence, correct)
    found = [int(np.searchsorted(coverage, share - 1e-9)) for share in SHARES]
    points = [
        {"coverage": float(coverage[i]), "accuracy": float(accuracy[i]), "threshold": float(levels[i])}
        for i in dict.fromkeys(found)
    ]
    return {"area_under_risk_coverage": _area(confidence, correct), "points": points}


def threshold_for(confidence: "np.ndarray", correct: "np.ndarray", target_accuracy: float) -> dict | None:
    """Give the lowest threshold whose answers are right this often, or None where there is none.

    It is chosen on the rows that it is judged on, so it flatters the model a little.

    Args:
        confidence: (rows,) from 0 to 1.
        correct: (rows,) True where the answer is right.
        target_accuracy: from 0 to 1.

    Returns:
        A point as in `coverage_curve`.
    """
    import numpy as np

    levels, accuracy, coverage = _levels(confidence, correct)
    reached = np.flatnonzero(accuracy >= target_accuracy)
    if not len(reached):
        return None
    last = reached[-1]
    return {
        "coverage": float(coverage[last]), "accuracy": float(accuracy[last]), "threshold": float(levels[last])
    }  # fmt: skip


def _levels(confidence: "np.ndarray", correct: "np.ndarray") -> tuple["np.ndarray", "np.ndarray", "np.ndarray"]:
    """Give each confidence that occurs, highest first; accuracy and share of the rows that are at least as sure."""
    import numpy as np

    levels, group = np.unique(-confidence, return_inverse=True)
    num_rows = np.bincount(group).cumsum()
    num_right = np.bincount(group, weights=correct).cumsum()
    return -levels, num_right / num_rows, num_rows / len(confidence)


def _area(confidence: "np.ndarray", correct: "np.ndarray") -> float:
    """Give the mean risk over all numbers of answered rows; rows that are equally sure each count as their mean."""
    import numpy as np

    _, group = np.unique(-confidence, return_inverse=True)
    num_rows = np.bincount(group)
    wrong = np.bincount(group, weights=1.0 - correct) / num_rows
    each = np.repeat(wrong, num_rows)
    return float((each.cumsum() / np.arange(1, len(each) + 1)).mean())


# -- for people -------------------------------------------------------------------------------------------------------


def shown_points(curve: dict) -> list[dict]:
    """Give the points of a curve that answer about 100, 90, 80 and 50 % of the rows, each once."""
    points = [min(curve["points"], key=lambda point: abs(point["coverage"] - share)) for share in SHOWN]
    return list({point["coverage"]: point for point in points}.values())


def describe(result: dict, target_accuracy: float | None = None) -> list[str]:
    """Say what refusing unsure answers brings.

    Args:
        result: from `metrics.subsets.measure_subsets`, with the same target.
        target_accuracy: how often answers shall be right; None: nobody asks.

    Returns:
        A table, and a sentence about the target; nothing for a regression.
    """
    told = [format_coverage(result["coverage"])] if "coverage" in result else []
    return told if target_accuracy is None else [*told, _target(target_accuracy, result["reject_below"])]


def format_coverage(curve: dict) -> str:
    """Lay the result of `coverage_curve` out for people."""
    lines = ["Only the surest answers, with all modalities:", "answered  accuracy  reject_below"]
    for point in shown_points(curve):
        lines.append(f"{point['coverage']:>8.1%}  {point['accuracy']:>8.1%}  {point['threshold']:>12.4f}")
    return "\n".join(lines)


def _target(target_accuracy: float, point: dict | None) -> str:
    if point is None:
        return f"However sure answers must be, they are never right in {target_accuracy:.1%}."
    return (
        f"With --reject_below {point['threshold']:.4f}, {point['coverage']:.1%} of the rows are answered, and "
        f"{point['accuracy']:.1%} of these answers are right (wanted: {target_accuracy:.1%})."
    )
