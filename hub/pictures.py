"""Pictures of an evaluation, drawn from `metrics.json` alone: confusion matrix, reliability, coverage, subsets.

Unusual: no `pyplot`, so nothing global is touched and a server may draw, too; the same numbers give the same bytes.
Labels are strangers' text: they are drawn as they are (a `$` starts no formula), shortened, and in fonts that have
their letters; a label that no installed font can draw stands there by its number.
"""

import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cli.files import replacing
from metrics.comparison import shown_interval
from metrics.details import NUM_BINS, bin_numbers
from metrics.subsets import COLUMNS, deciding_metric

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CONFUSION_MATRIX, RELIABILITY, SUBSETS = "confusion_matrix.png", "reliability.png", "subsets.png"
COVERAGE, SPECIALISTS = "coverage.png", "specialists.png"
MAX_NAMED_LABELS = 30  # more names than this cannot be read beside a picture of a page's width
MAX_COUNTED_LABELS = 15  # more counts than this cannot be read inside one
MAX_NAME_LENGTH = 18
# Okabe and Ito's colours, which people with any of the common colour blindnesses can tell apart.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#E69F00", "#009E73", "#767676"
BASE_FONT = "DejaVu Sans"  # comes with matplotlib
# These come with it, too: boxes for every letter there is, and parts of formulas under the numbers of letters.
NO_LETTERS = ("Last Resort", "STIX", "cm")


def draw_pictures(metrics: dict, labels: Sequence[str], folder: Path, prefix: str = "") -> list[str]:
    """Draw what an evaluation's numbers hold.

    Args:
        metrics: the content of a `metrics.json`; what it lacks (an older one has no confusion matrix) is not drawn.
        labels: names of the labels, in the order of the model's outputs.
        folder: where the PNG files are written; what stands there under their names is replaced.
        prefix: what their names begin with.

    Returns:
        The names of the files written.

    Raises:
        ValueError: When the confusion matrix has another number of labels than `labels`.
    """
    figures = {SUBSETS: _draw_subsets(metrics)}
    if metrics.get("baselines"):
        figures[SPECIALISTS] = _draw_specialists(metrics["baselines"])
    if "confusion_matrix" in metrics:
        figures[CONFUSION_MATRIX] = _draw_confusion_matrix(metrics["confusion_matrix"], labels)
    if "reliability" in metrics:
        figures[RELIABILITY] = _draw_reliability(metrics["reliability"])
    if "coverage" in metrics:
        figures[COVERAGE] = _draw_coverage(metrics["coverage"]["points"])
    for name, figure in figures.items():
        with replacing(folder / f"{prefix}{name}") as path:
            # "tight": the layout engines of matplotlib cut long names beside a square off.
            figure.savefig(path, format="png", dpi=120, bbox_inches="tight", metadata={"Software": None})
    return [f"{prefix}{name}" for name in figures]


# -- modality subsets -------------------------------------------------------------------------------------------------


def _draw_subsets(metrics: dict) -> "Figure":
    """One bar for each subset of modalities, on the rows that have every modality where there are such rows."""
    compared = metrics.get("complete_rows", metrics)
    table = compared["metrics"]
    name, is_higher_better = deciding_metric(next(iter(table.values())))
    heading, shown = COLUMNS[name]
    values = [row[name] for row in table.values()]
    sizes = [subset.count("+") + 1 for subset in table]
    colors = [{1: BLUE, max(sizes): GREEN}.get(size, ORANGE) for size in sizes]

    figure, axes = _figure(7.5, 1.3 + 0.42 * len(table))
    bars = axes.barh(range(len(table)), values, color=colors, height=0.72)
    axes.bar_label(bars, [shown(value) for value in values], padding=4, fontsize=10)
    axes.set_yticks(range(len(table)), [subset.replace("+", " + ") for subset in table], fontsize=10)
    axes.invert_yaxis()
    axes.set_xlim(0, max(values) * 1.12 or 1)
    axes.set_xlabel(heading if is_higher_better else f"{heading}, lower is better")
    if COLUMNS[name][1](0.5).endswith("%"):
        _percent_axis(axes.xaxis)
    axes.spines[["top", "right"]].set_visible(False)
    which = "that have every modality" if "complete_rows" in metrics else "of the evaluation"
    axes.set_title(f"{heading} on the {compared['num_rows']:,} rows {which}", fontsize=11)
    return figure


# -- specialists ------------------------------------------------------------------------------------------------------


def _draw_specialists(baselines: dict[str, dict]) -> "Figure":
    """For each subset the specialist, the fused model given the same, and the fused model given all."""
    name, is_higher_better = deciding_metric(next(iter(baselines.values()))["metrics"])
    heading, shown = COLUMNS[name]
    ways = {
        "metrics": ("specialist", ORANGE),
        "fused": ("fused model, given the same", BLUE),
        "fused_with_all": ("fused model, given all", GREEN),
    }
    height = 0.8 / len(ways)
    figure, axes = _figure(7.5, 1.5 + 0.72 * len(baselines))
    for number, (key, (label, color)) in enumerate(ways.items()):
        values = [result[key][name] for result in baselines.values()]
        places = [place + (number - 1) * height for place in range(len(values))]
        bars = axes.barh(places, values, color=color, height=0.9 * height, label=label)
        axes.bar_label(bars, [shown(value) for value in values], padding=4, fontsize=9)
    axes.set_yticks(range(len(baselines)), [_with_gain(name, *item) for item in baselines.items()], fontsize=10)
    axes.invert_yaxis()
    highest = max(result[key][name] for result in baselines.values() for key in ways)
    axes.set_xlim(0, highest * 1.12 or 1)
    direction = "" if is_higher_better else ", lower is better"
    below = "below a name: what the fused model, given the same, is better by (95 % interval)"
    axes.set_xlabel(f"{heading}{direction}\n\n{below}", fontsize=9)
    if shown(0.5).endswith("%"):
        _percent_axis(axes.xaxis)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, fontsize=9, frameon=False)
    return figure


def _with_gain(metric: str, subset: str, result: dict) -> str:
    """The name of a subset, and below it by how much the fused model is better, given the same."""
    return f"{subset.replace('+', ' + ')}\n{shown_interval(metric, result['interval'])}"


# -- confusion matrix -------------------------------------------------------------------------------------------------


def _draw_confusion_matrix(matrix: list[list[int]], labels: Sequence[str]) -> "Figure":
    """Counts of true against predicted labels; the colour is the share of a true label's rows."""
    import numpy as np

    counts = np.asarray(matrix)
    if counts.shape != (len(labels), len(labels)):
        raise ValueError(f"`confusion_matrix` has the shape {counts.shape}, but there are {len(labels)} `labels`")
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)

    size = min(max(4.0, 2.6 + 0.42 * len(labels)), 9.0)
    figure, axes = _figure(size + 1, size)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    colorbar = figure.colorbar(image, ax=axes, label="share of the true label's rows")
    _percent_axis(colorbar.ax.yaxis)
    axes.set(xlabel="predicted label", ylabel="true label")
    if len(labels) <= MAX_NAMED_LABELS:
        _name_ticks(axes, labels)
    else:
        axes.set_title(f"{len(labels)} labels by number, in the order of `id2label` in config.json", fontsize=10)
    if len(labels) <= MAX_COUNTED_LABELS:
        _write_counts(axes, counts, shares)
    return figure


def _name_ticks(axes, labels: Sequence[str]):
    names, families = _drawable(labels)
    fontsize = 10 if len(labels) <= 12 else 8
    places = range(len(labels))
    axes.set_xticks(places, names, fontsize=fontsize, fontfamily=families, rotation=45, ha="right", parse_math=False)
    axes.set_yticks(places, names, fontsize=fontsize, fontfamily=families, parse_math=False)
    for tick in axes.get_xticklabels():
        tick.set_rotation_mode("anchor")


def _write_counts(axes, counts, shares):
    """Each count in its cell, a zero left out; white on the dark cells."""
    for (row, column), count in _cells(counts):
        axes.text(
            column, row, f"{count:,}", ha="center", va="center", fontsize=9,
            color="white" if shares[row, column] > 0.5 else "black",
        )  # fmt: skip


def _cells(counts):
    import numpy as np

    return ((place, counts[tuple(place)]) for place in np.argwhere(counts))


# -- reliability ------------------------------------------------------------------------------------------------------


def _draw_reliability(bins: list[dict]) -> "Figure":
    """Above, how often an answer of a confidence is right; below, how many answers have that confidence."""
    import numpy as np

    confidence, accuracy, num_rows = (
        np.array([entry[key] for entry in bins]) for key in ("confidence", "accuracy", "num_rows")
    )
    shares = num_rows / num_rows.sum()
    figure, (upper, lower) = _figure(6, 6.4, nrows=2, sharex=True, height_ratios=[3, 1])
    upper.plot([0, 1], [0, 1], color=GREY, linestyle="--", label="calibrated: as often right as sure")
    upper.vlines(confidence, confidence, accuracy, color=ORANGE, linewidth=3, label="gap")
    # Not joined by a line: between a bin of one answer and one of hundreds it would draw the eye to chance.
    upper.scatter(
        confidence, accuracy, 25 + 175 * shares, color=BLUE, zorder=3, clip_on=False, label="answers of a bin"
    )
    upper.set(ylabel="accuracy", xlim=(0, 1.02), ylim=(0, 1.04))
    upper.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, fontsize=9, frameon=False)
    bars = lower.bar((bin_numbers(confidence) + 0.5) / NUM_BINS, shares, width=0.9 / NUM_BINS, color=BLUE)
    lower.bar_label(bars, [f"{count:,}" for count in num_rows], fontsize=7, padding=2)
    lower.set(xlabel="confidence of the answer", ylabel="share of answers", ylim=(0, 1.15))
    lower.set_yticks([0, 0.5, 1])
    for axis in (upper.xaxis, upper.yaxis, lower.yaxis):
        _percent_axis(axis)
    for axes in (upper, lower):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


# -- coverage ---------------------------------------------------------------------------------------------------------


def _draw_coverage(points: list[dict]) -> "Figure":
    """How often the answers are right when only the surest rows are answered."""
    coverage, accuracy = ([point[key] for point in points] for key in ("coverage", "accuracy"))
    figure, axes = _figure(6, 4.4)
    axes.plot(coverage, accuracy, color=BLUE, marker="o", markersize=4, clip_on=False, zorder=3)
    axes.axhline(accuracy[0], color=GREY, linestyle="--", label="every row is answered")
    lowest = min(accuracy)
    axes.set(xlabel="share of the rows that is answered, the surest first", ylabel="accuracy of these answers")
    axes.set(xlim=(0, 1.02), ylim=(max(0, lowest - 0.25 * (1 - lowest) - 0.005), 1 + 0.05 * (1 - lowest) + 0.001))
    axes.legend(loc="lower left", fontsize=9, frameon=False)
    _percent_axis(axes.xaxis)
    _percent_axis(axes.yaxis, decimals=None)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


# -- what all pictures share ------------------------------------------------------------------------------------------


def _figure(width: float, height: float, **subplots):
    """A figure that nothing but its caller knows, with its axes; the size is in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="compressed", facecolor="white")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(**subplots)


def _percent_axis(axis, decimals: int | None = 0):
    from matplotlib.ticker import PercentFormatter

    axis.set_major_formatter(PercentFormatter(1.0, decimals=decimals))


def _drawable(labels: Sequence[str]) -> tuple[list[str], list[str]]:
    """Give the names as they can be drawn, and the families of fonts that have their letters.

    A label with a letter that no installed font has is drawn as its number in `id2label`: boxes say less.
    """
    names = [_shortened(label) for label in labels]
    families, missing = _font_families({letter for name in names for letter in name})
    return [f"#{i}" if not name or missing & set(name) else name for i, name in enumerate(names)], families


def _shortened(label: str) -> str:
    """On one line, without letters that draw nothing, and no longer than fits beside a picture."""
    kept = "".join(c for c in " ".join(label.split()) if unicodedata.category(c)[0] != "C")
    width = 0
    for place, letter in enumerate(kept):
        width += 2 if unicodedata.east_asian_width(letter) in "WF" else 1
        if width > MAX_NAME_LENGTH:
            return kept[: place - 1].rstrip() + "…"
    return kept


def _font_families(letters: set[str]) -> tuple[list[str], set[str]]:
    """Give the fewest families, the base font first, that have the letters, and the letters that none has."""
    from matplotlib import font_manager

    families, missing = [BASE_FONT], _lacking(font_manager.findfont(BASE_FONT), letters)
    if not missing:
        return families, missing
    # Without serifs first, and of fonts for China, Japan and Korea the one of the mainland; then by name, so that the
    # same machine always draws the same.
    fonts = sorted(
        font_manager.fontManager.ttflist,
        key=lambda font: ("Sans" not in font.name, not font.name.endswith("SC"), font.name, font.fname),
    )
    for font in fonts:
        is_upright = font.style == "normal" and font.weight in (400, "normal", "regular")
        if missing and is_upright and not font.name.startswith(NO_LETTERS):
            still = _lacking(font.fname, missing)
            if still != missing:
                families.append(font.name)
                missing = still
    return families, missing


def _lacking(font_file: str, letters: set[str]) -> set[str]:
    """The letters that a font has no picture of; all of them where it cannot be opened (a font of bitmaps)."""
    from matplotlib.font_manager import get_font

    try:
        font = get_font(font_file)
    except (OSError, RuntimeError):
        return letters
    return {letter for letter in letters if not font.get_char_index(ord(letter))}
