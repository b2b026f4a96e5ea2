"""A look at a table before anybody trains on it: what is missing, broken, there twice, or betrays the label.

    python -m data.doctor my/train.csv --validation_file my/validation.csv --output_file report.html
    python -m data.doctor my/train.parquet --fail_on error --json findings.json      # in CI
    python -m data.doctor owner/data                                                 # all splits of a Hub data set

Nothing is changed. Every cell is opened by the code that the training opens it with, each distinct file once, and
forgotten again: memory grows by numbers, not by pictures. The command has flags of its own, since `data/` does not
know the commands; they are called as those of `train.py`.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.terminal import lasting_output

if TYPE_CHECKING:
    from data.doctor_cells import Records
    from data.doctor_findings import Finding
    from data.doctor_labels import Labels
    from data.table import Table

PROBLEM_TYPES = ("single_label_classification", "multi_label_classification", "regression")
FAIL_ON = ("error", "warning")


@dataclass(frozen=True)
class Diagnosis:
    """What was found, worst first, and what it was found in."""

    findings: "list[Finding]"
    records: "Records"
    labels: "Labels"
    settings: dict[str, Any] = field(default_factory=dict)

    def num(self, severity: str) -> int:
        return sum(finding.severity == severity for finding in self.findings)

    def fails(self, fail_on: str | None) -> bool:
        """Whether there are findings of this severity, or worse."""
        if fail_on is None:
            return False
        return any(self.num(severity) for severity in FAIL_ON[: FAIL_ON.index(fail_on) + 1])

    def describe(self) -> str:
        """Lines for people: one a finding."""
        from data.doctor_findings import as_line, counted

        rows = ", ".join(f"{split.name} {len(split):,}" for split in self.records.splits)
        lines = [f"rows: {rows}", *map(as_line, self.findings)]
        counts = [counted(self.num(severity), severity) for severity in ("error", "warning", "note")]
        return "\n".join([*lines, f"{', '.join(counts)}"])

    def as_json(self) -> dict[str, Any]:
        """The same for programs."""
        from data.doctor_checks import presence_table
        from data.doctor_findings import as_json

        return {
            "splits": {
                split.name: {"source": split.table.name, "rows": len(split), "present": presence_table(split)}
                for split in self.records.splits
            },
            "settings": self.settings,
            "num_errors": self.num("error"),
            "num_warnings": self.num("warning"),
            "num_notes": self.num("note"),
            "findings": [as_json(finding) for finding in self.findings],
        }


def diagnose(
    tables: "dict[str, Table]",
    *,
    problem_type: str | None = None,
    label_delimiter: str | None = None,
    max_text_length: int = 128,
    max_audio_seconds: float = 10.0,
    max_reported: int = 10,
    num_workers: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Diagnosis:
    """Looks at all rows of a data set.

    Args:
        tables: For each split its rows; the first is the one that is learnt from.
        problem_type, label_delimiter: as for `LabelMap.fit`.
        max_text_length: Beyond how many words and marks a text counts as long.
        max_audio_seconds: Beyond how many seconds a sound counts as long; three times as much is looked at.
        max_reported: How many rows a finding lists.
        num_workers: Threads that open cells; None is one for each core.
        seed: Of what is drawn.
        progress: Whether a bar is shown on stderr.
    """
    from data.doctor_cells import read_cells
    from data.doctor_findings import worst_first
    from data.doctor_labels import read_labels

    records = read_cells(tables, max_audio_seconds=3 * max_audio_seconds, num_workers=num_workers, progress=progress)
    labels = read_labels(records, problem_type=problem_type, delimiter=label_delimiter, max_reported=max_reported)
    settings = {"max_text_length": max_text_length, "max_audio_seconds": max_audio_seconds, "seed": seed}
    findings = _findings(records, labels, max_text_length, max_audio_seconds, max_reported, seed)
    return Diagnosis(worst_first(findings), records, labels, settings)


def _findings(
    records: "Records",
    labels: "Labels",
    max_text_length: int,
    max_audio_seconds: float,
    max_reported: int,
    seed: int,
) -> "Iterator[Finding]":
    from data.doctor_checks import check_cells, check_quality
    from data.doctor_duplicates import check_duplicates
    from data.doctor_labels import check_balance, check_text_says_label, label_texts
    from data.doctor_leakage import check_leakage

    yield from labels.findings
    yield from check_cells(records, max_reported)
    yield from check_quality(records, max_text_length, max_audio_seconds, max_reported)
    yield from check_duplicates(records, [label_texts(split) for split in records.splits], max_reported)
    if labels.map is not None:
        yield from check_balance(records, labels, max_reported)
        yield from check_text_says_label(records, labels, max_reported)
        yield from check_leakage(records, labels, seed)


# --- Command line


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m data.doctor", description="Looks for faults in a table.")
    add = parser.add_argument
    add("table", metavar="TABLE", help="the training rows: .csv, .tsv, .jsonl, .json, .parquet, a glob of them, a "
        "folder with metadata, or a data set on the Hub (`owner/name`), then all of its splits")  # fmt: skip
    add("--validation_file", help="the same for validation; default: none")
    add("--test_file", help="the same for testing; default: none")
    add("--dataset_config_name", help="configuration of a Hub data set; default: its only one")
    for kind in ("text", "image", "audio"):
        add(f"--{kind}_column", help=f"column of the {kind}, `none` to leave it out; default: `{kind}` if it exists")
    add("--label_column", help="column of the label, `none` to leave it out; default: `label` if it exists")
    add("--label_delimiter", help="what separates several labels in one cell; default: one label a cell")
    add("--problem_type", choices=PROBLEM_TYPES, help="default: guessed from the labels")
    add("--allow_outside_paths", action=argparse.BooleanOptionalAction, default=False,
        help="whether paths in the table may leave its folder; default: no")  # fmt: skip
    add(
        "--max_text_length",
        type=_at_least(int, 1),
        default=128,
        help="words and marks from which on a text is long; default: 128",
    )
    add("--max_audio_seconds", type=_at_least(float, 0.1), default=10.0,
        help="seconds beyond which a sound is long; default: 10")  # fmt: skip
    add("--max_reported", type=_at_least(int, 0), default=10, help="rows listed for each finding; default: 10")
    add("--num_workers", type=_at_least(int, 1), help="threads that open cells; default: one for each core")
    add("--seed", type=_at_least(int, 0), default=0, help="of what is drawn; default: 0")
    add("--output_file", type=Path, help="an HTML page with plots; default: none")
    add("--json", type=Path, metavar="FILE", help="the findings for programs; default: none")
    add("--fail_on", choices=FAIL_ON, help="end with 1 when there are findings this severe, or worse; default: never")
    return parser


def _at_least(kind: type, least: float):
    def read(text: str) -> float:
        value = kind(text)
        if not least <= value < float("inf"):
            raise argparse.ArgumentTypeError(f"{text} is not at least {least}")
        return value

    read.__name__ = kind.__name__  # argparse names it when the text is no number at all
    return read


def read_splits(args: argparse.Namespace) -> "dict[str, Table]":
    """The tables that the command names; of a data set on the Hub all splits."""
    from data.hub import find_hub_set
    from data.table import Columns, read_table

    columns = Columns(args.text_column, args.image_column, args.audio_column, args.label_column)
    options = {"columns": columns, "allow_outside": args.allow_outside_paths}
    tables = {"train": read_table(args.table, config_name=args.dataset_config_name, **options)}
    origin = tables["train"].origin
    if "split" in origin:
        tables = {origin["split"]: tables["train"]}
        hub_set = find_hub_set(origin["hub_id"], config_name=args.dataset_config_name, revision=origin["revision"])
        others = [split for split in hub_set.splits if split != origin["split"]]
        tables |= {split: read_table(hub_set, split=split, **options) for split in others}
    for name, file in (("validation", args.validation_file), ("test", args.test_file)):
        if file is not None:
            tables[name] = read_table(file, **options)
    return tables


def _run(args: argparse.Namespace) -> int:
    for path in (args.output_file, args.json):
        _refuse_unwritable(path)
    diagnosis = diagnose(
        read_splits(args),
        problem_type=args.problem_type,
        label_delimiter=args.label_delimiter,
        max_text_length=args.max_text_length,
        max_audio_seconds=args.max_audio_seconds,
        max_reported=args.max_reported,
        num_workers=args.num_workers,
        seed=args.seed,
    )
    print(diagnosis.describe())
    if args.json is not None:
        _write(args.json, json.dumps(diagnosis.as_json(), indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    if args.output_file is not None:
        from data.doctor_page import render_page

        _write(args.output_file, render_page(diagnosis))
        print(args.output_file)
    return int(diagnosis.fails(args.fail_on))


def _refuse_unwritable(path: Path | None) -> None:
    """Told before the long look, not after it."""
    if path is not None and (path.is_dir() or not path.absolute().parent.is_dir()):
        what = "is a folder" if path.is_dir() else f"lies in `{path.absolute().parent}`, which does not exist"
        raise ValueError(f"`{path}` {what}. Name a file in a folder that exists.")
    if path is not None:
        try:
            with tempfile.TemporaryFile(dir=path.absolute().parent):
                pass
        except OSError as error:
            raise ValueError(f"`{path}` cannot be written ({error.strerror}). Name a file elsewhere.") from None


def _write(path: Path, text: str) -> None:
    """Whoever reads the file finds the old content or the new one."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        # Half a surrogate pair, which JSON allows in a cell, is no character.
        beside.write_text(text, encoding="utf-8", errors="backslashreplace")
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; 0, or 1 for a failure and for findings that `--fail_on` names (a wrong call ends with 2)."""
    args = build_parser().parse_args(argv)
    with lasting_output():
        return _exit_code(args)


def _exit_code(args: argparse.Namespace) -> int:
    try:
        return _run(args)
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
