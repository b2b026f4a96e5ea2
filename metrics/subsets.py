"""What a model knows from every subset of its modalities: predictions, metrics, a table and words of warning.

Unusual: the towers run once a row, and for each subset only the fusion runs again, over the same tower outputs.
Nothing heavy is imported with this file; `evaluate` alone takes seconds.

Two tables come out. The first is over all rows: a row that has nothing of a subset is answered from the learned
absent embeddings and counts, as it would in use. The second, `complete_rows`, is over the rows that have every
modality, where the subsets differ in nothing but the subset.
"""

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from metrics.coverage import is_right, sureness, threshold_for
from metrics.details import calibration_error, evaluation_details
from metrics.thresholds import DEFAULT

if TYPE_CHECKING:
    import numpy as np
    import torch
    from accelerate import Accelerator

MODALITIES = ("text", "image", "audio")  # the columns of `modality_mask`

# Problem type -> (folder of the metric module, the metric that decides, whether a higher value is better).
METRIC_MODULES = {
    "single_label_classification": ("mmfusion_classification", "accuracy", True),
    "multi_label_classification": ("mmfusion_multilabel", "micro_f1", True),
    "regression": ("mmfusion_regression", "mae", False),
}

SCORE = "score"  # of several tasks: the mean of what decides in each, by their weights; higher is better

# Metric -> (heading, how a person reads its value).
COLUMNS: dict[str, tuple[str, Callable[[float], str]]] = {
    "accuracy": ("accuracy", "{:.1%}".format),
    "micro_f1": ("micro F1", "{:.1%}".format),
    "macro_f1": ("macro F1", "{:.1%}".format),
    "mean_average_precision": ("mAP", "{:.1%}".format),
    "expected_calibration_error": ("ECE", "{:.3f}".format),
    "rank_mae": ("MAE in ranks", "{:.3f}".format),
    "quadratic_kappa": ("quadratic kappa", "{:.3f}".format),
    "mae": ("MAE", "{:.4g}".format),
    "pearson_r": ("Pearson r", "{:.3f}".format),
    SCORE: ("score", "{:.4f}".format),
}

Subset = tuple[str, ...]


class Predictions(NamedTuple):
    """What a model says about the rows of a table, subset by subset.

    Attributes:
        logits: subset name -> (rows, labels) float64.
        labels: (rows,) or (rows, labels) as the batches gave them; None where they gave none.
        presence: (rows, 3) bool, columns text, image, audio; True where the row has the modality.
        unimodal: (rows, 3, labels) float64, logits of each modality's own head; None where nobody asked for them.
        thresholds: (rows, labels) from which probability on a label counts as predicted; None: from 0.5 on.
    """

    logits: dict[str, "np.ndarray"]
    labels: "np.ndarray | None"
    presence: "np.ndarray"
    unimodal: "np.ndarray | None" = None
    thresholds: "np.ndarray | None" = None


def modality_subsets(modalities: Iterable[str]) -> list[Subset]:
    """Give every non-empty subset, small ones first: text, image, audio, text+image, …, text+image+audio."""
    present = [name for name in MODALITIES if name in set(modalities)]
    return [subset for size in range(1, len(present) + 1) for subset in itertools.combinations(present, size)]


def subset_name(subset: Iterable[str]) -> str:
    """Name a subset as the results do: its modalities in order, joined by a plus sign."""
    members = set(subset)
    if not members or not members <= set(MODALITIES):
        raise ValueError(f"`subset` is {tuple(subset)!r}: name at least one of {', '.join(MODALITIES)}.")
    return "+".join(name for name in MODALITIES if name in members)


def problem_type(config) -> str:
    """Give the problem type of a model's config, by the rule of `transformers` where it is not set."""
    if config.problem_type is not None:
        return config.problem_type
    return "regression" if config.num_labels == 1 else "single_label_classification"


def predict_subsets(
    model,
    dataloader: Iterable[dict],
    *,
    subsets: Sequence[Subset] | None = None,
    accelerator: "Accelerator | None" = None,
    progress: bool = True,
    with_unimodal: bool = False,
) -> Predictions:
    """Run the towers once over every batch and the fusion once for every subset.

    The model is put into eval mode and every module gets its own mode back afterwards (a frozen tower stays in eval).

    Args:
        model: MMFusion classifier, plain or prepared by `accelerator`.
        dataloader: batches of model inputs, with or without `labels`; plain or prepared by `accelerator`.
        subsets: which subsets; None: all of the model's modalities.
        accelerator: gathers the rows of all processes (without the repeated ones) and gives the mixed precision.
        progress: whether to show a progress bar.
        with_unimodal: whether to keep what the modalities' own heads say, of a model that has them.

    Raises:
        ValueError: When there is no row, or a logit is NaN or infinite.
    """
    import torch
    from tqdm.auto import tqdm

    bare = model if accelerator is None else accelerator.unwrap_model(model)
    subsets = modality_subsets(bare.config.modalities) if subsets is None else list(subsets)
    hidden = not progress or (accelerator is not None and not accelerator.is_main_process)
    modes = [(module, module.training) for module in bare.modules()]
    bare.eval()
    try:
        with torch.no_grad():
            bar = tqdm(dataloader, desc="evaluating", unit="batch", disable=hidden)
            parts = [_predict_batch(bare, batch, subsets, accelerator, with_unimodal) for batch in bar]
    finally:
        for module, training in modes:
            module.training = training
    predicted = _joined(parts, [subset_name(subset) for subset in subsets])
    return with_thresholds(predicted, getattr(bare.config, "thresholds", None))  # that of an older model has no such


def _predict_batch(
    model, batch: dict, subsets: list[Subset], accelerator: "Accelerator | None", with_unimodal: bool
) -> dict:
    """Give the logits of every subset, the labels and the presence of one batch, as tensors on the CPU."""
    import contextlib

    from accelerate.utils import send_to_device

    inputs = send_to_device(dict(batch), model.device)
    labels = inputs.pop("labels", None)
    with contextlib.nullcontext() if accelerator is None else accelerator.autocast():
        encoded = model.encode(**inputs)
        presence = encoded.modality_mask
        results = {
            subset_name(subset): model(
                encoder_outputs=encoded, modality_mask=_subset_mask(subset, presence)
            ).logits.float()
            for subset in subsets
        }
        if with_unimodal:  # of all that a row has
            results["unimodal"] = model(encoder_outputs=encoded).unimodal_logits.float()
    results["presence"] = presence
    if labels is not None:
        results["labels"] = labels
    if accelerator is not None:
        results = accelerator.gather_for_metrics(results)
    results = {name: value.cpu() for name, value in results.items()}
    # Float64 only here: MPS has none. What is known of a row stays as it came.
    return {name: x if name in ("presence", "labels") else x.double() for name, x in results.items()}


def _subset_mask(subset: Subset, presence: "torch.Tensor") -> "torch.Tensor":
    """Give (B, 3) long: 1 in the columns of the subset, for every row."""
    import torch

    columns = [int(name in subset) for name in MODALITIES]
    return torch.tensor(columns, device=presence.device).expand(len(presence), -1)


def _joined(parts: list[dict], names: list[str]) -> Predictions:
    """Put the batches' results together and refuse what is not a number."""
    import torch

    if not parts:
        raise ValueError("`dataloader` gave no batch: there is no row to evaluate.")
    whole = {name: torch.cat([part[name] for part in parts]).numpy() for name in parts[0]}
    for name in names:
        bad = (~torch.from_numpy(whole[name]).isfinite().all(dim=1)).nonzero().flatten().tolist()
        if bad:
            raise ValueError(
                f"the model's logits for `{name}` are NaN or infinite in {len(bad):,} of {len(whole[name]):,} rows, "
                f"first in row {bad[0] + 1}: check that row's input and the training run that made the weights."
            )
    logits = {name: whole[name] for name in names}
    return Predictions(logits, whole.get("labels"), whole["presence"], whole.get("unimodal"))


def with_thresholds(predicted: Predictions, thresholds: "Sequence[float] | None") -> Predictions:
    """Give the predictions, every row of them decided by these thresholds, one a label; None: 0.5."""
    import numpy as np

    if thresholds is not None:
        thresholds = np.tile(np.asarray(thresholds, dtype=float), (len(predicted.presence), 1))
    return predicted._replace(thresholds=thresholds)


def probabilities(problem: str, logits: "np.ndarray") -> "np.ndarray":
    """Give (rows, labels) probabilities of the logits; a regression's logits are its predictions already."""
    from scipy.special import expit, softmax

    if problem == "regression":
        return logits
    return softmax(logits, axis=-1) if problem == "single_label_classification" else expit(logits)


@functools.cache
def _metric(folder: str):
    """Load a metric module of this package by its path; kept, because the import behind it takes seconds."""
    import evaluate

    return evaluate.load(str(Path(__file__).parent / folder), keep_in_memory=True)


def compute_metrics(
    problem: str,
    logits: "np.ndarray",
    labels: "np.ndarray",
    thresholds: "np.ndarray | None" = None,
    *,
    ordinal: bool = False,
) -> dict[str, float | None]:
    """Give the metrics of a problem type for the logits of some rows.

    Args:
        problem: a key of `METRIC_MODULES`.
        logits: (rows, labels).
        labels: (rows,) class numbers; (rows, labels) 0 or 1; or (rows,) or (rows, labels) numbers for a regression.
        thresholds: of a multi-label model, as for `metrics.thresholds.is_predicted`.
        ordinal: whether the classes of a single-label model have an order.

    Returns:
        Metric name -> value; None where a metric is not defined, never NaN.
    """
    import numpy as np

    predictions = probabilities(problem, np.asarray(logits, dtype=float))
    labels = np.asarray(labels)
    if problem == "regression":
        labels = labels.reshape(predictions.shape)
        if predictions.shape[1] == 1:
            predictions, labels = predictions[:, 0], labels[:, 0]
    else:
        labels = labels.astype(int)
    module = _metric(METRIC_MODULES[problem][0])
    compute = functools.partial(module.compute, predictions=predictions.tolist(), references=labels.tolist())
    if problem == "multi_label_classification":
        metrics = compute(threshold=DEFAULT if thresholds is None else thresholds)
        return {**metrics, "expected_calibration_error": calibration_error(problem, predictions, labels, thresholds)}
    return compute(ordinal=ordinal) if problem == "single_label_classification" else compute()


def score(metrics: dict[str, float | None]) -> float:
    """Give the metric that decides which of two results is better, turned so that higher is better.

    Args:
        metrics: the metrics of one subset: accuracy decides, or micro F1, or the (negated) mean absolute error.
    """
    name, higher = deciding_metric(metrics)
    return metrics[name] if higher else -metrics[name]


def deciding_metric(metrics: dict) -> tuple[str, bool]:
    """Give the metric that decides, by its name, and whether a higher value of it is better."""
    if SCORE in metrics:
        return SCORE, True
    return next((name, higher) for _, name, higher in METRIC_MODULES.values() if name in metrics)


def evaluate_subsets(
    model,
    dataloader: Iterable[dict],
    *,
    subsets: Sequence[Subset] | None = None,
    accelerator: "Accelerator | None" = None,
    progress: bool = True,
    target_accuracy: float | None = None,
) -> dict:
    """Measure a model with every subset of its modalities; see `predict_subsets` and `measure_subsets`."""
    config = (model if accelerator is None else accelerator.unwrap_model(model)).config
    predicted = predict_subsets(model, dataloader, subsets=subsets, accelerator=accelerator, progress=progress)
    return measure_subsets(config, predicted, target_accuracy)


def measure_subsets(config, predicted: Predictions, target_accuracy: float | None = None) -> dict:
    """Measure what a model said with some subsets of its modalities.

    Args:
        config: of the model.
        predicted: from `predict_subsets`.
        target_accuracy: how often answers shall be right when the unsure ones are refused; None: nobody asks.

    Returns:
        `{"metrics": {"text": {…}, …}, "num_rows": N, "complete_rows": {"num_rows": M, "metrics": {…}}}`, ready for
        JSON. Each subset also says `num_rows_with_input`: the rows that have at least one of its modalities.
        `complete_rows` is left out when no row has every modality of the model. Where the subset of all modalities
        was predicted, what pictures of it need stands beside, over all rows: see `evaluation_details`; and with
        `target_accuracy`, `reject_below`: the point that reaches it, or None.

        Of several tasks `num_rows`, and in `tasks` such a result for each, over the rows that have its label.

    Raises:
        ValueError: There are no labels, or the target is one for a regression.
    """
    if predicted.labels is None:
        raise ValueError("the batches of `dataloader` have no `labels`: nothing can be measured without them.")
    if getattr(config, "tasks", None) is not None:
        results = {}
        for name, one, part in of_each_task(config, predicted):
            target = None if problem_type(one) == "regression" else target_accuracy
            results[name] = measure_subsets(one, part, target)
        return {"num_rows": len(predicted.presence), "tasks": results}
    complete, problem = is_complete(config, predicted), problem_type(config)
    ordinal = getattr(config, "ordinal", False)  # that of an older model has no such
    result = {"metrics": _measure(problem, predicted, ordinal), "num_rows": len(complete)}
    if complete.any():
        metrics = result["metrics"] if complete.all() else _measure(problem, rows_of(predicted, complete), ordinal)
        result["complete_rows"] = {"num_rows": int(complete.sum()), "metrics": metrics}
    if (everything := subset_name(config.modalities)) in predicted.logits:
        shown, thresholds = probabilities(problem, predicted.logits[everything]), predicted.thresholds
        result |= evaluation_details(problem, shown, predicted.labels, thresholds)
        if target_accuracy is not None:
            sure = sureness(problem, shown, thresholds)
            right = is_right(problem, shown, predicted.labels, thresholds)
            result["reject_below"] = threshold_for(sure, right, target_accuracy)
    return result


def is_complete(config, predicted: Predictions) -> "np.ndarray":
    """Give (rows,) True where a row has every modality of the model."""
    return predicted.presence[:, [MODALITIES.index(name) for name in config.modalities]].all(axis=1)


def rows_of(predicted: Predictions, chosen: "np.ndarray") -> Predictions:
    """Give the predictions of some rows, chosen by number or by True and False."""
    logits = {name: values[chosen] for name, values in predicted.logits.items()}
    unimodal, thresholds = (
        None if values is None else values[chosen] for values in (predicted.unimodal, predicted.thresholds)
    )
    return Predictions(logits, predicted.labels[chosen], predicted.presence[chosen], unimodal, thresholds)


def of_each_task(config, predicted: Predictions) -> Iterator[tuple[str, Any, Predictions]]:
    """Give name, configuration and predictions of each task that some rows have a label of: of these rows."""
    import numpy as np

    for task in config.each_task():
        labels = predicted.labels[:, task.labels]
        is_labelled = ~np.isnan(labels).any(axis=1)
        if not is_labelled.any():
            continue
        if problem_type(task.config) == "single_label_classification":
            labels = np.where(is_labelled, labels[:, 0], -1).astype(int)
        logits = {name: values[:, task.outputs] for name, values in predicted.logits.items()}
        unimodal = None if predicted.unimodal is None else predicted.unimodal[..., task.outputs]
        part = rows_of(Predictions(logits, labels, predicted.presence, unimodal), is_labelled)
        yield task.name, task.config, with_thresholds(part, task.config.thresholds)


def _measure(problem: str, predicted: Predictions, ordinal: bool) -> dict[str, dict]:
    """Give subset name -> metrics and the number of rows that have some of its modalities."""
    table = {}
    for name in predicted.logits:
        columns = [MODALITIES.index(member) for member in name.split("+")]
        table[name] = compute_metrics(
            problem, predicted.logits[name], predicted.labels, predicted.thresholds, ordinal=ordinal
        )
        table[name]["num_rows_with_input"] = int(predicted.presence[:, columns].any(axis=1).sum())
    return table


def format_table(result: dict) -> str:
    """Lay the result of `evaluate_subsets` out for people; undefined values show as a dash."""
    text = f"All {result['num_rows']:,} rows:\n{_table(result['metrics'])}"
    complete = result.get("complete_rows")
    if complete is not None and complete["num_rows"] < result["num_rows"]:
        text += f"\n\nThe {complete['num_rows']:,} rows that have every modality:\n{_table(complete['metrics'])}"
    return text


def _table(metrics: dict[str, dict]) -> str:
    shown = [name for name in COLUMNS if name in next(iter(metrics.values()))]
    lines = [["modalities", "rows with input", *(COLUMNS[name][0] for name in shown)]]
    for subset, values in metrics.items():
        cells = ["–" if values[name] is None else COLUMNS[name][1](values[name]) for name in shown]
        lines.append([subset, f"{values['num_rows_with_input']:,}", *cells])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))])
        for line in lines
    )


def warnings(result: dict) -> list[str]:
    """Give a sentence for every subset that does worse than one of its modalities alone.

    The comparison is over the rows that have every modality where there are such rows, else over all rows.
    """
    compared = result.get("complete_rows", result)
    metrics = compared["metrics"]
    rows = f"the {compared['num_rows']:,} rows that have every modality" if "complete_rows" in result else "all rows"
    full = max(metrics, key=lambda name: name.count("+"))
    sentences = (_warning(metrics, name, f"on {rows}", is_full=name == full) for name in metrics)
    return [sentence for sentence in sentences if sentence is not None]


def _warning(metrics: dict[str, dict], name: str, where: str, is_full: bool) -> str | None:
    members = [member for member in name.split("+") if member in metrics]
    best = max(members, key=lambda member: score(metrics[member]), default=name)
    if score(metrics[name]) >= score(metrics[best]):
        return None
    decides, _ = deciding_metric(metrics[name])
    heading, shown = COLUMNS[decides]
    subject = f"the full fusion, `{name}`," if is_full else f"`{name}`"
    values = f"{shown(metrics[name][decides])} against {shown(metrics[best][decides])}"
    return f"{subject} is worse than `{best}` alone: {heading} {values} {where}."
