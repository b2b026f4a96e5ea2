"""How good is a model with every subset of its modalities: a model folder and a labelled table in, a table out.

    python evaluation.py outputs/demo --data_file demo_data/test.csv
    python evaluation.py outputs/emotion --data_file emotion/validation.csv --text_column utterance \\
        --image_column face --audio_column speech --label_column emotion --output_file metrics.json
    python evaluation.py owner/model --revision 1a2b3c4 --data_file owner/data --split test

The towers run once a row and only the fusion again for each subset. Labels are those of the model's config; a row
whose label the model does not know is an error. Exit code 2 for a wrong call, 1 for a failure.
"""

import argparse
import sys
from pathlib import Path

from cli.arguments import add_column_arguments, add_label_arguments, add_model_arguments, exit_code, number
from cli.files import replacing, write_json


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], allow_abbrev=False)
    add_model_arguments(parser)
    add = parser.add_argument
    add("--data_file", required=True, help="table with labels: .csv, .tsv, .jsonl, .parquet, a folder, a Hub data set")
    add("--split", help="split of a Hub data set, or folder in a folder; default: the only one, or `train`")
    add_column_arguments(parser)
    add_label_arguments(parser)
    add("--max_eval_samples", type=number(int, 1), help="use only the first rows, this many; default: all")
    add(
        "--per_device_eval_batch_size",
        type=number(int, 1),
        default=32,
        help="rows a batch on each device; default: 32",
    )
    add("--output_file", type=Path, help="write the numbers here as JSON, replacing what is there; default: do not")
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> dict:
    """Measure; the story in run order."""
    from accelerate import Accelerator
    from torch.utils.data import DataLoader

    from cli.loading import load_model, pick_device
    from cli.tables import open_table
    from data import Collator, Columns, FusionDataset, LabelMap
    from metrics.subsets import evaluate_subsets, format_table, warnings

    accelerator = Accelerator(cpu=pick_device(args.device) == "cpu")
    model, processor = load_model(args.model, revision=args.revision, device=args.device)
    model = model.to(accelerator.device)
    labels = LabelMap.from_config(model.config, args.label_delimiter)
    table = open_table(
        args.data_file,
        model,
        processor,
        columns=Columns(args.text_column, args.image_column, args.audio_column, args.label_column),
        labels=labels,
        split=args.split,
        config_name=args.dataset_config_name,
        allow_outside=args.allow_outside_paths,
        max_rows=args.max_eval_samples,
        on_bad_cell=args.on_bad_cell,
    )

    dataset = FusionDataset(table, labels, processor, cache_bytes=0)  # every row is read once
    loader = DataLoader(
        dataset, args.per_device_eval_batch_size, collate_fn=Collator(processor), num_workers=args.num_workers
    )
    result = evaluate_subsets(model, accelerator.prepare(loader), accelerator=accelerator)

    if accelerator.is_main_process:
        print(format_table(result))
        for sentence in warnings(result):
            print(f"\nwarning: {sentence}")
        if args.output_file is not None:
            with replacing(args.output_file) as path:
                write_json(path, result)
    return result


def main(argv: list[str] | None = None) -> int:
    return exit_code(run, parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
