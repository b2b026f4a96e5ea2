"""What betrays the label without being its cause: which cells are empty, file names, sizes, lengths, rates.

Each such trait is given alone to a small decision tree, which is asked about rows that it has not seen
(cross-validation), and compared with who always says the most frequent label. As that comparison is blind to rare
labels, a second tree weighs all labels alike. A trait of a file is judged on distinct files: a clip that stands in ten
rows would otherwise be on both sides.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data.doctor_cells import Records, Split
from data.doctor_findings import Finding, share, shown, singular
from data.doctor_labels import Labels
from data.labels import MULTI_LABEL, REGRESSION

_MAX_ROWS = 20_000
_MIN_ROWS = 50
_FOLDS = 5
_MAX_LABELS = 20  # of a multi-label problem, each is a question of its own
_SIGMAS = 4.0  # nearly a dozen traits are tried, so three are not enough
_NOTED, _WARNED = 0.05, 0.10  # gain over the guess
_MAX_NAME_PARTS = 400
_NAME_PART = re.compile(r"\d+|[^\W\d_]+")


@dataclass(frozen=True)
class Foretold:
    """How well something alone foretells the label of rows that were not seen.

    Args:
        score: Share of the rows that are right; with `is_balanced` the mean over the labels of their shares; for a
            quantity the share of its variance that is explained (R²).
        guess: The same of who always says the most frequent label (the mean).
        error: Standard error of the guess.
        is_balanced: Whether all labels weigh alike.
    """

    score: float
    guess: float
    error: float
    is_balanced: bool = False

    @property
    def gain(self) -> float:
        return self.score - self.guess

    @property
    def is_telling(self) -> bool:
        return self.gain > max(_NOTED, _SIGMAS * self.error)


def check_leakage(records: Records, labels: Labels, seed: int) -> Iterator[Finding]:
    """Finds traits of the training rows that foretell their label, though they should not.

    Args:
        records: All rows.
        labels: What was read of their labels.
        seed: Of the folds, and of the choice among more than 20,000 rows.
    """
    for name, target in _questions(labels):
        yield from _missingness(records.splits[0], labels, name, target, seed)
        for trait in _traits(records):
            yield from _shortcut(trait, labels, name, target, seed)


def _questions(labels: Labels) -> Iterator[tuple[str, np.ndarray]]:
    """What is to be foretold, for each row, NaN where it is not known."""
    values = labels.encoded[0]
    if values.ndim == 1:
        yield "the label", values
        return
    chosen = np.arange(values.shape[1])
    if labels.map.problem_type == MULTI_LABEL:
        chosen = np.argsort(-np.nansum(values, axis=0), kind="stable")[:_MAX_LABELS]
    for at in chosen:
        yield f"the label `{shown(labels.map.names[at], 40)}`", values[:, at]


# --- Asking a tree


def foretell(features: Any, target: np.ndarray, *, is_number: bool, seed: int, depth: int = 4) -> Foretold | None:
    """Asks a small tree about the target of unseen rows.

    Args:
        features: (rows, features), an array or a sparse matrix.
        target: (rows,) class numbers, or quantities with `is_number`.
        is_number: Whether the target is a quantity.
        seed: Of folds and tree.
        depth: Of the tree.

    Returns:
        The better of the two comparisons; None where there are too few rows, or only one label, to say anything.
    """
    if not is_number:
        _, inverse, counts = np.unique(target, return_inverse=True, return_counts=True)
        enough = counts[inverse] >= _FOLDS
        features, target = features[np.flatnonzero(enough)], target[enough]
    if len(target) < _MIN_ROWS or len(np.unique(target)) < 2:
        return None
    return (
        _foretell_number(features, target, seed, depth)
        if is_number
        else _foretell_label(features, target, seed, depth)
    )


def _foretell_number(features: Any, target: np.ndarray, seed: int, depth: int) -> Foretold:
    from sklearn.metrics import r2_score
    from sklearn.model_selection import KFold, cross_val_predict
    from sklearn.tree import DecisionTreeRegressor

    tree = DecisionTreeRegressor(max_depth=depth, min_samples_leaf=_leaf(len(target)), random_state=seed)
    said = cross_val_predict(tree, features, target, cv=KFold(_FOLDS, shuffle=True, random_state=seed))
    return Foretold(float(r2_score(target, said)), 0.0, 1 / np.sqrt(len(target)))


def _foretell_label(features: Any, target: np.ndarray, seed: int, depth: int) -> Foretold:
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.tree import DecisionTreeClassifier

    folds = StratifiedKFold(_FOLDS, shuffle=True, random_state=seed)
    answers = []
    for weight in (None, "balanced"):
        tree = DecisionTreeClassifier(
            max_depth=depth, min_samples_leaf=_leaf(len(target)), class_weight=weight, random_state=seed
        )
        said = cross_val_predict(tree, features, target, cv=folds)
        answers.append(_judge(target, said, weight is not None))
    plain, balanced = answers
    return balanced if balanced.gain > max(plain.gain, _NOTED) and not plain.is_telling else plain


def _judge(target: np.ndarray, said: np.ndarray, is_balanced: bool) -> Foretold:
    is_right = said == target
    if not is_balanced:
        guess = float(np.unique(target, return_counts=True)[1].max() / len(target))
        return Foretold(float(is_right.mean()), guess, np.sqrt(guess * (1 - guess) / len(target)))
    values, counts = np.unique(target, return_counts=True)
    guess = 1 / len(values)
    error = np.sqrt(np.sum(guess * (1 - guess) / counts)) / len(values)
    return Foretold(float(np.mean([is_right[target == value].mean() for value in values])), guess, error, True)


def _leaf(num_rows: int) -> int:
    return max(3, num_rows // 500)


def _sampled(rows: np.ndarray, seed: int) -> np.ndarray:
    if len(rows) <= _MAX_ROWS:
        return rows
    return np.sort(np.random.default_rng(seed).choice(rows, _MAX_ROWS, replace=False))


def _in_words(what: str, name: str, answer: Foretold, num: int, most: str | None) -> str:
    """The sentence with both numbers."""
    if most is None:
        return f"{what} alone foretells {share(answer.score, 1)} of the variance of {name} (R², {num:,} unseen rows)."
    if answer.is_balanced:
        return (
            f"{what} alone foretells {name}: of each label it finds {share(answer.score, 1)} on average, where a "
            f"guess finds {share(answer.guess, 1)} ({num:,} unseen rows)."
        )
    return (
        f"{what} alone foretells {name} of {share(answer.score, 1)} of the rows; always saying `{shown(most, 40)}` is "
        f"right for {share(answer.guess, 1)} ({num:,} unseen rows)."
    )


def _most_frequent(labels: Labels, target: np.ndarray) -> str | None:
    if labels.map.problem_type == REGRESSION:
        return None
    values, counts = np.unique(target, return_counts=True)
    most = values[counts.argmax()]
    return ("no", "yes")[int(most)] if labels.map.problem_type == MULTI_LABEL else labels.map.names[int(most)]


# --- Empty cells


def _missingness(split: Split, labels: Labels, name: str, target: np.ndarray, seed: int) -> Iterator[Finding]:
    """Whether the pattern of empty cells foretells the label."""
    present = np.stack([split.present(modality) for modality in split.table.modalities], axis=1)
    rows = _sampled(np.flatnonzero(np.isfinite(target)), seed)
    if len(rows) == 0 or (present[rows] == present[rows[0]]).all():
        return
    is_number = labels.map.problem_type == REGRESSION
    answer = foretell(present[rows].astype(np.float32), target[rows], is_number=is_number, seed=seed)
    if answer is None or not answer.is_telling:
        return
    most = _most_frequent(labels, target[rows])
    yield Finding(
        severity="warning",
        code="leak.missing",
        what=_in_words("Which cells are empty", name, answer, len(rows), most),
        advice="A model will learn who filled the table. Find out why these cells are empty; `modality_dropout` in "
        "training and a look at the scores of each subset of modalities make it visible.",
        count=int((~present[rows]).any(axis=1).sum()),
        details=[] if is_number else _missing_by_label(split, labels, target, present),
    )


def _missing_by_label(split: Split, labels: Labels, target: np.ndarray, present: np.ndarray) -> list[str]:
    """For each modality: what the pattern tells, and the label that differs most from all others."""
    from scipy.stats import chi2_contingency

    known = np.isfinite(target)
    patterns = np.unique(present[known], axis=0, return_inverse=True)[1].ravel()
    classes = np.unique(target[known], return_inverse=True)[1]
    table = np.zeros((patterns.max() + 1, classes.max() + 1))
    np.add.at(table, (patterns, classes), 1)
    test = chi2_contingency(table)
    return [
        f"chi-square of pattern against label: {test.statistic:,.0f} at {test.dof} degrees, p = {test.pvalue:.2g}",
        f"mutual information: {_bits(table):.3f} of the {_entropy(table.sum(axis=0)):.3f} bits of the label",
        *(
            _most_unlike(labels, target[known], ~present[known, at], singular(modality))
            for at, modality in enumerate(split.table.modalities)
        ),
    ]


def _most_unlike(labels: Labels, target: np.ndarray, is_empty: np.ndarray, what: str) -> str:
    values = np.unique(target)
    parts = np.array([is_empty[target == value].mean() for value in values])
    most = int(np.abs(parts - is_empty.mean()).argmax())
    if labels.encoded[0].ndim > 1:
        who = ("without it", "with it")[int(values[most])]
    else:
        who = f"with `{shown(labels.map.names[int(values[most])], 40)}`"
    rest = is_empty[target != values[most]].mean()
    return f"{what}: empty in {share(parts[most], 1)} of the rows {who}, in {share(rest, 1)} of the others"


def _entropy(counts: np.ndarray) -> float:
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log2(shares)).sum())


def _bits(table: np.ndarray) -> float:
    return _entropy(table.sum(axis=0)) + _entropy(table.sum(axis=1)) - _entropy(table.ravel())


# --- Traits of single cells


@dataclass(frozen=True)
class _Trait:
    """One property that is no content.

    Args:
        what: As the sentence starts: "The duration of the sound".
        code: For programs.
        rows: The training rows that it is asked for, one a distinct file.
        features: (rows, features).
        is_seen: Whether a model sees it, if only by the way; names and sizes of files it does not see.
        names: What each feature is; empty where there is only one.
    """

    what: str
    code: str
    rows: np.ndarray
    features: Any
    is_seen: bool
    names: Sequence[str] = ()


def _traits(records: Records) -> Iterator[_Trait]:
    train = records.splits[0]
    every = np.arange(len(train))
    yield _Trait("The place of the row in the table", "row.order", every, every[:, None], False)
    rows = np.flatnonzero(train.present("text"))
    yield _Trait("The length of the text", "text.length", rows, train.text["characters"][rows][:, None], True)
    for modality, facts in _FACTS.items():
        contents = records.contents[modality]
        ids, first = np.unique(train.ids[modality], return_index=True)
        rows, ids = first[ids >= 0], ids[ids >= 0]
        if not len(rows):
            continue
        chosen = [contents[number] for number in ids]
        yield _Trait(f"The size in bytes of the {singular(modality)}", f"{modality}.bytes", rows,
                     np.array([[content.num_bytes] for content in chosen]), False)  # fmt: skip
        for what, code, fact in facts:
            yield _Trait(what, f"{modality}.{code}", rows, _numbers([fact(content.facts) for content in chosen]), True)
        yield from _names(rows, [content.name for content in chosen], modality)


_FACTS: dict[str, tuple[tuple[str, str, Callable[[dict], Any]], ...]] = {
    "image": (
        ("The width of the picture", "width", lambda facts: facts["width"]),
        ("The height of the picture", "height", lambda facts: facts["height"]),
        ("The mode of the picture", "mode", lambda facts: facts["mode"]),
        ("The file format of the picture", "format", lambda facts: facts["format"]),
    ),
    "audio": (
        ("The duration of the sound", "seconds", lambda facts: facts["seconds"]),
        ("The sampling rate of the sound", "sampling_rate", lambda facts: facts["sampling_rate"]),
        ("The number of channels of the sound", "channels", lambda facts: facts["channels"]),
        ("The file format of the sound", "format", lambda facts: facts["format"]),
    ),
}


def _numbers(values: Sequence[Any]) -> np.ndarray:
    """One column of numbers; words become a column each."""
    if not isinstance(values[0], str):
        return np.array(values, dtype=np.float64)[:, None]
    return np.array([[value == other for other in sorted(set(values))] for value in values], dtype=np.float32)


def _names(rows: np.ndarray, names: Sequence[str | None], modality: str) -> Iterator[_Trait]:
    from sklearn.feature_extraction.text import CountVectorizer

    named = np.flatnonzero([name is not None for name in names])
    if len(named) < _MIN_ROWS:
        return
    counter = CountVectorizer(analyzer=name_parts, binary=True, max_features=_MAX_NAME_PARTS, min_df=3)
    try:
        parts = counter.fit_transform([names[at] for at in named])
    except ValueError:  # no part stands in three names
        return
    yield _Trait(f"The file name of the {singular(modality)}", f"{modality}.name", rows[named], parts.tocsr(), False,
                 counter.get_feature_names_out())  # fmt: skip


def name_parts(path: str) -> list[str]:
    """The parts of a path with their place: of "angry/03-cat.png" `folder 1 = angry`, `part 1 = 03` and so on."""
    *folders, name = re.split(r"[/\\]", path)
    parts = _NAME_PART.findall(name)
    return [f"folder {place} = {folder}" for place, folder in enumerate(folders, 1)] + [
        f"part {place} = {part}" for place, part in enumerate(parts, 1)
    ]


def _shortcut(trait: _Trait, labels: Labels, name: str, target: np.ndarray, seed: int) -> Iterator[Finding]:
    known = np.flatnonzero(np.isfinite(target[trait.rows]))
    known = _sampled(known, seed)
    if len(known) == 0 or (not len(trait.names) and (trait.features[known] == trait.features[known[0]]).all()):
        return
    is_number, rows = labels.map.problem_type == REGRESSION, trait.rows[known]
    depth = 4 if not len(trait.names) else 40  # of names, each label may have a part of its own
    features = trait.features[known]
    answer = foretell(features, target[rows], is_number=is_number, seed=seed, depth=depth)
    if answer is None or not answer.is_telling:
        return
    yield Finding(
        severity="warning" if trait.is_seen and answer.gain > _WARNED else "note",
        code=f"shortcut.{trait.code}",
        what=_in_words(trait.what, name, answer, len(rows), _most_frequent(labels, target[rows])),
        advice=_advice(trait),
        count=len(rows),
        details=_telling_parts(trait, features, target[rows], is_number, seed),
    )


def _advice(trait: _Trait) -> str:
    if trait.code == "row.order":
        return "The table is sorted. Shuffle it, before it is streamed or cut into parts."
    if trait.code.endswith(".bytes"):
        return (
            "A model does not see it, but what makes files large (noise, another camera, another encoder) it does: "
            "compare small and large files of one label."
        )
    if not trait.is_seen:
        return "A model does not see names; rename the files before others get them, and split by what the name says."
    return (
        "If the thing itself brings it along (an angry sentence is short), it is knowledge; if only the way in which "
        "the rows were collected does, make it alike for all labels."
    )


def _telling_parts(trait: _Trait, features: Any, target: np.ndarray, is_number: bool, seed: int) -> list[str]:
    """The parts of a name that the tree asked for most."""
    if not len(trait.names):
        return []
    from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

    kind = DecisionTreeRegressor if is_number else DecisionTreeClassifier
    weights = kind(min_samples_leaf=_leaf(len(target)), random_state=seed).fit(features, target).feature_importances_
    most = [at for at in np.argsort(-weights)[:5] if weights[at] > 0]
    return [f"`{shown(trait.names[at])}` ({share(weights[at], 1)} of what the name tells)" for at in most]
