"""Temperatures: what logits are divided by, so that an answer is as often right as its confidence says.

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
    is_complete,
    measure_subsets,
    modality_subsets,
    predict_subsets,
    probabilities,
    problem_type,
    rows_of,
    subset_name,
)

if TYPE_CHECKING:
    import numpy as np
    from accelerate import Accelerator

LEAST, MOST = 0.05, 20.0  # beyond, the validation rows say nothing any more
PRIOR_WEIGHT = 1.0  # in rows: how much the prior counts
NUM_FOLDS = 5
ERROR = "expected_calibration_error"


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


def cross_fitted(problem: str, predicted: Predictions, seed: int = 0) -> Predictions:
    """Give the logits, each part of the rows divided by temperatures that were fitted on the other parts.

    Args:
        problem: as for `fit_temperatures`.
        predicted: logits of at least two rows, that no temperature has touched.
        seed: of the parts.
    """
    import numpy as np
    from sklearn.model_selection import KFold

    num_rows = len(predicted.presence)
    logits = {name: values.copy() for name, values in predicted.logits.items()}
    folds = KFold(num_folds(num_rows), shuffle=True, random_state=seed)
    for others, held in folds.split(np.empty(num_rows)):
        part = scaled(rows_of(predicted, held), fit_temperatures(problem, rows_of(predicted, others)))
        for name, values in part.logits.items():
            logits[name][held] = values
    return predicted._replace(logits=logits)


def num_folds(num_rows: int) -> int:
    return min(NUM_FOLDS, num_rows)


def forget_temperatures(config) -> None:
    """Have a model answer as its weights say, for other weights shall come."""
    config.temperatures = None
    config.unimodal_temperatures = None


# -- at the end of a training -----------------------------------------------------------------------------------------


def evaluate_calibrated(
    model,
    dataloader: Iterable[dict],
    *,
    seed: int = 0,
    accelerator: "Accelerator | None" = None,
    progress: bool = True,
) -> dict:
    """Fit the temperatures of a model on a table, put them into its config, and measure it with every subset.

    A regression has no temperatures, nor has a model of less than two rows: they are measured as they are.

    Args:
        model: MMFusion classifier, plain or prepared by `accelerator`; temperatures that it has are forgotten.
        dataloader: batches with labels.
        seed: of the parts of cross-fitting.
        accelerator: as for `predict_subsets`.
        progress: as for `predict_subsets`.

    Returns:
        As `evaluate_subsets` of the model with its temperatures, but all that depends on confidence
        (`expected_calibration_error`, `reliability`, `coverage`) is cross-fitted. `calibration` tells it all:
        `num_folds` and, in `subsets`, for each subset its `temperature`, the `num_rows` it was fitted on, and the
        calibration error over all rows as `error_before`, `error_after` (cross-fitted, as in `metrics`) and
        `error_same_rows` (with the stored temperatures on the rows that they were fitted on, as `evaluation.py` finds
        it there).

    Raises:
        ValueError: As `evaluate_subsets`.
    """
    config = (model if accelerator is None else accelerator.unwrap_model(model)).config
    forget_temperatures(config)
    problem = problem_type(config)
    is_fitted = problem != "regression"
    predicted = predict_subsets(
        model, dataloader, accelerator=accelerator, progress=progress,
        with_unimodal=is_fitted and config.balance != "none",
    )  # fmt: skip
    if not is_fitted or predicted.labels is None or len(predicted.presence) < 2:
        return measure_subsets(config, predicted)
    config.temperatures = fit_temperatures(problem, predicted)
    if predicted.unimodal is not None:
        config.unimodal_temperatures = fit_unimodal_temperatures(problem, predicted, config.modalities)
    return _report(config, predicted, cross_fitted(problem, predicted, seed))


def _report(config, predicted: Predictions, held: Predictions) -> dict:
    """Give what `evaluate_calibrated` returns."""
    problem, temperatures = problem_type(config), config.temperatures
    same = scaled(predicted, temperatures)
    result = measure_subsets(config, same)
    for name, values in result["metrics"].items():
        values[ERROR] = error_of(problem, held, name)
        if "complete_rows" in result:
            complete = rows_of(held, is_complete(config, held))
            result["complete_rows"]["metrics"][name][ERROR] = error_of(problem, complete, name)
    everything = subset_name(config.modalities)
    shown = probabilities(problem, held.logits[everything])
    result |= evaluation_details(problem, shown, held.labels)
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


def error_of(problem: str, predicted: Predictions, subset: str) -> float:
    """Give the expected calibration error of a subset over all rows; of several labels, over all decisions."""
    return calibration_error(problem, probabilities(problem, predicted.logits[subset]), predicted.labels)


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
