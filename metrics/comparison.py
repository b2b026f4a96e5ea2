"""A model of several modalities beside specialists, each trained for one subset of them: who is better, and surely so.

Unusual: both are asked about the same rows, those that have something of the subset, and the uncertainty is that of
their difference row by row: two models that err on the same rows differ by less than either figure is sure of.
"""

from typing import TYPE_CHECKING

from metrics.coverage import is_right
from metrics.subsets import COLUMNS, Predictions, compute_metrics, deciding_metric, probabilities, score
from metrics.thresholds import is_predicted

if TYPE_CHECKING:
    import numpy as np

CONFIDENCE = 1.96  # standard errors on either side of a difference: 95 % of a normal distribution
# Temperatures were fitted on these rows: what `metrics.json` says elsewhere of the error is cross-fitted. So were the
# thresholds of several labels: here every label is predicted from 0.5 on.
LEFT_OUT = "expected_calibration_error"
# What the fused model is given, by the name of its metrics -> the name of the interval of what it is better by.
WAYS = {"fused": "interval", "fused_with_all": "interval_with_all"}


def compare(problem: str, subset: str, specialist: Predictions, fused: Predictions, everything: str) -> dict:
    """Measure a specialist and the fused model on the same rows.

    Args:
        problem: a key of `metrics.subsets.METRIC_MODULES`.
        subset: the name of the specialist's modalities.
        specialist: what it says with all of its modalities of the rows that have something of them.
        fused: what the fused model says of these rows, in their order, with this subset and with all it reads.
        everything: the name of the fused model's modalities.

    Returns:
        `num_rows`; `metrics` of the specialist; `fused` and `fused_with_all`, those of the fused model given the same
        modalities, and all that a row has; `interval` and `interval_with_all`, the lower and the upper end of the 95 %
        interval of what these two are better by, in the metric that decides, turned so that higher is better (None
        for a single row).
    """
    answers = {
        "metrics": specialist.logits[subset],
        "fused": fused.logits[subset],
        "fused_with_all": fused.logits[everything],
    }
    result: dict = {"num_rows": len(fused.labels)}
    for name, logits in answers.items():
        values = compute_metrics(problem, logits, fused.labels)
        result[name] = {metric: value for metric, value in values.items() if metric != LEFT_OUT}
    of_specialist = _counted(problem, answers["metrics"], fused.labels)
    for name, interval in WAYS.items():
        better_by = score(result[name]) - score(result["metrics"])
        result[interval] = _interval(better_by, _counted(problem, answers[name], fused.labels), of_specialist)
    return result


def _counted(problem: str, logits: "np.ndarray", labels: "np.ndarray") -> tuple["np.ndarray", "np.ndarray"]:
    """Give what each row adds to the two sums whose ratio is the metric that decides: accuracy, micro F1, or -MAE."""
    import numpy as np

    predictions = probabilities(problem, np.asarray(logits, dtype=float))
    if problem == "regression":
        errors = np.abs(predictions - labels.reshape(predictions.shape))
        return -errors.mean(axis=1), np.ones(len(errors))
    if problem == "single_label_classification":
        return is_right(problem, predictions, labels).astype(float), np.ones(len(labels))
    given, true = is_predicted(predictions), labels.astype(bool)
    return 2.0 * (given & true).sum(axis=1), (given.sum(axis=1) + true.sum(axis=1)).astype(float)


def _interval(better_by: float, ours: tuple, theirs: tuple) -> list[float] | None:
    """Give the 95 % interval of the difference of two ratios of sums over the same rows, by the delta method."""
    import numpy as np

    num_rows = len(ours[0])
    if num_rows < 2:
        return None
    pulls = _pull(*ours) - _pull(*theirs)
    half = CONFIDENCE * float(np.std(pulls, ddof=1)) / num_rows**0.5
    return [better_by - half, better_by + half]


def _pull(above: "np.ndarray", below: "np.ndarray") -> "np.ndarray":
    """Give how far each row pulls the ratio of the sums away from where it is."""
    mean = below.mean() or 1.0  # no row has a label, and none was given
    return (above - above.mean() / mean * below) / mean


# -- for people -------------------------------------------------------------------------------------------------------


def comparison_rows(baselines: dict[str, dict]) -> list[list[str]]:
    """Give the comparison as lines of cells, the first of them the headings, for a console and for a card."""
    metric, _ = deciding_metric(next(iter(baselines.values()))["metrics"])
    _, shown = COLUMNS[metric]
    lines = [["modalities", "rows", "specialist", "fused", "fused better by", "fused, given all", "parameters",
              "minutes"]]  # fmt: skip
    for subset, result in baselines.items():
        values = [shown(result[name][metric]) for name in ("metrics", "fused", "fused_with_all")]
        lines.append(
            [subset.replace("+", " + "), f"{result['num_rows']:,}", *values[:2],
             shown_interval(metric, result["interval"]), values[2],
             f"{result['parameters']:,}", f"{result['seconds'] / 60:.1f}"]
        )  # fmt: skip
    return lines


def format_comparison(baselines: dict[str, dict]) -> str:
    """Lay the comparison out for people."""
    lines = comparison_rows(baselines)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    texts = [
        "  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))])
        for line in lines
    ]
    metric, is_higher_better = deciding_metric(next(iter(baselines.values()))["metrics"])
    heading = COLUMNS[metric][0] + ("" if is_higher_better else ", lower is better")
    title = f"\nSpecialists ({heading}, on the rows that have something of their modalities; 95 % intervals):"
    return "\n".join([title, *texts])


def shown_interval(metric: str, interval: list[float] | None) -> str:
    """Give an interval as a person reads it: of a share in points."""
    if interval is None:
        return "–"
    is_share = COLUMNS[metric][1](0.5).endswith("%")
    low, high = (f"{100 * end:+.1f}" if is_share else f"{end:+.3g}" for end in interval)
    low, high = low.replace("-", "−"), high.replace("-", "−")
    return f"{low} to {high}{' points' if is_share else ''}"


def comparison_warnings(baselines: dict[str, dict]) -> list[str]:
    """Give a sentence for every specialist that is better than the fused model by more than chance explains.

    The fused model is given what the specialist has, and all that a row has: it should lose neither way.
    """
    return [
        _warning(subset, result, name, interval)
        for subset, result in baselines.items()
        for name, interval in WAYS.items()
        if result[interval] is not None and result[interval][1] < 0
    ]


def _warning(subset: str, result: dict, name: str, interval: str) -> str:
    metric, _ = deciding_metric(result["metrics"])
    heading, shown = COLUMNS[metric]
    given = "the same" if name == "fused" else "all that a row has"
    better_by = shown_interval(metric, [-end for end in reversed(result[interval])]).replace("+", "")
    return (
        f"the specialist for `{subset}` is better than the fused model given {given}, by {better_by} (95 % interval): "
        f"{heading} {shown(result['metrics'][metric])} against {shown(result[name][metric])} on the "
        f"{result['num_rows']:,} rows that have something of it."
    )
