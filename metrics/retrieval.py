"""How well one modality finds another: recall, median rank and mean average precision, in every direction.

Unusual: items of equal score are not in the order in which they happened to lie. Every number is its mean over all
orders of the tied ones, so that a model which gives every row the same vector does exactly as well as chance, and
ten rows with the same text share what they find. Scores that differ by rounding alone count as equal.

Two questions are asked of the rows that have both modalities of a direction. Does a row's text find the sound of the
same row (recall, median rank)? Do sounds of the same class come first (mean average precision)? Beside the model's
vectors stand chance, exactly, and the classifier: the cosine of the probabilities that each modality alone gets.
Nothing heavy is imported with this file.
"""

import itertools
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from metrics.subsets import MODALITIES, probabilities, problem_type, subset_name
from metrics.vectors import Embedded, embed_rows

if TYPE_CHECKING:
    import numpy as np
    from accelerate import Accelerator

RECALL_AT = (1, 5, 10)
SCORE_DECIMALS = 6  # the vectors of one text in two batches differ by 1e-7
MAX_SCORES = 1_000_000  # in memory at once: some 100 MB with what is computed of them
RANKINGS = {"model": "the model", "classifier": "its classifier", "random": "chance"}


def evaluate_retrieval(
    model, dataloader: Iterable[dict], *, accelerator: "Accelerator | None" = None, progress: bool = True
) -> dict:
    """Measure every direction between two of the model's modalities; arguments as for `embed_rows`.

    Returns:
        See `retrieval_of_rows`.

    Raises:
        ValueError: When the model reads one modality only, when no row has two, and as `embed_rows`.
    """
    config = (model if accelerator is None else accelerator.unwrap_model(model)).config
    if len(config.modalities) < 2:
        raise ValueError(
            f"the model reads only {config.modalities[0]}: retrieval needs a model that reads two modalities or more."
        )
    subsets = [(modality,) for modality in config.modalities]
    embedded = embed_rows(model, dataloader, subsets, with_logits=True, accelerator=accelerator, progress=progress)
    # Of several tasks none says which rows belong together.
    problem = problem_type(config) if getattr(config, "tasks", None) is None else "regression"
    result = retrieval_of_rows(embedded, problem, dict(config.id2label))
    return {**result, "contrastive_weight": getattr(config, "contrastive_weight", 0.0)}


def retrieval_of_rows(embedded: Embedded, problem: str, id2label: dict[int, str]) -> dict:
    """Measure every direction between the modalities of embedded rows.

    Args:
        embedded: vectors and logits of each modality alone.
        problem: problem type of the model; a regression has no classes, hence no mean average precision.
        id2label: names of the classes.

    Returns:
        `{"num_rows": N, "directions": {"text->audio": {…}}}`, ready for JSON. Of each direction: `num_rows` that have
        both, `num_left_out` that lack one, and the metrics of the rankings `model`, `classifier` and `random`
        (None where no row has both, or where the problem has no classes).

    Raises:
        ValueError: When no row has two of the modalities.
    """
    directions = {}
    for source, target in itertools.permutations(embedded.vectors, 2):
        columns = [MODALITIES.index(source), MODALITIES.index(target)]
        chosen = embedded.presence[:, columns].all(axis=1)
        directions[f"{source}->{target}"] = {
            "num_rows": int(chosen.sum()),
            "num_left_out": int((~chosen).sum()),
            **_direction(embedded, source, target, chosen, problem, id2label),
        }
    if not any(direction["num_rows"] for direction in directions.values()):
        raise ValueError(
            f"no row has two of {', '.join(embedded.vectors)}: nothing can be found by another modality. Name the "
            "columns of two of them."
        )
    return {"num_rows": len(embedded.presence), "directions": directions}


def _direction(
    embedded: Embedded, source: str, target: str, chosen: "np.ndarray", problem: str, id2label: dict[int, str]
) -> dict:
    if not chosen.any():
        return dict.fromkeys(RANKINGS)
    has_classes = problem != "regression"
    is_labelled = has_classes and embedded.labels is not None
    classes = class_matrix(embedded.labels[chosen], len(id2label)) if is_labelled else None
    names = [id2label[index] for index in range(len(id2label))]
    queries, items = (embedded.vectors[subset_name([name])][chosen] for name in (source, target))
    result = {"model": ranking_metrics(queries, items, classes, names), "classifier": None}
    if has_classes:
        says = (unit_rows(probabilities(problem, embedded.logits[name][chosen])) for name in (source, target))
        result["classifier"] = ranking_metrics(*says, classes, names)
    return {**result, "random": random_metrics(int(chosen.sum()), classes, names)}


def unit_rows(values: "np.ndarray") -> "np.ndarray":
    """Bring rows (N, D) to length 1; zeros stay zeros."""
    import numpy as np

    lengths = np.linalg.norm(values, axis=1, keepdims=True)
    return values / np.where(lengths > 0, lengths, 1)


def class_matrix(labels: "np.ndarray", num_labels: int) -> "np.ndarray":
    """Give (N, L) booleans, True where a row is of a class; a row without a label (-100, NaN) is of none."""
    import numpy as np

    labels = np.asarray(labels)
    if labels.ndim == 1:
        return labels[:, None] == np.arange(num_labels)
    return labels > 0.5


# -- one direction ----------------------------------------------------------------------------------------------------


def ranking_metrics(
    queries: "np.ndarray", items: "np.ndarray", classes: "np.ndarray | None" = None, names: Iterable[str] = ()
) -> dict:
    """Rank all items for every query and measure where the right ones stand; memory stays flat.

    Args:
        queries: (N, D) unit vectors.
        items: (N, D) unit vectors; item i belongs to query i.
        classes: (N, L) booleans, the classes of each row; None: only the pairs are measured.
        names: names of the classes.

    Returns:
        `recall_at_1` …, `median_rank` (from 1, the best), and with classes `mean_average_precision`, over the queries
        for which there is anything to find, also under `mean_average_precision_by_class`; None where there is none.
    """
    import numpy as np

    above, tied = (np.concatenate(part) for part in zip(*_pair_places(queries, items), strict=True))
    result = {f"recall_at_{k}": float(np.clip((k - above) / tied, 0, 1).mean()) for k in RECALL_AT}
    result["median_rank"] = float(np.median(above + (tied + 1) / 2))
    if classes is None:
        return {**result, "mean_average_precision": None}
    labelled = classes.any(axis=1)
    precisions = np.full(len(queries), np.nan)
    if labelled.any():
        precisions[labelled] = _precisions(queries[labelled], items[labelled], classes[labelled])
    return {**result, **_mean_precisions(precisions, classes, names)}


def _chunks(num_rows: int) -> Iterator[slice]:
    """Cut the queries so that their scores with all items stay within `MAX_SCORES`."""
    size = max(1, MAX_SCORES // max(num_rows, 1))
    yield from (slice(start, start + size) for start in range(0, num_rows, size))


def _scores(queries: "np.ndarray", items: "np.ndarray") -> "np.ndarray":
    """Cosines (Q, N); those that differ by rounding alone are made equal."""
    return (queries.astype("float64") @ items.astype("float64").T).round(SCORE_DECIMALS)


def _pair_places(queries: "np.ndarray", items: "np.ndarray") -> Iterator[tuple["np.ndarray", "np.ndarray"]]:
    """For every query: how many items score above its own, and how many as its own, itself among them."""
    import numpy as np

    for rows in _chunks(len(queries)):
        scores = _scores(queries[rows], items)
        own = scores[np.arange(len(scores)), np.arange(len(queries))[rows]][:, None]
        yield (scores > own).sum(axis=1), (scores == own).sum(axis=1)


def _precisions(queries: "np.ndarray", items: "np.ndarray", classes: "np.ndarray") -> "np.ndarray":
    import numpy as np

    parts = [
        average_precisions(_scores(queries[rows], items), _share_a_class(classes[rows], classes))
        for rows in _chunks(len(queries))
    ]
    return np.concatenate(parts)


def _share_a_class(some: "np.ndarray", others: "np.ndarray") -> "np.ndarray":
    """Give (S, O), True where a row of the one shares a class with a row of the other; as numbers, which is faster."""
    return some.astype("float32") @ others.astype("float32").T > 0


def average_precisions(scores: "np.ndarray", relevant: "np.ndarray") -> "np.ndarray":
    """Give the average precision (Q,) of each ranking, its mean over all orders of items of equal score.

    Args:
        scores: (Q, N), higher is better.
        relevant: (Q, N) booleans, at least one True a row.

    Source: McSherry & Najork 2008, "Computing Information Retrieval Performance Measures Efficiently in the Presence
    of Tied Scores", section 3.
    """
    import numpy as np

    order = np.argsort(-scores, axis=1)
    ranked = np.take_along_axis(scores, order, axis=1)
    hits = np.take_along_axis(relevant, order, axis=1)
    places = np.arange(scores.shape[1])  # from 0
    starts = np.ones_like(hits)
    starts[:, 1:] = ranked[:, 1:] != ranked[:, :-1]
    first = np.maximum.accumulate(np.where(starts, places, 0), axis=1)  # where the tied items begin, and end
    ends = np.ones_like(hits)
    ends[:, :-1] = starts[:, 1:]
    last = np.minimum.accumulate(np.where(ends, places, places[-1])[:, ::-1], axis=1)[:, ::-1]
    found = np.pad(hits.cumsum(axis=1), ((0, 0), (1, 0)))  # (Q, N + 1)
    above = np.take_along_axis(found, first, axis=1)
    within = np.take_along_axis(found, last + 1, axis=1) - above
    size = last - first + 1
    # At a place among tied items stands a relevant one with probability within / size; then, of the places before it
    # among them, each holds one of the others with (within - 1) / (size - 1).
    precision = (above + 1 + (places - first) * (within - 1) / np.maximum(size - 1, 1)) / (places + 1)
    return (within / size * precision).sum(axis=1) / found[:, -1]


def random_metrics(num_rows: int, classes: "np.ndarray | None" = None, names: Iterable[str] = ()) -> dict:
    """Give what a random order of the items is expected to score, exactly; arguments as for `ranking_metrics`."""
    import numpy as np

    result = {f"recall_at_{k}": min(1.0, k / num_rows) for k in RECALL_AT} | {"median_rank": (num_rows + 1) / 2}
    if classes is None:
        return {**result, "mean_average_precision": None}
    labelled = classes.any(axis=1)
    known = classes[labelled]
    counts = [_share_a_class(known[rows], known).sum(axis=1) for rows in _chunks(len(known))]
    precisions = np.full(num_rows, np.nan)
    if counts:
        precisions[labelled] = random_average_precision(np.concatenate(counts), len(known))
    return {**result, **_mean_precisions(precisions, classes, names)}


def random_average_precision(num_relevant: "np.ndarray", num_items: int) -> "np.ndarray":
    """Give the mean of the average precision over all orders of the items, `average_precisions` of equal scores."""
    import numpy as np

    harmonic = (1 / np.arange(1, num_items + 1)).sum()
    others = (num_relevant - 1) / max(num_items - 1, 1)
    return (harmonic + others * (num_items - harmonic)) / num_items


def _mean_precisions(precisions: "np.ndarray", classes: "np.ndarray", names: Iterable[str]) -> dict:
    """Mean over the queries that have a class, and over those of each class."""
    import numpy as np

    known = ~np.isnan(precisions)
    by_class = {
        name: float(precisions[known & column].mean()) if (known & column).any() else None
        for name, column in zip(names, classes.T, strict=True)
    }
    mean = float(precisions[known].mean()) if known.any() else None
    return {"mean_average_precision": mean, "mean_average_precision_by_class": by_class}


# -- for people -------------------------------------------------------------------------------------------------------


def format_retrieval(result: dict) -> str:
    """Lay the result of `evaluate_retrieval` out; a value that is not defined shows as a dash."""
    heading = ["direction", "ranked by", "rows", *(f"R@{k}" for k in RECALL_AT), "median rank", "mAP by class"]
    lines = [heading]
    for name, direction in result["directions"].items():
        for ranking, title in RANKINGS.items():
            if direction[ranking] is not None:
                lines.append([name, title, f"{direction['num_rows']:,}", *_cells(direction[ranking])])
    widths = [max(len(line[i]) for line in lines) for i in range(len(heading))]
    shown = [
        "  ".join([cell.ljust(w) for cell, w in cells[:2]] + [cell.rjust(w) for cell, w in cells[2:]])
        for cells in ([*zip(line, widths, strict=True)] for line in lines)
    ]
    return "\n".join([f"Retrieval among {result['num_rows']:,} rows:", *shown])


def _cells(metrics: dict) -> list[str]:
    mean = metrics["mean_average_precision"]
    recalls = [f"{metrics[f'recall_at_{k}']:.1%}" for k in RECALL_AT]
    return [*recalls, f"{metrics['median_rank']:,.1f}", "–" if mean is None else f"{mean:.1%}"]


def retrieval_warnings(result: dict) -> list[str]:
    """Give a sentence for what should make a reader careful."""
    sentences = []
    if not result["contrastive_weight"]:
        sentences.append(
            "the model was trained without `--contrastive_weight`: only its classifier has brought the modalities "
            "together, so a row's own pair can hardly be told from others of its class."
        )
    for name, direction in result["directions"].items():
        if direction["num_left_out"]:
            sentences.append(f"{name}: {direction['num_left_out']:,} rows lack one of the two and were left out.")
        scores = [(direction[ranking] or {}).get("mean_average_precision") for ranking in ("model", "classifier")]
        if None not in scores and scores[0] < scores[1]:
            sentences.append(
                f"{name}: the vectors do worse than the classifier's answers: mAP {scores[0]:.1%} against "
                f"{scores[1]:.1%}."
            )
    return sentences
