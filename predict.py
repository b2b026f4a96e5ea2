"""What a model says of one sample, or of every row of a table.

    python predict.py outputs/demo --text "seven" --image seven.png                   # ranked labels as JSON
    python predict.py outputs/demo --data_file rows.csv --output_file scored.parquet  # one line a row

Any subset of the modalities is enough. A scored table keeps the columns of the given one (pictures and sounds that lie
in it as bytes are left out), in the same order, and adds `prediction`, `score` and a `probability_…` column for each
label. Exit code 2 for a wrong call, 1 for a failure.
"""

import argparse
import csv
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from cli.arguments import add_column_arguments, add_model_arguments, exit_code, number
from cli.files import replacing

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

# What a spreadsheet may take for a formula (full-width signs too); a plain number such as -0.5 is not one.
FORMULA = re.compile(r"[\t\r\n]|\s*[=+\-@＝＋－＠]")
NUMBER = re.compile(r"[+-]?\d+(\.\d*)?([eE][+-]?\d+)?")
# From this probability a label of a multi-label model counts as predicted, as in its metrics.
MULTI_LABEL_THRESHOLD = 0.5


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], allow_abbrev=False)
    add_model_arguments(parser)
    sample = parser.add_argument_group("one sample: at least one of its modalities")
    sample.add_argument("--text", help="the text itself")
    sample.add_argument("--image", help="path of a picture")
    sample.add_argument("--audio", help="path of a sound")
    sample.add_argument("--top_k", type=number(int, 1), help="how many labels to print, best first; default: all")

    group = parser.add_argument_group("a table")
    add = group.add_argument
    add("--data_file", help=".csv, .tsv, .jsonl, .parquet, a folder, or a Hub data set")
    add("--output_file", type=Path, help="where the scored table goes: .csv, .jsonl or .parquet")
    add("--overwrite", action=argparse.BooleanOptionalAction, default=False,
        help="whether to replace an output file that is there; default: no")  # fmt: skip
    add("--split", help="split of a Hub data set, or folder in a folder; default: the only one, or `train`")
    add_column_arguments(group)
    add("--batch_size", type=number(int, 1), default=32, help="rows a batch; default: 32")
    args = parser.parse_args(argv)
    _check_usage(parser, args)
    return args


def _check_usage(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Refuse, with exit code 2, what asks for nothing or for two things."""
    sample = [f"--{name}" for name in ("text", "image", "audio") if getattr(args, name) is not None]
    if args.data_file is None and not sample:
        parser.error("nothing to predict: give at least one of --text, --image, --audio, or --data_file")
    if args.data_file is None and args.output_file is not None:
        parser.error("--output_file needs --data_file: one sample is printed, redirect it with `>`")
    if args.data_file is not None and sample:
        parser.error(f"{', '.join(sample)} and --data_file exclude each other: one sample or a table")
    if args.data_file is not None and args.output_file is None:
        parser.error("--data_file needs --output_file: where the scored table goes (.csv, .jsonl or .parquet)")
    if args.output_file is not None and args.output_file.suffix.lower() not in WRITERS:
        allowed = ", ".join(WRITERS)
        parser.error(f"--output_file ends in `{args.output_file.suffix}`; allowed are {allowed}")


# -- one sample -------------------------------------------------------------------------------------------------------


def predict_sample(args: argparse.Namespace) -> list[dict]:
    """Give the labels of one sample, best first."""
    from cli.loading import load_pipeline

    given = {name: getattr(args, name) for name in ("text", "image", "audio")}
    classify = load_pipeline(args.model, revision=args.revision, device=args.device)
    return classify({name: value for name, value in given.items() if value is not None}, top_k=args.top_k)


# -- a table ----------------------------------------------------------------------------------------------------------


def predict_table(args: argparse.Namespace) -> int:
    """Score a table and write it; give the number of rows."""
    if args.output_file.exists() and not args.overwrite:
        raise ValueError(f"`{args.output_file}` exists: give another `--output_file`, or `--overwrite` to replace it.")
    from torch.utils.data import DataLoader

    from cli.loading import load_model, open_table
    from data import Collator, Columns, FusionDataset
    from metrics.subsets import predict_subsets, probabilities, problem_type, subset_name

    model, processor = load_model(args.model, revision=args.revision, device=args.device)
    table = open_table(
        args.data_file,
        model,
        processor,
        columns=Columns(args.text_column, args.image_column, args.audio_column, label="none"),
        split=args.split,
        config_name=args.dataset_config_name,
        allow_outside=args.allow_outside_paths,
        on_bad_cell=args.on_bad_cell,
    )
    kept = kept_columns(args, table)
    new_names = list(prediction_columns(problem_type(model.config), model.config.id2label, None))
    refuse_taken_names(args.data_file, kept, new_names)

    loader = DataLoader(
        FusionDataset(table, None, processor, cache_bytes=0),
        args.batch_size,
        collate_fn=Collator(processor),
        num_workers=args.num_workers,
    )
    everything = model.config.modalities
    predicted = predict_subsets(model, loader, subsets=[everything])
    scores = probabilities(problem_type(model.config), predicted.logits[subset_name(everything)])
    for name, values in prediction_columns(problem_type(model.config), model.config.id2label, scores).items():
        kept = kept.append_column(name, [values])
    with replacing(args.output_file) as path:
        WRITERS[args.output_file.suffix.lower()](path, kept)
    return len(kept)


def kept_columns(args: argparse.Namespace, table) -> "pa.Table":
    """Give all columns of the source for the rows of the table, without media that lie in it as bytes or arrays."""
    from data.reading import open_source

    source = open_source(args.data_file, split=args.split, config_name=args.dataset_config_name)
    rows = source.load(source.column_names).select(table.rows)
    heavy = [field.name for field in rows.data.schema if holds_media(field.type)]
    return rows.remove_columns(heavy).with_format("arrow")[:].replace_schema_metadata(None)


def holds_media(kind: "pa.DataType") -> bool:
    """Say whether a column of this type holds files or arrays, as {"bytes", "path"}, {"array", …} or bare bytes."""
    import pyarrow.types as types

    if types.is_struct(kind):
        return bool({"bytes", "array"} & {field.name for field in kind})
    return types.is_binary(kind) or types.is_large_binary(kind)


def refuse_taken_names(source: str, kept: "pa.Table", new_names: list[str]) -> None:
    """Refuse a table that has a column of a name that this script writes."""
    if taken := [name for name in new_names if name in kept.column_names]:
        listed = ", ".join(f"`{name}`" for name in taken)
        raise ValueError(f"`{source}` already has the column(s) {listed}, which are written here: rename them first.")


def prediction_columns(problem: str, id2label: dict[int, str], scores: "np.ndarray | None") -> dict[str, list]:
    """Give column name -> values.

    Single-label: `prediction`, `score` (its probability) and `probability_…` for each label. Multi-label: `prediction`
    (a list) and the probabilities. Regression: `prediction`, or `prediction_…` for each of several targets.

    Args:
        problem: problem type of the model.
        id2label: names of the labels.
        scores: (rows, labels) probabilities or numbers; None: only the names are wanted, the values are empty.
    """
    import numpy as np

    names = [id2label[index] for index in range(len(id2label))]
    scores = np.empty((0, len(names))) if scores is None else scores
    if problem == "regression":
        titles = ["prediction"] if len(names) == 1 else [f"prediction_{name}" for name in names]
        return dict(zip(titles, scores.T.tolist(), strict=True))
    columns = {f"probability_{name}": scores[:, index].tolist() for index, name in enumerate(names)}
    if problem == "multi_label_classification":
        chosen = [[names[i] for i in np.flatnonzero(row >= MULTI_LABEL_THRESHOLD)] for row in scores]
        return {"prediction": chosen, **columns}
    best = scores.argmax(axis=1).tolist() if len(scores) else []
    return {"prediction": [names[i] for i in best], "score": scores.max(axis=1, initial=0).tolist(), **columns}


# -- writing ----------------------------------------------------------------------------------------------------------


def write_csv(path: Path, table: "pa.Table") -> None:
    """Write CSV that a spreadsheet cannot be made to run: see `without_formula`."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([without_formula(name) for name in table.column_names])
        for row in table.to_pylist():
            writer.writerow([without_formula(value) for value in row.values()])


def without_formula(value):
    """Put an apostrophe before a text that a spreadsheet would take for a formula; lists are joined by semicolons."""
    if isinstance(value, list):
        value = ";".join(map(str, value))
    is_formula = isinstance(value, str) and FORMULA.match(value) and not NUMBER.fullmatch(value)
    return f"'{value}" if is_formula else value


def write_json_lines(path: Path, table: "pa.Table") -> None:
    """Write one JSON object a row; what JSON does not know (a date) goes as text."""
    with path.open("w", encoding="utf-8") as file:
        for row in table.to_pylist():
            file.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")


def write_parquet(path: Path, table: "pa.Table") -> None:
    """Write Parquet; every column keeps its type."""
    import pyarrow.parquet as pq

    pq.write_table(table, path)


WRITERS: dict[str, Callable[[Path, "pa.Table"], None]] = {
    ".csv": write_csv, ".jsonl": write_json_lines, ".parquet": write_parquet
}  # fmt: skip


def run(args: argparse.Namespace) -> None:
    if args.data_file is None:
        print(json.dumps(predict_sample(args), ensure_ascii=False, indent=2))
    else:
        print(f"{predict_table(args):,} rows written to {args.output_file}")


def main(argv: list[str] | None = None) -> int:
    return exit_code(run, parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
