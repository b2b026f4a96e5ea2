"""What the doctor says: findings with the first rows concerned, for people and for programs.

Cells come from strangers: whatever is shown of them is cut short, and what is not printable (line ends, the escapes of
a terminal, marks that turn the reading direction) is written out.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from data.table import Table

SEVERITIES = ("error", "warning", "note")
MAX_SHOWN = 60
_WORDS = {"text": ("text", "texts"), "image": ("picture", "pictures"), "audio": ("sound", "sounds")}


@dataclass(frozen=True)
class Example:
    """One row that a finding is about; `column` and `value` are None where it is the row as a whole."""

    split: str
    file: str
    row: int
    column: str | None
    value: str | None
    remark: str


@dataclass(frozen=True)
class Finding:
    """One thing that was found.

    Args:
        severity: "error" (a training stops, or its result says nothing), "warning" (look at it) or "note".
        code: What kind of finding it is, for programs: `leak.image`.
        what: One sentence with its numbers.
        advice: What to do about it.
        count: How many rows, cells or labels are concerned.
        examples: The first of them.
        details: Further lines, as one for each label.
    """

    severity: str
    code: str
    what: str
    advice: str
    count: int
    examples: Sequence[Example] = ()
    details: Sequence[str] = field(default=())


def worst_first(findings: Iterable[Finding]) -> list[Finding]:
    """Errors before warnings before notes; within these, what concerns more comes first."""
    return sorted(findings, key=lambda finding: (SEVERITIES.index(finding.severity), -finding.count, finding.code))


def as_json(finding: Finding) -> dict[str, Any]:
    return asdict(finding)


def as_line(finding: Finding) -> str:
    return f"{finding.severity:<8} {finding.code:<26} {finding.count:>7,}  {finding.what}"


def example(split: str, table: Table, index: int, kind: str | None = None, remark: str = "") -> Example:
    """The row as messages name it, with the start of what its cell holds."""
    return Example(
        split=split,
        file=table.shard_of(index).name,
        row=table.row_number(index),
        column=None if kind is None else table.columns[kind],
        value=None if kind is None else shown_cell(table, index, kind),
        remark=remark,
    )


def shown_cell(table: Table, index: int, kind: str) -> str:
    value = table.cell(index, kind)
    if isinstance(value, (bytes, dict)):
        size = f"{len(value):,} bytes" if isinstance(value, bytes) else "an array"
        name = table.file_name(index, kind)
        return f"{shown(name)} ({size})" if name else size
    return "" if value is None else shown(value)


def shown(value: Any, width: int = MAX_SHOWN) -> str:
    """The start of a value on one line, with everything written out that is not printable."""
    text = str(value)
    cut = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text[: width + 1])
    return cut if len(cut) <= width and len(text) <= width else f"{cut[: width - 1]}…"


def share(part: float, whole: float) -> str:
    """A percentage that is 0 or 100 only where that is so."""
    if not whole:
        return "0 %"
    percent = 100 * part / whole
    if 0 < percent < 0.1:
        return "under 0.1 %"
    if 99.9 < percent < 100:
        return "over 99.9 %"
    return f"{percent:.3g} %"


def counted(number: int, one: str, many: str | None = None) -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def media(number: int, modality: str) -> str:
    """How many of a modality, in words: "1 picture", "2,000 sounds"."""
    return counted(number, *_WORDS[modality])


def plural(modality: str) -> str:
    return _WORDS[modality][1]


def singular(modality: str) -> str:
    return _WORDS[modality][0]
