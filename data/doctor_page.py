"""The doctor's page: one HTML file that asks nobody for anything, with its plots in it.

The plots are SVG in the page's own colours: they are drawn in marker colours, which are then replaced by those of the
style sheet, so that one drawing serves light and dark. Everything that a table holds (labels, names, cells) goes
through the template's or matplotlib's escaping.
"""

import io
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data.doctor_checks import presence_table
from data.doctor_findings import SEVERITIES, plural, share, shown
from data.labels import REGRESSION

if TYPE_CHECKING:
    from data.doctor import Diagnosis
    from data.doctor_cells import Split

TEMPLATES = Path(__file__).parent / "templates"
_INK = "#010203"
_SERIES = ("#0a0b01", "#0a0b02", "#0a0b03")
_MAX_BARS = 20
_MAX_POINTS = 3_000
_NUM_BINS = 40


@dataclass(frozen=True)
class Plot:
    """A drawing with its title and what it shows in words, for who does not see it."""

    title: str
    alt: str
    svg: str


def render_page(diagnosis: "Diagnosis") -> str:
    """The page as HTML."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["coded"] = _coded
    splits = diagnosis.records.splits
    return environment.get_template("doctor.html").render(
        title=shown(Path(splits[0].table.name).name, 80),
        splits=[(split.name, split.table.name, len(split)) for split in splits],
        presence=_presence_rows(splits),
        labels=None if diagnosis.labels.map is None else shown(diagnosis.labels.map.describe(), 400),
        counts=[(severity, diagnosis.num(severity)) for severity in SEVERITIES],
        findings=diagnosis.findings,
        plots=[(plot.title, plot.alt, Markup(plot.svg)) for plot in draw_plots(diagnosis)],
    )


def _coded(text: str) -> str:
    """The text, escaped, with what stands in backticks as code."""
    from markupsafe import Markup, escape

    return Markup(re.sub("`([^`]*)`", r"<code>\1</code>", str(escape(text))))


def _presence_rows(splits: Sequence["Split"]) -> list[tuple[str, list[str]]]:
    tables = [presence_table(split) for split in splits]
    found = dict.fromkeys(name for table in tables for name in table)
    names = sorted(found, key=lambda name: name.count("+"))
    return [(name, [share(table[name], 1) if name in table else "–" for table in tables]) for name in names]


# --- Plots


def draw_plots(diagnosis: "Diagnosis") -> Iterator[Plot]:
    """Labels, and the lengths and sizes of what the cells hold."""
    yield from _label_plots(diagnosis)
    splits, contents = diagnosis.records.splits, diagnosis.records.contents
    pieces = [split.text["pieces"][split.text["pieces"] > 0] for split in splits]
    yield from _histogram("Length of the texts", "words and marks", splits, pieces)
    if contents["image"]:
        yield _sizes(diagnosis)
    facts = [
        ("Duration of the sounds", "seconds", "seconds"),
        ("Silence in the sounds", "share of the clip that is 40 dB below its loudest moment", "silence"),
    ]
    for title, axis, fact in facts:
        values = [
            np.array([contents["audio"][at].facts[fact] for at in _distinct(split, "audio")]) for split in splits
        ]
        yield from _histogram(title, axis, splits, values)


def _distinct(split: "Split", modality: str) -> np.ndarray:
    return np.unique(split.ids[modality][split.ids[modality] >= 0])


def _label_plots(diagnosis: "Diagnosis") -> Iterator[Plot]:
    labels, splits = diagnosis.labels, diagnosis.records.splits
    if labels.map is None:
        return
    if labels.map.problem_type == REGRESSION:
        for at, name in enumerate(labels.map.names):
            values = [encoded.reshape(len(encoded), -1)[:, at] for encoded in labels.encoded]
            yield from _histogram(
                "Labels", shown(name, 40), splits, [column[np.isfinite(column)] for column in values]
            )
        return
    order = np.argsort(-labels.counts(0), kind="stable")[:_MAX_BARS]
    names = [shown(labels.map.names[at], 24) for at in order]
    shares = [labels.counts(number)[order] / max(len(split), 1) for number, split in enumerate(splits)]
    more = f" The {_MAX_BARS} most frequent of {labels.map.num_labels}." if labels.map.num_labels > _MAX_BARS else ""
    told = ", ".join(f"{name} {share(part, 1)}" for name, part in zip(names, shares[0], strict=True))

    def draw(axes: Any) -> None:
        places, height = np.arange(len(names)), 0.8 / len(splits)
        for number, split in enumerate(splits):
            axes.barh(places + number * height, 100 * shares[number], height, color=_color(number), label=split.name)
        axes.set_yticks(places + 0.4 - height / 2, names)
        axes.invert_yaxis()
        axes.set_xlabel("% of the rows")

    alt = f"Bar chart: share of the rows with each label.{more} In {splits[0].name}: {told}."
    yield _plot("Labels", alt, draw, has_legend=len(splits) > 1, height=1.2 + 0.26 * len(names))


def _histogram(title: str, axis: str, splits: Sequence["Split"], values: Sequence[np.ndarray]) -> Iterator[Plot]:
    """Shares, so that a small split can be compared with a large one; a log scale where a few are far longer."""
    known = np.concatenate(values)
    if not len(known):
        return
    low, high = float(known.min()), float(known.max())
    is_log = low > 0 and high > 50 * float(np.median(known))
    edges = (
        np.geomspace(low, high, _NUM_BINS) if is_log else np.linspace(low, high if high > low else low + 1, _NUM_BINS)
    )

    def draw(axes: Any) -> None:
        for number, (split, column) in enumerate(zip(splits, values, strict=True)):
            if len(column):
                weights = np.full(len(column), 100 / len(column))
                axes.hist(
                    column,
                    edges,
                    weights=weights,
                    histtype="step",
                    linewidth=1.8,
                    color=_color(number),
                    label=split.name,
                )
        if is_log:
            axes.set_xscale("log")
        axes.set_xlabel(axis)
        axes.set_ylabel("%")

    middle = "; ".join(
        f"{split.name}: {np.min(column):.4g} to {np.max(column):.4g}, median {np.median(column):.4g}"
        for split, column in zip(splits, values, strict=True)
        if len(column)
    )
    yield _plot(title, f"Histogram of {axis}. {middle}.", draw, has_legend=len(splits) > 1)


def _sizes(diagnosis: "Diagnosis") -> Plot:
    """Width against height of the distinct pictures; the larger a dot, the more have this size."""
    sizes = np.array([(c.facts["width"], c.facts["height"]) for c in diagnosis.records.contents["image"]])
    distinct, counts = np.unique(sizes, axis=0, return_counts=True)
    most = np.argsort(-counts, kind="stable")[:_MAX_POINTS]

    def draw(axes: Any) -> None:
        area = 12 + 180 * np.sqrt(counts[most] / counts.max())
        axes.scatter(distinct[most, 0], distinct[most, 1], s=area, color=_color(0), alpha=0.5, linewidth=0)
        axes.set_xlabel("width in pixels")
        axes.set_ylabel("height in pixels")

    width, height = distinct[most[0]]
    alt = (
        f"Scatter plot of width against height: {len(distinct):,} different sizes of {len(sizes):,} different "
        f"{plural('image')}; {width} × {height} is the most frequent ({share(counts[most[0]], len(sizes))})."
    )
    return _plot("Sizes of the pictures", alt, draw, has_legend=False)


def _color(number: int) -> str:
    return _SERIES[number % len(_SERIES)]


def _plot(title: str, alt: str, draw: Callable[[Any], None], *, has_legend: bool, height: float = 3.0) -> Plot:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    # A label with two dollar signs is no formula.
    settings = {"svg.fonttype": "none", "text.parse_math": False, "svg.hashsalt": title + alt, "font.size": 10}
    colors = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
    with rc_context(settings | dict.fromkeys(colors, _INK)):
        figure = Figure(figsize=(5.6, height), layout="constrained")
        axes = figure.subplots()
        draw(axes)
        axes.spines[["top", "right"]].set_visible(False)
        if has_legend:
            figure.legend(frameon=False, loc="outside upper right", ncols=len(_SERIES))
        drawing = io.StringIO()
        figure.savefig(
            drawing,
            format="svg",
            transparent=True,
            metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
        )
    return Plot(title, alt, _in_page_colors(drawing.getvalue()))


def _in_page_colors(svg: str) -> str:
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # numbered anew in each drawing, and unique in a page they must be
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' (?:width|height)="[\d.]+pt"', "", svg, count=2)
    svg = svg.replace(_INK, "currentColor")
    for number, color in enumerate(_SERIES, 1):
        svg = svg.replace(color, f"var(--series-{number})")
    return svg.replace("<svg ", '<svg aria-hidden="true" focusable="false" ', 1)
