"""What the page shows of an answer, as HTML: ranks, shares, words, tables.

Unusual here: the HTML is made by hand, so that bars have numbers beside them, tables have headers, and a screen reader
gets sentences. Whatever a visitor or a model's author wrote (texts, labels, names of columns) passes `safe`, and lands
in text or in a quoted attribute, nowhere else.
"""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from cli.scored import predicted_labels
from space.texts import TEXTS, tell

MAX_RANKS = 8
MAX_STRONGEST = 3
# name in `metrics.json`: (name on the page, how it is written)
METRICS = {
    "accuracy": ("Accuracy", "{:.1%}"),
    "micro_f1": ("Micro F1", "{:.1%}"),
    "macro_f1": ("Macro F1", "{:.1%}"),
    "mean_average_precision": ("mAP", "{:.1%}"),
    "expected_calibration_error": ("Calibration error", "{:.3f}"),
    "rank_mae": ("Mean absolute error in ranks", "{:.3f}"),
    "quadratic_kappa": ("Quadratic kappa", "{:.3f}"),
    "mae": ("Mean absolute error", "{:.4g}"),
    "pearson_r": ("Pearson r", "{:.3f}"),
}


def safe(text: Any) -> str:
    """Make a stranger's text plain in HTML."""
    return escape(str(text), quote=True)


def percent(value: float) -> str:
    if value < 0.0005:
        return "≈0%"
    return f"{value:.1%}" if value < 0.9995 else "100%"


def score_text(value: float, function: str) -> str:
    """Give a score as people read it: a probability in percent, a number of a regression with four digits."""
    return f"{value:.4g}" if function == "none" else percent(value)


def heading(level: int, text: str) -> str:
    return f"<h{level}>{safe(text)}</h{level}>"


def note(text: str, kind: str = "note") -> str:
    """Give one line of small print; `kind` is "note", "pending", "warning" or "error"."""
    return f'<p class="mm-{kind}">{safe(text)}</p>'


# -- the answer -------------------------------------------------------------------------------------------------------


def answer_view(
    language: str,
    ranked: Sequence[Mapping[str, Any]],
    problem_type: str,
    without: Sequence[str] = (),
    thresholds: Mapping[str, float] | None = None,
) -> str:
    """Give the ranked labels with their confidence.

    Args:
        language: of the sentences.
        ranked: labels with scores, best first.
        problem_type: of the model.
        without: modalities that were turned off.
        thresholds: of a multi-label model, as `cli.scored.label_thresholds` gives them.
    """
    if problem_type == "regression":
        rows = "".join(f"<li><b>{safe(e['label'])}</b> {e['score']:.4g}</li>" for e in ranked)
        body = f'<ul class="mm-numbers">{rows}</ul>'
    else:
        body = best_line(language, ranked, problem_type, thresholds) + ranks(language, ranked)
    return heading(2, tell(language, "answer")) + without_note(language, without) + body


def without_note(language: str, without: Sequence[str]) -> str:
    if not without:
        return ""
    names = tell(language, "and").join(tell(language, name).lower() for name in without)
    return note(tell(language, "answer.without", names=names), "without")


def best_line(
    language: str,
    ranked: Sequence[Mapping[str, Any]],
    problem_type: str,
    thresholds: Mapping[str, float] | None = None,
) -> str:
    """Give the answer in large letters; of a multi-label model all labels that fit."""
    best = list(ranked[:1])
    if problem_type == "multi_label_classification":
        fitting = predicted_labels({entry["label"]: entry["score"] for entry in ranked}, thresholds)
        best = [entry for entry in ranked if entry["label"] in fitting]
    if not best:
        return f'<p class="mm-best">{safe(tell(language, "answer.none_fits"))}</p>'
    names = " ".join(f"<strong>{safe(e['label'])}</strong> <span>{percent(e['score'])}</span>" for e in best)
    return f'<p class="mm-best">{names}</p>'


def ranks(language: str, ranked: Sequence[Mapping[str, Any]]) -> str:
    shown, rest = ranked[:MAX_RANKS], ranked[MAX_RANKS:]
    rows = "".join(
        f'<li><span class="mm-name">{safe(entry["label"])}</span>{track(entry["score"])}'
        f'<span class="mm-score">{percent(entry["score"])}</span></li>'
        for entry in shown
    )
    if not rest:
        return f'<ol class="mm-ranks">{rows}</ol>'
    below = percent(max(0.001, shown[-1]["score"]))
    return f'<ol class="mm-ranks">{rows}</ol>' + note(tell(language, "answer.more", count=len(rest), score=below))


def track(share: float) -> str:
    """Give a bar from zero, as long as the share; the number stands beside it in words."""
    return f'<span class="mm-track" aria-hidden="true"><span style="width:{100 * share:.1f}%"></span></span>'


def refusal_view(language: str, message: str) -> str:
    """Give what is shown where an answer would stand."""
    return f"{heading(2, tell(language, 'refused'))}{note(message, 'error')}"


# -- shares of the modalities -----------------------------------------------------------------------------------------


def contributions_view(language: str, explanation: Mapping[str, Any]) -> str:
    """Give a bar from zero for each modality's share in the score, with its number."""
    shares = explanation["modalities"]
    largest = max((abs(share) for share in shares.values() if share is not None), default=0) or 1
    function = explanation["function"]
    rows = "".join(contribution_row(language, name, share, largest, function) for name, share in shares.items())
    whole = tell(
        language, "contributions.sum",
        baseline=score_text(explanation["baseline"], function), score=score_text(explanation["score"], function),
    )  # fmt: skip
    return (
        heading(3, tell(language, "contributions", label=explanation["label"]))
        + f'<ul class="mm-shares">{rows}</ul>'
        + note(f"{whole} {tell(language, 'contributions.hint')}")
    )


def contribution_row(language: str, name: str, share: float | None, largest: float, function: str) -> str:
    if share is None:
        told, bar = tell(language, "absent"), ""
    else:
        told = signed_score(language, share, function)
        side = "for" if share >= 0 else "against"
        bar = f'<span class="mm-{side}" style="width:{50 * abs(share) / largest:.1f}%"></span>'
    return (
        f'<li><span class="mm-name">{safe(tell(language, name))}</span>'
        f'<span class="mm-signed" aria-hidden="true">{bar}</span><span class="mm-score">{safe(told)}</span></li>'
    )


def signed_score(language: str, share: float, function: str) -> str:
    """Give a share in percentage points, or as a plain number for a regression, with its sign."""
    if function == "none":
        return signed(f"{share:+.3g}")
    return tell(language, "points", value=signed(f"{100 * share:+.1f}"))


def signed(number: str) -> str:
    return number.replace("-", "\u2212")  # a real minus, as wide as the plus


def alone_view(language: str, explanation: Mapping[str, Any]) -> str:
    """Give a table of what each modality alone would have said."""
    alone = {name: ranked for name, ranked in explanation["subsets"].items() if "+" not in name}
    title = heading(3, tell(language, "alone"))
    if len(alone) < 2:
        return title + note(tell(language, "alone.one"))
    function = explanation["function"]
    rows = []
    for name, ranked in alone.items():
        entry = said_alone(ranked, explanation)
        rows.append([tell(language, name), entry["label"], score_text(entry["score"], function)])
    columns = [tell(language, f"alone.{key}") for key in ("input", "says", "score")]
    return title + table(columns, rows, tell(language, "alone"))


def said_alone(ranked: Sequence[Mapping[str, Any]], explanation: Mapping[str, Any]) -> Mapping[str, Any]:
    """Pick what is compared between modalities: the best label, or the explained one where labels do not compete."""
    if explanation["function"] == "softmax":
        return ranked[0]
    return next(entry for entry in ranked if entry["label"] == explanation["label"])


def disagreement_view(language: str, explanation: Mapping[str, Any]) -> str:
    """Give a plain sentence when modalities say different things, which the explanation judges."""
    if explanation["disagreement"] is None:
        return ""
    told = []
    for name, ranked in explanation["subsets"].items():
        if "+" not in name:
            entry = said_alone(ranked, explanation)
            score = score_text(entry["score"], explanation["function"])
            name = tell(language, name).lower()
            told.append(tell(language, "disagree.one", name=name, label=entry["label"], score=score))
    return note(tell(language, "disagree", told=tell(language, "and").join(told)), "warning")


# -- words ------------------------------------------------------------------------------------------------------------


def words_view(language: str, text: str, explanation: Mapping[str, Any]) -> str:
    """Give the visitor's text with each word coloured by what it weighs.

    Args:
        language: of the sentences.
        text: as the visitor wrote it.
        explanation: with details.
    """
    words = explanation["text"]["words"]
    largest = max((abs(word["score"]) for word in words), default=0)
    strongest = strongest_words(language, words, explanation) if largest else tell(language, "flat")
    last = words[-1]["end"] if words else 0
    is_cut = bool(text[last:].strip())
    return (
        heading(4, tell(language, "words"))
        + f'<p class="mm-words" dir="auto">{marked(text, words, largest)}</p>'
        + note(strongest)
        + (note(tell(language, "words.rest")) if is_cut else "")
    )


def marked(text: str, words: Sequence[Mapping[str, Any]], largest: float) -> str:
    """Put marks around the words; what lies between them stays as it is."""
    parts, end = [], 0
    for word in words:
        parts.append(safe(text[end : word["start"]]))
        parts.append(mark(text[word["start"] : word["end"]], word["score"], largest))
        end = word["end"]
    return "".join([*parts, f'<span class="mm-unread">{safe(text[end:])}</span>' if text[end:] else ""])


def mark(word: str, score: float, largest: float) -> str:
    weight = abs(score) / largest if largest else 0
    if weight < 0.05:
        return safe(word)
    side = "for" if score > 0 else "against"
    return f'<mark class="mm-{side}" style="--weight:{weight:.2f}">{safe(word)}</mark>'


def strongest_words(language: str, words: Sequence[Mapping[str, Any]], explanation: Mapping[str, Any]) -> str:
    ranked = sorted(words, key=lambda word: abs(word["score"]), reverse=True)[:MAX_STRONGEST]
    told = [
        f"“{word['text']}” {weight_text(language, word['score'], explanation)}" for word in ranked if word["score"]
    ]
    return tell(language, "words.strongest", told=tell(language, "and").join(told))


def weight_text(language: str, score: float, explanation: Mapping[str, Any]) -> str:
    """Give what a part weighs: a share of the attention, or of the score's change."""
    is_attention = explanation["method"] == "attention"
    return percent(score) if is_attention else signed_score(language, score, explanation["function"])


def legend(language: str, explanation: Mapping[str, Any]) -> str:
    """Say what the colours mean; attention has one colour and is no reason."""
    if explanation["method"] == "attention":
        swatches = [("for", "legend.looked")]
        text = tell(language, "inside.legend.attention")
    else:
        swatches = [("for", "legend.for"), ("against", "legend.against")]
        text = tell(language, "inside.legend")
    keys = "".join(
        f'<span class="mm-key mm-{side}">{safe(tell(language, key, label=explanation["label"]))}</span>'
        for side, key in swatches
    )
    return f'<p class="mm-legend">{keys}</p>{note(text)}'


# -- tables -----------------------------------------------------------------------------------------------------------


def table(columns: Iterable[Any], rows: Iterable[Iterable[Any]], caption: str, *, is_wide: bool = False) -> str:
    """Give a table with headers; a wide one scrolls in its own box, which the keyboard reaches."""
    head = "".join(f'<th scope="col">{safe(name)}</th>' for name in columns)
    body = "".join(f"<tr>{''.join(cells(row))}</tr>" for row in rows)
    caption = safe(caption)
    content = f"<table><caption>{caption}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    scroll = f' role="region" tabindex="0" aria-label="{caption}"' if is_wide else ""
    return f'<div class="mm-table"{scroll}>{content}</div>'


def cells(row: Iterable[Any]) -> Iterable[str]:
    for place, value in enumerate(row):
        text = safe(cell_text(value))
        yield f'<th scope="row">{text}</th>' if place == 0 else f"<td>{text}</td>"


def cell_text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= 200 else text[:200] + "…"


def subsets_view(language: str, metrics: Mapping[str, Any] | None) -> str:
    """Give the measurements of every subset of the modalities, the first one as bars as well."""
    subsets = (metrics or {}).get("subsets")
    title = heading(2, tell(language, "subsets"))
    if not subsets:
        return title + note(tell(language, "subsets.none"))
    names = [name for name in METRICS if any(name in values for values in subsets.values())]
    columns = [tell(language, "subsets.given"), *(METRICS[name][0] for name in names)]
    rows = [
        [subset_name(language, subset), *(metric_text(name, values.get(name)) for name in names)]
        for subset, values in subsets.items()
    ]
    caption = tell(language, "subsets.caption", rows=f"{metrics.get('num_rows') or 0:,}")
    return title + subset_bars(language, subsets, names) + table(columns, rows, caption, is_wide=True)


def subset_bars(language: str, subsets: Mapping[str, Mapping[str, float]], names: Sequence[str]) -> str:
    """Draw the first metric that is a share; hidden from screen readers, for the table says the same."""
    name = next((name for name in names if METRICS[name][1].endswith("%}")), None)
    values = {subset: values.get(name) for subset, values in subsets.items()}
    if name is None or None in values.values():
        return ""
    rows = "".join(
        f'<li><span class="mm-name">{safe(subset_name(language, subset))}</span>{track(min(max(value, 0), 1))}'
        f'<span class="mm-score">{percent(value)}</span></li>'
        for subset, value in values.items()
    )
    return f'<div aria-hidden="true">{note(METRICS[name][0])}<ul class="mm-ranks">{rows}</ul></div>'


def subset_name(language: str, subset: str) -> str:
    return " + ".join(tell(language, part) if part in TEXTS[language] else part for part in subset.split("+"))


def metric_text(name: str, value: float | None) -> str:
    return "–" if value is None else METRICS[name][1].format(value)
