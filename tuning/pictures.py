"""Pictures of a study: how the scores came, which flags mattered, and where in each of them the good values lie.

Unusual: no `pyplot`, so nothing global is touched, and no display is needed.
"""

import math
from collections.abc import Callable

from optuna.trial import FrozenTrial, TrialState

from cli.files import replacing
from metrics.subsets import COLUMNS
from tuning.report import deciding, measured, shown
from tuning.space import Dimension, Space
from tuning.study import Study

HISTORY, IMPORTANCES, SLICES = "history.png", "importances.png", "slices.png"
# Okabe and Ito's colours, which people with any of the common colour blindnesses can tell apart.
BLUE, ORANGE, GREEN, PINK, GREY = "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#767676"
MIN_TRIALS = 4  # complete, below which importances say nothing
MAX_COLUMNS = 3


def draw_pictures(study: Study, space: Space) -> list[str]:
    """Draw what there is to be seen, and remove an older picture of what there is not.

    Args:
        study: Whose trials are drawn.
        space: What was searched.

    Returns:
        The names of the files.
    """
    makers: dict[str, Callable] = {HISTORY: _draw_history, IMPORTANCES: _draw_importances, SLICES: _draw_slices}
    drawn = []
    for name, make in makers.items():
        figure = make(study, space) if study.ranked() else None
        path = study.folder / name
        if figure is None:
            path.unlink(missing_ok=True)
            continue
        with replacing(path) as beside:
            figure.savefig(beside, format="png", dpi=120, bbox_inches="tight", metadata={"Software": None})
        drawn.append(name)
    return drawn


# -- history ----------------------------------------------------------------------------------------------------------


def _draw_history(study: Study, space: Space):
    """The metric of every trial in their order, and the best so far."""
    name, is_higher_better = deciding(study)
    figure, axes = _figure(7.5, 4.2)
    by_state = {state: [t for t in study.trials if t.state == state] for state in TrialState}
    complete = by_state[TrialState.COMPLETE]
    numbers, values = zip(*_points(complete, name), strict=True)
    axes.scatter(numbers, values, s=36, color=BLUE, zorder=3, label="complete")
    if pruned := _points(by_state[TrialState.PRUNED], name):
        axes.scatter(*zip(*pruned, strict=True), s=36, color=GREY, marker="x", zorder=3, label="pruned")
    steps, best = _best_so_far(list(zip(numbers, values, strict=True)), is_higher_better)
    end = max(trial.number for trial in study.trials)
    axes.plot(
        [*steps, end], [*best, best[-1]], color=ORANGE, linewidth=1.8, drawstyle="steps-post", label="best so far"
    )
    winner = study.ranked()[0]
    axes.scatter(winner.number, best[-1], s=130, facecolors="none", edgecolors=GREEN, linewidths=1.8, zorder=4,
        label=f"the best: trial {winner.number}, {shown(name, best[-1])}")  # fmt: skip
    if failed := [trial.number for trial in by_state[TrialState.FAIL]]:
        axes.scatter(failed, [0.03] * len(failed), s=36, color=PINK, marker="v", transform=axes.get_xaxis_transform(),
            zorder=3, label="failed (no value)")  # fmt: skip
    axes.set_xlabel("trial")
    axes.set_xlim(-0.6, end + 0.6)
    axes.xaxis.get_major_locator().set_params(integer=True)
    _metric_axis(axes, name, is_higher_better)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, fontsize=9, frameon=False)
    return figure


def _points(trials: list[FrozenTrial], name: str) -> list[tuple[int, float]]:
    return [(t.number, value) for t in trials if (value := measured(t).get(name)) is not None]


def _best_so_far(points: list[tuple[int, float]], is_higher_better: bool) -> tuple[list[int], list[float]]:
    best, numbers, values = None, [], []
    for number, value in points:
        best = value if best is None else (max if is_higher_better else min)(best, value)
        numbers.append(number)
        values.append(best)
    return numbers, values


# -- importances ------------------------------------------------------------------------------------------------------


def importances(study: Study) -> dict[str, float] | None:
    """Flag -> share of the score's variance that it explains, the greatest first; None where too little is known."""
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances

    ranked = study.ranked()
    if len(ranked) < MIN_TRIALS or len({trial.value for trial in ranked}) == 1:
        return None
    shares = get_param_importances(study.study, evaluator=FanovaImportanceEvaluator(seed=0))
    return shares or None


def _draw_importances(study: Study, space: Space):
    from matplotlib.ticker import PercentFormatter

    shares = importances(study)
    if shares is None:
        return None
    figure, axes = _figure(7.5, 1.2 + 0.42 * len(shares))
    bars = axes.barh(range(len(shares)), list(shares.values()), color=BLUE, height=0.7)
    axes.bar_label(bars, [f"{share:.0%}" for share in shares.values()], padding=4, fontsize=10)
    axes.set_yticks(range(len(shares)), list(shares), fontsize=10)
    axes.invert_yaxis()
    axes.set_xlim(0, max(shares.values()) * 1.12)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    metric = COLUMNS[deciding(study)[0]][0]
    axes.set_xlabel(f"share of the variance of the {metric} that the flag explains (fANOVA)")
    axes.set_title(f"What mattered in {len(study.ranked())} complete trials", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


# -- slices -----------------------------------------------------------------------------------------------------------


def _draw_slices(study: Study, space: Space):
    """A picture for each flag: its value against the metric."""
    name, is_higher_better = deciding(study)
    columns = min(MAX_COLUMNS, len(space))
    rows = math.ceil(len(space) / columns)
    figure, grid = _figure(
        1.2 + 3.0 * columns, 0.6 + 2.7 * rows, nrows=rows, ncols=columns, sharey=True, squeeze=False
    )
    cells = list(grid.flat)
    for axes, dimension in zip(cells, space.values(), strict=False):
        _draw_slice(axes, study, dimension, name)
    for row in grid:
        _metric_axis(row[0], name, is_higher_better)
    for axes in cells[len(space) :]:
        axes.set_visible(False)
    handles, labels = cells[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), fontsize=9, frameon=False)
    return figure


def _draw_slice(axes, study: Study, dimension: Dimension, name: str) -> None:
    is_categorical, best = dimension.kind == "categorical", study.ranked()[0]
    places = {choice: place for place, choice in enumerate(dimension.values)}

    def drawn(trials: list[FrozenTrial], label: str, **look) -> None:
        known = [trial for trial in trials if measured(trial).get(name) is not None]
        values = [trial.params[dimension.name] for trial in known]
        x = [places[value] for value in values] if is_categorical else values
        if known or label == "complete":
            axes.scatter(x, [measured(trial)[name] for trial in known], label=label, **look)

    drawn([t for t in study.trials if t.state == TrialState.PRUNED], "pruned", s=26, color=GREY, marker="x")
    drawn(study.ranked()[1:], "complete", s=30, color=BLUE, alpha=0.8)
    drawn([best], "the best", s=90, color=ORANGE, marker="*", edgecolors="black", linewidths=0.6, zorder=4)
    axes.set_xlabel(dimension.name)
    if is_categorical:
        axes.set_xticks(range(len(places)), [str(choice)[-14:] for choice in places])
        axes.set_xlim(-0.6, len(places) - 0.4)
        axes.tick_params(axis="x", labelsize=9)
    else:
        _range_axis(axes, dimension)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)


def _range_axis(axes, dimension: Dimension) -> None:
    """The whole range that was searched, also where nothing was tried."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    low, high = dimension.values[:2]
    if dimension.is_log:
        axes.set_xscale("log")
        axes.set_xlim(low * (low / high) ** 0.05, high * (high / low) ** 0.05)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 3) if high / low < 300 else (1,)))
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        axes.set_xlim(low - 0.05 * (high - low), high + 0.05 * (high - low))
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=isinstance(low, int)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, place: f"{value:g}"))
    axes.tick_params(axis="x", labelsize=9)


# -- what all share ---------------------------------------------------------------------------------------------------


def _figure(width: float, height: float, **subplots):
    """A figure that nothing but its caller knows, with its axes; the size is in inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    return figure, figure.subplots(**subplots)


def _metric_axis(axes, name: str, is_higher_better: bool) -> None:
    from matplotlib.ticker import PercentFormatter

    heading, reads = COLUMNS[name]
    axes.set_ylabel(f"{heading} on the held-out rows" + ("" if is_higher_better else "\n(lower is better)"))
    if reads(0.5).endswith("%"):
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
