"""The labels: whether they can be read, how they are spread over the splits, and whether the text says them."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from data.doctor_cells import Records, Split
from data.doctor_findings import Finding, counted, example, share, shown
from data.labels import MULTI_LABEL, REGRESSION, SINGLE_LABEL, LabelMap
from data.table import Table

_RARE, _VERY_RARE = 10, 5
_NEARLY_ALL, _UNEVEN = 0.9, 10.0
_EXPECTED = 5
_MIN_SHIFT = 0.1
_SURELY = 1e-3
_FAR = 6.0
_MAX_LISTED = 12
_SAYS_MOST, _SAYS_ALL = 0.5, 0.9


@dataclass
class Labels:
    """The labels of all splits.

    Args:
        map: What they mean.
        encoded: For each split (rows,) class numbers or quantities, or (rows, labels) of 0 and 1; NaN where the label
            cannot be used.
        findings: What was found while they were read.
    """

    map: LabelMap | None
    encoded: list[np.ndarray] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    def counts(self, number: int) -> np.ndarray:
        """How many rows of a split have each label."""
        values = self.encoded[number]
        if self.map.problem_type == MULTI_LABEL:
            return np.nansum(values, axis=0).astype(int)
        known = values[np.isfinite(values)].astype(int)
        return np.bincount(known, minlength=self.map.num_labels)


def read_labels(records: Records, *, problem_type: str | None, delimiter: str | None, max_reported: int) -> Labels:
    """Learns the labels of the first split, and reads those of all; what cannot be read becomes a finding.

    Args:
        records: All rows.
        problem_type, delimiter: as for `LabelMap.fit`.
        max_reported: How many rows a finding lists.
    """
    train = records.splits[0]
    if not train.table.has_labels:
        return Labels(None)
    labels = Labels(None)
    # Of several labels an empty text says that none of them holds.
    is_empty = _is_null if delimiter is not None or problem_type == MULTI_LABEL else _is_empty
    filled = [np.array([not is_empty(value) for value in _values(split)], bool) for split in records.splits]
    for split, is_filled in zip(records.splits, filled, strict=True):
        labels.findings += _empty_labels(split, is_filled, max_reported)
    try:
        labels.map = LabelMap.fit(train.table.select(np.flatnonzero(filled[0])), problem_type, delimiter)
    except ValueError as error:
        lines = str(error).splitlines()
        labels.findings.append(
            Finding("error", "unreadable.label", f"The labels of {train.name} cannot be learnt from.",
                    "Correct them; a training stops there.", len(lines), details=[shown(line, 300) for line in lines])
        )  # fmt: skip
        return labels
    for split, is_filled in zip(records.splits, filled, strict=True):
        labels.encoded.append(_encoded(labels, split, is_filled, max_reported))
    return labels


def label_texts(split: Split) -> list[str]:
    """The labels as they stand in the table, "" where there is none."""
    return ["" if _is_empty(value) else str(value).strip() for value in _values(split)]


def _values(split: Split) -> list[Any]:
    return split.table.labels() if split.table.has_labels else [None] * len(split)


def _is_null(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _is_empty(value: Any) -> bool:
    return _is_null(value) or (isinstance(value, str) and not value.strip())


def _empty_labels(split: Split, is_filled: np.ndarray, max_reported: int) -> Iterator[Finding]:
    empty = np.flatnonzero(~is_filled)
    if not split.table.has_labels:
        yield Finding(
            "warning", "empty.label", f"{split.name} has no label column, the first split has.",
            "Nothing can be measured there: name its label column, or leave the file out.", len(split),
        )  # fmt: skip
    elif len(empty):
        yield Finding(
            "error", "empty.label", f"No label in {counted(len(empty), 'row')} of {split.name}.",
            "Fill the cells or remove the rows; a training stops there.", len(empty),
            [example(split.name, split.table, int(index)) for index in empty[:max_reported]],
        )  # fmt: skip


def _encoded(labels: Labels, split: Split, is_filled: np.ndarray, max_reported: int) -> np.ndarray:
    width = (labels.map.num_labels,) if labels.map.problem_type == MULTI_LABEL or labels.map.num_labels > 1 else ()
    width = () if labels.map.problem_type == SINGLE_LABEL else width
    encoded, unknown, known = np.full((len(split), *width), np.nan), {}, {}
    values = _cells(labels.map, split)
    for index in np.flatnonzero(is_filled):
        key = repr(values[index])
        if key not in known:
            known[key] = _encode(labels.map, values[index])
        if isinstance(known[key], str):
            unknown[int(index)] = known[key]
        else:
            encoded[index] = known[key]
    if unknown:
        distinct = {str(values[index]).strip() for index in unknown}
        labels.findings.append(
            Finding(
                severity="error",
                code="unknown.label",
                what=f"In {counted(len(unknown), 'row')} of {split.name} the label cannot be used, or no training row "
                f"has it: {_listed(sorted(distinct))}.",
                advice="Correct the labels, or bring rows of them into the training part.",
                count=len(unknown),
                examples=[
                    example(split.name, split.table, index, "label", shown(reason, 160))
                    for index, reason in list(unknown.items())[:max_reported]
                ],
            )
        )
    return encoded


def _cells(label_map: LabelMap, split: Split) -> list[Any]:
    """Return the labels with lists and numbers in place of their text, where the column can be read so."""
    try:
        return label_map.cells(split.table) if split.table.has_labels else _values(split)
    except ValueError:
        return _values(split)


def _encode(label_map: LabelMap, value: Any) -> Any:
    try:
        return label_map.encode(value)
    except ValueError as error:
        return str(error)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MAX_LISTED} more" if len(names) > _MAX_LISTED else ""
    return ", ".join(f"`{shown(name, 40)}`" for name in names[:_MAX_LISTED]) + more


# --- How they are spread


def check_balance(records: Records, labels: Labels, max_reported: int) -> Iterator[Finding]:
    """Finds rare, missing and overwhelming labels, quantities far off, and splits that are not alike."""
    if labels.map.problem_type == REGRESSION:
        yield from _far_values(records, labels, max_reported)
        return
    counts, train = labels.counts(0), records.splits[0]
    yield from _rare_labels(labels, counts, train)
    if labels.map.problem_type == MULTI_LABEL:
        for number, split in enumerate(records.splits):
            yield from _constant_labels(labels, number, split)
    if labels.map.problem_type == SINGLE_LABEL:
        yield from _uneven(labels, counts, train)
    for number, split in enumerate(records.splits[1:], 1):
        others = labels.counts(number)
        if others.sum():
            yield from _missing_there(labels, counts, others, train, split)
            if labels.map.problem_type == SINGLE_LABEL:
                yield from _label_shift(labels, counts, others, train, split)


def _rare_labels(labels: Labels, counts: np.ndarray, train: Split) -> Iterator[Finding]:
    unseen = [labels.map.names[at] for at in np.flatnonzero(counts == 0)]
    if unseen:
        yield Finding(
            "warning", "unseen.label", f"No row of {train.name} has the label {_listed(unseen)}, which its data set "
            "declares.", "Nothing is learnt about it: bring rows of it, or leave it out.", len(unseen),
        )  # fmt: skip
    rare = [at for at in np.argsort(counts) if 0 < counts[at] < _RARE]
    if rare:
        told = [f"`{shown(labels.map.names[at], 40)}`: {counted(int(counts[at]), 'row')}" for at in rare[:_MAX_LISTED]]
        yield Finding(
            "warning" if counts[rare[0]] < _VERY_RARE else "note", "rare.label",
            f"{counted(len(rare), 'label has', 'labels have')} fewer than {_RARE} rows in {train.name}.",
            "Bring more rows of them, or put labels together.", len(rare), details=told,
        )  # fmt: skip


def _constant_labels(labels: Labels, number: int, split: Split) -> Iterator[Finding]:
    known = int(np.isfinite(labels.encoded[number]).all(axis=1).sum())
    always = [labels.map.names[at] for at in np.flatnonzero(labels.counts(number) == known)]
    if always and known > 1:
        yield Finding(
            "warning", "constant.label", f"Every row of {split.name} has the label {_listed(always)}.",
            "Who always says it is always right, so it flatters F1: leave it out, or bring rows without it.", known,
        )  # fmt: skip


def _uneven(labels: Labels, counts: np.ndarray, train: Split) -> Iterator[Finding]:
    most, seen = int(counts.argmax()), counts[counts > 0]
    told = f"`{shown(labels.map.names[most], 40)}` ({share(counts[most], counts.sum())} of {train.name})"
    if counts[most] >= _NEARLY_ALL * counts.sum():
        yield Finding(
            "warning", "uneven.label", f"Nearly all rows have the label {told}.",
            "Who always says this is nearly always right: look at the F1 score, not at the accuracy.",
            int(counts[most]),
        )  # fmt: skip
    elif seen.max() >= _UNEVEN * seen.min():
        least = int(np.where(counts > 0, counts, counts.max() + 1).argmin())
        yield Finding(
            "note", "uneven.label", f"The most frequent label, {told}, has {seen.max() / seen.min():.0f} times the "
            f"rows of the rarest, `{shown(labels.map.names[least], 40)}`.",
            "Look at the macro F1 score beside the accuracy.", int(counts[most]),
        )  # fmt: skip


def _missing_there(
    labels: Labels, counts: np.ndarray, others: np.ndarray, train: Split, split: Split
) -> Iterator[Finding]:
    missing = np.flatnonzero((others == 0) & (counts > 0))
    if len(missing):
        expected = counts[missing] / counts.sum() * others.sum()
        yield Finding(
            "warning" if (expected >= _EXPECTED).any() else "note", "missing.label",
            f"{split.name} has no row with the label {_listed([labels.map.names[at] for at in missing])}.",
            f"Nothing is measured about it there. Split again, so that each label is in {split.name}.", len(missing),
        )  # fmt: skip


def _label_shift(
    labels: Labels, counts: np.ndarray, others: np.ndarray, train: Split, split: Split
) -> Iterator[Finding]:
    from scipy.stats import chi2_contingency

    seen = (counts + others) > 0
    a, b = counts / counts.sum(), others / others.sum()
    distance = float(np.abs(a - b).sum() / 2)
    if seen.sum() > 1 and distance >= _MIN_SHIFT:
        surprise = chi2_contingency(np.stack([counts, others])[:, seen]).pvalue
        if surprise < _SURELY:
            most = int(np.abs(a - b).argmax())
            yield Finding(
                "warning", "shift.label",
                f"The labels of {split.name} are spread otherwise than those of {train.name}: `"
                f"{shown(labels.map.names[most], 40)}` has {share(a[most], 1)} of the rows there and "
                f"{share(b[most], 1)} here.",
                "Split at random within each label, or say that the task changes.", round(distance * len(split)),
            )  # fmt: skip


def _far_values(records: Records, labels: Labels, max_reported: int) -> Iterator[Finding]:
    """Quantities that lie far from all others: often a wrong unit or a code for "unknown"."""
    values = labels.encoded[0].reshape(len(records.splits[0]), -1)
    middle = np.nanmedian(values, axis=0)
    spread = 1.4826 * np.nanmedian(np.abs(values - middle), axis=0)
    far = np.flatnonzero((np.abs(values - middle) > _FAR * np.where(spread > 0, spread, np.inf)).any(axis=1))
    train = records.splits[0]
    if len(far):
        yield Finding(
            "note", "far.label", f"{counted(len(far), 'label')} of {train.name} far from all others (the median "
            f"is {', '.join(f'{value:g}' for value in middle)}).",
            "Look whether they are in another unit, or a code for `unknown`.", len(far),
            [example(train.name, train.table, int(index), "label") for index in far[:max_reported]],
        )  # fmt: skip


# --- Texts that say their label


def check_text_says_label(records: Records, labels: Labels, max_reported: int) -> Iterator[Finding]:
    """Finds texts in which their own label stands, as a whole word and in any case.

    A warning needs more: that the text names its label and no other one in most rows, all over or for one label.
    """
    train = records.splits[0]
    if labels.map.problem_type == REGRESSION or "text" not in train.table.modalities:
        return
    own = labels.encoded[0]
    if labels.map.problem_type == SINGLE_LABEL:
        own = np.where(np.isnan(own)[:, None], np.nan, own[:, None] == np.arange(labels.map.num_labels))
    rows = np.flatnonzero(train.present("text") & np.isfinite(own).all(axis=1))
    own = own[rows].astype(bool)
    named = _named_labels(train.table, rows, labels.map.names)
    says = (named & own).any(axis=1)
    if not says.any():
        return
    # For several labels a row says them when it names all of its labels and none that it has not.
    only_own = (named == own).all(axis=1) & says
    yield _saying(train, rows, own, says, only_own, labels.map.names, max_reported)


def _named_labels(table: Table, rows: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Which labels stand in which text, (rows, labels); "very_happy" is looked for as the words "very happy"."""
    from sklearn.feature_extraction.text import CountVectorizer

    tokens = CountVectorizer(preprocessor=_words, token_pattern=r"\w+").build_analyzer()
    phrases = [" ".join(tokens(name)) for name in names]
    vocabulary = sorted({phrase for phrase in phrases if phrase})
    named = np.zeros((len(rows), len(names)), dtype=bool)
    if not vocabulary:
        return named
    longest = max(phrase.count(" ") for phrase in vocabulary) + 1
    counter = CountVectorizer(
        preprocessor=_words, token_pattern=r"\w+", ngram_range=(1, longest), vocabulary=vocabulary, binary=True
    )
    found = counter.transform(table.cell(int(row), "text") for row in rows).tocsc()
    for at, phrase in enumerate(phrases):
        if phrase:
            named[found[:, [vocabulary.index(phrase)]].nonzero()[0], at] = True
    return named


def _words(text: str) -> str:
    return text.casefold().replace("_", " ")


def _saying(
    train: Split,
    rows: np.ndarray,
    own: np.ndarray,
    says: np.ndarray,
    only_own: np.ndarray,
    names: Sequence[str],
    max_reported: int,
) -> Finding:
    per_label = {
        name: (int(only_own[own[:, at]].sum()), int(says[own[:, at]].sum()), int(own[:, at].sum()))
        for at, name in enumerate(names)
        if own[:, at].any()
    }
    told = [name for name, (only, _, total) in per_label.items() if surely(only, total) > _SAYS_MOST]
    overall = surely(int(only_own.sum()), len(rows))
    severity = "error" if overall > _SAYS_ALL else "warning" if told or overall > _SAYS_MOST else "note"
    most = sorted(per_label, key=lambda name: -per_label[name][0] / per_label[name][2])[:_MAX_LISTED]
    concerned = only_own if severity != "note" else says
    first = np.flatnonzero(concerned)[:max_reported]
    return Finding(
        severity=severity,
        code="text.says.label",
        what=f"{says.sum():,} of {len(rows):,} texts of {train.name} ({share(says.sum(), len(rows))}) contain their "
        f"own label as a word; {only_own.sum():,} ({share(only_own.sum(), len(rows))}) contain it and no other label"
        + (f"; of {_listed(told)} nearly all or most do." if told and severity == "warning" else "."),
        advice="If the label was written into the text by whoever made the table, take it out: a model then reads the "
        "answer. If people say it by themselves, this is the task.",
        count=int(concerned.sum()),
        examples=[
            example(train.name, train.table, int(row), "text", f"label `{_own_names(own[at], names)}`")
            for at, row in zip(first, rows[first], strict=True)
        ],
        details=[
            f"`{shown(name, 40)}`: {per_label[name][1]:,} of {per_label[name][2]:,} texts contain it "
            f"({share(*per_label[name][1:])}), {per_label[name][0]:,} and no other label"
            for name in most
        ],
    )


def _own_names(own: np.ndarray, names: Sequence[str]) -> str:
    return ", ".join(shown(names[at], 40) for at in np.flatnonzero(own))


def surely(part: int, whole: int, sigmas: float = 3.0) -> float:
    """The least share that is likely behind a count: the lower end of Wilson's interval."""
    if not whole:
        return 0.0
    p, z = part / whole, sigmas**2 / whole
    return (p + z / 2 - np.sqrt(z * (p * (1 - p) + z / 4))) / (1 + z)
