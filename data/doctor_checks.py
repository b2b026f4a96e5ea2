"""What is there, and in what state: empty and broken cells, odd texts, blank pictures, silent and clipped sounds."""

from collections.abc import Iterator, Sequence
from itertools import combinations

import numpy as np

from data.doctor_cells import Records, Split
from data.doctor_findings import Finding, counted, example, media, plural, share, shown, singular
from data.table import MODALITIES

# Two shares differ when they do so by this much, and by more than four standard errors.
_MIN_DIFFERENCE = 0.1
_MIN_SIGMAS = 4.0
_FEW_SHARE = 0.05
_SMALL_SIDE, _LONG_SHAPE = 16, 5.0
_MANY_RATES = 0.05


def check_cells(records: Records, max_reported: int) -> Iterator[Finding]:
    """Finds cells that cannot be used, rows and columns that hold nothing, and shares that differ between the splits.

    Args:
        records: All rows.
        max_reported: How many rows a finding lists.
    """
    for split in records.splits:
        yield from _problems(split, max_reported)
        yield from _empty_columns(split, records)
        yield from _odd_texts(split, max_reported)
    yield from _never_together(records.splits[0])
    yield from _shifts(records)


def presence_table(split: Split) -> dict[str, float]:
    """The share of rows that have each modality, and each two and all three of them together."""
    modalities = split.table.modalities
    sets = [chosen for size in range(1, len(modalities) + 1) for chosen in combinations(modalities, size)]
    return {" + ".join(chosen): float(_all_present(split, chosen).mean()) for chosen in sets}


def _all_present(split: Split, modalities: Sequence[str]) -> np.ndarray:
    return split.table.presence[:, [MODALITIES.index(modality) for modality in modalities]].all(axis=1)


def _problems(split: Split, max_reported: int) -> Iterator[Finding]:
    for modality in ("image", "audio"):
        bad = [problem for problem in split.problems if problem.modality == modality]
        if bad:
            total = int(split.present(modality).sum())
            yield Finding(
                severity="error",
                code=f"undecodable.{modality}",
                what=f"{len(bad):,} of {total:,} {plural(modality)} of {split.name} cannot be opened.",
                advice="Correct them, or choose with `--on_bad_cell drop` or `empty` what a training does with them.",
                count=len(bad),
                examples=[
                    example(split.name, split.table, problem.index, modality, shown(problem.reason, 160))
                    for problem in bad[:max_reported]
                ],
            )
    empty = [problem for problem in split.problems if problem.modality is None]
    if empty:
        yield Finding(
            severity="error",
            code="empty.row",
            what=f"No text, picture or sound in {counted(len(empty), 'row')} of {split.name}.",
            advice="Remove them: there is nothing to learn from, and a training stops there.",
            count=len(empty),
            examples=[example(split.name, split.table, problem.index) for problem in empty[:max_reported]],
        )


def _empty_columns(split: Split, records: Records) -> Iterator[Finding]:
    for modality in records.modalities:
        if modality not in split.table.modalities:
            what, severity = f"{split.name} has no column for {plural(modality)}, other splits have.", "warning"
        elif not split.present(modality).any():
            what = f"Every cell of the column `{shown(split.table.columns[modality])}` of {split.name} is empty."
            severity = "error"
        elif split.present(modality).mean() < _FEW_SHARE:
            part = share(int(split.present(modality).sum()), len(split))
            what, severity = f"Only {part} of the rows of {split.name} have a {singular(modality)}.", "warning"
        else:
            continue
        yield Finding(
            severity=severity,
            code=f"empty.{modality}",
            what=what,
            advice=f"Fill some, or leave the modality out (name `none` as the {modality} column).",
            count=int((~split.present(modality)).sum()),
        )


def _never_together(split: Split) -> Iterator[Finding]:
    for pair in combinations(split.table.modalities, 2):
        if all(split.present(modality).any() for modality in pair) and not _all_present(split, pair).any():
            yield Finding(
                severity="warning",
                code="never.together",
                what=f"No row of {split.name} has both a {singular(pair[0])} and a {singular(pair[1])}.",
                advice="What the two say together cannot be learnt from these rows, nor be measured.",
                count=len(split),
            )


def _shifts(records: Records) -> Iterator[Finding]:
    train = records.splits[0]
    for split in records.splits[1:]:
        for modality in records.modalities:
            a, b = train.present(modality), split.present(modality)
            if differs(a.mean(), len(a), b.mean(), len(b)):
                yield Finding(
                    severity="warning",
                    code=f"shift.{modality}",
                    what=f"{share(a.sum(), len(a))} of the rows of {train.name} have a {singular(modality)}, and "
                    f"{share(b.sum(), len(b))} of {split.name}.",
                    advice="What is measured there is another task than what is learnt. Split at random, or say so.",
                    count=len(split),
                )


def differs(a: float, num_a: int, b: float, num_b: int) -> bool:
    """Whether two shares differ by much, and by more than chance does."""
    pooled = (a * num_a + b * num_b) / (num_a + num_b)
    error = np.sqrt(pooled * (1 - pooled) * (1 / num_a + 1 / num_b))
    return abs(a - b) > max(_MIN_DIFFERENCE, _MIN_SIGMAS * error)


# --- What the cells hold

_ODD = {
    "placeholder": ("note", "a word for nothing (`NA`, `null`, `-` …)", "Empty these cells, where it is no answer: "
                    "every cell is text, so a model takes these for words."),
    "garbled": ("warning", "with letters that a wrong encoding leaves (`Ã©`, `â€™`, `�`)", "Read the source of the "
                "table again, with its own encoding."),
}  # fmt: skip


def _odd_texts(split: Split, max_reported: int) -> Iterator[Finding]:
    for kind, (severity, what, advice) in _ODD.items():
        indices = split.odd_texts[kind]
        if indices:
            yield Finding(
                severity=severity,
                code=f"{kind}.text",
                what=f"{media(len(indices), 'text')} of {split.name}: {what}.",
                advice=advice,
                count=len(indices),
                examples=[example(split.name, split.table, index, "text") for index in indices[:max_reported]],
            )


def check_quality(
    records: Records, max_text_length: int, max_audio_seconds: float, max_reported: int
) -> Iterator[Finding]:
    """Finds pictures and sounds in which there is nothing, and what a model would cut off.

    Args:
        records: All rows.
        max_text_length: How many pieces of a text a model keeps.
        max_audio_seconds: How much of a sound it keeps.
        max_reported: How many rows a finding lists.
    """
    for split in records.splits:
        for modality, fault, severity, what, advice in _FAULTS:
            is_faulty = [fault in content.faults for content in records.contents[modality]]
            yield from _of_contents(
                split, modality, is_faulty, severity, f"{fault}.{modality}", what, advice, max_reported
            )
        for modality, code, is_so, what, advice in _oddities(records, max_audio_seconds):
            yield from _of_contents(split, modality, is_so, "note", code, what, advice, max_reported)
        yield from _long_texts(split, max_text_length, max_reported)
    yield from _rates(records)


_FAULTS = (
    ("image", "blank", "warning", "of one colour", "Empty these cells, if that is no answer of its own."),
    ("audio", "silent", "warning", "silent (nothing above -60 dB)", "Empty these cells, if silence is no answer."),
    ("audio", "clipped", "note", "clipped (recorded too loud)", "Record or scale them again where that can be."),
)  # fmt: skip


def _oddities(records: Records, max_audio_seconds: float) -> Iterator[tuple[str, str, list[bool], str, str]]:
    sides = [(content.facts["width"], content.facts["height"]) for content in records.contents["image"]]
    yield (
        "image", "small.image", [min(pair) < _SMALL_SIDE for pair in sides],
        f"smaller than {_SMALL_SIDE} pixels", "Look whether these are thumbnails or icons.",
    )  # fmt: skip
    yield (
        "image", "narrow.image", [max(pair) > _LONG_SHAPE * min(pair) for pair in sides],
        f"over {_LONG_SHAPE:.0f} times as long as wide", "They are squeezed into a square: cut out what matters.",
    )  # fmt: skip
    seconds = [content.facts["seconds"] for content in records.contents["audio"]]
    yield (
        "audio", "long.audio", [length > max_audio_seconds for length in seconds],
        f"over {max_audio_seconds:g} s, of which the rest is cut off",
        "Raise `--max_audio_seconds`, or cut them.",
    )  # fmt: skip
    silence = [content.facts["silence"] for content in records.contents["audio"]]
    yield (
        "audio", "quiet.audio", [part > 0.8 for part in silence],
        "silent for over four fifths of their time", "Trim the silence: a model reads it, too.",
    )  # fmt: skip


def _of_contents(
    split: Split,
    modality: str,
    is_concerned: Sequence[bool],
    severity: str,
    code: str,
    what: str,
    advice: str,
    max_reported: int,
) -> Iterator[Finding]:
    ids = split.ids[modality]
    rows = np.flatnonzero((ids >= 0) & np.array([*is_concerned, False])[ids])
    if len(rows):
        total = int((ids >= 0).sum())
        yield Finding(
            severity=severity,
            code=code,
            what=f"{media(len(rows), modality)} of {split.name} ({share(len(rows), total)}): {what}.",
            advice=advice,
            count=len(rows),
            examples=[example(split.name, split.table, int(row), modality) for row in rows[:max_reported]],
        )


def _long_texts(split: Split, max_text_length: int, max_reported: int) -> Iterator[Finding]:
    pieces = split.text["pieces"]
    rows = np.flatnonzero(pieces > max_text_length)
    if len(rows):
        yield Finding(
            severity="note",
            code="long.text",
            what=f"{media(len(rows), 'text')} of {split.name} ({share(len(rows), int((pieces > 0).sum()))}) with over "
            f"{max_text_length} words and marks, of which the rest is cut off.",
            advice="Raise `--max_text_length`, where the tower reads more, or put what matters first.",
            count=len(rows),
            examples=[
                example(split.name, split.table, int(row), "text", f"{pieces[row]:,} words and marks")
                for row in rows[:max_reported]
            ],
        )


def _rates(records: Records) -> Iterator[Finding]:
    """Low rates among higher ones: what is above is missing in some sounds, and a model notices."""
    rates = np.array([content.facts["sampling_rate"] for content in records.contents["audio"]])
    values, counts = np.unique(rates, return_counts=True)
    if len(values) > 1:
        told = ", ".join(f"{count:,} at {value:,} Hz" for value, count in zip(values, counts, strict=True))
        yield Finding(
            severity="note",
            code="rates.audio",
            what=f"The sounds are sampled at {len(values)} different rates.",
            advice="They are brought to one rate when opened; what a low rate lacks stays lacking.",
            count=int(len(rates) - counts.max()),
            details=[told],
        )
