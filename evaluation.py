"""How good is a model with every subset of its modalities: a model folder and a labelled table in, a table out.

    python evaluation.py outputs/demo --data_file demo_data/test.csv
    python evaluation.py outputs/emotion --data_file emotion/validation.csv --text_column utterance \\
        --image_column face --audio_column speech --label_column emotion --output_file metrics.json
    python evaluation.py owner/model --revision 1a2b3c4 --data_file owner/data --split test
    python evaluation.py outputs/demo --data_file demo_data/test.csv --task retrieval   # does a text find its sound?

The towers run once a row and only the fusion again for each subset. Labels are those of the model's config; a row
whose label the model does not know is an error; retrieval needs none, and says less without. Of a model with several
tasks each that the table has labels of is measured, on the rows that have one. Exit code 2 for a wrong call, 1 for a
failure.
"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from cli.arguments import add_column_arguments, add_label_arguments, add_model_arguments, exit_code, number
from cli.environment import require_writable
from cli.files import replacing, write_json

if TYPE_CHECKING:
    from accelerate import Accelerator

TASKS = ("classification", "retrieval", "both")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], allow_abbrev=False)
    add_model_arguments(parser)
    add = parser.add_argument
    add("--data_file", required=True, help="table with labels: .csv, .tsv, .jsonl, .parquet, a folder, a Hub data set")
    add("--split", help="split of a Hub data set, or folder in a folder; default: the only one, or `train`")
    add(
        "--task",
        choices=TASKS,
        default="classification",
        help="what is measured: answers, how well each modality finds another, or both; default: classification",
    )
    add_column_arguments(parser)
    add_label_arguments(parser, tasks="of a model with several tasks one for each, `none` where there is none")
    add("--max_eval_samples", type=number(int, 1), help="use only the first rows, this many; default: all")
    add(
        "--per_device_eval_batch_size",
        type=number(int, 1),
        default=32,
        help="rows a batch on each device; default: 32",
    )
    add("--target_accuracy", type=number(float, 0), help="say how sure an answer must be for answers to be "
        "right this often: what to give `predict.py --reject_below`; default: do not")  # fmt: skip
    add("--output_file", type=Path, help="write the numbers here as JSON, replacing what is there; default: do not")
    args = parser.parse_args(argv)
    if args.target_accuracy is not None and args.target_accuracy > 1:
        parser.error(f"--target_accuracy is a share from 0 to 1, not {args.target_accuracy}")
    if args.target_accuracy is not None and args.task == "retrieval":
        parser.error("--target_accuracy and --task retrieval exclude each other: nothing is answered there")
    return args


def run(args: argparse.Namespace) -> dict:
    """Measure; the story in run order."""
    from accelerate import Accelerator
    from torch.utils.data import DataLoader

    from cli.loading import load_model, pick_device
    from cli.tables import open_table
    from data import Collator, Columns, FusionDataset, labels_of

    if args.output_file is not None:
        require_writable(args.output_file, "--output_file")
    accelerator = Accelerator(cpu=pick_device(args.device) == "cpu")
    model, processor = load_model(args.model, revision=args.revision, device=args.device)
    model = model.to(accelerator.device)
    labels = labels_of(model.config, args.label_delimiter)
    table = open_table(
        args.data_file,
        model,
        processor,
        columns=Columns(args.text_column, args.image_column, args.audio_column, label_columns(args, labels)),
        labels=None if args.task == "retrieval" else labels,  # which needs none
        split=args.split,
        config_name=args.dataset_config_name,
        allow_outside=args.allow_outside_paths,
        max_rows=args.max_eval_samples,
        on_bad_cell=args.on_bad_cell,
    )
    left_out = [task["name"] for task in labels.tasks or () if task["name"] not in table.tasks]
    if left_out and args.task != "retrieval":
        print(f"note: not measured, for the table has no labels of it: {', '.join(left_out)}", file=sys.stderr)

    # Every row is read once: nothing is worth keeping.
    dataset = FusionDataset(table, labels if table.has_labels else None, processor, cache_bytes=0)
    loader = DataLoader(
        dataset, args.per_device_eval_batch_size, collate_fn=Collator(processor), num_workers=args.num_workers
    )
    result, report = measure(args.task, model, accelerator.prepare(loader), accelerator, args.target_accuracy)

    if accelerator.is_main_process:
        print(report)
        if args.output_file is not None:
            with replacing(args.output_file) as path:
                write_json(path, result)
    return result


def label_columns(args: argparse.Namespace, labels) -> str | dict[str, str | None] | None:
    """Give the label column, or of several tasks that of each; None: called as the task is, if it is there."""
    given = args.label_column
    if labels.tasks is None:
        if isinstance(given, list):
            raise ValueError(f"`{args.model}` has one task: give one `--label_column`, not {', '.join(given)}.")
        return given
    names = list(labels.maps)
    columns = [None] * len(names) if given is None else [given] if isinstance(given, str) else given
    if len(columns) != len(names):
        raise ValueError(
            f"`--label_column` names {', '.join(columns)}, and `{args.model}` has the tasks {', '.join(names)}: give "
            "a column for each, in this order, or `none` where the table has none."
        )
    return dict(zip(names, columns, strict=True))


def measure(
    task: str, model, loader, accelerator: "Accelerator", target_accuracy: float | None = None
) -> tuple[dict, str]:
    """Give the numbers of a task, ready for JSON, and what is printed of them."""
    from metrics import coverage, retrieval, subsets, tasks

    problems = {subsets.problem_type(config) for config in tasks.configs_of(model.config).values()}
    if target_accuracy is not None and problems == {"regression"}:
        raise ValueError("`--target_accuracy` needs probabilities, and this model predicts numbers; leave it out")

    def describe(one: dict) -> list[str]:
        target = target_accuracy if "reject_below" in one else None
        sentences = (f"warning: {sentence}" for sentence in subsets.warnings(one))
        return [subsets.format_table(one), *coverage.describe(one, target), *sentences]

    result, parts = {}, []
    if task != "retrieval":
        result = subsets.evaluate_subsets(model, loader, accelerator=accelerator, target_accuracy=target_accuracy)
        parts += tasks.told(result, describe)
    if task != "classification":
        found = result["retrieval"] = retrieval.evaluate_retrieval(model, loader, accelerator=accelerator)
        sentences = retrieval.retrieval_warnings(found)
        parts += [retrieval.format_retrieval(found), *(f"warning: {sentence}" for sentence in sentences)]
    return result, "\n\n".join(parts)


def main(argv: list[str] | None = None) -> int:
    return exit_code(run, parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
