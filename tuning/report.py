"""What a study has found: a table for people, `trials.csv` and `study.json`, from the study alone."""

import csv
import json
from pathlib import Path

from optuna.trial import FrozenTrial, TrialState

from cli.files import replacing, write_json
from metrics.subsets import COLUMNS, deciding_metric
from tuning.command import Training
from tuning.study import Study

TABLE, SUMMARY = "trials.csv", "study.json"
NUM_SHOWN = 10
STATES = {
    TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed",
    TrialState.RUNNING: "running", TrialState.WAITING: "interrupted",
}  # fmt: skip


def measured(trial: FrozenTrial) -> dict[str, float | None]:
    """The metrics of a trial's best epoch on the held-out rows; empty before there is one."""
    return trial.user_attrs.get("validation", {})


def deciding(study: Study) -> tuple[str, bool] | None:
    """(The metric that decides, whether a higher value is better); None before there is a value."""
    return next((deciding_metric(metrics) for trial in study.trials if (metrics := measured(trial))), None)


def shown(name: str, value: float | None) -> str:
    """A metric as people read it."""
    return "–" if value is None else COLUMNS[name][1](value)


def shown_value(value) -> str:
    """A sampled value, short enough for a table."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def describe_trial(trial: FrozenTrial) -> str:
    """One line: how it ended, its score and its values."""
    metrics, values = measured(trial), "  ".join(f"{name} {shown_value(v)}" for name, v in trial.params.items())
    said = STATES[trial.state]
    if metrics:
        name, _ = deciding_metric(metrics)
        said += f", {COLUMNS[name][0]} {shown(name, metrics[name])}"
    if reason := trial.user_attrs.get("reason"):
        said += f": {reason}"
    return f"trial {trial.number}  {said}  ({values}; {_minutes(trial):.1f} minutes)"


def format_best(study: Study) -> str:
    """The best trials as a table of aligned columns."""
    ranked = study.ranked()[:NUM_SHOWN]
    if not ranked:
        return "no trial is complete"
    name, _ = deciding_metric(measured(ranked[0]))
    params = list(ranked[0].params)
    lines = [["trial", COLUMNS[name][0], *params, "epochs", "minutes"]]
    for trial in ranked:
        values = [shown_value(trial.params[param]) for param in params]
        epochs = str(len(trial.intermediate_values))
        lines.append(
            [str(trial.number), shown(name, measured(trial)[name]), *values, epochs, f"{_minutes(trial):.1f}"]
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)


def write_report(study: Study, training: Training, command: str) -> None:
    """Write `trials.csv` and `study.json` into the folder of the study.

    Args:
        study: What is reported.
        training: How its trials are trained.
        command: The one that started this search.
    """
    with study.alone():
        _write_table(study.trials, list(training.space), study.folder / TABLE)
        with replacing(study.folder / SUMMARY) as beside:
            write_json(beside, _summary(study, training, command))


def _write_table(trials: list[FrozenTrial], params: list[str], path: Path) -> None:
    metrics = list(dict.fromkeys(name for trial in trials for name in measured(trial)))
    with replacing(path) as beside, beside.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["trial", "state", "score", *metrics, *params, "epochs", "minutes", "reason"])
        for trial in trials:
            score = max(trial.intermediate_values.values(), default=None)
            values = [measured(trial).get(name) for name in metrics] + [trial.params.get(name) for name in params]
            end = [len(trial.intermediate_values), round(_minutes(trial), 3), trial.user_attrs.get("reason")]
            writer.writerow([trial.number, STATES[trial.state], score, *values, *end])


def _summary(study: Study, training: Training, command: str) -> dict:
    states = [STATES[trial.state] for trial in study.trials]
    settings = study.study.user_attrs["settings"]
    summary = {
        "command": command,
        "space": {name: str(dimension) for name, dimension in training.space.items()},
        "train_arguments": training.words,
        **{name: settings[name] for name in ("sampler", "pruner", "seed of the search")},
        "trials": {state: states.count(state) for state in STATES.values() if state in states},
    }
    if ranked := study.ranked():
        best = ranked[0]
        summary["best"] = {
            "trial": best.number,
            "score": best.value,
            "validation": measured(best),
            "params": best.params,
            "command": training.described(best.params),
        }
    return json.loads(json.dumps(summary, default=str))


def _minutes(trial: FrozenTrial) -> float:
    return trial.user_attrs.get("seconds", 0.0) / 60
