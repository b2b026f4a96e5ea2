"""Mean absolute error and Pearson correlation of predicted numbers, as one `evaluate` module."""

import datasets
import evaluate
import numpy as np
from scipy.stats import pearsonr
from sklearn.metrics import mean_absolute_error

_DESCRIPTION = """
Mean absolute error (MAE) and Pearson's correlation r of predicted numbers, one or several a row.

With several numbers a row, MAE is the mean over all of them, and r the mean over the columns for which it is defined.
r is not defined where the predictions or the references of a column are constant or where there are fewer than two
rows; where it is defined for no column, it is `None`, never NaN.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (`list` of `float`, or `list` of `list` of `float`): One number a row, or one list a row.
    references (`list` of `float`, or `list` of `list` of `float`): The true numbers, in the same shape.

Returns:
    mae (`float`): Mean absolute error in the unit of the references; lower is better.
    pearson_r (`float` or `None`): -1 to 1.

Examples:

    >>> metric = evaluate.load("metrics/mmfusion_regression")
    >>> metric.compute(predictions=[0.0, 1.0], references=[1.0, 3.0])
    {'mae': 1.5, 'pearson_r': 1.0}
    >>> metric.compute(predictions=[2.0, 2.0, 2.0], references=[1.0, 3.0, 5.0])
    {'mae': 1.6666666666666667, 'pearson_r': None}
"""

_CITATION = """
@article{2020SciPy-NMeth,
  title = {{SciPy} 1.0: Fundamental Algorithms for Scientific Computing in Python},
  author = {Virtanen, Pauli and others},
  journal = {Nature Methods},
  volume = {17},
  pages = {261--272},
  year = {2020}
}
"""


def _column(values: list) -> np.ndarray:
    """Give (rows, numbers a row), whether the rows are numbers or lists."""
    array = np.asarray(values, dtype=float)
    return array[:, None] if array.ndim == 1 else array


def _pearson_r(predictions: np.ndarray, references: np.ndarray) -> float | None:
    """Give r of two (rows,) arrays, or None where it is not defined."""
    # Compared with the first value, not by standard deviation: the mean of equal floats can be off by a rounding.
    if np.all(predictions == predictions[0]) or np.all(references == references[0]):
        return None
    r = float(pearsonr(predictions, references).statistic)
    return r if np.isfinite(r) else None


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class MmfusionRegression(evaluate.Metric):
    """Metric module: see the description above."""

    def _info(self):
        number = datasets.Value("float64")
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=[
                datasets.Features({"predictions": number, "references": number}),
                datasets.Features({name: datasets.Sequence(number) for name in ("predictions", "references")}),
            ],
            reference_urls=["https://docs.scipy.org/doc/scipy/reference/generated/scipy.stats.pearsonr.html"],
        )

    # `evaluate.combine` hands every keyword to every module, so those meant for the others are let through.
    def _compute(self, predictions, references, **kwargs):
        if len(references) == 0:
            raise ValueError("`references` is empty: at least one row is needed.")
        predictions, references = _column(predictions), _column(references)
        if predictions.shape != references.shape:
            raise ValueError(f"`predictions` has shape {predictions.shape}, `references` has {references.shape}.")
        correlations = [_pearson_r(p, r) for p, r in zip(predictions.T, references.T, strict=True)]
        defined = [r for r in correlations if r is not None]
        return {
            "mae": float(mean_absolute_error(references, predictions)),
            "pearson_r": float(np.mean(defined)) if defined else None,
        }
