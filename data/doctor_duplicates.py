"""What stands in the table more than once: in one split (rows that bring nothing new), or in two (a leak).

A row that stands twice as a whole is told as that, and not once more for each of its cells. What repeats by nature is
no finding: short texts ("Yes."), and blank pictures and silent sounds, which are findings of their own.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from data.doctor_cells import TELLING_BYTES, Records, normalised
from data.doctor_findings import Example, Finding, counted, example, media, plural, share, singular
from data.doctor_near import near_media, near_texts
from data.table import MODALITIES

# Beyond this share the contents resemble one another so much that a fingerprint cannot tell a copy from a likeness.
_MAX_NEAR_SHARE = 0.1
_FEW = 10
_BLURRED = (
    "So many resemble one another that they hold little detail, or follow one template: copies cannot be told from "
    "likeness here. Look at the first ones."
)
_MERGE = "Remove them from one of the two splits, or split again so that all copies are in the same one."


def check_duplicates(records: Records, labels: list[list[str]], max_reported: int) -> Iterator[Finding]:
    """Finds rows and cells that stand in the table more than once, exactly or nearly.

    Args:
        records: All rows.
        labels: For each split the labels as text, "" where there is none.
        max_reported: How many rows a finding lists.
    """
    rows = _Rows.of(records, labels, max_reported)
    keys, is_told = rows.whole_rows()
    yield from rows.across(keys, is_told, None)
    yield from rows.within(keys, is_told, None)
    # What is said of the whole row is not said of its cells again.
    is_new = ~rows.repeats(keys, is_told)
    for modality in records.modalities:
        keys, is_told = rows.cells(modality)
        yield from rows.across(keys, is_told & is_new, modality)
        yield from rows.within(keys, is_told & is_new, modality)
        yield from _Near.of(rows, modality, keys, is_told & is_new).findings()


@dataclass(frozen=True)
class _Rows:
    """All rows, split after split.

    Args:
        split: For each row the number of its split.
        label: For each row its label, as text.
    """

    records: Records
    split: np.ndarray
    label: np.ndarray
    max_reported: int

    @classmethod
    def of(cls, records: Records, labels: list[list[str]], max_reported: int) -> "_Rows":
        split = np.repeat(np.arange(len(records.splits)), [len(split) for split in records.splits])
        return cls(records, split, np.array([label for part in labels for label in part], dtype=object), max_reported)

    def whole_rows(self) -> tuple[np.ndarray, np.ndarray]:
        """What identifies each row, and whether its repetition says anything."""
        ids = np.stack([self.records.concatenated(modality) for modality in MODALITIES], axis=1)
        present = np.concatenate([split.table.presence for split in self.records.splits])
        is_whole = ((ids >= 0) == present).all(axis=1)  # what cannot be opened cannot be compared
        is_telling = (ids[:, 1:] >= 0).any(axis=1) | self._is_long_text()
        return np.unique(ids, axis=0, return_inverse=True)[1].ravel(), is_whole & is_telling

    def cells(self, modality: str) -> tuple[np.ndarray, np.ndarray]:
        """The ids of a modality, and whether the repetition of a cell says anything."""
        ids = self.records.concatenated(modality)
        if modality == "text":
            return ids, (ids >= 0) & self._is_long_text()
        marked = np.array([content.mark is not None for content in self.records.contents[modality]] + [False])
        return ids, (ids >= 0) & marked[ids]

    def _is_long_text(self) -> np.ndarray:
        return np.concatenate([split.text["bytes"] for split in self.records.splits]) >= TELLING_BYTES

    def repeats(self, keys: np.ndarray, is_told: np.ndarray) -> np.ndarray:
        """Whether each row repeats an earlier one."""
        chosen = np.flatnonzero(is_told)
        is_repeated = np.ones(len(keys), dtype=bool)
        is_repeated[chosen[np.unique(keys[chosen], return_index=True)[1]]] = False
        return is_repeated & is_told

    def across(self, keys: np.ndarray, is_told: np.ndarray, modality: str | None) -> Iterator[Finding]:
        for a, b in combinations(range(len(self.records.splits)), 2):
            earlier = np.flatnonzero(is_told & (self.split == a))
            later = np.flatnonzero(is_told & (self.split == b))
            found, first = np.unique(keys[earlier], return_index=True)
            shared = later[np.isin(keys[later], found)]
            if len(shared):
                partners = earlier[first[np.searchsorted(found, keys[shared])]]
                yield self._leak(a, b, shared, partners, modality)

    def _leak(self, a: int, b: int, shared: np.ndarray, partners: np.ndarray, modality: str | None) -> Finding:
        names = [self.records.splits[number].name for number in (a, b)]
        total = (
            len(self.records.splits[b]) if modality is None else int(self.records.splits[b].present(modality).sum())
        )
        what = "rows" if modality is None else plural(modality)
        return Finding(
            severity="warning" if modality == "text" else "error",
            code=f"leak.{modality or 'row'}",
            what=f"{len(shared):,} of {total:,} {what} of {names[1]} ({share(len(shared), total)}) also stand in "
            f"{names[0]}{_same_labels(self.label[shared], self.label[partners])}.",
            advice=f"What is measured on {names[1]} is partly what was learnt by heart. {_MERGE}",
            count=len(shared),
            examples=self.examples(shared, partners, modality, "same as"),
        )

    def within(self, keys: np.ndarray, is_told: np.ndarray, modality: str | None) -> Iterator[Finding]:
        for number, split in enumerate(self.records.splits):
            chosen = np.flatnonzero(is_told & (self.split == number))
            found, first, inverse = np.unique(keys[chosen], return_index=True, return_inverse=True)
            partners = chosen[first[inverse]]
            is_copy = partners != chosen
            if not is_copy.any():
                continue
            copies, originals = chosen[is_copy], partners[is_copy]
            yield Finding(
                severity="warning" if modality is None else "note",
                code=f"duplicate.{modality or 'row'}",
                what=f"{_repeat(len(copies), modality, split.name)}: {len(chosen):,} have {len(found):,} different "
                "contents.",
                advice="Remove the copies, unless they stand there on purpose: they count more than other rows, and a "
                "random split would put them on both sides.",
                count=len(copies),
                examples=self.examples(copies, originals, modality, "same as"),
            )
            yield from self._conflicts(copies, originals, modality, split.name)

    def _conflicts(
        self, copies: np.ndarray, originals: np.ndarray, modality: str | None, name: str
    ) -> Iterator[Finding]:
        has_labels = (self.label[copies] != "") & (self.label[originals] != "")
        differ = has_labels & (self.label[copies] != self.label[originals])
        if differ.any():
            yield Finding(
                severity="warning",
                code=f"conflict.{modality or 'row'}",
                what=f"{_repeat(int(differ.sum()), modality, name)} under another label.",
                advice="At most one of the labels is right. Look at these rows, and correct or remove them"
                + ("." if modality is None else f", unless the label belongs to more than the {singular(modality)}."),
                count=int(differ.sum()),
                examples=self.examples(copies[differ], originals[differ], modality, "other label than"),
            )

    def examples(
        self, rows: np.ndarray, partners: np.ndarray, modality: str | None, relation: str
    ) -> tuple[Example, ...]:
        shown = zip(rows[: self.max_reported], partners[: self.max_reported], strict=True)
        return tuple(self._example(row, partner, modality, relation) for row, partner in shown)

    def _example(self, row: int, partner: int, modality: str | None, relation: str) -> Example:
        split, index = self.records.place(row)
        other, other_index = self.records.place(partner)
        kind = modality or next(m for m in split.table.modalities if split.table.is_present(index, m))
        return example(split.name, split.table, index, kind, f"{relation} {other.table.place(other_index)}")


def _repeat(number: int, modality: str | None, name: str) -> str:
    what = counted(number, "row") if modality is None else media(number, modality)
    return f"{what} of {name} {'repeats' if number == 1 else 'repeat'} an earlier one"


def _same_labels(labels: np.ndarray, partners: np.ndarray) -> str:
    known = [(a, b) for a, b in zip(labels, partners, strict=True) if a and b]
    return f", {sum(a == b for a, b in known):,} of them with the same label" if known else ""


# --- Nearly the same


@dataclass(frozen=True)
class _Near:
    """The contents of one modality that are nearly, but not wholly, the same.

    Args:
        ids: For each row its content.
        is_told: Whether the row is looked at.
        pairs: Contents (earlier, later) that are nearly the same.
    """

    rows: _Rows
    modality: str
    ids: np.ndarray
    is_told: np.ndarray
    pairs: list[tuple[int, int]]

    @classmethod
    def of(cls, rows: _Rows, modality: str, ids: np.ndarray, is_told: np.ndarray) -> "_Near":
        chosen = np.flatnonzero(is_told)
        found, first = np.unique(ids[chosen], return_index=True)
        if modality != "text":
            known = set(found.tolist())
            pairs = near_media(rows.records.contents[modality], modality)
            return cls(rows, modality, ids, is_told, [pair for pair in pairs if known.issuperset(pair)])

        def text_of(number: int) -> str:
            split, index = rows.records.place(chosen[first[number]])
            return normalised(split.table.cell(index, "text"))

        pairs = [(int(found[a]), int(found[b])) for a, b in near_texts(len(found), text_of)]
        return cls(rows, modality, ids, is_told, pairs)

    @property
    def is_blurred(self) -> bool:
        """Whether so many resemble one another that a copy cannot be told from a likeness."""
        num_near = len({later for _, later in self.pairs})
        return num_near > max(_MAX_NEAR_SHARE * len(np.unique(self.ids[self.is_told])), _FEW)

    def findings(self) -> Iterator[Finding]:
        splits = range(len(self.rows.records.splits))
        here = [set(self.ids[self.is_told & (self.rows.split == number)].tolist()) for number in splits]
        for a, b in combinations(splits, 2):
            both = (*self.pairs, *(pair[::-1] for pair in self.pairs))
            # What stands in both splits itself was told as an exact copy.
            partners = {other: one for one, other in both if one in here[a] and other in here[b] - here[a]}
            if partners:
                yield self._leak(a, b, partners)
        for number in splits:
            partners = {later: earlier for earlier, later in self.pairs if {earlier, later} <= here[number]}
            if partners:
                yield self._inside(number, partners, len(here[number]))

    def _leak(self, a: int, b: int, partners: dict[int, int]) -> Finding:
        names = [self.rows.records.splits[number].name for number in (a, b)]
        count = int(self._concerned(b, partners).sum())
        total = int(self.rows.records.splits[b].present(self.modality).sum())
        return Finding(
            severity="note" if self.is_blurred else "warning",
            code=f"near_leak.{self.modality}",
            what=f"{count:,} of {total:,} {plural(self.modality)} of {names[1]} ({share(count, total)}) nearly equal "
            f"one of {names[0]}.",
            advice=self._advice(f"Look at the first ones. If they are copies: {_MERGE[0].lower()}{_MERGE[1:]}"),
            count=count,
            examples=self._examples(b, a, partners),
        )

    def _inside(self, number: int, partners: dict[int, int], num_different: int) -> Finding:
        name = self.rows.records.splits[number].name
        return Finding(
            severity="note",
            code=f"near_duplicate.{self.modality}",
            what=f"{len(partners):,} of {num_different:,} different {plural(self.modality)} of {name} "
            f"({share(len(partners), num_different)}) nearly equal an earlier one.",
            advice=self._advice("Look at the first ones: copies of one original count more than others."),
            count=len(partners),
            examples=self._examples(number, number, partners),
        )

    def _concerned(self, number: int, partners: dict[int, int]) -> np.ndarray:
        return self.is_told & (self.rows.split == number) & np.isin(self.ids, list(partners))

    def _advice(self, otherwise: str) -> str:
        return _BLURRED if self.is_blurred else otherwise

    def _examples(self, number: int, other: int, partners: dict[int, int]) -> tuple[Example, ...]:
        """The first rows of a split whose content has a partner, each with the first row of that partner."""
        rows = np.flatnonzero(self._concerned(number, partners))[: self.rows.max_reported]
        there = self.is_told & (self.rows.split == other)
        others = [np.flatnonzero(there & (self.ids == partners[int(self.ids[row])]))[0] for row in rows]
        return self.rows.examples(rows, np.array(others, dtype=np.int64), self.modality, "nearly equals")
