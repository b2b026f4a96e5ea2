"""The picture of a run, drawn from its log alone: loss, validation score and learning rate over the steps.

No `pyplot`, so nothing global is touched, and no display is needed.
"""

from pathlib import Path

from cli.files import replacing
from metrics.subsets import COLUMNS

# Okabe and Ito's colours, which people with any of the common colour blindnesses can tell apart.
COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9")
GREY = "#767676"


def draw_curves(lines: list[dict], path: Path) -> None:
    """Draw the lines of a `log.jsonl`.

    Args:
        lines: As `Records` wrote them; what they lack is left out of the picture.
        path: Of the PNG file; what stands there is replaced.
    """
    from matplotlib.figure import Figure

    measured = [line for line in lines if "learning_rates" in line]
    epochs = [line for line in lines if line.get("event") == "epoch"]
    figure = Figure(figsize=(7.5, 7.5), layout="constrained")
    loss, score, rate = figure.subplots(3, 1, sharex=True, height_ratios=(3, 2, 1.4))
    _draw_loss(loss, measured, epochs, [line["step"] for line in lines if line.get("event") == "skipped"])
    _draw_score(score, epochs)
    _draw_rates(rate, measured)
    for axes in (loss, score, rate):
        for line in lines:
            if line.get("event") == "resumed":
                axes.axvline(line["step"], color=GREY, linewidth=0.8, linestyle=":")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#dddddd", linewidth=0.6)
        axes.set_axisbelow(True)
    rate.xaxis.get_major_locator().set_params(integer=True)
    rate.set_xlabel("optimiser steps" + (", a dotted line where the run went on" if _was_resumed(lines) else ""))
    with replacing(path) as beside:
        figure.savefig(beside, format="png", dpi=120, metadata={"Software": None})


def _was_resumed(lines: list[dict]) -> bool:
    return any(line.get("event") == "resumed" for line in lines)


def _draw_loss(axes, measured: list[dict], epochs: list[dict], skipped: list[int]) -> None:
    points = [(line["step"], line["loss"]) for line in measured if line["loss"] is not None]
    means = [(line["step"], line["train_loss"]) for line in epochs if line["train_loss"] is not None]
    if points:
        axes.plot(*zip(*points, strict=True), color=COLORS[0], linewidth=1.2, label="between two lines of the log")
    if means:
        axes.plot(*zip(*means, strict=True), "o", color=COLORS[1], markersize=5, label="of an epoch")
    for number, step in enumerate(skipped):
        axes.axvline(step, color=COLORS[3], linewidth=0.8, label="skipped step" if number == 0 else None)
    axes.set_ylabel("training loss")
    if points or means:
        axes.legend(frameon=False, fontsize=9)


def _draw_score(axes, epochs: list[dict]) -> None:
    """The metrics of the validation rows that share the scale of the first, which decides."""
    names = [name for name, value in (epochs[0]["validation"] if epochs else {}).items() if value is not None]
    shares = [name for name in names if all(0 <= (line["validation"].get(name) or 0) <= 1 for line in epochs)]
    drawn = shares if names and names[0] in shares else names[:1]
    for name, color in zip(drawn, COLORS, strict=False):
        points = [(line["step"], line["validation"].get(name)) for line in epochs]
        label = COLUMNS.get(name, (name,))[0]
        axes.plot(*zip(*points, strict=True), "o-", color=color, markersize=4, linewidth=1.2, label=label)
    if epochs:
        best = max(epochs, key=lambda line: line["score"])
        axes.axvline(best["step"], color=GREY, linewidth=0.8, linestyle="--", label="best epoch")
    axes.set_ylabel("validation")
    if drawn:
        axes.legend(frameon=False, fontsize=9)


def _draw_rates(axes, measured: list[dict]) -> None:
    """Each learning rate; towers that share one share its line."""
    for number in range(max((len(line["learning_rates"]) for line in measured), default=0)):
        points = [
            (line["step"], line["learning_rates"][number]) for line in measured if len(line["learning_rates"]) > number
        ]
        axes.plot(*zip(*points, strict=True), color=COLORS[number % len(COLORS)], linewidth=1.2)
    axes.set_ylabel("learning rate")
    axes.ticklabel_format(axis="y", style="sci", scilimits=(-3, 3))
