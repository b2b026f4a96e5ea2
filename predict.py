"""What a model says of one sample, or of every row of a table.

    python predict.py outputs/demo --text "seven" --image seven.png                   # ranked labels as JSON
    python predict.py outputs/demo --text "seven" --image seven.png --explain         # and what decided
    python predict.py outputs/demo --data_file rows.csv --output_file scored.parquet  # one line a row

Any subset of the modalities is enough. A scored table keeps the columns of the given one (pictures and sounds that lie
in it as bytes are left out), in the same order, and adds `prediction`, `score` and a `probability_…` column for each
label. With `--explain` it also gets `contribution_text`, `contribution_image` and `contribution_audio` (those that the
model reads): what each modality added to the score of the best label, or of `--label`; empty where the row lacks it.
With `--opinions` it also gets `disagrees`, and `opinion_text`, `opinion_image` and `opinion_audio`: what each modality
by itself says. `--reject_below P` leaves `prediction` empty where the model is less sure than that. Of a model with
several tasks every task gets such columns, whose names begin with its own (`stars_prediction`), or one by
`--task_name`, as if there were no others.
Exit code 2 for a wrong call, 1 for a failure.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from cli.arguments import add_column_arguments, add_model_arguments, exit_code, number
from cli.environment import require_writable
from cli.files import replacing
from cli.scored import WRITERS, label_thresholds, prediction_columns, refuse_taken_names

if TYPE_CHECKING:
    import numpy as np

# As `explain` of the pipeline that travels with a model, whose import would be too slow for `--help`.
METHODS = ("integrated_gradients", "attention")


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

    parser.add_argument("--task_name", help="of a model with several tasks the one to answer; default: all")

    add = parser.add_argument_group("whether to trust it").add_argument
    add("--reject_below", type=number(float, 0, 1), help="answer nothing where the best label's probability "
        "(of several labels, that of the least sure yes or no) is below this; default: always answer")  # fmt: skip
    add("--opinions", action=argparse.BooleanOptionalAction, default=False,
        help="whether to say what each modality says by itself, and whether they disagree; default: no")  # fmt: skip
    add("--opinion_threshold", type=number(float, 0, 1),
        help="--opinions: how sure a modality must be to disagree; default: 0.5")  # fmt: skip

    add = parser.add_argument_group("why").add_argument
    add("--explain", action=argparse.BooleanOptionalAction, default=False,
        help="whether to say what each modality gave and, of a sample, what mattered in it; default: no")  # fmt: skip
    add("--label", help="the label to explain; default: the best one of each row")
    add("--explain_method", choices=METHODS, help="for one sample; default: integrated_gradients (needs captum)")
    add("--explain_steps", type=number(int, 1),
        help="points on the path of integrated gradients: more are slower and more exact; default: 32")  # fmt: skip
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
    _check_trust_usage(parser, args)
    _check_explanation_usage(parser, args)
    if args.output_file is not None and args.output_file.suffix.lower() not in WRITERS:
        allowed = ", ".join(WRITERS)
        parser.error(f"--output_file ends in `{args.output_file.suffix}`; allowed are {allowed}")


def _check_trust_usage(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    if args.opinion_threshold is not None and not args.opinions:
        parser.error("--opinion_threshold without --opinions: nobody is asked")
    if args.opinions and args.explain:
        parser.error("--opinions and --explain exclude each other: an explanation says what each subset says")
    if args.explain and args.reject_below is not None and args.data_file is None:
        parser.error("--reject_below and --explain of one sample exclude each other: an explanation is of a label")


def _check_explanation_usage(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    inside = [f"--{name}" for name in ("explain_method", "explain_steps") if getattr(args, name) is not None]
    if not args.explain and (given := [*inside, *(["--label"] if args.label is not None else [])]):
        parser.error(f"{', '.join(given)} without --explain: nothing is explained")
    if args.data_file is not None and inside:
        parser.error(
            f"{', '.join(inside)} and --data_file exclude each other: a table gets a number for each modality"
        )
    if args.explain_method == "attention" and args.explain_steps is not None:
        parser.error("--explain_steps belongs to integrated gradients: leave it out with --explain_method attention")


# -- one sample -------------------------------------------------------------------------------------------------------


def predict_sample(args: argparse.Namespace) -> list[dict] | dict:
    """Give the labels of one sample, best first, or its explanation."""
    given = {name: getattr(args, name) for name in ("text", "image", "audio")}
    sample = {name: value for name, value in given.items() if value is not None}
    if not args.explain:
        asked = {"reject_below": args.reject_below, "opinion_threshold": args.opinion_threshold}
        asked |= {"opinions": True} if args.opinions else {}
        asked = {name: value for name, value in asked.items() if value is not None}
        classify = load_classifier(args, "opinions_batch" if asked else None)
        return classify(sample, top_k=args.top_k, **asked)
    chosen = {"label": args.label, "method": args.explain_method, "num_steps": args.explain_steps}
    chosen = {name: value for name, value in chosen.items() if value is not None}
    return load_classifier(args, "explain").explain(sample, top_k=args.top_k, **chosen)


# What a pipeline of an older folder may lack: its method -> (what it is, the flags that need it).
LACKING = {
    "explain": ("explanations", "`--explain`"),
    "opinions_batch": ("opinions", "`--opinions` and `--reject_below`"),
}


def load_classifier(args: argparse.Namespace, method: str | None):
    """Give the model's pipeline, and refuse one from before it had this method."""
    from cli.loading import load_pipeline

    classify = load_pipeline(args.model, revision=args.revision, device=args.device)
    if method is not None and not hasattr(classify, method):
        what, flags = LACKING[method]
        raise ValueError(
            f"`{args.model}` was saved without {what}: copy `pipeline_mmfusion.py` and "
            f"`explanation_mmfusion.py` of this repository into it, or leave out {flags}."
        )
    return classify if args.task_name is None else classify.for_task(args.task_name)


# -- a table ----------------------------------------------------------------------------------------------------------


def predict_table(args: argparse.Namespace) -> int:
    """Score a table and write it; give the number of rows."""
    if args.output_file.exists() and not args.overwrite:
        raise ValueError(f"`{args.output_file}` exists: give another `--output_file`, or `--overwrite` to replace it.")
    require_writable(args.output_file, "--output_file")
    from torch.utils.data import DataLoader

    from cli.loading import load_model
    from cli.tables import open_table, own_columns
    from data import Collator, Columns, FusionDataset
    from metrics.subsets import problem_type
    from metrics.tasks import configs_of

    needed = "explain" if args.explain else "opinions_batch" if args.opinions else None
    classify = None if needed is None else load_classifier(args, needed)
    if classify is None:
        model, processor = load_model(args.model, revision=args.revision, device=args.device)
        model = model if args.task_name is None else model.for_task(args.task_name)
    else:
        model, processor = classify.model, classify.processor
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
    kept = own_columns(table, args.data_file, split=args.split, config_name=args.dataset_config_name)
    tasks = configs_of(model.config)
    if args.label is not None and None not in tasks:
        raise ValueError(f"`--label` is one of a task: say with --task_name of which, {', '.join(tasks)}")
    for name, config in tasks.items():
        refuse_numbers(args, name, problem_type(config))
        new_names = [*prediction_columns(problem_type(config), config.id2label, None), *more_names(args, model)]
        refuse_taken_names(args.data_file, kept.column_names, [titled(name, column) for column in new_names])

    loader = DataLoader(
        FusionDataset(table, None, processor, cache_bytes=0),
        args.batch_size,
        collate_fn=Collator(processor),
        num_workers=args.num_workers,
    )
    for name, (scores, more) in answered(args, model, classify, loader).items():
        for column, values in {**answer_columns(args, tasks[name], scores), **more}.items():
            kept = kept.append_column(titled(name, column), [values])
    with replacing(args.output_file) as path, WRITERS[args.output_file.suffix.lower()](path) as write:
        write(kept)
    return len(kept)


def titled(task: str | None, column: str) -> str:
    """Name a column that is added; of several tasks its name begins with the task's."""
    return column if task is None else f"{task}_{column}"


def answered(
    args: argparse.Namespace, model, classify, loader
) -> dict[str | None, tuple["np.ndarray", dict[str, list]]]:
    """Give for each task (rows, labels) probabilities or numbers, and further columns."""
    from metrics.tasks import configs_of

    if classify is None:
        return score_rows(model, loader)
    each = {name: classify if name is None else classify.for_task(name) for name in configs_of(model.config)}
    if args.explain:
        return {name: explain_table(one, loader, args.label) for name, one in each.items()}
    return {name: ask_table(args, one, loader) for name, one in each.items()}


def answer_columns(args: argparse.Namespace, config, scores: "np.ndarray") -> dict[str, list]:
    """Give the columns of a task's predictions, empty where they are refused."""
    from metrics.coverage import sureness
    from metrics.subsets import problem_type

    problem = problem_type(config)
    columns = prediction_columns(problem, config.id2label, scores, label_thresholds(config))
    if args.reject_below is not None:
        is_sure = (sureness(problem, scores, getattr(config, "thresholds", None)) >= args.reject_below).tolist()
        columns["prediction"] = [v if sure else None for v, sure in zip(columns["prediction"], is_sure, strict=True)]
    return columns


def score_rows(model, loader) -> dict[str | None, tuple["np.ndarray", dict[str, list]]]:
    """Give for each task (rows, labels) probabilities or numbers, and no further columns; the model runs once."""
    from metrics.subsets import predict_subsets, probabilities, problem_type, subset_name
    from metrics.tasks import configs_of

    everything = model.config.modalities
    logits = predict_subsets(model, loader, subsets=[everything]).logits[subset_name(everything)]
    scores, first = {}, 0
    for name, config in configs_of(model.config).items():  # their outputs stand side by side
        scores[name] = probabilities(problem_type(config), logits[:, first : first + config.num_labels]), {}
        first += config.num_labels
    return scores


def refuse_numbers(args: argparse.Namespace, task: str | None, problem: str) -> None:
    """Refuse to ask a model that predicts numbers how sure it is."""
    asked = {"--reject_below": args.reject_below is not None, "--opinions": args.opinions}
    if problem == "regression" and (flags := [flag for flag, is_asked in asked.items() if is_asked]):
        who = f"`{args.model}`" if task is None else f"the task `{task}` of `{args.model}`"
        other = "" if task is None else ", or name another by --task_name"
        raise ValueError(f"`{flags[0]}` needs probabilities, and {who} predicts numbers; leave it out{other}")


def more_names(args: argparse.Namespace, model) -> list[str]:
    """Give the columns that are asked for beside the prediction."""
    if args.opinions:
        return ["disagrees", *(f"opinion_{name}" for name in model.config.modalities)]
    return contribution_names(model) if args.explain else []


def contribution_names(model) -> list[str]:
    return [f"contribution_{name}" for name in model.config.modalities]


def ask_table(args: argparse.Namespace, classify, loader) -> tuple["np.ndarray", dict[str, list]]:
    """Give (rows, labels) scores, and what each modality by itself says, None where the row lacks it."""
    import torch
    from tqdm.auto import tqdm

    from metrics.subsets import MODALITIES, problem_type

    config, thresholds = classify.model.config, label_thresholds(classify.model.config)
    options = {} if args.opinion_threshold is None else {"opinion_threshold": args.opinion_threshold}
    parts = [classify.opinions_batch(batch, **options) for batch in tqdm(loader, desc="predicting", unit="batch")]
    whole = {name: torch.cat([part[name] for part in parts]).numpy() for name in parts[0]}
    columns = {"disagrees": whole["disagrees"].tolist()}
    for name in config.modalities:
        scores = whole["opinions"][:, MODALITIES.index(name)]  # (rows, labels)
        said = prediction_columns(problem_type(config), config.id2label, scores, thresholds)["prediction"]
        absent = (scores != scores).all(axis=1).tolist()  # NaN is not itself
        columns[f"opinion_{name}"] = [None if gone else value for value, gone in zip(said, absent, strict=True)]
    return whole["scores"], columns


def explain_table(classify, loader, label: str | None) -> tuple["np.ndarray", dict[str, list]]:
    """Give (rows, labels) scores, and a column for each modality: what it added, None where the row lacks it."""
    import torch
    from tqdm.auto import tqdm

    parts = [classify.explain_batch(batch, label) for batch in tqdm(loader, desc="explaining", unit="batch")]
    shares = torch.cat([part["contributions"] for part in parts]).T.tolist()  # rows of text, image, audio
    columns = {
        f"contribution_{name}": [None if value != value else value for value in values]  # NaN is not itself
        for name, values in zip(("text", "image", "audio"), shares, strict=True)
    }
    kept = {name: columns[name] for name in contribution_names(classify.model)}
    return torch.cat([part["scores"] for part in parts]).numpy(), kept


def run(args: argparse.Namespace) -> None:
    if args.data_file is None:
        print(json.dumps(predict_sample(args), ensure_ascii=False, indent=2))
    else:
        print(f"{predict_table(args):,} rows written to {args.output_file}")


def main(argv: list[str] | None = None) -> int:
    return exit_code(run, parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
