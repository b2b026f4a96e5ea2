"""Temperatures: what logits are divided by, so that an answer is as often right as its confidence says.

Of a multi-label model the thresholds of its labels (`metrics.thresholds`) are fitted after them, on the same rows.

Unusual: every subset of modalities has a temperature of its own, since a model that hears and does not see is unsure
in another way than one that sees; a row is divided by that of what it has, as the model does it in use. It never
changes which label is best.

Fitting on the rows that are then judged would flatter the calibration error. So the errors that are reported come
from cross-fitting: each part of the rows is judged with temperatures that were fitted on the others. The temperatures
that are stored are fitted on all rows.

Source: Guo et al. 2017, "On Calibration of Modern Neural Networks", arXiv:1706.04599, section 4.2. Differs: a weak
prior keeps few rows from saying much, and rows that are all answered rightly from asking for a temperature of 0.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from metrics.details import calibration_error, evaluation_details
from metrics.subsets import (
    MODALITIES,
    Predictions,
    compute_metrics,
    is_complete,
    measure_subsets,
    modality_subsets,
    of_each_task,
    predict_subsets,
    probabilities,
    problem_type,
    rows_of,
    subset_name,
    with_thresholds,
)
from metrics.thresholds import fit_thresholds, num_positives

if TYPE_CHECKING:
    import numpy as np
    from accelerate import Accelerator

LEAST, MOST = 0.05, 20.0  # beyond, the validation rows say nothing any more
PRIOR_WEIGHT = 1.0  # in rows: how much the prior counts
NUM_FOLDS = 5
ERROR = "expected_calibration_error"
DECIDED = ("micro_f1", "macro_f1")  # depend on thresholds
MULTI_LABEL = "multi_label_classification"


# -- one temperature --------------------------------------------------------------------------------------------------


def fit_temperature(problem: str, logits: "np.ndarray", labels: "np.ndarray", prior: float = 1.0) -> float:
    """Give the temperature that makes the labels most likely, given a weak prior.

    In 1/T the loss is convex, so its slope has one root. The prior, a Gamma distribution of 1/T whose mode is
    `1 / prior`, costs little for higher temperatures and much for temperatures near 0, which rows that are all
    answered rightly would ask for.

    Args:
        problem: "single_label_classification" or "multi_label_classification".
        logits: (rows, labels); no row gives `prior`.
        labels: (rows,) class numbers, negative for none; or (rows, labels) 0 or 1, NaN for none.
        prior: what few rows stay near.

    Returns:
        From `LEAST` to `MOST`.
    """
    return _solved(problem, [(logits, labels)], prior)


def _solved(problem: str, parts: Iterable[tuple["np.ndarray", "np.ndarray"]], prior: float) -> float:
    """As `fit_temperature`, over rows that come in parts."""
    from scipy.optimize import brentq

    parts = [_known(problem, logits, labels) for logits, labels in parts]
    slope_of = _single_label_slope if problem == "single_label_classification" else _multi_label_slope

    def slope(inverse: float) -> float:
        return sum(slope_of(*part, inverse) for part in parts) + PRIOR_WEIGHT * (prior - 1 / inverse)

    if slope(1 / MOST) >= 0:
        return MOST
    if slope(1 / LEAST) <= 0:
        return LEAST
    return float(1 / brentq(slope, 1 / MOST, 1 / LEAST, xtol=1e-12))


def _known(problem: str, logits: "np.ndarray", labels: "np.ndarray") -> tuple["np.ndarray", "np.ndarray"]:
    """Give the rows, or the decisions, that have a label."""
    import numpy as np

    if problem == "single_label_classification":
        return logits[labels >= 0], labels[labels >= 0].astype(int)
    is_known = ~np.isnan(labels)
    return logits[is_known], labels[is_known]


def _single_label_slope(logits: "np.ndarray", labels: "np.ndarray", inverse: float) -> float:
    """Give how the negative log-likelihood changes with 1/T: the mean logit minus that of the true label."""
    import numpy as np
    from scipy.special import softmax

    expected = (softmax(logits * inverse, axis=1) * logits).sum(axis=1)
    return float((expected - logits[np.arange(len(labels)), labels]).sum())


def _multi_label_slope(logits: "np.ndarray", labels: "np.ndarray", inverse: float) -> float:
    from scipy.special import expit

    return float((logits * (expit(logits * inverse) - labels)).sum())


# -- those of a model -------------------------------------------------------------------------------------------------


def fit_temperatures(problem: str, predicted: Predictions) -> dict[str, float]:
    """Give the temperature of each subset, fitted on the rows that have all of its modalities.

    Few rows, or none, stay near the temperature of all subsets together.

    Args:
        problem: "single_label_classification" or "multi_label_classification".
        predicted: logits that no temperature has touched.
    """
    having = {name: _has_all(name, predicted) for name in predicted.logits}
    parts = {name: (predicted.logits[name][rows], predicted.labels[rows]) for name, rows in having.items()}
    common = _solved(problem, parts.values(), prior=1.0)
    return {name: fit_temperature(problem, *part, prior=common) for name, part in parts.items()}


def fit_unimodal_temperatures(problem: str, predicted: Predictions, modalities: Iterable[str]) -> dict[str, float]:
    """Give the temperature of each modality's own head, fitted on the rows that have the modality."""
    parts = {}
    for name in modalities:
        column = MODALITIES.index(name)
        rows = predicted.presence[:, column]
        parts[name] = predicted.unimodal[rows, column], predicted.labels[rows]
    common = _solved(problem, parts.values(), prior=1.0)
    return {name: fit_temperature(problem, *part, prior=common) for name, part in parts.items()}


def _has_all(subset: str, predicted: Predictions) -> "np.ndarray":
    return predicted.presence[:, [MODALITIES.index(name) for name in subset.split("+")]].all(axis=1)


def scaled(predicted: Predictions, temperatures: dict[str, float]) -> Predictions:
    """Give the logits as a model with these temperatures gives them: each row divided by that of what it has."""
    import numpy as np

    table = np.ones(2 ** len(MODALITIES))
    for name, temperature in temperatures.items():
        table[sum(2 ** MODALITIES.index(modality) for modality in name.split("+"))] = temperature
    logits = {}
    for subset, values in predicted.logits.items():
        columns = [int(name in subset.split("+")) * 2**column for column, name in enumerate(MODALITIES)]
        logits[subset] = values / table[predicted.presence.astype(int) @ columns][:, None]
    return predicted._replace(logits=logits)


def thresholded(problem: str, predicted: Predictions, fitted_on: Predictions | None = None) -> Predictions:
    """Give multi-label predictions with thresholds that were fitted to some, and others as they are.

    Args:
        problem: as for `fit_temperatures`.
        predicted: logits that temperatures were applied to.
        fitted_on: such logits and labels with every modality of the model, among others; None: `predicted`.
    """
    if problem != MULTI_LABEL:
        return predicted
    fitted_on = predicted if fitted_on is None else fitted_on
    everything = max(fitted_on.logits, key=lambda name: name.count("+"))
    known = probabilities(problem, fitted_on.logits[everything])
    return with_thresholds(predicted, fit_thresholds(known, fitted_on.labels))


def cross_fitted(problem: str, predicted: Predictions, seed: int = 0) -> Predictions:
    """Give the logits, each part of the rows divided by temperatures that were fitted on the other parts.

    Of a multi-label model, each part also has the thresholds that were fitted there.

    Args:
        problem: as for `fit_temperatures`.
        predicted: logits of at least two rows, that no temperature has touched.
        seed: of the parts.
    """
    import numpy as np
    from sklearn.model_selection import KFold

    num_rows = len(predicted.presence)
    logits = {name: values.copy() for name, values in predicted.logits.items()}
    thresholds = np.empty(predicted.labels.shape) if problem == MULTI_LABEL else None
    folds = KFold(num_folds(num_rows), shuffle=True, random_state=seed)
    for others, held in folds.split(np.empty(num_rows)):
        temperatures = fit_temperatures(problem, rows_of(predicted, others))
        part, known = (scaled(rows_of(predicted, rows), temperatures) for rows in (held, others))
        part = thresholded(problem, part, known)
        for name, values in part.logits.items():
            logits[name][held] = values
        if thresholds is not None:
            thresholds[held] = part.thresholds
    return predicted._replace(logits=logits, thresholds=thresholds)


def num_folds(num_rows: int) -> int:
    return min(NUM_FOLDS, num_rows)


# -- at the end of a training -----------------------------------------------------------------------------------------


def evaluate_calibrated(
    model,
    dataloader: Iterable[dict],
    *,
    seed: int = 0,
    accelerator: "Accelerator | None" = None,
    progress: bool = True,
) -> dict:
    """Fit temperatures and thresholds of a model on a table, put them into its config, and measure it.

    A regression has no temperatures, nor has a model of less than two rows: they are measured as they are.

    Args:
        model: MMFusion classifier, plain or prepared by `accelerator`; what was fitted before is forgotten.
        dataloader: batches with labels.
        seed: of the parts of cross-fitting.
        accelerator: as for `predict_subsets`.
        progress: as for `predict_subsets`.

    Returns:
        As `evaluate_subsets` of the model with its temperatures, but all that depends on confidence
        (`expected_calibration_error`, `reliability`, `coverage`) or on thresholds (`micro_f1`, `macro_f1` of a
        multi-label model) is cross-fitted. `calibration` tells it all:
        `num_folds` and, in `subsets`, for each subset its `temperature`, the `num_rows` it was fitted on, and the
        calibration error over all rows as `error_before`, `error_after` (cross-fitted, as in `metrics`) and
        `error_same_rows` (with the stored temperatures on the rows that they were fitted on, as `evaluation.py` finds
        it there). `thresholds`, of a multi-label model, has for each of its `labels` the `threshold` and
        `num_positives`, and both F1 of the full input `before` (with 0.5), `after` and on the `same_rows`.

    Raises:
        ValueError: As `evaluate_subsets`.
    """
    config = (model if accelerator is None else accelerator.unwrap_model(model)).config
    config.forget_fitted()
    problem = problem_type(config)
    is_fitted = problem != "regression"  # of several tasks some may be
    predicted = predict_subsets(
        model, dataloader, accelerator=accelerator, progress=progress,
        with_unimodal=is_fitted and config.balance != "none",
    )  # fmt: skip
    if getattr(config, "tasks", None) is None or predicted.labels is None:
        return _fitted(config, predicted, seed)
    results = {}
    for name, one, part in of_each_task(config, predicted):
        results[name] = _fitted(one, part, seed)
        config.keep_fitted(name, one)
    return {"num_rows": len(predicted.presence), "tasks": results}


def _fitted(config, predicted: Predictions, seed: int) -> dict:
    """Fit to the predictions of one task, into its config; what `evaluate_calibrated` returns of it."""
    problem = problem_type(config)
    if problem == "regression" or predicted.labels is None or len(predicted.presence) < 2:
        return measure_subsets(config, predicted)
    config.temperatures = fit_temperatures(problem, predicted)
    same = thresholded(problem, scaled(predicted, config.temperatures))
    if same.thresholds is not None:
        config.thresholds = same.thresholds[0].tolist()
    if predicted.unimodal is not None:
        config.unimodal_temperatures = fit_unimodal_temperatures(problem, predicted, config.modalities)
    return _report(config, predicted, same, cross_fitted(problem, predicted, seed))


def _report(config, predicted: Predictions, same: Predictions, held: Predictions) -> dict:
    """Give what `evaluate_calibrated` returns."""
    problem, temperatures = problem_type(config), config.temperatures
    result = measure_subsets(config, same)
    everything = subset_name(config.modalities)
    if problem == MULTI_LABEL:
        result["thresholds"] = _report_thresholds(config, result["metrics"][everything], same, held)
    for name, values in result["metrics"].items():
        values |= _of_held(problem, held, name)
        if "complete_rows" in result:
            complete = rows_of(held, is_complete(config, held))
            result["complete_rows"]["metrics"][name] |= _of_held(problem, complete, name)
    shown = probabilities(problem, held.logits[everything])
    result |= evaluation_details(problem, shown, held.labels, held.thresholds)
    result["calibration"] = {
        "num_folds": num_folds(len(predicted.presence)),
        "subsets": {
            name: {
                "temperature": temperatures[name],
                "num_rows": int(_has_all(name, predicted).sum()),
                "error_before": error_of(problem, predicted, name),
                "error_after": result["metrics"][name][ERROR],
                "error_same_rows": error_of(problem, same, name),
            }
            for name in map(subset_name, modality_subsets(config.modalities))
        },
    }
    return result


def _of_held(problem: str, held: Predictions, subset: str) -> dict[str, float | None]:
    """Give the metrics that what was fitted would flatter, of rows that it was not fitted on."""
    error = {ERROR: error_of(problem, held, subset)}
    return {**error, **(_f1_of(held, subset) if problem == MULTI_LABEL else {})}


def _f1_of(predicted: Predictions, subset: str) -> dict[str, float | None]:
    metrics = compute_metrics(MULTI_LABEL, predicted.logits[subset], predicted.labels, predicted.thresholds)
    return {name: metrics[name] for name in DECIDED}


def _report_thresholds(config, same_rows: dict, same: Predictions, held: Predictions) -> dict:
    """Give the thresholds of the labels, and F1 of the full input without them and with them."""
    everything = subset_name(config.modalities)
    each = zip(config.thresholds, num_positives(same.labels).tolist(), strict=True)
    return {
        "labels": {config.id2label[i]: {"threshold": t, "num_positives": count} for i, (t, count) in enumerate(each)},
        "before": _f1_of(with_thresholds(same, None), everything),
        "after": _f1_of(held, everything),
        "same_rows": {name: same_rows[name] for name in DECIDED},
    }


def error_of(problem: str, predicted: Predictions, subset: str) -> float:
    """Give the expected calibration error of a subset over all rows; of several labels, over all decisions."""
    shown = probabilities(problem, predicted.logits[subset])
    return calibration_error(problem, shown, predicted.labels, predicted.thresholds)


def describe_calibration(result: dict) -> str | None:
    """Say in a sentence what the temperatures did for all modalities; None where none were fitted."""
    calibration = result.get("calibration")
    if calibration is None:
        return None
    name = max(calibration["subsets"], key=lambda subset: subset.count("+"))
    values = calibration["subsets"][name]
    others = [f"{subset} {value['temperature']:.2f}" for subset, value in calibration["subsets"].items()]
    return (
        f"temperatures: {', '.join(others)}; calibration error of `{name}` {values['error_before']:.3f} before, "
        f"{values['error_after']:.3f} after (cross-fitted in {calibration['num_folds']} parts)"
    )
