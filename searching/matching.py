"""Does this caption fit this picture? A cosine of two vectors, and a probability where an index knows what is usual.

Unusual: the cosine by itself says little, since every model spreads its vectors in its own way: 0.7 may be a perfect
fit or what any two rows have. So an index that holds the vectors of both modalities compares the pairs of its own rows
with mismatched ones, and turns a cosine into the probability that a pair belongs together, of two that come one from
each lot. It is about rows such as those of the index; on rows that the model was trained with it flatters.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from searching.reader import Reader
    from searching.store import View

MAX_PAIRS = 10_000  # enough for two numbers
MIN_PAIRS = 20  # of each lot; fewer say too little
SAME_CELL = 1 - 1e-6  # cosine from which two cells count as the same


def match(reader: "Reader", sample: Mapping[str, Any], calibration: Mapping[str, dict] | None = None) -> list[dict]:
    """Score every pair of what a sample holds.

    Args:
        reader: the model.
        sample: two or all of text (string), image and audio (paths).
        calibration: that of an index of the same model; None: no probabilities.

    Returns:
        For each pair `pair` (such as "text+image"), `cosine` (-1 to 1), and `probability` with `calibrated_on`, both
        None where nothing is known.
    """
    given = [name for name in reader.modalities if name in sample]
    vectors = dict(zip(given, reader.embed(sample, [(name,) for name in given]), strict=True))
    empty = [name for name in given if not vectors[name].any()]
    if empty:
        raise ValueError(f"`{empty[0]}` holds nothing that the model reads: give another, or leave it out.")
    answers = []
    for first, second in itertools.combinations(given, 2):
        pair, cosine = f"{first}+{second}", float((vectors[first] @ vectors[second].T).item())
        known = (calibration or {}).get(pair)
        answers.append(
            {
                "pair": pair,
                "cosine": max(-1.0, min(1.0, cosine)),
                "probability": None if known is None else probability(cosine, known),
                "calibrated_on": None if known is None else {k: known[k] for k in ("num_pairs", "mismatched", "auc")},
            }
        )
    return answers


def probability(cosine: float, known: Mapping[str, Any]) -> float:
    """Give the probability that a pair of this cosine belongs together, where every other pair does."""
    from scipy.special import expit

    return float(expit(known["slope"] * cosine + known["intercept"]))


def describe(answers: Sequence[Mapping[str, Any]]) -> str:
    """Lay scores out for people, one pair a line."""
    lines = []
    for answer in answers:
        line = f"{answer['pair']}  cosine {answer['cosine']:+.4f}"
        if (known := answer["calibrated_on"]) is not None:
            line += (
                f"  probability {answer['probability']:.1%} (from {known['num_pairs'][0]:,} pairs of the index and "
                f"{known['num_pairs'][1]:,} of {known['mismatched']}; a pair scores above a mismatch in "
                f"{known['auc']:.1%} of cases)"
            )
        lines.append(line)
    return "\n".join(lines)


# -- what is usual ----------------------------------------------------------------------------------------------------


def calibrations(views: Mapping[str, "View"], labels: Sequence[Any] | None) -> dict[str, dict]:
    """Fit each pair of modalities for which an index holds vectors of both.

    Args:
        views: name -> vectors; those of single modalities count.
        labels: of all rows; where they are known, a mismatched pair has two labels.

    Returns:
        Pair -> `slope` and `intercept` of the log-odds, `num_pairs` of each lot, `mismatched` (what they are) and
        `auc`, how often a pair that belongs together has the higher cosine. Pairs with too few rows are left out.
    """
    found = {}
    for first, second in itertools.combinations((name for name in ("text", "image", "audio") if name in views), 2):
        fitted = _fitted(*_lots(views[first], views[second], labels))
        if fitted is not None:
            told = "rows with another label" if labels is not None else "rows with other cells"
            found[f"{first}+{second}"] = {**fitted, "mismatched": told}
    return found


def _lots(first: "View", second: "View", labels: Sequence[Any] | None) -> tuple["np.ndarray", "np.ndarray"]:
    """Cosines of rows with themselves, and of rows with others."""
    import numpy as np

    noise = np.random.default_rng(0)
    both, left, right = np.intersect1d(first.positions, second.positions, return_indices=True)
    chosen = np.sort(noise.permutation(len(both))[:MAX_PAIRS])
    left, right = (view.vectors[places[chosen]].astype("float32") for view, places in ((first, left), (second, right)))
    other = noise.permutation(len(chosen))
    if labels is None:
        same = np.maximum((left * left[other]).sum(axis=1), (right * right[other]).sum(axis=1)) > SAME_CELL
    else:
        names = np.array([str(labels[position]) for position in both[chosen]])
        same = names == names[other]
    return (left * right).sum(axis=1), (left * right[other]).sum(axis=1)[~same]


def _fitted(together: "np.ndarray", apart: "np.ndarray") -> dict[str, Any] | None:
    """Logistic regression of the cosine (Platt scaling), both lots weighing the same."""
    import numpy as np
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score

    if min(len(together), len(apart)) < MIN_PAIRS:
        return None
    cosines = np.concatenate([together, apart]).astype(float)
    belongs = np.arange(len(cosines)) < len(together)
    # Cosines lie close together: of that scale, the usual penalty would hold the slope back.
    spread = cosines.std() or 1.0
    fitted = LogisticRegression(class_weight="balanced").fit(cosines[:, None] / spread, belongs)
    return {
        "slope": float(fitted.coef_[0, 0] / spread),
        "intercept": float(fitted.intercept_[0]),
        "num_pairs": [len(together), len(apart)],
        "auc": float(roc_auc_score(belongs, cosines)),
    }
