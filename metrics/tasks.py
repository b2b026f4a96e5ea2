"""The results of a model with several tasks: each that of a model of this task alone, and what is told of them.

A result of `metrics.subsets` or `metrics.calibration` then is `{"num_rows": N, "tasks": {name: result, …}}`, where
each is over the rows that have a label of the task. A result without `tasks` is that of the only task.
"""

from collections.abc import Callable
from typing import Any

from metrics.subsets import SCORE, score


def configs_of(config) -> dict[str | None, Any]:
    """Give the configuration of each task; that of the only task under None, also of a model that knows no tasks."""
    if getattr(config, "tasks", None) is None:
        return {None: config}
    return {task.name: task.config for task in config.each_task()}


def results_of(result: dict) -> dict[str | None, dict]:
    """Give the result of each task; that of the only task under None."""
    return result.get("tasks", {None: result})


def told(result: dict, describe: Callable[[dict], list[str]]) -> list[str]:
    """Give what `describe` tells of each task, under its name where there are several."""
    lines = []
    for name, one in results_of(result).items():
        lines += [*([] if name is None else [f"== {name} =="]), *describe(one)]
    return lines


def judged(config, result: dict, subset: str) -> dict:
    """Give what decides which epoch is best.

    Args:
        config: Of the model.
        result: From `evaluate_subsets`.
        subset: Name of the subset that decides.

    Returns:
        `score`, and `validation`, the metrics of the subset. Of several tasks the score is the mean of theirs by their
        weights, and it stands among the metrics, whose names begin with the task.
    """
    found = {name: dict(one["metrics"][subset]) for name, one in results_of(result).items()}
    for metrics in found.values():
        metrics.pop("num_rows_with_input")
    if None in found:
        return {"score": score(found[None]), "validation": found[None]}
    weights = {task.name: task.weight for task in config.each_task() if task.name in found}
    mean = sum(weight * score(found[name]) for name, weight in weights.items()) / sum(weights.values())
    named = {f"{name}: {key}": value for name, metrics in found.items() for key, value in metrics.items()}
    return {"score": mean, "validation": {SCORE: mean, **named}}
